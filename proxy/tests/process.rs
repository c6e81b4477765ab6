//! The program as an operator meets it: flags, exit codes, admin pages, signals. Ports come from the system.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_oxmesh-proxy"))
}

/// A listener on a free port, in front of `upstream`.
fn bootstrap(upstream: SocketAddr) -> String {
    format!(
        r#"
node: {{ id: here, cluster: tests }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
static_resources:
  listeners:
  - name: in
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: app }} }}] }}
          http_filters:
          - name: router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: {}, port_value: {} }} }}
"#,
        upstream.ip(),
        upstream.port()
    )
}

/// An application that answers each request when it is told to, or at once after the teller is gone.
struct App {
    address: SocketAddr,
    arrived: mpsc::Receiver<()>,
}

impl App {
    fn start(may_answer: mpsc::Receiver<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, arrived) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                while read_head(&mut stream).is_some() {
                    // The test may be over.
                    let _ = tell.send(());
                    let _ = may_answer.recv();
                    let _ = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody");
                }
            }
        });
        Self { address, arrived }
    }

    fn at_once() -> Self {
        Self::start(mpsc::channel().1)
    }
}

struct Proxy {
    child: Child,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Proxy {
    fn start(app: SocketAddr, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (config, address) = (directory.path().join("boot.yaml"), directory.path().join("admin"));
        std::fs::write(&config, bootstrap(app)).unwrap();
        let child = program()
            .arg("-c")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&address)
            .args(["--concurrency", "1"])
            .args(flags)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let admin = wait_for("the admin address", || std::fs::read_to_string(&address).ok()?.parse().ok());
        let proxy = Self { child, admin, _directory: directory };
        wait_for("readiness", || (proxy.get("/ready") == (200, "LIVE\n".to_owned())).then_some(()));
        proxy
    }

    fn get(&self, path: &str) -> (u16, String) {
        request(self.admin, "GET", path, "localhost")
    }

    fn post(&self, path: &str) -> (u16, String) {
        request(self.admin, "POST", path, "localhost")
    }

