//! `oxmesh demo`, `run` and `exec` as a user has them: by their exit status, output and leftovers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::Value;
use tempfile::TempDir;

use crate::{skipped, tools, tools_folder, trial};

const LIMIT: Duration = Duration::from_secs(60);

/// A temporary folder of its own, so that leftovers are seen.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("oxmesh-test-").tempdir().expect("a folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn oxmesh(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tools().find("oxmesh").expect("built"));
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(args)
            .env("TMPDIR", self.path())
            .env("PATH", format!("{}:{path}", tools_folder().display()))
            .stdin(Stdio::null());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.oxmesh(args).output().expect("oxmesh runs")
    }

    /// Starts in the background, with standard output and error in files.
    fn start(&self, name: &str, args: &[&str]) -> Running {
        let file = |stream: &str| self.path().join(format!("{name}.{stream}"));
        let (out, err) = (file("out"), file("err"));
        let child = self
            .oxmesh(args)
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&err).expect("a file"))
            .spawn()
            .expect("oxmesh starts");
        Running { child, out, err }
    }

    /// Run folders that are there.
    fn run_folders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).expect("the folder").flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_dir() && path.to_string_lossy().contains("oxmesh-run-")).collect()
    }

    /// Processes whose command line names the folder, and which aren't ended.
    fn processes(&self) -> Vec<String> {
        let needle = self.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").expect("proc").flatten();
        entries
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&needle))
            .collect()
    }
}

struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Waits until the pictures of a live demo are as wanted.
    ///
    /// # Panics
    /// With the last picture and what the demo said, when it ended or they are not in time.
    fn shows(&mut self, what: &str, holds: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        while !self.last_picture().is_some_and(|picture| holds(&picture)) {
            let ended = self.child.try_wait().expect("a status");
            assert!(
                ended.is_none() && start.elapsed() < LIMIT,
                "{what}: not within {LIMIT:?}, {ended:?}; {:#}\n{}",
                self.last_picture().unwrap_or_default(),
                self.errors()
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.err).expect("a file")
    }

    /// Waits until standard error holds a word, and gives what follows it on its line.
    fn wait_for(&self, word: &str) -> String {
        until(&format!("`{word}`"), || {
            let text = self.errors();
            let rest = text.split_once(word)?.1.split_once('\n')?.0;
            Some(rest.trim().to_owned())
        })
    }

    /// The last whole picture that a live demo printed as JSON.
    fn last_picture(&self) -> Option<Value> {
        let text = fs::read_to_string(&self.out).expect("a file");
        let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        stream.map_while(Result::ok).last()
    }

    fn interrupt(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
        let status = self.child.wait().expect("an end");
        assert!(status.success(), "{status}: {}", self.errors());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "{what} did not come within {LIMIT:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn shows_the_expected_picture(data_plane: &str) {
    let place = Place::new();
    let output = place.output(&["demo", "--once", "-o", "json", "--data-plane", data_plane]);
    assert_expected_picture(&place, &output);
}

/// The user `nobody` has no subordinate ids: everything runs under one user id, sidecars are told by their mark.
fn needs_no_root() {
    const NOBODY: u32 = 65534;
    let place = Place::new();
    let programs = ["oxmesh", "oxmesh-controller", "oxmesh-iptables-init", "oxmesh-proxy"];
    for name in programs {
        fs::copy(tools().find(name).expect("built"), place.path().join(name)).expect("copied");
    }
    std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(place.path().join("oxmesh"))
        .args(["demo", "--once", "-o", "json"])
        .envs([("TMPDIR", place.path()), ("HOME", place.path())])
        .current_dir(place.path())
        .stdin(Stdio::null());
    assert_expected_picture(&place, &command.output().expect("setpriv runs"));
}

fn assert_expected_picture(place: &Place, output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let picture: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"));
    assert!(output.status.success(), "{picture:#}\n{errors}");
    assert_eq!(picture["expected"]["met"], true, "{picture:#}");
    let edges = picture["edges"].as_array().expect("edges");
    let to = |name: &str| edges.iter().find(|edge| edge["to"] == name).unwrap_or_else(|| panic!("{name}: {picture:#}"));
    for name in ["bookstore/bookstore-v1", "bookstore/bookstore-v2", "bookwarehouse/bookwarehouse"] {
        assert_eq!(to(name)["protocol"], "http");
    }
    assert_eq!(to("bookwarehouse/bookdb")["protocol"], "tcp");
    assert!(edges.iter().all(|edge| edge["mtls"] == true), "{edges:#?}");
    let thief = &picture["refused"][0];
    assert_eq!(thief["from"], "bookthief/bookthief");
    assert!(thief["why"].as_str().is_some_and(|why| why.contains("no TrafficTarget")), "{thief}");
    assert_eq!((place.run_folders(), place.processes()), (vec![], vec![]), "nothing is left");
}

fn follows_the_manifests(data_plane: &str) {
    let place = Place::new();
    let mut demo = place.start("demo", &["demo", "-o", "json", "--data-plane", data_plane]);
    let manifests = PathBuf::from(demo.wait_for("while it runs: "));
    let edit = |file: &str, from: &str, to: &str| {
        let path = manifests.join(file);
        let text = fs::read_to_string(&path).expect("a manifest");
        assert!(text.contains(from), "{file} has no {from}");
        fs::write(&path, text.replace(from, to)).expect("written");
    };

    edit(
        "split.yaml",
        "weight: 50\n    - service: bookstore-v2\n      weight: 50",
        "weight: 100\n    - service: bookstore-v2\n      weight: 0",
    );
    demo.shows("all traffic at v1", |p| {
        let edges = p["edges"].as_array().expect("edges");
        edges.iter().any(|e| e["to"] == "bookstore/bookstore-v1" && e["share"].as_f64() > Some(0.99))
    });

    fs::remove_file(manifests.join("bookthief.yaml")).expect("removed");
    edit("bookwarehouse.yaml", "replicas: 1", "replicas: 2");
    demo.shows("the thief's pod is gone and the warehouse has two", |p| {
        let pods = p["pods"].as_array().expect("pods");
        let count =
            |name: &str| pods.iter().filter(|pod| pod["name"].as_str().is_some_and(|n| n.contains(name))).count();
        count("bookthief") == 0
            && count("bookwarehouse/bookwarehouse") == 2
            && pods.iter().all(|pod| pod["state"] == "ready")
    });

    let failed = demo.last_picture().expect("a picture")["apps"]["bookbuyer"]["failed"].clone();
    assert_eq!(failed, 0, "no call fails while weights change and pods come and go");

    edit("access.yaml", "name: bookbuyer\n      namespace: bookbuyer", "name: nobody\n      namespace: bookbuyer");
    demo.shows("the buyer is refused, with the reason", |p| {
        let refused = p["refused"].as_array().expect("refused");
        refused.iter().any(|r| {
            r["from"] == "bookbuyer/bookbuyer" && r["why"].as_str().is_some_and(|why| why.contains("no TrafficTarget"))
        })
    });

    demo.interrupt();
    assert_eq!((place.run_folders(), place.processes()), (vec![], vec![]), "nothing is left");
}

fn leaves_nothing_when_killed(data_plane: &str) {
    let place = Place::new();
    let mut demo = place.start("demo", &["demo", "--data-plane", data_plane]);
    demo.wait_for("mesh ready");
    demo.child.kill().expect("killed");
    demo.child.wait().expect("an end");
    until("the end of all processes", || place.processes().is_empty().then_some(()));
    assert_eq!(place.run_folders().len(), 1, "the folder stays until the next run");
    let next = place.start("next", &["demo", "--data-plane", data_plane]);
    next.wait_for("controller ready");
    assert_eq!(place.run_folders().len(), 1, "of the two, the dead one's folder is gone");
    next.interrupt();
}

fn runs_programs_that_find_each_other(data_plane: &str) {
    let place = Place::new();
    let mesh = place.path().join("mesh").display().to_string();
    let program = tools().find("oxmesh").expect("built").display().to_string();
    let common = ["run", "--mesh", &mesh, "--data-plane", data_plane];
    let web = [&common[..], &["--name", "web", "--port", "14001", "--", &program, "app", "bookstore"]].concat();
    let web = place.start("web", &web);
    web.wait_for("starting ");
    let curl = "until curl -sSf -D- http://web:14001/raw; do sleep 0.1; done; exit 7";
    let client = [&common[..], &["--name", "client", "--", "timeout", "30", "sh", "-c", curl]].concat();
    let output = place.output(&client);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "the program's own status: {out} {err}");
    assert!(out.contains("identity: unidentified"), "{out} {err}");
    let stats = "curl -s http://127.0.0.1:15000/stats/prometheus | grep -E '^envoy_listener_ssl_handshake.* [1-9]'";
    let handshakes = place.output(&["exec", "--mesh", &mesh, "default/web", "--", "sh", "-c", stats]);
    assert!(handshakes.status.success(), "the call came by mutual TLS: {handshakes:?}");
    let none = place.output(&["exec", "--mesh", &mesh, "default/none", "--", "true"]);
    let words = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && words.contains("default/web"), "{words}");
}

