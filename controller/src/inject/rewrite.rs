//! Probes of the application: where kubelet asks instead, and what the sidecar must know to pass it on. Pure.
//!
//! Kubelet has no certificate, so its probes go to ports of the sidecar. Probes by command stay, and so do probes that
//! name another host than the pod: they don't go to the pod. Timeouts, thresholds and headers are never changed.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HTTPGetAction, HTTPHeader, PodSpec, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::refusal::quoted;
use super::{FIRST_GRPC_PORT, HEALTHCHECK_PORT, LAST_PROBE_PORT, Refusal, is_our_port};
use crate::bootstrap::probes::{GrpcProbe, HttpProbe, ProbeKind, Probes};

/// What the rewritten probes need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// For the bootstrap.
    pub probes: Probes,
    /// Ports that are asked whether they take connections.
    pub tcp_ports: Vec<u16>,
}

impl Rewritten {
    /// Whether there are HTTP probes of this kind.
    #[must_use]
    pub fn has(&self, kind: ProbeKind) -> bool {
        self.probes.http.iter().any(|probe| probe.kind == kind)
    }
}

/// Rewrites the probes of all containers that may have any.
///
/// # Errors
/// [`Refusal::Field`] for a probe that can't be passed on.
pub fn probes(spec: &mut PodSpec) -> Result<Rewritten, Refusal> {
    let mut rewritten = Rewritten::default();
    for container in spec.init_containers.iter_mut().flatten() {
        rewrite_container("initContainers", container, &mut rewritten)?;
    }
    for container in &mut spec.containers {
        rewrite_container("containers", container, &mut rewritten)?;
    }
    Ok(rewritten)
}

/// Hooks that kubelet would make a request for: it has no certificate, so the sidecar refuses it.
#[must_use]
pub fn unreachable_hooks(spec: &PodSpec, excluded: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let Some(lifecycle) = &container.lifecycle else { continue };
        for (name, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let Some(get) = hook.as_ref().and_then(|hook| hook.http_get.as_ref()) else { continue };
            let ports = container.ports.as_deref().unwrap_or_default();
            let open = number(&get.port, ports).is_some_and(|port| excluded.contains(&port.to_string()));
            if get.host.is_none() && !open {
                warnings.push(format!(
                    "spec.containers[{}].lifecycle.{name}.httpGet: kubelet's request has no certificate of the mesh and is \
                     refused by the sidecar (use exec, or exclude the port)",
                    container.name
                ));
            }
        }
    }
    warnings
}

fn rewrite_container(list: &str, container: &mut Container, rewritten: &mut Rewritten) -> Result<(), Refusal> {
    let Container { name, ports, liveness_probe, readiness_probe, startup_probe, .. } = container;
    let ports = ports.as_deref().unwrap_or_default();
    for (kind, probe) in [
        (ProbeKind::Liveness, liveness_probe),
        (ProbeKind::Readiness, readiness_probe),
        (ProbeKind::Startup, startup_probe),
    ] {
        let path = format!("spec.{list}[{name}].{}Probe", kind.word());
        let Some(probe) = probe else { continue };
        Rewrite { path, kind, container: name, ports, rewritten }.probe(probe)?;
    }
    Ok(())
}

struct Rewrite<'a> {
    path: String,
    kind: ProbeKind,
    container: &'a str,
    ports: &'a [ContainerPort],
    rewritten: &'a mut Rewritten,
}

