//! Our proxy under a control plane that is not ours: two nodes with mTLS between them, each of them ours or real Envoy.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::{
    Binaries,
    DataPlane::{self, Envoy, Oxmesh},
};
use oxmesh_tests::{
    alone::{certificates, free_ports},
    eventually,
    mesh::{project, tools},
    trial::{envoy_missing, python_missing, trial},
};
use tokio::process::{Child, Command};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    for (who, planes) in
        [("ours in both places", [Oxmesh; 2]), ("envoy, ours", [Envoy, Oxmesh]), ("ours, envoy", [Oxmesh, Envoy])]
    {
        for api in ["GRPC", "DELTA_GRPC"] {
            let missing = python_missing().or_else(|| planes.contains(&Envoy).then(envoy_missing).flatten());
            let name =
                format!("a foreign control plane's two nodes serve, refuse and follow its pushes ({who}, {api})");
            trials.push(trial(name, missing, move || two_nodes(planes, api)));
        }
    }
}

/// The processes of one run, killed when dropped, and their folder.
pub(crate) struct Run {
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Run {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, children: Vec::new() })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = File::create(self.dir.path().join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.children.push(command.spawn().with_context(|| format!("start {name}"))?);
        Ok(())
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }
}

fn fill(text: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

async fn two_nodes(planes: [DataPlane; 2], api: &'static str) -> Result<()> {
    let [ads, front, middle, app, admin_a, admin_b] = free_ports()?;
    let mut run = Run::new()?;
    let dir = run.dir.path().to_owned();
    certificates(&dir)?;
    let data = project().join("tests/data/xds-example");
    let values = [
        ("{{front}}", front.to_string()),
        ("{{middle}}", middle.to_string()),
        ("{{app}}", app.to_string()),
        ("{{dir}}", dir.display().to_string()),
    ];
    let binaries = Binaries::beside_self().with_folder(tools().join("bin"));
    for (node, plane, admin) in [("a", planes[0], admin_a), ("b", planes[1], admin_b)] {
        fs::write(
            dir.join(format!("{node}.yaml")),
            fill(&fs::read_to_string(data.join(format!("{node}.yaml")))?, &values),
        )?;
        let own = [
            ("{{node}}", node.to_owned()),
            ("{{admin}}", admin.to_string()),
            ("{{ads}}", ads.to_string()),
            ("{{api}}", api.to_owned()),
        ];
        let bootstrap = dir.join(format!("boot-{node}.yaml"));
        fs::write(&bootstrap, fill(&fs::read_to_string(data.join("bootstrap.yaml"))?, &own))?;
        let mut command = Command::new(binaries.find(plane.program())?);
        command.arg("-c").arg(&bootstrap).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
        run.spawn(node, command)?;
    }
    let mut command = Command::new(binaries.find("oxmesh-test-app")?);
    command.args(["serve", "--identity", "app", "--http", &app.to_string()]);
    run.spawn("app", command)?;
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", tools().join("python")).arg(project().join("tests/peers/ads.py"));
    command.arg(ads.to_string()).arg(&dir);
    run.spawn("ads", command)?;

    let outcome = drive(front, middle, admin_b, &dir).await;
    let words = || format!("ads:\n{}\na:\n{}\nb:\n{}", run.log("ads"), run.log("a"), run.log("b"));
    outcome.with_context(words)?;
    ensure!(!run.log("ads").contains("NACK"), "something was refused: {}", words());
    Ok(())
}

async fn drive(front: u16, middle: u16, admin_b: u16, dir: &Path) -> Result<()> {
    let ask = |path: &'static str| async move { curl(front, "b.default", path).await };
    eventually("the pair serves", Duration::from_secs(30), || async {
        let (status, text) = ask("/ok").await?;
        ensure!(status == 200, "answered {status} {text}");
        Ok(())
    })
    .await?;
    let (status, text) = ask("/deny").await?;
    ensure!(status == 403 && text.ends_with("RBAC: access denied"), "a refused route: {status} {text}");
    ensure!(ask("/none").await?.0 == 404, "an unknown route");
    ensure!(curl(front, "nobody", "/ok").await?.0 == 404, "an unknown host");
    ensure!(curl(middle, "b.default", "/ok").await.is_err(), "plain HTTP to the mTLS port was answered");
    let stats = output(&["curl", "-s", &format!("http://127.0.0.1:{admin_b}/stats")]).await?;
    let handshakes = stats.lines().find(|l| l.contains("ssl.handshake:")).context("no handshake is counted")?;
    ensure!(!handshakes.ends_with(": 0"), "{handshakes}");

    // A push: the refused route is open to a, under traffic that must not notice.
    let file: PathBuf = dir.join("b.yaml");
    let pushed = fs::read_to_string(&file)?.replace("other.default.cluster.local", "a.default.cluster.local");
    let half = dir.join("b.half");
    fs::write(&half, pushed)?;
    fs::rename(half, file)?;
    eventually("the push takes effect", Duration::from_secs(15), || async {
        ensure!(ask("/ok").await?.0 == 200, "a request failed during the push");
        let (status, text) = ask("/deny").await?;
        ensure!(status == 200, "answered {status} {text}");
        Ok(())
    })
    .await
}

/// Status and body of a request by curl.
async fn curl(port: u16, host: &str, path: &str) -> Result<(u16, String)> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let text = output(&["curl", "-s", "--max-time", "5", "-w", "\n%{http_code}", "-H", &format!("host: {host}"), &url])
        .await?;
    let (body, status) = text.rsplit_once('\n').context("curl's status")?;
    let status = status.trim().parse()?;
    ensure!(status != 0, "no answer");
    Ok((status, body.to_owned()))
}

async fn output(argv: &[&str]) -> Result<String> {
    let out = Command::new(argv[0]).args(&argv[1..]).output().await?;
    ensure!(out.status.success(), "{} ended with {}", argv.join(" "), out.status);
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
