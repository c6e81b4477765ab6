//! Who gets a certificate, what it is good for, and that it is renewed unnoticed.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
};
use prost::Message as _;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};

use crate::{scenario, steady::Steady};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let name = "only the right token of a pod of the mesh gets a certificate, and it opens nothing but the pod's own \
                configuration";
    scenario(trials, missing, name, certificates);
    let name = "certificates of oxmesh sidecars are renewed under load with no request and no connection lost [e2e_certmanager]";
    scenario(trials, missing, name, |cluster| renewed(cluster, DataPlane::Oxmesh));
    let name = "certificates of Envoy sidecars are renewed under load with no request and no connection lost [e2e_certmanager]";
    scenario(trials, missing, name, |cluster| renewed(cluster, DataPlane::Envoy));
}

async fn certificates(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    mesh.configure(json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}})).await?;
    let shop = mesh.namespace("shop").await?;
    let manifests = include_str!("data/identity.yaml").replace("{{app}}", &cluster.image("app"));
    shop.apply(&manifests).await?;
    let outside = Outside::new(cluster, &mesh).await?;
    for pod in ["pod/buyer", "pod/seller", "pod/plain"] {
        shop.wait(pod, "condition=Ready", LIMIT).await?;
    }
    let secrets = shop.get(["secrets"]).await?;
    ensure!(secrets["items"].as_array().is_some_and(Vec::is_empty), "a Secret in the pods' namespace: {secrets}");
    misnamed(cluster, &shop).await?;
    let key = KeyPair::generate()?;
    wrong_tokens(&outside, &shop, &request(&key, &[])?).await?;
    let token = outside.token(&shop, "buyer", "oxmesh.io", Some("buyer")).await?;
    match cluster.accounts_key() {
        Some(accounts) => forged_tokens(&outside, &token, &accounts, &request(&key, &[])?).await?,
        None => println!("not shown on a cluster whose key is not ours: expired and forged tokens are refused"),
    }

    // Names of others are not signed, whoever asks.
    let principal = format!("seller.{}.cluster.local", shop.name());
    let (status, answer) = outside.ask(Some(&token), &request(&key, &[principal])?).await?;
    ensure!((status, code(&answer)) == (403, "csr_forbidden"), "{status} {answer}");

    let (status, answer) = outside.ask(Some(&token), &request(&key, &[])?).await?;
    ensure!(status == 200, "{status} {answer}");
    let chain = |which: &str| answer[which].as_str().map(ToOwned::to_owned).context("a chain");
    let (sidecar, service) = (chain("sidecar")?, chain("service")?);
    verify(&outside.roots, &sidecar)?;
    verify(&outside.roots, &service)?;
    configuration(&outside, &shop, &sidecar, &service, &key.serialize_pem()).await?;

    // A deleted pod's token and certificate are worth nothing, nor are they to a pod of the same name.
    let uuid = uuid(&shop, "buyer").await?;
    shop.kubectl(["delete", "pod", "buyer"]).await?;
    outside.refused_since_gone("a deleted pod's token", &token).await?;
    shop.apply(&manifests).await?;
    shop.wait("pod/buyer", "condition=Ready", LIMIT).await?;
    outside.refused_since_gone("the token of a pod that was made anew", &token).await?;
    let said = outside.ads(&sidecar, &key.serialize_pem(), &uuid, LISTENER).await?;
    ensure!(said.contains("grpc-status: 7") && said.contains("no pod with label"), "a deleted pod's stream: {said}");
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// An account whose name reads as another's sidecar gets no pod.
async fn misnamed(cluster: &Cluster, shop: &Namespace) -> Result<()> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "misnamed"},
        "spec": {"serviceAccountName": "x.sidecar.buyer", "containers": [{"name": "app", "image": cluster.image("app")}]}});
    let refused = shop.apply(&pod.to_string()).await;
    let words = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(words.contains("spec.serviceAccountName: \"x.sidecar.buyer\" reads as another's sidecar"), "{words:?}");
    Ok(())
}

