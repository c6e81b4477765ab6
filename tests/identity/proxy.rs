//! The proxy program as a sidecar that makes its own key.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use oxmesh::pod::{Binaries, DataPlane};
use oxmesh_tests::{eventually, mesh::tools};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
};

use crate::plane::{NAME, Plane};

const LIMIT: Duration = Duration::from_secs(60);

/// A running sidecar, killed when dropped.
pub(crate) struct Sidecar {
    folder: tempfile::TempDir,
    identity: PathBuf,
    roots: String,
    name: String,
    child: Child,
    inbound: Mutex<Option<SocketAddr>>,
}

impl Sidecar {
    /// Starts with this token.
    pub(crate) fn start(plane: &Plane, token: &str) -> Self {
        Self::start_with(plane, token, plane.roots_pem(), NAME)
    }

    /// Starts with other roots, or another name of the signing server.
    pub(crate) fn start_with(plane: &Plane, token: &str, roots: &str, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), token).unwrap();
        let identity = plane.identity_dir();
        let _ = fs::remove_dir_all(&identity);
        let child = spawn(plane, folder.path(), &identity, roots, name);
        let inbound = Mutex::default();
        Self { folder, identity, roots: roots.to_owned(), name: name.to_owned(), child, inbound }
    }

    /// Ends the process and starts another over the same files, as a kubelet does.
    pub(crate) fn restart(&mut self, plane: &Plane) {
        self.child.start_kill().unwrap();
        let _ = fs::remove_file(self.folder.path().join("admin"));
        self.child = spawn(plane, self.folder.path(), &self.identity, &self.roots, &self.name);
    }

    /// Puts another token in place of the first.
    pub(crate) fn token(&self, token: &str) {
        fs::write(self.folder.path().join("token"), token).unwrap();
    }

    pub(crate) fn identity(&self) -> &Path {
        &self.identity
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until it serves, and finds out where.
    pub(crate) async fn ready(&self) {
        let address = eventually("the sidecar is ready", LIMIT, || async {
            let (status, body) = self.admin("/ready").await;
            ensure!(status == 200, "{status} {body}");
            let (_, listeners) = self.admin("/listeners").await;
            let address =
                listeners.lines().find_map(|line| line.strip_prefix("inbound::")).context("no listener yet")?;
            Ok(address.parse()?)
        });
        let address: anyhow::Result<SocketAddr> = address.await;
        *self.inbound.lock() = Some(address.with_context(|| self.log()).unwrap());
    }

    /// Where it listens; known after [`Self::ready`].
    pub(crate) fn inbound(&self) -> SocketAddr {
        self.inbound.lock().unwrap()
    }

    /// A page of the admin interface; 0 as long as there is none.
    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        self.page(path).await.unwrap_or_default()
    }

    async fn page(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let address: SocketAddr = fs::read_to_string(self.folder.path().join("admin"))?.parse()?;
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
    }

    /// A statistic by its exact name.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let (_, text) = self.admin("/stats").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
        value.unwrap_or_else(|| panic!("no series {name} in {text}"))
    }
}

fn spawn(plane: &Plane, folder: &Path, identity: &Path, roots: &str, name: &str) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let program = Binaries::beside_self().with_folder(tools().join("bin")).find(DataPlane::Oxmesh.program()).unwrap();
    Command::new(program)
        .args(["--config-yaml", &bootstrap(plane.ads, identity).to_string(), "--concurrency", "1"])
        .arg("--admin-address-path")
        .arg(folder.join("admin"))
        .args(["--identity-server", &format!("https://{}", plane.signer), "--identity-server-name", name])
        .arg("--identity-token")
        .arg(folder.join("token"))
        .arg("--identity-dir")
        .arg(identity)
        .env("OXMESH_TRUST_BUNDLE", roots)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What the injector gives a sidecar: all secrets are files of the identity directory.
fn bootstrap(ads: SocketAddr, identity: &Path) -> Value {
    const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let file = |name: &str| json!({ "path": identity.join(name) });
    json!({
        "node": { "id": "u1.sidecar.buyer.shop.cluster.local", "cluster": "buyer.shop" },
        "admin": { "address": address(0) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "osm-controller" } }],
            },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [{
            "name": "osm-controller",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "osm-controller",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(ads.port()) } }] }],
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"),
                    "sni": NAME,
                    "common_tls_context": {
                        "alpn_protocols": ["h2"],
                        "tls_certificate_sds_secret_configs": [
                            { "name": "tls_sds", "sds_config": file("tls_certificate_sds_secret.yaml") },
                        ],
                        "validation_context_sds_secret_config": {
                            "name": "validation_context_sds",
                            "sds_config": file("validation_context_sds_secret.yaml"),
                        },
                    },
                },
            },
        }] },
    })
}
