//! gRPC, WebSocket, raw and server-first TCP through both sidecars, by clients and servers that we did not write.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
    trial::python_missing,
};

use crate::{matrix, split::banner};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    matrix(trials, "gRPC unary and streaming calls, trailers and errors pass", python_missing(), grpc);
    matrix(trials, "a WebSocket lives through a config push", python_missing(), websocket);
    matrix(trials, "a server that speaks first is heard, and raw TCP echoes", None, tcp);
}

const PATIENCE: Duration = Duration::from_secs(15);

async fn grpc(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    let _v1 = mesh.spawn_python("store-v1", "grpc_echo.py", &["serve", "9000", "store-v1"])?;
    let _v2 = mesh.spawn_python("store-v2", "grpc_echo.py", &["serve", "9000", "store-v2"])?;
    let call = || async { mesh.run_python("client", "grpc_echo.py", &["call", "store.shop:9000"]).await };
    let said = eventually("calls succeed", PATIENCE, call).await?;
    ensure!(said.contains("all as it must be"), "{said}");
    mesh.no_nacks().await
}

async fn websocket(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    let _v1 = mesh.spawn_python("store-v1", "websocket_echo.py", &["serve", "8090", "store-v1"])?;
    let hold = |seconds: &'static str| {
        let mesh = &mesh;
        async move { mesh.run_python("client", "websocket_echo.py", &["hold", "ws://store-v1.shop:8090/", seconds]).await }
    };
    eventually("a WebSocket opens", PATIENCE, || hold("0.1")).await?;
    let push = async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        mesh.write("split.yaml", &shop::split(10, 90))?;
        tokio::time::sleep(Duration::from_millis(800)).await;
        mesh.write("split.yaml", &shop::split(90, 10))
    };
    let (held, pushed) = tokio::join!(hold("3"), push);
    pushed?;
    ensure!(held?.trim() == "store-v1 30", "the WebSocket did not live through the push");
    Ok(())
}

async fn tcp(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    let first =
        eventually("the server's greeting", PATIENCE, || banner(&mesh, "client", "store-v1.shop", 3306)).await?;
    ensure!(first == "store-v1", "the greeting was {first:?}");
    let said = eventually("the echo", PATIENCE, || echo(&mesh, "client", "store-v2.shop", 9001)).await?;
    ensure!(said == "hello", "the echo was {said:?}");
    ensure!(banner(&mesh, "thief", "store-v1.shop", 3306).await.is_err(), "the thief reached the TCP store");
    mesh.no_nacks().await
}

/// What a port sends back for `hello`.
pub(crate) async fn echo(mesh: &TestMesh, from: &str, host: &str, port: u16) -> Result<String> {
    let script = format!("exec 3<>/dev/tcp/{host}/{port} && echo hello >&3 && read -r -t 5 line <&3 && echo \"$line\"");
    Ok(mesh.shop(from)?.pod().exec(&["bash", "-c", &script]).await?.trim().to_owned())
}
