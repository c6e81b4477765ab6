//! What a connection speaks, told from its first bytes: TLS (with server name and ALPN), HTTP/1, HTTP/2, or opaque.
//!
//! Pure. The answer depends on the bytes alone, never on how they were cut into packets: a prefix either needs more or has
//! the answer of everything that begins with it. Input is bounded; what is too long to be told apart is refused, because
//! calling it opaque would let a peer choose a laxer filter chain by padding.

use crate::config::listener::TransportProtocol;

/// Most bytes looked at. A ClientHello or request line above it is refused.
pub const MAX_BYTES: usize = 16 << 10;

/// Longest method token looked for; longer words are no HTTP.
const MAX_METHOD_BYTES: usize = 32;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// A TLS ClientHello.
    pub tls: bool,
    /// HTTP, where it is not TLS.
    pub http: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detected {
    /// Transport, when TLS was looked for.
    pub transport: Option<TransportProtocol>,
    /// Server name of the ClientHello, in lower case.
    pub server_name: Option<String>,
    /// ALPN protocols of the ClientHello in the client's order, or `http/1.0`, `http/1.1`, `h2c`.
    pub application_protocols: Vec<String>,
}

/// The answer for the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes are needed.
    NeedMore,
    /// This is it, whatever follows.
    Found(Detected),
    /// Neither to be served nor to be called opaque.
    Refused(&'static str),
}

/// Tells what `bytes`, the first of a connection, are. With `Look` empty everything is found at once.
#[must_use]
pub fn classify(bytes: &[u8], look: Look) -> Verdict {
    let verdict = judge(bytes, look);
    if verdict == Verdict::NeedMore && bytes.len() >= MAX_BYTES {
        return Verdict::Refused("first message is longer than 16 KiB");
    }
    verdict
}

/// The answer when no byte follows: what is incomplete is opaque.
#[must_use]
pub fn classify_last(bytes: &[u8], look: Look) -> Verdict {
    match classify(bytes, look) {
        Verdict::NeedMore => Verdict::Found(opaque(look)),
        verdict => verdict,
    }
}

fn judge(bytes: &[u8], look: Look) -> Verdict {
    if look.tls {
        match client_hello(bytes) {
            Hello::No => {}
            Hello::NeedMore => return Verdict::NeedMore,
            Hello::Bad(why) => return Verdict::Refused(why),
            Hello::Yes(detected) => return Verdict::Found(detected),
        }
    }
    let mut found = opaque(look);
    if look.http {
        match http(bytes) {
            Http::No => {}
            Http::NeedMore => return Verdict::NeedMore,
            Http::Yes(protocol) => found.application_protocols.push(protocol.to_owned()),
        }
    }
    Verdict::Found(found)
}

fn opaque(look: Look) -> Detected {
    Detected { transport: look.tls.then_some(TransportProtocol::RawBuffer), ..Detected::default() }
}

enum Hello {
    No,
    NeedMore,
    Bad(&'static str),
    Yes(Detected),
}

/// Joins the handshake fragments of TLS records and reads the ClientHello (RFC 8446, sections 5.1 and 4.1.2).
fn client_hello(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // Decided byte by byte, so that a short prefix gets no other answer than the whole.
        for (at, allowed) in [(0, 22..=22), (1, 3..=3), (2, 0..=4_u8)] {
            match rest.get(at) {
                None => return Hello::NeedMore,
                Some(byte) if !allowed.contains(byte) => {
                    return if message.is_empty() { Hello::No } else { Hello::Bad("broken TLS record") };
                }
                Some(_) => {}
            }
        }
        let (Some(high), Some(low)) = (rest.get(3), rest.get(4)) else { return Hello::NeedMore };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > 1 << 14 {
            return if message.is_empty() { Hello::No } else { Hello::Bad("broken TLS record") };
        }
        let body = &rest[5..];
        message.extend_from_slice(&body[..length.min(body.len())]);
        match message.first() {
            None => return Hello::NeedMore,
            Some(1) => {}
            Some(_) => return Hello::No,
        }
        if let Some(size) = message.get(1..4) {
            let size = usize::from(size[0]) << 16 | usize::from(size[1]) << 8 | usize::from(size[2]);
            if size > MAX_BYTES {
                return Hello::Bad("ClientHello is longer than 16 KiB");
            }
            if let Some(hello) = message.get(4..4 + size) {
                return read_hello(hello).map_or(Hello::Bad("broken ClientHello"), Hello::Yes);
            }
        }
        if body.len() < length {
            return Hello::NeedMore;
        }
        rest = &body[length..];
    }
}

