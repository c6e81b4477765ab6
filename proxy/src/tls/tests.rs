//! Handshakes between our two sides, and with plain rustls.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::{
    BuildError, ClientTls, Handshake, HandshakeError, ServerTls,
    testing::{Ca, common, downstream, upstream},
};
use crate::config::{
    matcher::StringMatch,
    tls::{CertificatePair, SanKind, SanMatch, TlsVersion},
};

fn san(kind: SanKind, value: &str) -> SanMatch {
    SanMatch { kind, matcher: StringMatch::exact(value) }
}

fn server(cert: CertificatePair, trust: Option<(&Ca, Vec<SanMatch>)>, required: bool) -> ServerTls {
    let (common, secrets) = common(Some(cert), trust.map(|(ca, names)| ca.validation(names)));
    ServerTls::build(&downstream(common, required), &secrets).unwrap()
}

fn client(cert: Option<CertificatePair>, trust: Option<(&Ca, Vec<SanMatch>)>, sni: Option<&str>) -> ClientTls {
    let (common, secrets) = common(cert, trust.map(|(ca, names)| ca.validation(names)));
    ClientTls::build(&upstream(common, sni), &secrets).unwrap()
}

type Outcome = Result<Handshake, HandshakeError>;

/// Runs a handshake and a byte each way; tells what each side saw. In TLS 1.3 a client learns of its refusal only then.
async fn meet(server: &ServerTls, client: &ClientTls) -> (Outcome, Outcome) {
    let (a, b) = duplex(64 * 1024);
    let serve = async {
        let (mut stream, handshake) = server.accept(a).await?;
        stream.write_all(b"!").await?;
        stream.read_u8().await?;
        Ok(handshake)
    };
    let ask = async {
        let (mut stream, handshake) = client.connect(b).await?;
        stream.read_u8().await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        Ok(handshake)
    };
    tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(serve, ask) }).await.expect("no stall")
}

fn refusal(outcome: Outcome) -> String {
    outcome.expect_err("must be refused").to_string()
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = Ca::new("mesh");
    let wanted = vec![san(SanKind::Dns, "server.ns.cluster.local")];
    let server = server(ca.named("server.ns.cluster.local"), Some((&ca, vec![])), true);
    let client =
        client(Some(ca.named("client.ns.cluster.local")), Some((&ca, wanted)), Some("svc.ns.svc.cluster.local"));
    let (served, asked) = meet(&server, &client).await;
    let (served, asked) = (served.unwrap(), asked.unwrap());
    assert_eq!(served.peer.unwrap().dns_sans, ["client.ns.cluster.local"]);
    assert_eq!(served.server_name.as_deref(), Some("svc.ns.svc.cluster.local"));
    assert_eq!(asked.peer.as_ref().unwrap().dns_sans, ["server.ns.cluster.local"]);
    assert_eq!(asked.version_word(), "TLSv1.3");
}

#[tokio::test]
async fn clients_are_refused_for_each_fault_of_their_certificate() {
    let ca = Ca::new("mesh");
    let other = Ca::new("other");
    let now = OffsetDateTime::now_utc();
    let day = time::Duration::days(1);
    let uri = |s: &str| SanType::URI(s.try_into().unwrap());
    type Edit<'a> = Box<dyn FnOnce(&mut CertificateParams) + 'a>;
    let cases: Vec<(&str, &Ca, Edit<'_>, &str)> = vec![
        ("another issuer", &other, Box::new(|_| {}), "not in the trust bundle"),
        ("expired", &ca, Box::new(move |p| (p.not_before, p.not_after) = (now - day * 2, now - day)), "expired"),
        ("future", &ca, Box::new(move |p| (p.not_before, p.not_after) = (now + day, now + day * 2)), "not valid yet"),
        ("authority", &ca, Box::new(|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), "refused"),
        (
            "server only",
            &ca,
            Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "extended key usage",
        ),
        (
            "two URIs",
            &ca,
            Box::new(move |p| p.subject_alt_names = vec![uri("spiffe://a/b"), uri("spiffe://a/c")]),
            "2 URI names",
        ),
        (
            "NUL",
            &ca,
            Box::new(|p| {
                p.subject_alt_names.clear();
                let der = vec![0x30, 8, 0x82, 6, b'a', b'b', 0, b'.', b'c', b'd'];
                p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], der)];
            }),
            "DNS name holds bytes",
        ),
        ("no names", &ca, Box::new(|p| p.subject_alt_names.clear()), "it has none"),
        (
            "wrong name",
            &ca,
            Box::new(|p| p.subject_alt_names = vec![SanType::DnsName("mallory".try_into().unwrap())]),
            "mallory",
        ),
    ];
    for (case, issuer, edit, words) in cases {
        let names = vec![san(SanKind::Dns, "alice"), san(SanKind::Uri, "spiffe://a/b")];
        let server = server(ca.named("server"), Some((&ca, names)), true);
        let good_but = issuer.leaf(|p| {
            p.subject_alt_names = vec![SanType::DnsName("alice".try_into().unwrap())];
            edit(p);
        });
        let (served, asked) = meet(&server, &client(Some(good_but), None, None)).await;
        let why = refusal(served);
        assert!(why.contains("peer certificate refused") && why.contains(words), "{case}: {why}");
        assert!(asked.is_err(), "{case}: the client must not think that it is connected");
    }
}

