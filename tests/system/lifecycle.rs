//! What must not be felt: a controller that dies, a sidecar that ends, certificates that rotate.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_controller::api::Key;
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
};

use crate::{matrix, ours, protocols::echo};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    matrix(trials, "the controller is killed and restarted under load and no request fails", None, controller);
    ours(trials, "a sidecar that gets SIGTERM under load finishes what is in flight", None, sigterm);
    matrix(trials, "leaf certificates rotate under load, no request fails and no connection is cut", None, rotation);
}

const PATIENCE: Duration = Duration::from_secs(15);
const STORE: &str = "http://store.shop/books";

async fn controller(planes: Planes) -> Result<()> {
    let mut mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.both_versions_serve().await?;
    let first = mesh.load("client", STORE, 100, 0.5).await?;
    first.all_ok(45)?;
    mesh.session_mut().kill_controller().await?;
    let without = mesh.load("client", STORE, 100, 2.0).await?;
    without.all_ok(190)?;
    let (restarted, during) = {
        // The load runs from inside the pod; only the session needs to be ours alone meanwhile.
        mesh.session_mut().start_controller().await?;
        (Ok::<_, anyhow::Error>(()), mesh.load("client", STORE, 100, 3.0).await?)
    };
    restarted?;
    during.all_ok(290)?;
    // The mesh follows again.
    mesh.write("split.yaml", &shop::split(0, 100))?;
    eventually("an edit after the restart takes effect", Duration::from_secs(45), || async {
        let load = mesh.load("client", STORE, 100, 0.3).await?;
        load.all_ok(25)?;
        ensure!(load.from("store-v1") == 0, "{load:?}");
        Ok(())
    })
    .await?;
    mesh.no_nacks().await
}

async fn sigterm(planes: Planes) -> Result<()> {
    let mut mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.both_versions_serve().await?;
    mesh.load("client", STORE, 50, 0.5).await?.all_ok(20)?;
    // 20 requests of a second each are in flight when the server's sidecar is told to end.
    let slow = mesh.load("client", "http://store-v1.shop/slow/1500", 20, 0.99);
    let pid = mesh.shop("store-v1")?.sidecar().and_then(|s| s.pid()).context("the sidecar runs")?;
    let term = async {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        tokio::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().await
    };
    let (slow, term) = tokio::join!(slow, term);
    ensure!(term?.success(), "SIGTERM could not be sent");
    let slow = slow?;
    // One connection does one slow request at a time: those that were answered were in flight, none was cut.
    let ok = slow.status.get("200").copied().unwrap_or(0);
    ensure!(ok >= 4 && slow.errors.is_empty(), "requests in flight were lost: {slow:?}");
    let status = mesh.session_mut().wait_sidecar(&Key::new("shop", "store-v1-0"), Duration::from_secs(10)).await?;
    ensure!(status.success(), "the sidecar ended with {status}");
    Ok(())
}

async fn rotation(planes: Planes) -> Result<()> {
    let mut files: BTreeMap<&str, String> = shop::files().into_iter().collect();
    files.insert("config.yaml", shop::mesh_config(false, false, "10s"));
    let files: Vec<_> = files.into_iter().collect();
    let mesh = TestMesh::start(&files, planes).await?;
    mesh.both_versions_serve().await?;
    mesh.load("client", STORE, 50, 0.5).await?.all_ok(20)?;
    eventually("the TCP store answers", PATIENCE, || echo(&mesh, "client", "store-v1.shop", 9001)).await?;
    let before = serials(&mesh).await?;
    // One TCP connection is held over two rotations and must still echo at the end.
    let script = r#"
        exec 3<>/dev/tcp/store-v1.shop/9001
        for n in $(seq 24); do
          echo $n >&3
          read -r -t 5 line <&3 || { echo "no echo of $n"; exit 0; }
          [ "$line" = $n ] || { echo "the echo of $n was $line"; exit 0; }
          sleep 0.5
        done
        echo held"#;
    let hold = async { Ok::<_, anyhow::Error>(mesh.shop("client")?.pod().exec(&["bash", "-c", script]).await?) };
    let (held, load) = tokio::join!(hold, mesh.load("client", STORE, 100, 12.0));
    let held = held?;
    ensure!(held.trim() == "held", "the TCP connection was cut: {held}");
    load?.all_ok(1190)?;
    ensure!(serials(&mesh).await? != before, "the certificates did not rotate");
    mesh.no_nacks().await
}

/// The certificates as the client's sidecar shows them.
async fn serials(mesh: &TestMesh) -> Result<String> {
    let (_, text) = mesh.shop("client")?.pod().admin_get("/certs").await?;
    let value: serde_json::Value = serde_json::from_slice(&text)?;
    let mut serials = Vec::new();
    collect(&value, &mut serials);
    ensure!(!serials.is_empty(), "/certs names no serial number: {value}");
    serials.sort();
    serials.dedup();
    Ok(serials.join(" "))
}

fn collect(value: &serde_json::Value, serials: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                if let (true, Some(serial)) = (key == "serial_number", value.as_str()) {
                    serials.push(serial.to_owned());
                }
                collect(value, serials);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|v| collect(v, serials)),
        _ => {}
    }
}