/// A cursor over the fields of a TLS structure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A vector with its length in one byte.
    fn vec8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// A vector with its length in two bytes.
    fn vec16(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.take(length.into())
    }
}

fn read_hello(hello: &[u8]) -> Option<Detected> {
    let mut fields = Fields(hello);
    fields.take(2 + 32)?;
    let _session = fields.vec8()?;
    let _suites = fields.vec16()?;
    let _compression = fields.vec8()?;
    let mut detected = Detected { transport: Some(TransportProtocol::Tls), ..Detected::default() };
    if fields.0.is_empty() {
        return Some(detected);
    }
    let mut extensions = Fields(fields.vec16()?);
    let (mut names, mut protocols) = (0, 0);
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let value = extensions.vec16()?;
        match kind {
            0 => {
                names += 1;
                detected.server_name = Some(server_name(value)?);
            }
            16 => {
                protocols += 1;
                detected.application_protocols = alpn(value)?;
            }
            _ => {}
        }
    }
    // RFC 8446 4.2: no extension twice; which one would count is not defined.
    (fields.0.is_empty() && names <= 1 && protocols <= 1).then_some(detected)
}

/// RFC 6066, section 3: exactly one host name, in visible ASCII.
fn server_name(value: &[u8]) -> Option<String> {
    let mut list = Fields(value);
    let mut entry = Fields(list.vec16()?);
    let kind = entry.take(1)?[0];
    let name = entry.vec16()?;
    let valid = kind == 0
        && list.0.is_empty()
        && entry.0.is_empty()
        && (1..=255).contains(&name.len())
        && name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name).ok()?;
    valid.then(|| name.to_ascii_lowercase())
}

/// RFC 7301, section 3.1. A protocol that is not text is kept out: no chain can ask for it.
fn alpn(value: &[u8]) -> Option<Vec<String>> {
    let mut outer = Fields(value);
    let mut list = Fields(outer.vec16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vec8()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.extend(std::str::from_utf8(protocol).ok().map(str::to_owned));
    }
    outer.0.is_empty().then_some(protocols)
}

enum Http {
    No,
    NeedMore,
    Yes(&'static str),
}

/// HTTP/2's preface, or an HTTP/1 request line with any method. Empty lines before it are passed over, as servers do.
fn http(bytes: &[u8]) -> Http {
    if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
        return Http::NeedMore;
    }
    if bytes.starts_with(PREFACE) {
        return Http::Yes("h2c");
    }
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = &bytes[start..];
    let end = line.iter().position(|b| *b == b'\n');
    let line = &line[..end.unwrap_or(line.len())];
    let mut words = line.splitn(3, |b| *b == b' ');
    let (method, target, version) = (words.next().unwrap_or_default(), words.next(), words.next());
    let visible = |b: &u8| *b > b' ' && *b != 0x7f;
    if !method.iter().all(|b| is_token(*b))
        || method.len() > MAX_METHOD_BYTES
        || (method.is_empty() && !line.is_empty())
        || target.is_some_and(|t| !t.iter().all(visible) || (version.is_some() && t.is_empty()))
    {
        return Http::No;
    }
    let version = version.unwrap_or_default();
    if end.is_some() {
        return match version.strip_suffix(b"\r").unwrap_or(version) {
            b"HTTP/1.0" => Http::Yes("http/1.0"),
            b"HTTP/1.1" => Http::Yes("http/1.1"),
            _ => Http::No,
        };
    }
    let possible = [&b"HTTP/1.0\r"[..], b"HTTP/1.1\r"].iter().any(|v| v.starts_with(version));
    if possible { Http::NeedMore } else { Http::No }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Look = Look { tls: true, http: true };