#[tokio::test]
async fn a_client_without_certificate_passes_only_where_it_is_optional() {
    let ca = Ca::new("mesh");
    let anonymous = client(None, None, None);
    let (served, _) = meet(&server(ca.named("s"), Some((&ca, vec![])), true), &anonymous).await;
    assert!(refusal(served).contains("presented none"));
    let (served, _) = meet(&server(ca.named("s"), Some((&ca, vec![])), false), &anonymous).await;
    assert_eq!(served.unwrap().peer, None);
}

#[tokio::test]
async fn an_optional_certificate_is_checked_when_it_is_sent() {
    let (ca, other) = (Ca::new("mesh"), Ca::new("other"));
    let (served, _) =
        meet(&server(ca.named("s"), Some((&ca, vec![])), false), &client(Some(other.named("c")), None, None)).await;
    assert!(refusal(served).contains("trust bundle"));
}

#[tokio::test]
async fn servers_are_checked_by_chain_and_names_never_by_sni() {
    let (ca, other) = (Ca::new("mesh"), Ca::new("other"));
    let server = server(ca.named("server.ns"), None, false);
    let ask = |trust: &Ca, names: Vec<SanMatch>, sni: &'static str| client(None, Some((trust, names)), Some(sni));
    let (_, asked) = meet(&server, &ask(&ca, vec![], "quite.another.name")).await;
    assert!(asked.is_ok());
    let (_, asked) = meet(&server, &ask(&ca, vec![san(SanKind::Dns, "x"), san(SanKind::Dns, "server.ns")], "x")).await;
    assert!(asked.is_ok(), "one matching name is enough");
    let (_, asked) = meet(&server, &ask(&ca, vec![san(SanKind::Dns, "x")], "server.ns")).await;
    let why = asked.unwrap_err();
    assert!(matches!(why, HandshakeError::PeerRefused { wrong_name: true, .. }), "{why}");
    assert!(why.to_string().contains("server.ns"));
    let (_, asked) = meet(&server, &ask(&ca, vec![san(SanKind::Uri, "server.ns")], "server.ns")).await;
    assert!(asked.is_err(), "a DNS name is not a URI");
    let (_, asked) = meet(&server, &ask(&other, vec![], "server.ns")).await;
    assert!(refusal(asked).contains("trust bundle"));
}

#[tokio::test]
async fn without_validation_context_a_server_is_not_verified_and_has_no_identity() {
    let ca = Ca::new("unknown");
    let (_, asked) = meet(&server(ca.named("s"), None, false), &client(None, None, None)).await;
    assert_eq!(asked.unwrap().peer, None);
}

#[tokio::test]
async fn a_server_without_alpn_ignores_the_clients_and_one_with_alpn_refuses_strangers() {
    let ca = Ca::new("mesh");
    let offering = |alpn: &[&str]| {
        let (mut common, secrets) = common(None, None);
        common.alpn = alpn.iter().map(|s| (*s).to_owned()).collect();
        ClientTls::build(&upstream(common, None), &secrets).unwrap()
    };
    let (served, asked) = meet(&server(ca.named("s"), None, false), &offering(&["osm"])).await;
    assert_eq!((served.unwrap().alpn, asked.unwrap().alpn), (None, None));

    let (mut common, secrets) = common(Some(ca.named("s")), None);
    common.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    let strict = ServerTls::build(&downstream(common, false), &secrets).unwrap();
    let (served, _) = meet(&strict, &offering(&["http/1.1", "h2"])).await;
    assert_eq!(served.unwrap().alpn.as_deref(), Some(&b"h2"[..]), "the server's order counts");
    let (served, _) = meet(&strict, &offering(&["osm"])).await;
    assert!(served.is_err());
}