async fn wrong_tokens(outside: &Outside, shop: &Namespace, csr: &str) -> Result<()> {
    let elsewhere = outside.token(shop, "buyer", "https://kubernetes.default.svc", Some("buyer")).await?;
    let unbound = outside.token(shop, "buyer", "oxmesh.io", None).await?;
    let plain = outside.token(shop, "buyer", "oxmesh.io", Some("plain")).await?;
    let stranger = outside.token(&outside.ns, "default", "oxmesh.io", Some("curl")).await?;
    let cases = [
        ("no token", None, 401, "token_missing"),
        ("no token of this cluster", Some("garbage"), 401, "token_refused"),
        ("a token for another audience", Some(elsewhere.as_str()), 401, "token_refused"),
        ("a token that no pod is bound to", Some(unbound.as_str()), 403, "token_not_bound"),
        ("a pod without a sidecar", Some(plain.as_str()), 403, "pod_without_sidecar"),
        ("a pod outside the mesh", Some(stranger.as_str()), 403, "namespace_not_in_mesh"),
    ];
    for (what, token, status, code) in cases {
        outside.refused_with(what, token, csr, status, code).await?;
    }
    // The API server itself binds no token of one account to another's pod.
    let crossed = outside.token(shop, "seller", "oxmesh.io", Some("buyer")).await;
    ensure!(crossed.is_err(), "the API server has bound seller's token to buyer's pod");
    Ok(())
}

/// A good token is changed and signed anew: what is good of it stays so with the API server's key alone, and in its time.
async fn forged_tokens(outside: &Outside, token: &str, accounts: &Path, csr: &str) -> Result<()> {
    let jwt = Jwt::read(token)?;
    let (status, answer) = outside.ask(Some(&jwt.signed(accounts)?), csr).await?;
    ensure!(status == 200, "a token signed anew with the API server's own key: {status} {answer}");

    let mut expired = jwt.clone();
    for time in ["iat", "nbf", "exp"] {
        let at = expired.claims[time].as_i64().with_context(|| format!("no {time}: {}", jwt.claims))?;
        expired.claims[time] = json!(at - 3600);
    }
    outside.refused_with("an expired token", Some(&expired.signed(accounts)?), csr, 401, "token_refused").await?;

    let folder = tempfile::tempdir()?;
    let other = folder.path().join("other.key");
    openssl(Command::new("openssl").args(["genrsa", "-out"]).arg(&other).arg("2048"), "")?;
    outside.refused_with("a token of another key", Some(&jwt.signed(&other)?), csr, 401, "token_refused").await?;
    let (signed, _) = token.rsplit_once('.').context("no signature")?;
    outside.refused_with("a token without signature", Some(&format!("{signed}.")), csr, 401, "token_refused").await
}

/// What certificates of the buyer open over ADS.
async fn configuration(outside: &Outside, shop: &Namespace, sidecar: &str, service: &str, key: &str) -> Result<()> {
    let (own, other) = (uuid(shop, "buyer").await?, uuid(shop, "seller").await?);
    for (what, chain, node, words) in [
        ("another's node id", sidecar, &other, "node id"),
        ("the certificate for the mesh", service, &own, "is not <uuid>.sidecar"),
    ] {
        let said = outside.ads(chain, key, node, LISTENER).await?;
        ensure!(said.contains("grpc-status: 7") && said.contains(words), "{what}: {said}");
        ensure!(!said.contains("inbound-listener"), "{what} brought configuration: {said}");
    }
    let mut seen = String::new();
    for kind in [LISTENER, "envoy.config.cluster.v3.Cluster", "envoy.extensions.transport_sockets.tls.v3.Secret"] {
        seen += &outside.ads(sidecar, key, &own, kind).await?;
    }
    ensure!(seen.contains("inbound-listener") && seen.contains("/etc/oxmesh/identity/"), "{seen}");
    ensure!(!seen.contains("PRIVATE KEY"), "a private key was sent: {seen}");
    Ok(())
}

const LISTENER: &str = "envoy.config.listener.v3.Listener";