impl Rewrite<'_> {
    fn probe(&mut self, probe: &mut Probe) -> Result<(), Refusal> {
        let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
        if let Some(get) = &mut probe.http_get {
            return self.http(get, timeout);
        }
        if let Some(grpc) = &mut probe.grpc {
            let port = self.port("grpc.port", &IntOrString::Int(grpc.port))?;
            grpc.port = i32::from(self.grpc(port, timeout)?);
            return Ok(());
        }
        let Some(socket) = &probe.tcp_socket else { return Ok(()) };
        if let Some(get) = self.tcp(socket)? {
            probe.tcp_socket = None;
            probe.http_get = Some(get);
        }
        Ok(())
    }

    fn http(&mut self, get: &mut HTTPGetAction, timeout: Duration) -> Result<(), Refusal> {
        if get.host.as_ref().is_some_and(|host| !host.is_empty()) {
            return Ok(());
        }
        let port = self.port("httpGet.port", &get.port)?;
        let asked = get.path.as_deref().unwrap_or_default();
        let asked = self.sent_path(asked)?;
        let (path, query) = asked.split_once('?').map_or((asked.as_str(), None), |(path, query)| (path, Some(query)));
        let tls = get.scheme.as_deref() == Some("HTTPS");
        self.rewritten.probes.http.push(HttpProbe {
            kind: self.kind,
            container: self.container.to_owned(),
            port,
            path: path.to_owned(),
            tls,
            timeout,
        });
        let own = self.kind.path(self.container);
        get.path = Some(query.map_or(own.clone(), |query| format!("{own}?{query}")));
        get.port = IntOrString::Int(i32::from(self.kind.port()));
        if tls {
            get.scheme = Some("HTTP".to_owned());
        }
        Ok(())
    }

    /// What kubelet would put on the wire: absolute, without the fragment, and escaped where it must be.
    fn sent_path(&self, path: &str) -> Result<String, Refusal> {
        let path = path.split_once('#').map_or(path, |(path, _)| path);
        let field = || format!("{}.httpGet.path", self.path);
        if path.len() > MAX_PATH {
            return Err(Refusal::field(
                field(),
                format!("has {} bytes, and a probe's path may have {MAX_PATH}", path.len()),
            ));
        }
        if path.starts_with("//") || path.contains("://") || path.bytes().any(|b| b.is_ascii_control()) {
            return Err(Refusal::field(field(), format!("{} is not a path (write /healthz?full=1)", quoted(path))));
        }
        if !has_whole_escapes(path) {
            return Err(Refusal::field(field(), format!("{} has a % without two hexadecimal digits", quoted(path))));
        }
        let absolute = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let escape = |byte: u8| !byte.is_ascii_graphic() || br#""<>\^`{|}"#.contains(&byte);
        let mut sent = String::with_capacity(absolute.len());
        for byte in absolute.bytes() {
            match escape(byte) {
                true => sent.push_str(&format!("%{byte:02X}")),
                false => sent.push(char::from(byte)),
            }
        }
        Ok(sent)
    }

    fn grpc(&mut self, port: u16, timeout: Duration) -> Result<u16, Refusal> {
        let probes = &mut self.rewritten.probes.grpc;
        if let Some(known) = probes.iter_mut().find(|known| known.port == port) {
            known.timeout = known.timeout.max(timeout);
            return Ok(known.listen);
        }
        let listen = u16::try_from(probes.len()).ok().and_then(|n| FIRST_GRPC_PORT.checked_add(n));
        let Some(listen) = listen.filter(|port| *port <= LAST_PROBE_PORT) else {
            return Err(Refusal::field(
                format!("{}.grpc.port", self.path),
                "is one too many: gRPC probes of a pod may ask 15 different ports",
            ));
        };
        probes.push(GrpcProbe { listen, port, timeout });
        Ok(listen)
    }

    fn tcp(&mut self, socket: &TCPSocketAction) -> Result<Option<HTTPGetAction>, Refusal> {
        if socket.host.as_ref().is_some_and(|host| !host.is_empty()) {
            return Ok(None);
        }
        let port = self.port("tcpSocket.port", &socket.port)?;
        if !self.rewritten.tcp_ports.contains(&port) {
            self.rewritten.tcp_ports.push(port);
        }
        Ok(Some(HTTPGetAction {
            path: Some("/osm-healthcheck".to_owned()),
            port: IntOrString::Int(i32::from(HEALTHCHECK_PORT)),
            http_headers: Some(vec![HTTPHeader { name: "Original-Tcp-Port".to_owned(), value: port.to_string() }]),
            ..HTTPGetAction::default()
        }))
    }

    fn port(&self, field: &str, port: &IntOrString) -> Result<u16, Refusal> {
        let refuse = |problem: String| Refusal::field(format!("{}.{field}", self.path), problem);
        let found = number(port, self.ports).ok_or_else(|| match port {
            IntOrString::Int(port) => refuse(format!("{port} is not a port (1-65535)")),
            IntOrString::String(name) => refuse(format!(
                "the container has no port named {} (name it in the container's ports, or write its number)",
                quoted(name)
            )),
        })?;
        match is_our_port(i64::from(found)) {
            true => Err(refuse(format!("{found} is the sidecar's own port"))),
            false => Ok(found),
        }
    }
}

/// As kubelet does: a name is looked up in the container's own ports, then read as a number.
fn number(port: &IntOrString, ports: &[ContainerPort]) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match ports.iter().find(|port| port.name.as_ref() == Some(name)) {
            Some(port) => port.container_port,
            None => name.parse().ok()?,
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

fn has_whole_escapes(path: &str) -> bool {
    path.split('%').skip(1).all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

const MAX_PATH: usize = 2048;
