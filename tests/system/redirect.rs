//! Redirection, proven by sockets in namespaces: who is redirected, who is not, in both families.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::{Binaries, DataPlane, Exempt, Folder, Pod, PodSpec, Topology, TopologyOptions, User};
use oxmesh_tests::mesh::Planes;

use crate::ours;

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    ours(trials, "inbound and outbound connections reach the sidecar's ports, in both families", None, redirected);
    ours(trials, "excluded ports and ranges, loopback and the sidecar's own user pass by", None, passed_by);
    ours(trials, "a second run of the init program changes nothing", None, idempotent);
}

/// Two pods, one with redirection and listeners in a sidecar's place that say which port they are.
async fn pods(options: &[&str]) -> Result<(Topology, Pod, Pod)> {
    let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
    let binaries = Binaries::beside_self();
    let topology =
        Topology::new(TopologyOptions { folder: Folder::temporary()?, binaries, exempt: Exempt::detect() }).await?;
    let spec = |name: &str, data_plane| PodSpec {
        name: name.to_owned(),
        namespace: "test".to_owned(),
        service_account: name.to_owned(),
        data_plane,
        redirect: options.clone(),
        ..PodSpec::default()
    };
    let inside = topology.pod(spec("inside", Some(DataPlane::Oxmesh))).await?;
    let outside = topology.pod(spec("outside", None)).await?;
    Ok((topology, inside, outside))
}

/// Starts a listener that greets with its own name on a port of a pod.
async fn listen(topology: &Topology, pod: &Pod, ports: &[(u16, &str)]) -> Result<Vec<oxmesh::pod::Process>> {
    let program = topology.binaries().find("oxmesh-test-app")?;
    let mut processes = Vec::new();
    for (port, name) in ports {
        let mut command = pod.namespace().command(User::Root, &program);
        command.args(["serve", "--identity", name, "--banner", &port.to_string()]);
        processes.push(pod.namespace().spawn(&format!("listener-{port}"), command)?);
        let ready = format!(
            "for n in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit 0; sleep 0.05; done; exit 1"
        );
        pod.namespace().exec(User::Root, &["bash", "-c", &ready]).await?;
    }
    Ok(processes)
}

/// Who greets at the address, seen from a pod as a user; `nobody` when nobody does.
async fn greeting(pod: &Pod, user: User, host: &str, port: u16) -> Result<String> {
    let script = format!("exec 3<>/dev/tcp/{host}/{port} && read -r -t 3 line <&3 && echo \"$line\" || echo nobody");
    let said = pod.namespace().exec(user, &["bash", "-c", &script]).await.unwrap_or_else(|_| "nobody".to_owned());
    Ok(said.trim().to_owned())
}

const APP: User = User::Id(1000);
const SIDECAR: User = User::Id(1500);

async fn redirected(_: Planes) -> Result<()> {
    let (topology, inside, outside) = pods(&[]).await?;
    let _listeners = listen(&topology, &inside, &[(15001, "outbound"), (15003, "inbound"), (8080, "app")]).await?;
    let _peer = listen(&topology, &outside, &[(8080, "peer")]).await?;
    for ip in inside.ips() {
        let said = greeting(&outside, APP, &ip.to_string(), 8080).await?;
        ensure!(said == "inbound", "to {ip} the pod's {said} answered");
    }
    for ip in outside.ips() {
        let said = greeting(&inside, APP, &ip.to_string(), 8080).await?;
        ensure!(said == "outbound", "from inside to {ip} {said} answered");
    }
    // The pod that calls itself by its own service goes through its own inbound side.
    let said = greeting(&inside, SIDECAR, &inside.ip().to_string(), 8080).await?;
    ensure!(said == "inbound", "the sidecar calling its own pod got {said}");
    Ok(())
}

async fn passed_by(_: Planes) -> Result<()> {
    let (topology, inside, outside) = pods(&[
        "--inbound-ports-exclude=6060",
        "--outbound-ports-exclude=5432",
        "--outbound-cidrs-exclude=10.244.77.0/24",
    ])
    .await?;
    let _listeners =
        listen(&topology, &inside, &[(15001, "outbound"), (15003, "inbound"), (8080, "app"), (6060, "excluded")])
            .await?;
    let _peer = listen(&topology, &outside, &[(8080, "peer"), (5432, "database")]).await?;
    for ip in outside.ips() {
        let ip = ip.to_string();
        ensure!(
            greeting(&inside, SIDECAR, &ip, 8080).await? == "peer",
            "the sidecar's own connection to {ip} was redirected"
        );
        ensure!(
            greeting(&inside, APP, &ip, 5432).await? == "database",
            "an excluded outbound port of {ip} was redirected"
        );
        ensure!(
            greeting(&inside, APP, &ip, 8080).await? == "outbound",
            "a port of {ip} that is not excluded passed by"
        );
    }
    for ip in inside.ips() {
        let ip = ip.to_string();
        ensure!(
            greeting(&outside, APP, &ip, 6060).await? == "excluded",
            "an excluded inbound port of {ip} was redirected"
        );
    }
    for ip in ["127.0.0.1", "::1"] {
        ensure!(greeting(&inside, APP, ip, 8080).await? == "app", "loopback {ip} was redirected");
    }
    Ok(())
}

async fn idempotent(_: Planes) -> Result<()> {
    let (topology, inside, _outside) = pods(&[]).await?;
    let namespace = inside.namespace();
    let rules = async || -> Result<String> {
        let mut rules = String::new();
        for save in ["iptables-save", "ip6tables-save"] {
            let text = namespace.exec(User::Root, &[save, "-t", "nat"]).await?;
            rules.extend(text.lines().filter(|l| l.starts_with("-A")).map(|l| format!("{l}\n")));
        }
        Ok(rules)
    };
    let before = rules().await?;
    ensure!(before.contains("15003") && before.contains("15001"), "{before}");
    let init = topology.binaries().find("oxmesh-iptables-init")?;
    namespace.exec(User::Root, &[init]).await?;
    let after = rules().await?;
    ensure!(before == after, "a second run changed the rules:\n{before}\nbecame\n{after}");
    Ok(())
}
