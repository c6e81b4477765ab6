//! HTTP to a port inside a pod, also to one that listens on loopback alone. No local port is opened.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::time::timeout;

/// The answer to `GET path` from `port` of a pod.
///
/// # Errors
/// When the pod can't be reached, or takes longer than 30 s.
pub(super) async fn get(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    match timeout(LIMIT, ask(pods, pod, port, path)).await {
        Ok(answer) => answer.with_context(|| format!("port {port} of pod {pod}")),
        Err(_) => bail!("port {port} of pod {pod} didn't answer in {} s", LIMIT.as_secs()),
    }
}

async fn ask(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let mut forward = pods.portforward(pod, &[port]).await.map_err(|error| match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        error => error.into(),
    })?;
    let stream = forward.take_stream(port).context("the stream was taken")?;
    let refused = forward.take_error(port).context("the stream was taken")?;
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    let answer = exchange.await;
    if answer.is_err()
        && let Ok(Some(why)) = timeout(Duration::from_millis(200), refused).await
    {
        // The runtime's words name namespaces and sockets of the node.
        if why.contains("connection refused") {
            bail!("nothing listens there");
        }
        bail!("{}", why.trim());
    }
    answer
}

const LIMIT: Duration = Duration::from_secs(30);
