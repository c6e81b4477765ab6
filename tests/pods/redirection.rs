//! Redirection by sockets: what goes through the sidecar, what past it, and what nowhere.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use libtest_mimic::Trial;
use oxmesh::pod::{DataPlane, Exempt, Folder, Pod, PodSpec, Topology, TopologyOptions, User, until};

use crate::{tools, trial};

const LIMIT: Duration = Duration::from_secs(20);

/// Inbound and outbound go where they were going; each says so in the access log.
const BOOTSTRAP: &str = include_str!("data/passthrough.yaml");

async fn topology(exempt: Exempt) -> Topology {
    let folder = Folder::temporary().expect("a folder");
    let options = TopologyOptions { folder, binaries: tools(), exempt };
    Topology::new(options).await.expect("a topology")
}

fn spec(name: &str, data_plane: Option<DataPlane>) -> PodSpec {
    PodSpec {
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        data_plane,
        ..PodSpec::default()
    }
}

fn bootstrap(pod: &Pod, exempt: Exempt) -> PathBuf {
    let folder = pod.namespace().folder().join("bootstrap");
    fs::create_dir(&folder).expect("a new folder");
    let mark = match exempt {
        Exempt::Uid => "",
        Exempt::Mark => {
            "cluster_manager: {upstream_bind_config: {\
             socket_options: [{level: 1, name: 36, int_value: 1500, state: STATE_PREBIND}]}}"
        }
    };
    fs::write(folder.join("bootstrap.yaml"), BOOTSTRAP.replace("#MARK#", mark)).expect("a file");
    folder
}

async fn redirects(exempt: Exempt) {
    let topology = topology(exempt).await;
    let store = topology.pod(spec("store", Some(DataPlane::Envoy))).await.expect("a pod");
    let buyer = topology.pod(spec("buyer", Some(DataPlane::Envoy))).await.expect("a pod");
    let outside = topology.pod(spec("outside", None)).await.expect("a pod");
    let app = ["oxmesh", "app", "bookstore", "--identity", "v1"];
    let _app = store.spawn_app("app", &app, &[]).expect("an app");

    // Redirection comes before the sidecar: until it runs, nothing reaches the application.
    let page = format!("http://{}:14001/books-bought", store.ip());
    let curl = ["curl", "-sS", "--max-time", "5", "-D-", page.as_str()];
    until("the app's start", LIMIT, async || store.namespace().http_get("127.0.0.1:14001", "/").await)
        .await
        .expect("the app answers on loopback");
    let refused = outside.exec(&curl).await.expect_err("no sidecar, no way in");
    assert!(refused.to_string().contains("curl: (7)"), "{refused}");

    let mut sidecars = Vec::new();
    for pod in [&store, &buyer] {
        let sidecar = pod.spawn_sidecar(&bootstrap(pod, exempt), &["-l".into(), "error".into()]);
        sidecars.push(sidecar.expect("a sidecar"));
        let ready = until("readiness", LIMIT, async || pod.admin_get("/ready").await).await;
        assert_eq!(ready.expect("the admin server answers").0, StatusCode::OK);
    }
    let logs = |index: usize| fs::read_to_string(sidecars[index].log().expect("a file")).expect("a log");

    let answer = buyer.exec(&curl).await.expect("both sidecars pass it on");
    assert!(answer.contains("identity: v1"), "{answer}");
    let hop = format!("to {}:14001", store.ip());
    until("access logs", LIMIT, async || {
        let seen = logs(1).contains(&format!("outbound {hop}")) && logs(0).contains(&format!("inbound {hop}"));
        if seen { Ok(()) } else { Err(format!("{} {}", logs(0), logs(1))) }
    })
    .await
    .expect("the call went through both sidecars");

    // The same over IPv6.
    let v6 = store.ips()[1];
    let page = format!("http://[{v6}]:14001/books-bought");
    let answer = buyer.exec(&["curl", "-sS", "--max-time", "5", "-D-", &page]).await.expect("IPv6 passes");
    assert!(answer.contains("identity: v1"), "{answer}");
    until("access logs", LIMIT, async || {
        let hop = format!("to [{v6}]:14001");
        let seen = logs(1).contains(&format!("outbound {hop}")) && logs(0).contains(&format!("inbound {hop}"));
        if seen { Ok(()) } else { Err(format!("{} {}", logs(0), logs(1))) }
    })
    .await
    .expect("the IPv6 call went through both sidecars");

    // A pod that calls its own address from its sidecar comes in by the inbound side; an
    // application's own loopback does not pass the sidecar at all.
    let before = logs(0).lines().count();
    store.exec(&["curl", "-sS", "--max-time", "5", "http://127.0.0.1:14001/raw"]).await.expect("loopback");
    assert_eq!(logs(0).lines().count(), before);
}

async fn repeats() {
    let topology = topology(Exempt::Uid).await;
    let pod = topology.pod(spec("twice", Some(DataPlane::Envoy))).await.expect("a pod");
    let init = tools().find("oxmesh-iptables-init").expect("the init program");
    for save in ["iptables-save", "ip6tables-save"] {
        let rules = async || {
            let text = pod.namespace().exec(User::Root, &[save, "-t", "nat"]).await.expect("the rules");
            text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = rules().await;
        assert!(before.len() > 10, "{before:?}");
        pod.namespace().exec(User::Root, &[&init]).await.expect("a second run");
        assert_eq!(rules().await, before);
    }
}

async fn excludes() {
    let topology = topology(Exempt::Uid).await;
    let mut open = spec("open", Some(DataPlane::Envoy));
    open.redirect = vec!["--inbound-ports-exclude=14001".into()];
    let open = topology.pod(open).await.expect("a pod");
    let mut caller = spec("caller", Some(DataPlane::Envoy));
    caller.redirect = vec![format!("--outbound-cidrs-exclude={}/32,{}/128", open.ips()[0], open.ips()[1])];
    let caller = topology.pod(caller).await.expect("a pod");
    let _apps: Vec<_> = ["14001", "14002"]
        .map(|port| open.spawn_app(port, &["oxmesh", "app", "bookstore", "--port", port], &[]).expect("an app"))
        .into();
    // No sidecar runs: what is answered went past it, and nothing else is answered.
    for ip in open.ips() {
        let page = |port: u16| format!("http://{}/raw", std::net::SocketAddr::new(ip, port));
        until("the excluded port", LIMIT, async || caller.exec(&curl(&page(14001))).await)
            .await
            .expect("excluded on both sides");
        caller.exec(&curl(&page(14002))).await.expect_err("redirected to a sidecar that isn't there");
    }
    open.exec(&curl(&format!("http://{}:14001/raw", caller.ip()))).await.expect_err("redirected outbound");
}

fn curl(page: &str) -> [&str; 5] {
    ["curl", "-sSf", "--max-time", "5", page]
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

pub(crate) fn trials() -> Vec<Trial> {
    let needs = &["oxmesh", "oxmesh-iptables-init", "envoy"];
    vec![
        trial("redirection_takes_both_directions_and_families_through_the_sidecar_told_by_user_id", needs, || {
            run(redirects(Exempt::Uid));
        }),
        trial("redirection_takes_both_directions_and_families_through_the_sidecar_told_by_mark", needs, || {
            run(redirects(Exempt::Mark));
        }),
        trial("a_second_run_of_the_init_program_changes_nothing", needs, || run(repeats())),
        trial("excluded_ports_and_ranges_go_past_the_sidecar_and_nothing_else_does", needs, || run(excludes())),
    ]
}