    fn listener(&self) -> SocketAddr {
        let (_, text) = self.get("/listeners");
        text.trim().strip_prefix("in::").unwrap().parse().unwrap()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        wait_for("the end of the process", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It has ended already where the test is about its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let (tick, start) = (mpsc::channel::<()>(), Instant::now());
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        let _ = tick.1.recv_timeout(Duration::from_millis(10));
    }
}

fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// Status and body of an exchange on a connection of its own.
fn request(to: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(to) else { return (0, String::new()) };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    // A cut connection shows as an answer without status.
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn file(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("boot.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_bad_bootstrap_is_one_line_and_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    for (text, why) in [
        ("node: {", "not valid YAML"),
        ("static_resources: { clusters: [{ name: x, frob: 1 }] }", "static_resources.clusters[0].frob"),
        ("static_resources: { clusters: [{ name: x, lb_policy: MAGLEV }] }", "lb_policy: MAGLEV not supported"),
    ] {
        let path = file(directory.path(), text);
        let output = run(&["-c", path.to_str().unwrap()]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.lines().count() == 1 && told.contains(why), "{told}");
    }
    assert_eq!(run(&["-c", "/does/not/exist"]).status.code(), Some(1));
    assert_eq!(run(&[]).status.code(), Some(1));
    assert_eq!(run(&["--restart-epoch", "1"]).status.code(), Some(1));
}

#[test]
fn validation_says_ok_and_binds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = bootstrap(taken.local_addr().unwrap());
    let port = taken.local_addr().unwrap().port().to_string();
    let path = file(directory.path(), &text.replace("port_value: 0", &format!("port_value: {port}")));
    let output = run(&["-c", path.to_str().unwrap(), "--mode", "validate"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("configuration '{}' OK\n", path.display()));
    assert_eq!(output.status.code(), Some(0));
    let serving = run(&["-c", path.to_str().unwrap(), "-l", "off"]);
    let told = String::from_utf8(serving.stderr).unwrap();
    assert!(serving.status.code() == Some(1) && told.contains("another process listens there"), "{told}");
}

#[test]
fn it_serves_and_its_pages_tell_of_it() {
    let app = App::at_once();
    let proxy = Proxy::start(app.address, &["--service-node", "from-flag"]);
    assert_eq!(request(proxy.listener(), "GET", "/", "any"), (200, "body".to_owned()));
    let json = |path: &str| serde_json::from_str::<serde_json::Value>(&proxy.get(path).1).unwrap();
    let info = json("/server_info");
    assert_eq!((&info["state"], &info["node"]["id"]), (&"LIVE".into(), &"from-flag".into()));
    let configs = json("/config_dump?include_eds");
    let types: Vec<&str> = configs["configs"].as_array().unwrap().iter().filter_map(|c| c["@type"].as_str()).collect();
    let order = ["Bootstrap", "Clusters", "Endpoints", "Listeners", "ScopedRoutes", "Routes", "Secrets"];
    let order = order.map(|kind| format!("type.googleapis.com/envoy.admin.v3.{kind}ConfigDump"));
    assert_eq!(types, order);
    assert_eq!(json("/config_dump?resource=static_clusters")["configs"][0]["cluster"]["name"], "app");
    assert!(proxy.get("/clusters").1.contains(&format!("app::{}::rq_total::1\n", app.address)));
    assert!(proxy.get("/stats?filter=^cluster.app.upstream_rq_total").1.contains("cluster.app.upstream_rq_total: 1\n"));
    let prometheus = proxy.get("/stats/prometheus").1;
    assert!(prometheus.contains("envoy_cluster_upstream_rq_total{envoy_cluster_name=\"app\"} 1\n"), "{prometheus}");
    for (path, status) in [("/nothing", 404), ("/stats?frob=1", 400), ("/stats?filter=(", 400), ("/help", 200)] {
        assert_eq!(proxy.get(path).0, status, "{path}");
    }
}

#[test]
fn levers_are_post_only_and_not_for_hosts_with_other_names() {
    let proxy = Proxy::start(App::at_once().address, &[]);
    assert_eq!(proxy.get("/quitquitquit"), (405, "Method GET not allowed, POST required.\n".to_owned()));
    assert_eq!(request(proxy.admin, "POST", "/quitquitquit", "evil.example").0, 403);
    assert!(proxy.post("/logging?upstream=debug").1.contains("  upstream: debug\n"));
    assert_eq!(proxy.post("/logging?level=loud").0, 400);
    assert_eq!(proxy.post("/healthcheck/fail").1, "OK\n");
    assert_eq!(proxy.get("/ready"), (503, "DRAINING\n".to_owned()));
    assert_eq!(proxy.post("/healthcheck/ok").1, "OK\n");
    assert_eq!(proxy.get("/ready").0, 200);
    let listener = proxy.listener();
    assert_eq!(proxy.post("/drain_listeners?inboundonly").0, 200);
    assert_eq!(request(listener, "GET", "/", "any").0, 200, "its direction is not inbound");
    assert_eq!(proxy.post("/drain_listeners").0, 200);
    wait_for("the listener's end", || TcpStream::connect(listener).is_err().then_some(()));
    assert_eq!(proxy.get("/ready").0, 200);
    let mut proxy = proxy;
    assert_eq!(proxy.post("/quitquitquit").1, "OK\n");
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn sigterm_lets_the_open_request_finish_takes_no_new_one_and_exits_0() {
    let (answer, may_answer) = mpsc::channel();
    let app = App::start(may_answer);
    let mut proxy = Proxy::start(app.address, &["--shutdown-grace", "60s"]);
    let listener = proxy.listener();
    let open = std::thread::spawn(move || request(listener, "GET", "/", "any"));
    app.arrived.recv_timeout(PATIENCE).unwrap();
    proxy.signal("TERM");
    wait_for("the listener's end", || TcpStream::connect(listener).is_err().then_some(()));
    assert_eq!(proxy.get("/ready"), (503, "DRAINING\n".to_owned()));
    answer.send(()).unwrap();
    assert_eq!(open.join().unwrap(), (200, "body".to_owned()));
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn what_does_not_finish_in_the_grace_is_cut() {
    let (_answer, may_answer) = mpsc::channel();
    let app = App::start(may_answer);
    let mut proxy = Proxy::start(app.address, &["--shutdown-grace", "50ms"]);
    let listener = proxy.listener();
    let open = std::thread::spawn(move || request(listener, "GET", "/", "any"));
    app.arrived.recv_timeout(PATIENCE).unwrap();
    proxy.signal("INT");
    assert_eq!(open.join().unwrap().0, 0);
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_answer, may_answer) = mpsc::channel();
    let app = App::start(may_answer);
    let mut proxy = Proxy::start(app.address, &["--shutdown-grace", "1h"]);
    let listener = proxy.listener();
    let open = std::thread::spawn(move || request(listener, "GET", "/", "any"));
    app.arrived.recv_timeout(PATIENCE).unwrap();
    proxy.signal("TERM");
    wait_for("the listener's end", || TcpStream::connect(listener).is_err().then_some(()));
    proxy.signal("USR1");
    assert_eq!(proxy.get("/ready").0, 503, "that one is about logs");
    proxy.signal("TERM");
    assert_eq!(proxy.exit_code(), Some(0));
    assert_eq!(open.join().unwrap().0, 0);
}

/// A proxy that has taken in SIGTERM and serves on for `delay`.
fn serving_on(delay: &str) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let flags = ["--shutdown-delay", delay, "--log-path", log.to_str().unwrap()];
    let proxy = Proxy::start(App::at_once().address, &flags);
    proxy.signal("TERM");
    wait_for("its word", || std::fs::read_to_string(&log).ok().filter(|text| text.contains("serving on")));
    proxy
}

#[test]
fn with_a_delay_it_serves_on_after_sigterm_until_the_delay_is_over() {
    let start = Instant::now();
    let mut proxy = serving_on("2");
    assert_eq!(request(proxy.listener(), "GET", "/", "any"), (200, "body".to_owned()));
    assert_eq!(proxy.get("/ready").0, 200);
    assert_eq!(proxy.exit_code(), Some(0));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn what_has_never_been_ready_has_no_delay() {
    let directory = tempfile::tempdir().unwrap();
    let address = directory.path().join("admin");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ads = "dynamic_resources: { ads_config: { api_type: GRPC, transport_api_version: V3, \
               grpc_services: [{ envoy_grpc: { cluster_name: app } }] }, lds_config: { ads: {} }, cds_config: { ads: {} } }";
    let http2 = "type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }";
    let text = format!("{}{ads}\n", bootstrap(nobody).replace("type: STATIC", http2));
    let config = file(directory.path(), &text);
    let flags = ["--shutdown-delay", "1h", "--admin-address-path", address.to_str().unwrap()];
    let child = program().arg("-c").arg(config).args(flags).stderr(Stdio::null()).spawn().unwrap();
    let admin = wait_for("the admin address", || std::fs::read_to_string(&address).ok()?.parse().ok());
    let mut proxy = Proxy { child, admin, _directory: directory };
    assert_eq!(proxy.get("/ready").0, 503);
    proxy.signal("TERM");
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn the_delay_ends_at_quitquitquit_and_at_a_second_signal() {
    let mut proxy = serving_on("1h");
    assert_eq!(proxy.post("/quitquitquit").0, 200);
    assert_eq!(proxy.exit_code(), Some(0));
    let mut proxy = serving_on("1h");
    proxy.signal("INT");
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn sigusr1_reopens_the_log_and_sighup_does_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let proxy = Proxy::start(App::at_once().address, &["--log-path", log.to_str().unwrap()]);
    wait_for("log lines", || std::fs::read_to_string(&log).ok().filter(|text| text.contains("serving")));
    std::fs::rename(&log, directory.path().join("log.1")).unwrap();
    proxy.signal("HUP");
    proxy.signal("USR1");
    wait_for("a new log file", || log.exists().then_some(()));
    assert_eq!(proxy.get("/ready").0, 200);
}
