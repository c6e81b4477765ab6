//! Chains that terminate TLS, and access control by identity.

use super::*;
use crate::{
    config::{
        listener::ListenerFilterKind::TlsInspector,
        listener::TransportProtocol,
        matcher::StringMatch,
        rbac::{Action, NetworkRbac, Permission, Policy, Principal, Rbac},
    },
    tls::{
        ClientTls,
        testing::{Ca, common, downstream, upstream},
    },
};

const SERVER: &str = "store.apps.svc.cluster.local";

/// A mesh-like listener: TLS with client certificates, only `buyer` may pass.
async fn mesh(ca: &Ca) -> Plan {
    let (context, secrets) = common(Some(ca.named("store")), Some(ca.validation(Vec::new())));
    let policy = Policy {
        permissions: vec![Permission::Any],
        principals: vec![Principal::Authenticated(Some(StringMatch::exact("buyer")))],
    };
    let rules = Rbac { action: Action::Allow, policies: [("p".to_owned(), policy)].into() };
    let rbac = NetworkRbac { stat_prefix: "network-".into(), rules: Some(rules) };
    let mut chain = tcp_chain(proxy_to("c"));
    chain.matcher = ChainMatch {
        transport_protocol: Some(TransportProtocol::Tls),
        server_names: vec![SERVER.to_owned()],
        ..ChainMatch::default()
    };
    chain.tls = Some((downstream(context, true), Some(secrets)));
    chain.filters.push(NetworkFilter::Rbac(Arc::new(rbac)));
    Plan::new(vec![chain]).cluster(&[shouter().await]).inspect(&[TlsInspector])
}

/// Speaks TLS as `name`; what the proxy says, or why there was no answer.
async fn talk_as(proxy: &Proxy, ca: &Ca, name: Option<&str>) -> Result<Vec<u8>, String> {
    let (context, secrets) = common(name.map(|n| ca.named(n)), Some(ca.validation(Vec::new())));
    let tls = ClientTls::build(&upstream(context, Some(SERVER)), &secrets).unwrap();
    let (mut stream, _) = in_time(tls.connect(proxy.connect().await)).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(b"secret").await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut answer).await
    };
    in_time(talk).await.map_err(|e| e.to_string())?;
    Ok(answer)
}

#[tokio::test]
async fn a_peer_with_the_right_identity_passes() {
    let ca = Ca::new("root");
    let proxy = mesh(&ca).await.start();
    assert_eq!(talk_as(&proxy, &ca, Some("buyer")).await.unwrap(), b"SECRET");
    for (name, value) in [
        ("network-.rbac.allowed", 1),
        ("listener.l.ssl.handshake", 1),
        ("listener.l.ssl.versions.TLSv1.3", 1),
        ("listener.l.ssl.connection_error", 0),
    ] {
        assert_eq!(proxy.stat(name), value, "{name}");
    }
    assert_eq!(proxy.log(1).await, ["- - - 6 6 c chain0 1"]);
}

#[tokio::test]
async fn a_peer_with_another_identity_sees_an_end_and_the_upstream_nothing() {
    let ca = Ca::new("root");
    let proxy = mesh(&ca).await.start();
    assert_eq!(talk_as(&proxy, &ca, Some("thief")).await.unwrap(), b"");
    assert_eq!(
        proxy.log(1).await,
        ["- rbac_access_denied_matched_policy[none] rbac_access_denied_matched_policy[none] 0 0 - chain0 0"]
    );
    assert_eq!(proxy.stat("network-.rbac.denied"), 1);
    assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 0);
}

#[tokio::test]
async fn a_peer_without_or_with_a_foreign_certificate_gets_no_handshake() {
    let ca = Ca::new("root");
    let proxy = mesh(&ca).await.start();
    assert!(talk_as(&proxy, &ca, None).await.is_err());
    proxy.until("listener.l.ssl.fail_verify_no_cert", 1).await;
    let (context, secrets) = common(Some(Ca::new("other").named("buyer")), Some(ca.validation(Vec::new())));
    let tls = ClientTls::build(&upstream(context, Some(SERVER)), &secrets).unwrap();
    if let Ok((mut stream, _)) = in_time(tls.connect(proxy.connect().await)).await {
        // In TLS 1.3 the client learns of the refusal only when it reads.
        assert!(in_time(stream.read_u8()).await.is_err());
    }
    proxy.until("listener.l.ssl.fail_verify_error", 1).await;
    assert_eq!(proxy.stat("listener.l.ssl.handshake"), 0);
    assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 0);
    assert_eq!(proxy.log(2).await.len(), 2);
}

