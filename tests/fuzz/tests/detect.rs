//! Protocol detection and the ClientHello peek: the same verdict however the bytes are cut.

use bolero::check;
use oxmesh_proxy::net::detect::{Look, Verdict, classify};

const LOOKS: [Look; 3] =
    [Look { tls: true, http: true }, Look { tls: true, http: false }, Look { tls: false, http: true }];

#[test]
fn a_verdict_never_changes_when_more_bytes_come() {
    check!().with_iterations(5_000).with_type::<(Vec<u8>, u8)>().for_each(|(noise, kind)| {
        let bytes = opening(noise, *kind);
        for look in LOOKS {
            let whole = classify(&bytes, look);
            let mut settled = None;
            for end in 0..=bytes.len() {
                let verdict = classify(&bytes[..end], look);
                match &settled {
                    Some(first) => assert_eq!(&verdict, first, "{look:?}: {:?} at {end}", &bytes[..end]),
                    None if verdict != Verdict::NeedMore => settled = Some(verdict),
                    None => {}
                }
            }
            if let Some(settled) = settled {
                assert_eq!(settled, whole);
            }
        }
    });
}

/// The beginning of something, with noise in it: a ClientHello, a request line, the HTTP/2 preface, or noise alone.
fn opening(noise: &[u8], kind: u8) -> Vec<u8> {
    let mut bytes = match kind % 5 {
        0 => client_hello("store.shop.svc.cluster.local", &["osm", "h2"]),
        1 => client_hello("x", &[]),
        2 => b"GET /books HTTP/1.1\r\nhost: store\r\n\r\n".to_vec(),
        3 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        _ => return noise.to_vec(),
    };
    // Every third byte of the noise changes one of the opening.
    for change in noise.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes
}

/// A ClientHello of TLS 1.2 form with server name and ALPN.
fn client_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let mut protocols = Vec::new();
    for protocol in alpn {
        protocols.push(protocol.len() as u8);
        protocols.extend(protocol.as_bytes());
    }
    let mut extensions = Vec::new();
    let mut extension = |id: u16, body: Vec<u8>| {
        extensions.extend(id.to_be_bytes());
        extensions.extend((body.len() as u16).to_be_bytes());
        extensions.extend(body);
    };
    let mut names = ((name.len() + 3) as u16).to_be_bytes().to_vec();
    names.push(0);
    names.extend((name.len() as u16).to_be_bytes());
    names.extend(name.as_bytes());
    extension(0, names);
    if !alpn.is_empty() {
        extension(16, [(protocols.len() as u16).to_be_bytes().to_vec(), protocols].concat());
    }
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, 2, 0x13, 0x01, 1, 0]);
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((hello.len() as u16).to_be_bytes());
    message.extend(hello);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn a_whole_client_hello_is_found_with_its_name_and_protocols() {
    let Verdict::Found(detected) = classify(&client_hello("Store.Shop", &["osm", "h2"]), LOOKS[0]) else {
        panic!("not found")
    };
    assert_eq!(detected.server_name.as_deref(), Some("store.shop"));
    assert_eq!(detected.application_protocols, ["osm", "h2"]);
}
