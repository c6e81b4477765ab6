//! The containers and volumes that a pod gets. Pure, typed: no text of the pod's is ever interpreted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, HTTPGetAction,
    Lifecycle, LifecycleHandler, ObjectFieldSelector, Probe, ProjectedVolumeSource, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::annotations::{
    CPU_LIMIT, CPU_REQUEST, LEVELS, MEMORY_LIMIT, MEMORY_REQUEST, is_image, of_namespace, of_pod,
};
use super::exclusions::Exclusions;
use super::rewrite::Rewritten;
use super::{BOOTSTRAP_VOLUME, DataPlane, HEALTHCHECK, HEALTHCHECK_PORT, IDENTITY_VOLUME, INIT, Refusal};
use super::{Request, SIDECAR, Settings, TOKEN_VOLUME, UID};
use crate::api::SidecarSpec;
use crate::bootstrap::probes::{ProbeKind, READY_PATH};
use crate::bootstrap::{self, controller_name};
use crate::identity::{ServiceIdentity, SidecarIdentity};

/// What was chosen for this pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Which program is the sidecar.
    pub data_plane: DataPlane,
    image: String,
    init_image: String,
    log_level: String,
    resources: ResourceRequirements,
    privileged_init: bool,
    pod_ip_mode: bool,
    /// Kind and name of what runs the pod.
    workload: Option<(String, String)>,
}

/// Puts annotations, MeshConfig and settings together.
///
/// # Errors
/// [`Refusal`] for a value that makes no sense.
pub fn choose(
    pod: &k8s_openapi::api::core::v1::Pod,
    request: &Request<'_>,
    settings: &Settings,
) -> Result<Choice, Refusal> {
    let default = SidecarSpec::default();
    let mesh = request.mesh_config.map_or(&default, |spec| &spec.sidecar);
    let own = of_pod(pod);
    let data_plane = match own.data_plane()? {
        Some(chosen) => chosen,
        None => of_namespace(request.namespace).data_plane()?.unwrap_or(settings.data_plane),
    };
    let set = |field: &'static str, text: &Option<String>| match text.as_deref().filter(|text| !text.is_empty()) {
        Some(image) if !is_image(image) => {
            Err(Refusal::MeshConfig { field, value: image.to_owned(), problem: "is not an image reference".to_owned() })
        }
        other => Ok(other.map(str::to_owned)),
    };
    let of_mesh = match data_plane {
        DataPlane::Envoy => {
            set("spec.sidecar.envoyImage", &mesh.envoy_image)?.unwrap_or_else(|| settings.envoy_image.clone())
        }
        DataPlane::Oxmesh => settings.proxy_image.clone(),
    };
    let image = own.image()?.map_or(of_mesh, str::to_owned);
    if image.is_empty() {
        return Err(Refusal::MeshConfig {
            field: "spec.sidecar.envoyImage",
            value: image,
            problem: "is no image, and the control plane was started without --envoy-image".to_owned(),
        });
    }
    Ok(Choice {
        data_plane,
        image,
        init_image: set("spec.sidecar.initContainerImage", &mesh.init_container_image)?
            .unwrap_or_else(|| settings.init_image.clone()),
        log_level: match own.log_level()? {
            Some(level) => level.to_owned(),
            None => mesh_log_level(mesh)?,
        },
        resources: resources(pod, mesh)?,
        privileged_init: mesh.enable_privileged_init_container == Some(true),
        pod_ip_mode: pod_ip_mode(mesh)?,
        workload: crate::mesh::owner(pod),
    })
}

fn mesh_log_level(mesh: &SidecarSpec) -> Result<String, Refusal> {
    match mesh.log_level.as_deref() {
        None | Some("") => Ok("error".to_owned()),
        Some(level) if LEVELS.contains(&level) => Ok(level.to_owned()),
        Some(level) => Err(Refusal::MeshConfig {
            field: "spec.sidecar.logLevel",
            value: level.to_owned(),
            problem: format!("is not a level ({})", LEVELS.join(", ")),
        }),
    }
}