#[tokio::test]
async fn plaintext_and_other_server_names_have_no_chain() {
    let ca = Ca::new("root");
    let proxy = mesh(&ca).await.start();
    let mut client = proxy.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(read_all(&mut client).await.is_err());
    let (context, secrets) = common(Some(ca.named("buyer")), Some(ca.validation(Vec::new())));
    let tls = ClientTls::build(&upstream(context, Some("other.apps.svc.cluster.local")), &secrets).unwrap();
    assert!(in_time(tls.connect(proxy.connect().await)).await.is_err());
    assert_eq!(proxy.log(2).await, ["NR filter_chain_not_found - 0 0 - - 0"; 2]);
}

#[tokio::test]
async fn a_chain_whose_secrets_have_not_come_is_closed_and_never_served_in_plaintext() {
    let ca = Ca::new("root");
    let mut plan = mesh(&ca).await;
    let chain = &mut plan.chains[0];
    chain.matcher = ChainMatch::default();
    chain.tls.as_mut().unwrap().1 = None;
    let proxy = plan.start();
    let mut client = proxy.connect().await;
    client.write_all(b"plain").await.unwrap();
    let answer = read_all(&mut client).await.unwrap_or_default();
    assert_eq!(answer, b"");
    assert_eq!(proxy.log(1).await, ["- tls_secrets_not_ready tls_secrets_not_ready 0 0 - chain0 0"]);
    assert_eq!(proxy.stat("listener.l.server_ssl_socket_factory.downstream_context_secrets_not_ready"), 1);
}

#[tokio::test]
async fn a_stalled_handshake_ends_at_its_deadline() {
    let ca = Ca::new("root");
    let mut plan = mesh(&ca).await;
    plan.filters.clear();
    plan.chains[0].matcher = ChainMatch::default();
    plan.chains[0].handshake_timeout = Duration::from_millis(50);
    let proxy = plan.start();
    let mut client = proxy.connect().await;
    let _ = read_all(&mut client).await;
    assert_eq!(proxy.log(1).await, ["- tls_handshake_timed_out tls_handshake_timed_out 0 0 - chain0 0"]);
    assert_eq!(proxy.stat("listener.l.downstream_cx_transport_socket_connect_timeout"), 1);
}

#[tokio::test]
async fn a_chain_of_http_is_served_over_tls() {
    let ca = Ca::new("root");
    let mut plan = mesh(&ca).await;
    plan.chains[0].terminal = Terminal::Http(Arc::new(crate::http::testing::manager()));
    let proxy = plan.start();
    let (context, secrets) = common(Some(ca.named("buyer")), Some(ca.validation(Vec::new())));
    let tls = ClientTls::build(&upstream(context, Some(SERVER)), &secrets).unwrap();
    let (mut stream, _) = in_time(tls.connect(proxy.connect().await)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    in_time(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "no route table has come: {answer}");
    assert_eq!(proxy.log(1).await, Vec::<String>::new(), "the listener logs no connection that was served");
}

#[tokio::test]
async fn a_client_hello_that_comes_byte_by_byte_is_served() {
    let ca = Ca::new("root");
    let proxy = mesh(&ca).await.start();
    // A relay that cuts what the client sends into single bytes.
    let address = proxy.address;
    let slicer = server(move |mut client| async move {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (mut from_proxy, mut to_proxy) = tcp.split();
        let (mut from_client, mut to_client) = client.split();
        let forth = async {
            while let Ok(byte) = from_client.read_u8().await {
                to_proxy.write_all(&[byte]).await?;
                to_proxy.flush().await?;
                tokio::task::yield_now().await;
            }
            to_proxy.shutdown().await
        };
        let _ = tokio::join!(forth, tokio::io::copy(&mut from_proxy, &mut to_client));
    })
    .await;
    let (context, secrets) = common(Some(ca.named("buyer")), Some(ca.validation(Vec::new())));
    let tls = ClientTls::build(&upstream(context, Some(SERVER)), &secrets).unwrap();
    let tcp = TcpStream::connect(slicer).await.unwrap();
    let (mut stream, _) = in_time(tls.connect(tcp)).await.unwrap();
    stream.write_all(b"slow").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    in_time(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"SLOW");
}