#[tokio::test]
async fn sni_can_be_required() {
    let ca = Ca::new("mesh");
    let (common, secrets) = common(Some(ca.named("s")), None);
    let mut spec = downstream(common, false);
    spec.require_sni = true;
    let server = ServerTls::build(&spec, &secrets).unwrap();
    assert!(meet(&server, &client(None, None, Some("a.b"))).await.0.is_ok());
    assert!(meet(&server, &client(None, None, None)).await.0.is_err());
}

#[tokio::test]
async fn versions_and_suites_are_kept_to() {
    let ca = Ca::new("mesh");
    let with = |min, max, suites: &[&str]| {
        let (mut common, secrets) = common(Some(ca.named("s")), None);
        (common.params.min, common.params.max) = (min, max);
        common.params.cipher_suites = suites.iter().map(|s| (*s).to_owned()).collect();
        ServerTls::build(&downstream(common, false), &secrets)
    };
    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    let old = with(TlsVersion::V1_2, TlsVersion::V1_2, &[suite]).unwrap();
    let served = meet(&old, &client(None, None, None)).await.0.unwrap();
    assert_eq!(served.version_word(), "TLSv1.2");
    assert_eq!(served.cipher.unwrap().suite().as_str(), Some(suite));

    let (mut common, secrets) = common(None, None);
    common.params.min = TlsVersion::V1_3;
    let new_only = ClientTls::build(&upstream(common, None), &secrets).unwrap();
    assert!(meet(&old, &new_only).await.0.is_err());
    assert!(matches!(with(TlsVersion::V1_2, TlsVersion::V1_3, &["TLS_NULL"]), Err(BuildError::Context(_))));
    assert!(matches!(with(TlsVersion::V1_3, TlsVersion::V1_2, &[]), Err(BuildError::Context(_))));
}