fn pod_ip_mode(mesh: &SidecarSpec) -> Result<bool, Refusal> {
    match mesh.local_proxy_mode.as_deref() {
        None | Some("" | "Localhost") => Ok(false),
        Some("PodIP") => Ok(true),
        Some(other) => Err(Refusal::MeshConfig {
            field: "spec.sidecar.localProxyMode",
            value: other.to_owned(),
            problem: "is neither Localhost nor PodIP".to_owned(),
        }),
    }
}

/// MeshConfig's resources, with the pod's own amounts in place of its.
fn resources(pod: &k8s_openapi::api::core::v1::Pod, mesh: &SidecarSpec) -> Result<ResourceRequirements, Refusal> {
    let own = of_pod(pod);
    let mut resources = mesh.resources.clone().unwrap_or_default();
    let set = |map: &mut Option<BTreeMap<String, Quantity>>, key: &str, amount: Option<Quantity>| {
        if let Some(amount) = amount {
            map.get_or_insert_default().insert(key.to_owned(), amount);
        }
    };
    set(&mut resources.requests, "cpu", own.quantity(CPU_REQUEST)?);
    set(&mut resources.limits, "cpu", own.quantity(CPU_LIMIT)?);
    set(&mut resources.requests, "memory", own.quantity(MEMORY_REQUEST)?);
    set(&mut resources.limits, "memory", own.quantity(MEMORY_LIMIT)?);
    Ok(resources)
}