async fn renewed(cluster: &'static Cluster, data_plane: DataPlane) -> Result<()> {
    let values = ["osm.certificateProvider.serviceCertValidityDuration=12s"];
    let mesh = Installed::new(cluster, data_plane, &values).await?;
    let steady = Steady::start(cluster, &mesh, 30).await?;
    let serial = || async {
        let said = mesh.oxmesh(["proxy", "get", "certs", "client", "-n", steady.ns.name()]).await?;
        let shown: Value = serde_json::from_str(&said)?;
        let chains = shown["certificates"].as_array().into_iter().flatten().flat_map(|c| c["cert_chain"].as_array());
        let serials = chains.flatten().filter_map(|cert| cert["serial_number"].as_str().map(ToOwned::to_owned));
        Ok::<_, anyhow::Error>(serials.collect::<Vec<_>>())
    };
    let mut seen = std::collections::BTreeSet::new();
    seen.extend(serial().await?);
    ensure!(!seen.is_empty(), "the sidecar shows no certificate");
    let kept = seen.len();
    for _ in 0..40 {
        seen.extend(serial().await?);
        if seen.len() >= kept + 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ensure!(seen.len() >= kept + 2, "the client's sidecar was seen with these certificates alone: {seen:?}");
    steady.all_ok().await?;
    let count = match data_plane {
        DataPlane::Oxmesh => "oxmesh_csr_signed_count",
        DataPlane::Envoy => "osm_cert_issued_count",
    };
    let issued = mesh.metric(count).await?;
    ensure!(issued >= 6.0, "two sidecars, and {issued} certificates in 30 s");
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// A pod outside the mesh, from which the control plane is asked.
struct Outside {
    ns: Namespace,
    roots: String,
    server: String,
}

impl Outside {
    async fn new(cluster: &'static Cluster, mesh: &Installed) -> Result<Self> {
        let ns = cluster.namespace("outside").await?;
        let secret = [
            "-n",
            mesh.name(),
            "get",
            "secret",
            "osm-ca-bundle",
            "-o",
            "go-template={{index .data \"ca.crt\" | base64decode}}",
        ];
        let roots = cluster.kubectl(secret).await?;
        ns.kubectl(["create", "configmap", "ca", &format!("--from-literal=ca.crt={roots}")]).await?;
        ns.apply(&include_str!("data/outside.yaml").replace("{{app}}", &cluster.image("app"))).await?;
        ns.wait("pod/curl", "condition=Ready", LIMIT).await?;
        Ok(Self { ns, roots, server: format!("osm-controller.{}.svc.cluster.local", mesh.name()) })
    }

    /// A token of an account, good for ten minutes, as a kubelet gets it for a pod.
    async fn token(&self, ns: &Namespace, account: &str, audience: &str, pod: Option<&str>) -> Result<String> {
        let mut command = vec!["create", "token", account, "--audience", audience, "--duration", "10m"];
        let uid = match pod {
            Some(pod) => ns.kubectl(["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).await?,
            None => String::new(),
        };
        if let Some(pod) = pod {
            command.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod, "--bound-object-uid", &uid]);
        }
        Ok(ns.kubectl(command).await?.trim().to_owned())
    }

    /// Asks for a certificate: the status and what came.
    async fn ask(&self, token: Option<&str>, csr: &str) -> Result<(u16, Value)> {
        let (body, url) = (json!({ "csr": csr }).to_string(), format!("https://{}:15129/v1/certificates", self.server));
        let bearer = token.map(|token| format!("authorization: Bearer {token}"));
        let mut command = vec!["curl", "-sS", "--max-time", "10", "--cacert", "/ca/ca.crt", "-w", "\n%{http_code}"];
        if let Some(bearer) = &bearer {
            command.extend(["-H", bearer]);
        }
        command.extend(["-d", &body, &url]);
        let said = self.ns.exec("curl", command).await?;
        let (answer, status) = said.trim().rsplit_once('\n').context("a status")?;
        Ok((status.parse()?, serde_json::from_str(answer)?))
    }

    /// The API server remembers for some seconds that a token was good; then the controller itself misses the pod, as soon
    /// as it has heard of the end.
    async fn refused_since_gone(&self, what: &str, token: &str) -> Result<()> {
        let csr = request(&KeyPair::generate()?, &[])?;
        eventually(what, Duration::from_secs(10), || async {
            let (status, answer) = self.ask(Some(token), &csr).await?;
            let is_gone = matches!((status, code(&answer)), (401, "token_refused") | (403, "pod_unknown"));
            ensure!(is_gone, "{status} {answer}");
            brings_nothing(what, &answer)
        })
        .await
    }

    /// A request is refused with this status and this word.
    async fn refused_with(&self, what: &str, token: Option<&str>, csr: &str, status: u16, word: &str) -> Result<()> {
        let (got, answer) = self.ask(token, csr).await?;
        ensure!((got, code(&answer)) == (status, word), "{what}: {got} {answer}");
        brings_nothing(what, &answer)
    }

    /// Opens ADS with a certificate, as the sidecar `uuid`, asks for resources of a kind, and returns all the text in what
    /// came within some seconds, headers and trailers included.
    async fn ads(&self, chain: &str, key: &str, uuid: &str, kind: &str) -> Result<String> {
        let node = Some(Node { id: uuid.to_owned(), ..Node::default() });
        let type_url = format!("type.googleapis.com/{kind}");
        let request = DiscoveryRequest { node, type_url, ..DiscoveryRequest::default() }.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(request.len())?.to_be_bytes());
        bytes.extend(request);
        let mut octal = String::new();
        for byte in bytes {
            let _ = write!(octal, "\\{byte:03o}");
        }
        let path = "envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
        let url = format!("https://{}:15128/{path}", self.server);
        let script = "printf %s \"$1\" > /tmp/chain; printf %s \"$2\" > /tmp/key; (printf \"$3\"; sleep 1) | \
                      curl -sS -i --http2 --max-time 4 --cacert /ca/ca.crt --cert /tmp/chain --key /tmp/key -X POST -T . \
                      -H expect: -H content-type:application/grpc -H te:trailers \"$4\" 2>&1 | busybox tr -cd '\\n -~'";
        let said = self.ns.exec("curl", ["sh", "-c", script, "sh", chain, key, &octal, &url]).await?;
        // gRPC's words are escaped.
        Ok(said.replace("%20", " ").replace("%3C", "<").replace("%3E", ">"))
    }
}

/// A refusal says what to do, and has no certificate in it.
fn brings_nothing(what: &str, answer: &Value) -> Result<()> {
    ensure!(answer["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{what}: {answer}");
    ensure!(answer.get("sidecar").is_none() && answer.get("service").is_none(), "{what}: {answer}");
    Ok(())
}

fn code(answer: &Value) -> &str {
    answer["code"].as_str().unwrap_or_default()
}

/// A request for a certificate that asks for these names.
fn request(key: &KeyPair, names: &[String]) -> Result<String> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name = DistinguishedName::new();
    Ok(parameters.serialize_request(key)?.pem()?)
}

async fn uuid(ns: &Namespace, pod: &str) -> Result<String> {
    ns.kubectl(["get", "pod", pod, "-o", "jsonpath={.metadata.labels.osm-proxy-uuid}"]).await
}

/// By OpenSSL's judgement.
fn verify(roots: &str, chain: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ca, leaf) = (folder.path().join("ca.pem"), folder.path().join("leaf.pem"));
    fs::write(&ca, roots)?;
    fs::write(&leaf, chain)?;
    openssl(Command::new("openssl").args(["verify", "-CAfile"]).arg(&ca).arg(&leaf), "").map(drop)
}

/// What OpenSSL prints, given `input`.
fn openssl(command: &mut Command, input: &str) -> Result<Vec<u8>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let said = child.wait_with_output()?;
    ensure!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr));
    Ok(said.stdout)
}

/// A service account's token in its parts.
#[derive(Clone)]
struct Jwt {
    /// As it is written in the token.
    header: String,
    claims: Value,
}

impl Jwt {
    fn read(token: &str) -> Result<Self> {
        let (header, rest) = token.split_once('.').context("no header")?;
        let (claims, _) = rest.split_once('.').context("no claims")?;
        let known: Value = serde_json::from_slice(&BASE64.decode(header)?)?;
        ensure!(known["alg"] == "RS256" && known["kid"].is_string(), "signed otherwise: {known}");
        Ok(Self { header: header.to_owned(), claims: serde_json::from_slice(&BASE64.decode(claims)?)? })
    }

    /// The token that says this, by an RSA key.
    fn signed(&self, key: &Path) -> Result<String> {
        let signed = format!("{}.{}", self.header, BASE64.encode(self.claims.to_string()));
        let signature = openssl(Command::new("openssl").args(["dgst", "-sha256", "-sign"]).arg(key), &signed)?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }
}