    /// A ClientHello message with these extensions, in records of `size` bytes.
    fn hello_of(extensions: &[(u16, Vec<u8>)], size: usize) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        let mut all = Vec::new();
        for (kind, value) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            all.extend(value);
        }
        body.extend(u16::try_from(all.len()).unwrap().to_be_bytes());
        body.extend(all);
        let mut message = vec![1];
        message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
        message.extend(body);
        let mut out = Vec::new();
        for part in message.chunks(size) {
            out.extend([22, 3, 1]);
            out.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            out.extend(part);
        }
        out
    }

    fn name(name: &[u8]) -> (u16, Vec<u8>) {
        let length = u16::try_from(name.len()).unwrap();
        let mut value = (length + 3).to_be_bytes().to_vec();
        value.push(0);
        value.extend(length.to_be_bytes());
        value.extend(name);
        (0, value)
    }

    fn protocols(all: &[&str]) -> (u16, Vec<u8>) {
        let mut list = Vec::new();
        for p in all {
            list.push(u8::try_from(p.len()).unwrap());
            list.extend(p.as_bytes());
        }
        let mut value = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
        value.extend(list);
        (16, value)
    }

    fn tls(server_name: Option<&str>, alpn: &[&str]) -> Detected {
        Detected {
            transport: Some(TransportProtocol::Tls),
            server_name: server_name.map(str::to_owned),
            application_protocols: alpn.iter().map(ToString::to_string).collect(),
        }
    }

    fn raw(protocol: &[&str]) -> Detected {
        Detected { transport: Some(TransportProtocol::RawBuffer), ..tls(None, protocol) }
    }

    fn samples() -> Vec<(Vec<u8>, Verdict)> {
        let found = Verdict::Found;
        let broken = Verdict::Refused("broken ClientHello");
        let mesh = [name(b"Bookstore.bookstore.svc.cluster.local"), (43, vec![2, 3, 4]), protocols(&["osm"])];
        let http1 = || found(raw(&["http/1.1"]));
        let mut samples = vec![
            (hello_of(&mesh, 9_999), found(tls(Some("bookstore.bookstore.svc.cluster.local"), &["osm"]))),
            (hello_of(&mesh, 1), found(tls(Some("bookstore.bookstore.svc.cluster.local"), &["osm"]))),
            (hello_of(&[], 64), found(tls(None, &[]))),
            (hello_of(&[protocols(&["http/1.1", "h2"])], 64), found(tls(None, &["http/1.1", "h2"]))),
            (hello_of(&[(21, vec![0; 15_000])], 16_000), found(tls(None, &[]))),
            (hello_of(&[name(b"a\0b")], 64), broken.clone()),
            (hello_of(&[name(b"")], 64), broken.clone()),
            (hello_of(&[name(b"a"), name(b"b")], 64), broken.clone()),
            (hello_of(&[(0, vec![0, 9, 0])], 64), broken),
            (hello_of(&[(21, vec![0; 30_000])], 16_000), Verdict::Refused("ClientHello is longer than 16 KiB")),
            (vec![22, 3, 1, 0, 2, 1, 0, 22, 9], Verdict::Refused("broken TLS record")),
            // A ServerHello, an alert, an empty record: no client of ours speaks so.
            (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], found(raw(&[]))),
            (vec![21, 3, 1, 0, 2, 1, 0], found(raw(&[]))),
            (vec![22, 3, 1, 0, 0], found(raw(&[]))),
        ];
        for (text, verdict) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", http1()),
            ("\r\n\r\nGET / HTTP/1.1\r\n", http1()),
            ("FOO /x?y HTTP/1.1\n", http1()),
            ("GET http://a/ HTTP/1.0\r\n", found(raw(&["http/1.0"]))),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n....", found(raw(&["h2c"]))),
            ("PRI * HTTP/2.0\r\n\r\nXX", found(raw(&[]))),
            ("PRI * HTTP/1.1\r\n", http1()),
            ("GET / HTTP/2.0\r\n", found(raw(&[]))),
            ("GET /\r\n", found(raw(&[]))),
            ("GET  / HTTP/1.1\r\n", found(raw(&[]))),
            ("GET / HTTP/1.1 x\r\n", found(raw(&[]))),
            ("SSH-2.0-OpenSSH\r\n", found(raw(&[]))),
            ("*1\r\n$4\r\nPING\r\n", found(raw(&[]))),
            ("\u{1}\u{2}\u{3}", found(raw(&[]))),
            (" GET / HTTP/1.1\r\n", found(raw(&[]))),
            ("G\0T / HTTP/1.1\r\n", found(raw(&[]))),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG", found(raw(&[]))),
            ("GET /aaa", Verdict::NeedMore),
            ("GET", Verdict::NeedMore),
            ("\r\n", Verdict::NeedMore),
            ("", Verdict::NeedMore),
        ] {
            samples.push((text.as_bytes().to_vec(), verdict));
        }
        let long_line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_BYTES));
        samples.push((long_line.into_bytes(), Verdict::Refused("first message is longer than 16 KiB")));
        samples.push((vec![b'\n'; MAX_BYTES], Verdict::Refused("first message is longer than 16 KiB")));
        samples
    }

    #[test]
    fn first_bytes_are_told_apart() {
        for (bytes, expected) in samples() {
            // A reader hands in no more than the bound.
            let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
            assert_eq!(classify(bytes, BOTH), expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
        }
    }

    #[test]
    fn every_prefix_needs_more_or_has_the_answer_of_the_whole() {
        for (bytes, expected) in samples() {
            let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
            let mut decided = false;
            let step = (bytes.len() / 500).max(1);
            for end in (0..=bytes.len()).step_by(step) {
                let verdict = classify(&bytes[..end], BOTH);
                decided |= verdict != Verdict::NeedMore;
                if decided {
                    assert_eq!(verdict, expected, "after {end} bytes of {:?}", &bytes[..bytes.len().min(20)]);
                }
            }
        }
    }

    #[test]
    fn only_what_is_looked_for_is_found() {
        let hello = hello_of(&[name(b"a")], 64);
        let none = Look { tls: false, http: false };
        assert_eq!(classify(&[], none), Verdict::Found(Detected::default()));
        assert_eq!(classify(&hello, Look { tls: false, http: true }), Verdict::Found(Detected::default()));
        let found = classify(b"GET / HTTP/1.1\r\n", Look { tls: true, http: false });
        assert_eq!(found, Verdict::Found(raw(&[])), "one byte that is not TLS decides");
    }

    #[test]
    fn what_ends_before_it_can_be_told_is_opaque() {
        assert_eq!(classify_last(b"GET /", BOTH), Verdict::Found(raw(&[])));
        assert_eq!(classify_last(&[22, 3], BOTH), Verdict::Found(raw(&[])));
    }

    #[test]
    fn random_bytes_never_panic_and_splits_agree() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = hello_of(&[name(b"a.b"), protocols(&["h2", "osm"])], random.usize(1..80));
            for _ in 0..random.usize(0..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let whole = classify(&bytes, BOTH);
            let part = classify(&bytes[..random.usize(..bytes.len())], BOTH);
            assert!(part == Verdict::NeedMore || part == whole, "{bytes:?}");
        }
    }
}