/// Programs the redirection before anything else runs.
#[must_use]
pub fn init(choice: &Choice, exclusions: &Exclusions, rewritten: &Rewritten) -> Container {
    let mut args = Vec::new();
    let mut list = |flag: &str, values: &[String]| {
        if !values.is_empty() {
            args.push(format!("--{flag}={}", values.join(",")));
        }
    };
    let last = rewritten.probes.grpc.iter().map(|probe| probe.listen).max().unwrap_or(HEALTHCHECK_PORT);
    list("sidecar-ports", &["15010".to_owned(), format!("15901-{last}")]);
    list("inbound-ports-exclude", &exclusions.inbound_ports);
    list("outbound-ports-exclude", &exclusions.outbound_ports);
    list("outbound-cidrs-exclude", &exclusions.outbound_ranges);
    list("outbound-cidrs-include", &exclusions.outbound_only);
    list("interfaces-exclude", &exclusions.interfaces);
    let mut env = vec![field("POD_IP", "status.podIP")];
    if choice.pod_ip_mode {
        env.push(field("POD_IPS", "status.podIPs"));
        args.push("--pod-ip=$(POD_IPS)".to_owned());
    }
    Container {
        name: INIT.to_owned(),
        image: Some(choice.init_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["oxmesh-iptables-init".to_owned()]),
        args: Some(args),
        env: Some(env),
        resources: Some(ResourceRequirements::default()),
        security_context: Some(SecurityContext {
            // Kubernetes takes a privileged container with escalation alone.
            allow_privilege_escalation: Some(choice.privileged_init),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".to_owned()]),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            privileged: Some(choice.privileged_init),
            run_as_non_root: Some(false),
            run_as_user: Some(0),
            seccomp_profile: Some(runtime_default()),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// The sidecar.
#[must_use]
pub fn sidecar(
    choice: &Choice,
    identity: &ServiceIdentity,
    rewritten: &Rewritten,
    request: &Request<'_>,
    settings: &Settings,
) -> Container {
    let mut env = vec![
        field("POD_UID", "metadata.uid"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
    ];
    let mut args = vec!["--log-level".to_owned(), choice.log_level.clone()];
    match choice.data_plane {
        DataPlane::Envoy => args.extend(["--config-path".to_owned(), format!("{BOOTSTRAP_DIR}/bootstrap.yaml")]),
        DataPlane::Oxmesh => {
            let proxy = SidecarIdentity { uuid: request.uuid.to_owned(), service: identity.clone() };
            let options = bootstrap_options(choice.data_plane, &rewritten.probes, settings);
            let text = bootstrap::bootstrap(&proxy, &settings.trust_domain, &options).to_string();
            args.extend(["--config-yaml".to_owned(), literal(&text)]);
            args.extend(identity_args(&settings.osm_namespace));
            args.extend(healthcheck_args(rewritten, settings));
            env.push(value("OXMESH_TRUST_BUNDLE", request.trust_bundle));
            // The labels of its metrics; a pod that nothing runs is told by its own name.
            if let Some((kind, name)) = &choice.workload {
                env.extend([value("WORKLOAD_KIND", kind), value("WORKLOAD_NAME", name)]);
            }
        }
    }
    args.extend(["--service-cluster".to_owned(), format!("{}.{}", identity.service_account, identity.namespace)]);
    Container {
        name: SIDECAR.to_owned(),
        image: Some(choice.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["envoy".to_owned()]),
        args: Some(args),
        env: Some(env),
        ports: Some(ports(choice, rewritten)),
        resources: Some(choice.resources.clone()),
        security_context: Some(restricted()),
        volume_mounts: Some(mounts(choice.data_plane)),
        ..Container::default()
    }
}

/// As an init container that keeps running; what stands behind it starts when it is ready.
#[must_use]
pub fn native(mut container: Container) -> Container {
    container.restart_policy = Some("Always".to_owned());
    if container.name == SIDECAR {
        container.startup_probe = Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some(READY_PATH.to_owned()),
                port: IntOrString::Int(i32::from(ProbeKind::Readiness.port())),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(1),
            failure_threshold: Some(STARTUP_PATIENCE),
            ..Probe::default()
        });
    }
    container
}

/// As the first ordinary container: kubelet starts the next one when the hook has ended. An Envoy image has no program
/// that could wait.
#[must_use]
pub fn first(mut container: Container, choice: &Choice, grace: i64) -> Container {
    if choice.data_plane == DataPlane::Oxmesh {
        let wait = ["envoy", "--mode", "await_ready"].map(str::to_owned).to_vec();
        container.lifecycle = Some(Lifecycle {
            post_start: Some(LifecycleHandler {
                exec: Some(ExecAction { command: Some(wait) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        });
        // All containers are told to end at once: the proxy serves on while the application may, and is gone before kubelet
        // would kill it.
        let delay = (grace - 1 - LAST_GRACE).max(0);
        let args = container.args.get_or_insert_default();
        args.extend(["--shutdown-delay".to_owned(), delay.to_string()]);
        args.extend(["--shutdown-grace".to_owned(), LAST_GRACE.to_string()]);
    }
    container
}

/// Answers probes of TCP ports where the sidecar can't.
#[must_use]
pub fn healthcheck(choice: &Choice, rewritten: &Rewritten, settings: &Settings) -> Option<Container> {
    if choice.data_plane != DataPlane::Envoy || rewritten.tcp_ports.is_empty() {
        return None;
    }
    let mut args = vec!["--mode".to_owned(), "healthcheck".to_owned()];
    args.extend(healthcheck_args(rewritten, settings));
    Some(Container {
        name: HEALTHCHECK.to_owned(),
        image: Some(settings.proxy_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["envoy".to_owned()]),
        args: Some(args),
        ports: Some(vec![port(None, HEALTHCHECK_PORT)]),
        resources: Some(ResourceRequirements::default()),
        security_context: Some(restricted()),
        ..Container::default()
    })
}

/// The volumes of the sidecar.
#[must_use]
pub fn volumes(data_plane: DataPlane, uuid: &str) -> Vec<Volume> {
    match data_plane {
        DataPlane::Envoy => vec![Volume {
            name: BOOTSTRAP_VOLUME.to_owned(),
            secret: Some(SecretVolumeSource { secret_name: Some(secret_name(uuid)), ..SecretVolumeSource::default() }),
            ..Volume::default()
        }],
        DataPlane::Oxmesh => vec![
            Volume {
                name: IDENTITY_VOLUME.to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    medium: Some("Memory".to_owned()),
                    size_limit: Some(Quantity("1Mi".to_owned())),
                }),
                ..Volume::default()
            },
            Volume {
                name: TOKEN_VOLUME.to_owned(),
                projected: Some(ProjectedVolumeSource {
                    sources: Some(vec![VolumeProjection {
                        service_account_token: Some(ServiceAccountTokenProjection {
                            audience: Some("oxmesh.io".to_owned()),
                            expiration_seconds: Some(3600),
                            path: "token".to_owned(),
                        }),
                        ..VolumeProjection::default()
                    }]),
                    ..ProjectedVolumeSource::default()
                }),
                ..Volume::default()
            },
        ],
    }
}

/// The name of the Secret with an Envoy's bootstrap, as in OSM.
#[must_use]
pub fn secret_name(uuid: &str) -> String {
    format!("envoy-bootstrap-config-{uuid}")
}

/// What the sidecar's bootstrap is made with.
#[must_use]
pub fn bootstrap_options(
    data_plane: DataPlane,
    probes: &bootstrap::probes::Probes,
    settings: &Settings,
) -> bootstrap::Options {
    bootstrap::Options {
        read_dir: match data_plane {
            DataPlane::Envoy => BOOTSTRAP_DIR.into(),
            DataPlane::Oxmesh => IDENTITY_DIR.into(),
        },
        probes: Some(probes.clone()),
        probe_address: settings.probe_address,
        ..bootstrap::Options::new(&settings.osm_namespace)
    }
}

fn identity_args(osm_namespace: &str) -> [String; 6] {
    [
        "--identity-server".to_owned(),
        format!("https://{}:15129", controller_name(osm_namespace)),
        "--identity-token".to_owned(),
        format!("{TOKEN_DIR}/token"),
        "--identity-dir".to_owned(),
        IDENTITY_DIR.to_owned(),
    ]
}

fn healthcheck_args(rewritten: &Rewritten, settings: &Settings) -> Vec<String> {
    if rewritten.tcp_ports.is_empty() {
        return Vec::new();
    }
    let address = std::net::SocketAddr::new(settings.probe_address, HEALTHCHECK_PORT);
    let ports: Vec<String> = rewritten.tcp_ports.iter().map(u16::to_string).collect();
    ["--healthcheck-address", &address.to_string(), "--healthcheck-ports", &ports.join(",")].map(str::to_owned).to_vec()
}

fn ports(choice: &Choice, rewritten: &Rewritten) -> Vec<ContainerPort> {
    let mut ports = vec![
        port(Some("proxy-admin"), 15_000),
        port(Some("proxy-inbound"), 15_003),
        port(Some("proxy-metrics"), 15_010),
    ];
    for (kind, name) in [
        (ProbeKind::Liveness, "liveness-port"),
        (ProbeKind::Readiness, "readiness-port"),
        (ProbeKind::Startup, "startup-port"),
    ] {
        if rewritten.has(kind) {
            ports.push(port(Some(name), kind.port()));
        }
    }
    if choice.data_plane == DataPlane::Oxmesh && !rewritten.tcp_ports.is_empty() {
        ports.push(port(None, HEALTHCHECK_PORT));
    }
    ports.extend(rewritten.probes.grpc.iter().map(|probe| port(None, probe.listen)));
    ports
}

fn port(name: Option<&str>, number: u16) -> ContainerPort {
    ContainerPort {
        name: name.map(str::to_owned),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn mounts(data_plane: DataPlane) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    match data_plane {
        DataPlane::Envoy => vec![mount(BOOTSTRAP_VOLUME, BOOTSTRAP_DIR, true)],
        DataPlane::Oxmesh => {
            vec![mount(IDENTITY_VOLUME, IDENTITY_DIR, false), mount(TOKEN_VOLUME, TOKEN_DIR, true)]
        }
    }
}

/// The restricted pod-security profile, and no writing to the image.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(UID),
        run_as_non_root: Some(true),
        run_as_user: Some(UID),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn value(name: &str, text: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(literal(text)), ..EnvVar::default() }
}

fn field(name: &str, path: &str) -> EnvVar {
    let selector = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() };
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(selector), ..EnvVarSource::default() }),
        ..EnvVar::default()
    }
}

/// Kubernetes puts variables in place of `$(NAME)` in arguments; here stands text of the pod's.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

const BOOTSTRAP_DIR: &str = "/etc/envoy";
const IDENTITY_DIR: &str = "/etc/oxmesh/identity";
const TOKEN_DIR: &str = "/var/run/secrets/oxmesh";
/// Seconds that kubelet waits for the sidecar before it starts it anew: as long as a control plane may be away.
const STARTUP_PATIENCE: i32 = 600;
/// Seconds for what is open when a proxy that ends together with the application has served on as long as it can.
const LAST_GRACE: i64 = 1;