/// A test that gives root up, and needs a kernel that lets every user have namespaces.
fn rootless(name: &str, programs: &[&str], test: impl FnOnce() + Send + 'static) -> Trial {
    let probe = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["unshare", "--user", "--map-root-user", "--net", "--mount", "true"])
        .output();
    match probe {
        Ok(output) if output.status.success() => trial(name, programs, test),
        Ok(output) => skipped(name, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => skipped(name, &format!("setpriv: {error}")),
    }
}

/// A test of one kind of sidecar.
type Test = fn(&str);

pub(crate) fn trials() -> Vec<Trial> {
    let ours = ["oxmesh", "oxmesh-controller", "oxmesh-iptables-init", "oxmesh-proxy"];
    let envoy = ["oxmesh", "oxmesh-controller", "oxmesh-iptables-init", "envoy"];
    let both = [&ours[..], &["envoy"]].concat();
    let mut trials = vec![
        trial("demo_with_both_data_planes_shows_the_expected_picture", &both, || {
            shows_the_expected_picture("mixed");
        }),
        rootless("demo_needs_no_root", &ours, needs_no_root),
    ];
    let planes: [(&'static str, &[&str]); 2] = [("oxmesh", &ours), ("envoy", &envoy)];
    for (plane, needs) in planes {
        let tests: [(&str, Test); 4] = [
            ("demo_shows_the_expected_picture", shows_the_expected_picture),
            ("demo_follows_the_manifests_while_it_runs", follows_the_manifests),
            ("demo_leaves_nothing_when_it_is_killed", leaves_nothing_when_killed),
            ("programs_that_run_find_each_other_by_name_over_mutual_tls", runs_programs_that_find_each_other),
        ];
        for (name, test) in tests {
            trials.push(trial(&format!("{name}_with_{plane}"), needs, move || test(plane)));
        }
    }
    trials
}