/// Connects twice with a rustls client that resumes if it can.
async fn second_handshake(server: &ServerTls, ca: &Ca, cert: Option<&CertificatePair>) -> HandshakeKind {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match cert {
        Some(pair) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(&pair.chain_pem).unwrap()],
                PrivateKeyDer::from_pem_slice(&pair.key_pem).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut kind = None;
    for _ in 0..2 {
        let (a, b) = duplex(64 * 1024);
        let serve = async {
            let (mut stream, _) = server.accept(a).await.unwrap();
            stream.write_all(b"!").await.unwrap();
            stream.read_u8().await.unwrap();
        };
        let ask = async {
            let mut stream = connector.connect(ServerName::try_from("server").unwrap(), b).await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(b"?").await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        kind = tokio::join!(serve, ask).1;
    }
    kind.unwrap()
}

#[tokio::test]
async fn a_server_that_checks_clients_never_resumes() {
    let ca = Ca::new("mesh");
    let checking = server(ca.named("server"), Some((&ca, vec![])), true);
    assert_eq!(second_handshake(&checking, &ca, Some(&ca.named("c"))).await, HandshakeKind::Full);
    let plain = server(ca.named("server"), None, false);
    assert_eq!(second_handshake(&plain, &ca, None).await, HandshakeKind::Resumed);
}

#[test]
fn build_errors_name_the_secret() {
    let ca = Ca::new("mesh");
    let build = |cert: CertificatePair| {
        let (common, secrets) = common(Some(cert), None);
        ServerTls::build(&downstream(common, false), &secrets).unwrap_err().to_string()
    };
    let (one, two) = (ca.named("a"), ca.named("b"));
    let mixed = CertificatePair { chain_pem: one.chain_pem.clone(), key_pem: two.key_pem };
    assert_eq!(build(mixed), "secret cert: private key does not belong to the first certificate of the chain");
    let empty = CertificatePair { chain_pem: b"".to_vec().into(), key_pem: one.key_pem.clone() };
    assert_eq!(build(empty), "secret cert: certificate chain holds no certificate");
    let no_key = CertificatePair { chain_pem: one.chain_pem, key_pem: b"x".to_vec().into() };
    assert!(build(no_key).starts_with("secret cert: private key is not PEM"));

    let (common, mut secrets) = common(Some(ca.named("a")), Some(ca.validation(vec![])));
    secrets.validation = secrets.certificate.clone();
    let wrong = ServerTls::build(&downstream(common.clone(), false), &secrets).unwrap_err();
    assert_eq!(wrong.to_string(), "secret cert: is not a validation context");
    secrets.validation = None;
    assert!(matches!(ServerTls::build(&downstream(common, false), &secrets), Err(BuildError::Missing(_))));
}

#[test]
fn requiring_certificates_without_anything_to_check_them_fails_closed() {
    let ca = Ca::new("mesh");
    let (common, secrets) = common(Some(ca.named("a")), None);
    assert!(matches!(ServerTls::build(&downstream(common, true), &secrets), Err(BuildError::Context(_))));
}

#[tokio::test]
async fn a_default_validation_context_adds_its_names_to_the_dynamic_ca() {
    let ca = Ca::new("mesh");
    let server = server(ca.named("server.ns"), None, false);
    for (name, good) in [("server.ns", true), ("other.ns", false)] {
        let (mut common, secrets) = common(None, Some(ca.validation(vec![])));
        let mut names = ca.validation(vec![san(SanKind::Dns, name)]);
        names.trusted_ca_pem = Vec::new().into();
        common.default_validation = Some(Arc::new(names));
        let client = ClientTls::build(&upstream(common, None), &secrets).unwrap();
        assert_eq!(meet(&server, &client).await.1.is_ok(), good, "{name}");
    }
}

#[tokio::test]
async fn a_chain_of_a_hundred_is_refused_fast() {
    let root = Ca::new("root");
    let mut issuers = vec![root.below("0")];
    for i in 1..100 {
        let next = issuers[i - 1].below(&i.to_string());
        issuers.push(next);
    }
    let leaf = issuers[99].named("alice");
    let mut chain = leaf.chain_pem.to_vec();
    issuers.iter().rev().for_each(|ca| chain.extend_from_slice(ca.pem().as_bytes()));
    let long = CertificatePair { chain_pem: chain.into(), key_pem: leaf.key_pem };
    let server = server(root.named("s"), Some((&root, vec![])), true);
    let start = Instant::now();
    let (served, _) = meet(&server, &client(Some(long), None, None)).await;
    assert!(refusal(served).contains("too long"));
    assert!(start.elapsed() < Duration::from_secs(1), "an unoptimised build; path building would take far longer");
}

/// Another implementation on the other side. Sends "?" and expects "!"; tells whether that worked.
async fn openssl(address: std::net::SocketAddr, cert: Option<&CertificatePair>, more: &[&str]) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new("openssl");
    command.args(["s_client", "-quiet", "-connect", &address.to_string()]).args(more);
    if let Some(pair) = cert {
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
        std::fs::write(&chain, &pair.chain_pem).unwrap();
        std::fs::write(&key, &pair.key_pem).unwrap();
        command.arg("-cert").arg(chain).arg("-key").arg(key);
    }
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"?\n").await.unwrap();
    let mut byte = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    let got = tokio::time::timeout(Duration::from_secs(5), stdout.read(&mut byte)).await;
    drop(stdin);
    drop(stdout);
    let mut words = String::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), child.stderr.take().unwrap().read_to_string(&mut words)).await;
    (matches!(got, Ok(Ok(1))) && byte == *b"!", words)
}

#[tokio::test]
#[ignore = "needs the command openssl"]
async fn openssl_clients_agree_with_us() {
    let ca = Ca::new("mesh");
    let server = server(ca.named("server"), Some((&ca, vec![san(SanKind::Dns, "alice")])), true);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let Ok((mut stream, handshake)) = server.accept(tcp).await else { return };
                assert_eq!(handshake.alpn, None);
                let _ = stream.read_u8().await;
                let _ = stream.write_all(b"!").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    let (alice, mallory) = (ca.named("alice"), ca.named("mallory"));
    let stranger = Ca::new("other").named("alice");
    for (cert, more, good) in [
        (Some(&alice), &["-alpn", "osm", "-servername", "svc.ns.svc.cluster.local", "-tls1_3"][..], true),
        (Some(&alice), &["-alpn", "osm", "-tls1_2"][..], true),
        (Some(&alice), &["-tls1_1"][..], false),
        (Some(&mallory), &[][..], false),
        (Some(&stranger), &[][..], false),
        (None, &[][..], false),
        (None, &["-tls1_2"][..], false),
    ] {
        let (worked, words) = openssl(address, cert, more).await;
        assert_eq!(worked, good, "{more:?}: {words}");
    }
}
