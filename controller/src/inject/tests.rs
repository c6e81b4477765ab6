//! Tables about whole pods; what a running OSM made of the same pods is in `tests/injected.rs`.

use serde_json::{Value, json};

use super::super::{DataPlane, Outcome, inject};
use super::*;

pub(in crate::inject) fn settings() -> Settings {
    Settings {
        mesh_name: "osm".into(),
        osm_namespace: "osm-system".into(),
        trust_domain: "cluster.local".into(),
        proxy_image: "registry.example/oxmesh/proxy:v1".into(),
        init_image: "registry.example/oxmesh/init:v1".into(),
        envoy_image: "registry.example/envoy:v1".into(),
        data_plane: DataPlane::Oxmesh,
        native_sidecars: true,
        probe_address: [0, 0, 0, 0].into(),
    }
}

const UUID: &str = "8281f730-d0ba-475c-8fa8-4e0dae2b5051";

fn namespace() -> k8s_openapi::api::core::v1::Namespace {
    serde_json::from_value(json!({"metadata": {"name": "shop", "labels": {"openservicemesh.io/monitored-by": "osm"},
        "annotations": {"openservicemesh.io/sidecar-injection": "enabled"}}}))
    .unwrap()
}

fn outcome(pod: &Value, settings: &Settings, mesh: Value) -> Result<Outcome, String> {
    let (namespace, mesh) = (namespace(), serde_json::from_value(mesh).unwrap());
    let request = Request {
        namespace: &namespace,
        mesh_config: Some(&mesh),
        uuid: UUID,
        trust_bundle: "-----BEGIN CERTIFICATE-----",
    };
    inject(pod, &request, settings).map_err(|refusal| refusal.to_string())
}

fn injected(pod: &Value, settings: &Settings, mesh: Value) -> Injection {
    match outcome(pod, settings, mesh) {
        Ok(Outcome::Injected(injection)) => {
            let mut patched = pod.clone();
            json_patch::patch(&mut patched, &injection.patch).unwrap();
            assert_eq!(patched, injection.pod, "the patch makes the pod");
            *injection
        }
        other => panic!("not injected: {other:?}"),
    }
}

fn app(extra: Value) -> Value {
    let mut container = json!({"name": "app", "image": "app:v1"});
    container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"metadata": {"name": "app"}, "spec": {"containers": [container], "serviceAccountName": "buyer"}})
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

fn args<'a>(containers: &'a Value, name: &str) -> Vec<&'a str> {
    let found = containers.as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    found["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

fn after_flag<'a>(args: &[&'a str], flag: &str) -> Option<&'a str> {
    args.iter().position(|arg| *arg == flag).map(|at| args[at + 1])
}

#[test]
fn a_native_sidecar_stands_before_the_applications_own_init_containers() {
    let mut pod = app(json!({}));
    pod["spec"]["initContainers"] = json!([{"name": "migrate", "image": "m"}]);
    let injection = injected(&pod, &settings(), json!({}));
    let spec = &injection.pod["spec"];
    assert_eq!(names(&spec["initContainers"]), ["osm-init", "envoy", "migrate"]);
    assert_eq!(names(&spec["containers"]), ["app"]);
    assert_eq!(names(&spec["volumes"]), ["oxmesh-identity", "oxmesh-token"]);
    let sidecar = &spec["initContainers"][1];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["startupProbe"]["httpGet"], json!({"path": "/osm-proxy-ready", "port": 15902}));
    assert_eq!(injection.pod["metadata"]["labels"]["osm-proxy-uuid"], UUID);
    assert_eq!(injection.data_plane, DataPlane::Oxmesh);
}

#[test]
fn without_native_sidecars_the_proxy_is_first_and_holds_the_application_back() {
    let old = Settings { native_sidecars: false, ..settings() };
    let mut pod = app(json!({}));
    pod["spec"]["initContainers"] = json!([{"name": "migrate", "image": "m"}]);
    let with = injected(&pod, &old, json!({})).pod;
    let (spec, annotations) = (&with["spec"], &with["metadata"]["annotations"]);
    assert_eq!(names(&spec["initContainers"]), ["migrate", "osm-init"]);
    assert_eq!(names(&spec["containers"]), ["envoy", "app"]);
    let hook = &spec["containers"][0]["lifecycle"]["postStart"]["exec"]["command"];
    assert_eq!(hook, &json!(["envoy", "--mode", "await_ready"]));
    for (grace, delay) in [(None, "28"), (Some(20), "18"), (Some(1), "0"), (Some(0), "0")] {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        let containers = injected(&pod, &old, json!({})).pod["spec"]["containers"].clone();
        let args = args(&containers, "envoy");
        assert_eq!(
            (after_flag(&args, "--shutdown-delay"), after_flag(&args, "--shutdown-grace")),
            (Some(delay), Some("1"))
        );
    }
    assert!(spec["containers"][0].get("restartPolicy").is_none());
    assert_eq!(annotations["kubectl.kubernetes.io/default-container"], "app");
}

#[test]
fn the_sidecar_keeps_to_the_restricted_profile_and_the_init_program_to_one_capability() {
    let spec = injected(&app(json!({})), &settings(), json!({})).pod["spec"].clone();
    assert_eq!(
        spec["initContainers"][1]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            "runAsGroup": 1500, "runAsNonRoot": true, "runAsUser": 1500, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let init = &spec["initContainers"][0]["securityContext"];
    assert_eq!(init["capabilities"], json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}));
    assert_eq!((&init["privileged"], &init["allowPrivilegeEscalation"]), (&json!(false), &json!(false)));
    let mesh = json!({"sidecar": {"enablePrivilegedInitContainer": true}});
    let spec = injected(&app(json!({})), &settings(), mesh).pod["spec"].clone();
    assert_eq!(spec["initContainers"][0]["securityContext"]["privileged"], true);
}

#[test]
fn what_the_pod_and_meshconfig_choose_is_taken() {
    let mut pod = app(json!({}));
    pod["metadata"]["annotations"] = json!({
        "oxmesh.io/data-plane": "envoy", "oxmesh.io/proxy-image": "r.example/e:1", "oxmesh.io/proxy-log-level": "debug",
        "oxmesh.io/proxy-cpu-limit": "200m", "openservicemesh.io/outbound-port-exclusion-list": "5432",
    });
    let mesh = json!({
        "sidecar": {"envoyImage": "r.example/mesh:2", "initContainerImage": "r.example/init:2", "logLevel": "info",
            "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}, "localProxyMode": "PodIP"},
        "traffic": {"outboundPortExclusionList": [3306], "networkInterfaceExclusionList": ["net1"]},
    });
    let spec = injected(&pod, &settings(), mesh.clone()).pod["spec"].clone();
    let sidecar = &spec["initContainers"][1];
    assert_eq!(sidecar["image"], "r.example/e:1");
    assert_eq!(sidecar["resources"], json!({"limits": {"cpu": "200m", "memory": "64Mi"}}));
    assert_eq!(after_flag(&args(&spec["initContainers"], "envoy"), "--log-level"), Some("debug"));
    assert_eq!(spec["initContainers"][0]["image"], "r.example/init:2");
    assert_eq!(
        args(&spec["initContainers"], "osm-init"),
        [
            "--sidecar-ports=15010,15901-15904",
            "--outbound-ports-exclude=3306,5432",
            "--interfaces-exclude=net1",
            "--pod-ip=$(POD_IPS)"
        ]
    );
    assert_eq!(spec["volumes"][0]["secret"]["secretName"], format!("envoy-bootstrap-config-{UUID}"));
    let spec = injected(&app(json!({})), &settings(), mesh).pod["spec"].clone();
    assert_eq!(spec["initContainers"][1]["image"], settings().proxy_image, "envoyImage is for Envoy alone");
}

#[test]
fn the_init_program_takes_every_argument_it_is_given() {
    let mut pod = app(json!({}));
    pod["metadata"]["annotations"] = json!({
        "openservicemesh.io/inbound-port-exclusion-list": "6060,7070", "openservicemesh.io/outbound-port-exclusion-list": "1",
        "openservicemesh.io/outbound-ip-range-exclusion-list": "10.0.0.0/8, fd00::/8",
        "openservicemesh.io/outbound-ip-range-inclusion-list": "0.0.0.0/0", "oxmesh.io/network-interface-exclusion-list": "eth+",
    });
    let spec = injected(&pod, &settings(), json!({})).pod["spec"].clone();
    let given = args(&spec["initContainers"], "osm-init");
    let all = std::iter::once("oxmesh-iptables-init").chain(given.iter().copied());
    let options = <oxmesh_iptables_init::Options as clap::Parser>::try_parse_from(all).unwrap();
    options.validate().unwrap();
    assert_eq!((options.inbound_ports_exclude.len(), options.outbound_cidrs_exclude.len()), (2, 2));
}

#[test]
fn probes_of_every_kind_go_to_the_sidecar_and_back_to_their_port() {
    let pod = app(json!({
        "ports": [{"containerPort": 8443, "name": "web"}],
        "livenessProbe": {"httpGet": {"path": "live?full=1#x", "port": "web", "scheme": "HTTPS",
            "httpHeaders": [{"name": "Host", "value": "shop"}]}, "timeoutSeconds": 7, "periodSeconds": 3},
        "readinessProbe": {"tcpSocket": {"port": 5000}},
        "startupProbe": {"grpc": {"port": 9000, "service": "s"}, "failureThreshold": 4},
    }));
    let injection = injected(&pod, &settings(), json!({}));
    let spec = &injection.pod["spec"];
    assert_eq!(
        spec["containers"][0]["livenessProbe"],
        json!({"httpGet": {"path": "/osm-liveness-probe/app?full=1", "port": 15901, "scheme": "HTTP",
            "httpHeaders": [{"name": "Host", "value": "shop"}]}, "timeoutSeconds": 7, "periodSeconds": 3})
    );
    assert_eq!(
        spec["containers"][0]["readinessProbe"],
        json!({"httpGet": {"path": "/osm-healthcheck", "port": 15904,
            "httpHeaders": [{"name": "Original-Tcp-Port", "value": "5000"}]}})
    );
    let grpc = json!({"grpc": {"port": 15905, "service": "s"}, "failureThreshold": 4});
    assert_eq!(spec["containers"][0]["startupProbe"], grpc);
    let http = &injection.probes.http[0];
    assert_eq!((http.port, http.path.as_str(), http.tls, http.timeout.as_secs()), (8443, "/live", true, 7));
    assert_eq!((injection.probes.grpc[0].listen, injection.probes.grpc[0].port), (15905, 9000));
    let args = args(&spec["initContainers"], "envoy");
    assert_eq!(after_flag(&args, "--healthcheck-address"), Some("0.0.0.0:15904"));
    assert_eq!(after_flag(&args, "--healthcheck-ports"), Some("5000"));
    assert_eq!(spec["initContainers"][0]["args"][0], "--sidecar-ports=15010,15901-15905");
}

#[test]
fn several_containers_have_probes_of_their_own_and_sidecars_of_the_application_too() {
    let probe = |port: i64| json!({"httpGet": {"path": "/ok", "port": port}});
    let grpc = |port: i64| json!({"grpc": {"port": port}});
    let pod = json!({"metadata": {}, "spec": {
        "initContainers": [{"name": "agent", "restartPolicy": "Always", "startupProbe": probe(7000)}],
        "containers": [
            {"name": "a", "livenessProbe": probe(8080), "readinessProbe": grpc(9000)},
            {"name": "b", "livenessProbe": probe(8081), "readinessProbe": grpc(9001), "startupProbe": grpc(9000)},
            {"name": "c", "livenessProbe": {"exec": {"command": ["true"]}},
                "readinessProbe": {"httpGet": {"port": 1, "host": "10.0.0.9"}}},
        ],
    }});
    let injection = injected(&pod, &settings(), json!({}));
    let spec = &injection.pod["spec"];
    assert_eq!(spec["initContainers"][2]["startupProbe"]["httpGet"]["path"], "/osm-startup-probe/agent");
    assert_eq!(spec["containers"][1]["livenessProbe"]["httpGet"]["path"], "/osm-liveness-probe/b");
    let ports = [&spec["containers"][0]["readinessProbe"], &spec["containers"][1]["readinessProbe"]];
    assert_eq!(ports.map(|probe| probe["grpc"]["port"].as_i64().unwrap()), [15905, 15906]);
    assert_eq!(spec["containers"][1]["startupProbe"]["grpc"]["port"], 15905, "one port for one port");
    assert_eq!(spec["containers"][2], pod["spec"]["containers"][2], "commands and foreign hosts stay");
    assert_eq!(injection.probes.http.len(), 3);
    assert_eq!(spec["initContainers"][0]["args"][0], "--sidecar-ports=15010,15901-15906");
}

#[test]
fn a_probe_that_can_not_be_passed_on_is_refused_with_its_field() {
    let http = |path: &str, port: Value| json!({"livenessProbe": {"httpGet": {"path": path, "port": port}}});
    for (container, part) in [
        (http("/", json!("web")), "livenessProbe.httpGet.port: the container has no port named \"web\""),
        (http("/", json!(0)), "0 is not a port"),
        (http("/", json!(15000)), "15000 is the sidecar's own port"),
        (http("/a\r\nX: y", json!(80)), "is not a path"),
        (http("//host/x", json!(80)), "is not a path"),
        (http("/%zz", json!(80)), "two hexadecimal digits"),
        (http(&format!("/{}", "x".repeat(3000)), json!(80)), "3001 bytes"),
        (json!({"startupProbe": {"grpc": {"port": 70000}}}), "startupProbe.grpc.port: 70000"),
    ] {
        let words = outcome(&app(container), &settings(), json!({})).unwrap_err();
        assert!(words.contains("spec.containers[app]") && words.contains(part), "{words}");
    }
    let many: Vec<Value> =
        (0..16).map(|n| json!({"name": format!("c{n}"), "livenessProbe": {"grpc": {"port": 9000 + n}}})).collect();
    let words = outcome(&json!({"spec": {"containers": many}}), &settings(), json!({})).unwrap_err();
    assert!(words.contains("spec.containers[c15].livenessProbe.grpc.port"), "{words}");
}

#[test]
fn kubernetes_does_not_put_variables_into_a_path_and_odd_bytes_are_escaped_as_kubelet_does() {
    let probe = json!({"livenessProbe": {"httpGet": {"path": "/a b/$(OXMESH_TRUST_BUNDLE)/é", "port": 80}}});
    let injection = injected(&app(probe), &settings(), json!({}));
    assert_eq!(injection.probes.http[0].path, "/a%20b/$(OXMESH_TRUST_BUNDLE)/%C3%A9");
    let text =
        after_flag(&args(&injection.pod["spec"]["initContainers"], "envoy"), "--config-yaml").unwrap().to_owned();
    assert!(text.contains("$$(OXMESH") && !text.replace("$$", "").contains('$'), "{text}");
}

#[test]
fn an_account_that_reads_as_anothers_sidecar_is_refused() {
    let mut pod = app(json!({}));
    pod["spec"]["serviceAccountName"] = json!("x.sidecar.buyer");
    let words = outcome(&pod, &settings(), json!({})).unwrap_err();
    assert!(words.starts_with("spec.serviceAccountName: ") && words.contains("\"x.sidecar.buyer\""), "{words}");
}

#[test]
fn prometheus_is_told_once_per_namespace_and_the_applications_word_stands() {
    let metrics = |pod: &Value| {
        let mut namespace = namespace();
        namespace.metadata.annotations.as_mut().unwrap().insert(METRICS.into(), "enabled".into());
        let request = Request { namespace: &namespace, mesh_config: None, uuid: UUID, trust_bundle: "" };
        match inject(pod, &request, &settings()).unwrap() {
            Outcome::Injected(injection) => injection.pod["metadata"]["annotations"].clone(),
            other => panic!("{other:?}"),
        }
    };
    let told = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "15010", "prometheus.io/path": "/stats/prometheus"});
    assert_eq!(metrics(&app(json!({}))), told);
    let mut own = app(json!({}));
    own["metadata"]["annotations"] = json!({"prometheus.io/port": "8080"});
    assert_eq!(metrics(&own), own["metadata"]["annotations"]);
    assert!(injected(&app(json!({})), &settings(), json!({})).pod["metadata"].get("annotations").is_none());
}

#[test]
fn hooks_that_kubelet_would_call_without_a_certificate_are_warned_of() {
    let hook =
        json!({"lifecycle": {"preStop": {"httpGet": {"port": 8080}}, "postStart": {"exec": {"command": ["x"]}}}});
    let warnings = injected(&app(hook.clone()), &settings(), json!({})).warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("spec.containers[app].lifecycle.preStop.httpGet"),
        "{warnings:?}"
    );
    let mesh = json!({"traffic": {"inboundPortExclusionList": [8080]}});
    assert!(injected(&app(hook), &settings(), mesh).warnings.is_empty());
}

#[test]
fn an_injected_pod_stays_as_it_is_whatever_else_was_put_in_since() {
    for settings in [settings(), Settings { native_sidecars: false, data_plane: DataPlane::Envoy, ..settings() }] {
        let probes = json!({"readinessProbe": {"tcpSocket": {"port": 5000}}});
        let mut pod = injected(&app(probes), &settings, json!({})).pod;
        assert_eq!(outcome(&pod, &settings, json!({})), Ok(Outcome::Already(UUID.into())));
        pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "another-webhooks"}));
        pod["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "v"}));
        assert_eq!(outcome(&pod, &settings, json!({})), Ok(Outcome::Already(UUID.into())));
        pod["metadata"]["labels"] = json!({});
        assert!(outcome(&pod, &settings, json!({})).is_err(), "half an injection is refused");
    }
}

#[test]
fn fields_that_are_newer_than_this_program_stay() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "newTop": 1,
        "metadata": {"name": "a", "labels": null, "newMeta": {"x": [1]}},
        "spec": {
            "newSpec": {"deep": [{"name": "q", "v": null}]},
            "initContainers": [{"name": "i1", "newInit": "a"}, {"name": "i2", "newInit": "b"}],
            "containers": [{"name": "app", "newContainer": true, "ports": [{"containerPort": 80, "newPort": 1}],
                "livenessProbe": {"newProbe": 1, "httpGet": {"path": "/", "port": 80, "newGet": 2}}}],
            "volumes": [{"name": "v", "newSource": {"size": "1"}}],
        },
    });
    for native in [true, false] {
        let after = injected(&pod, &Settings { native_sidecars: native, ..settings() }, json!({})).pod;
        let get = |pointer: &str| after.pointer(pointer).cloned().unwrap_or_else(|| panic!("{pointer} in {after:#}"));
        assert_eq!((get("/newTop"), get("/metadata/newMeta")), (json!(1), json!({"x": [1]})));
        assert_eq!(get("/spec/newSpec"), pod["spec"]["newSpec"]);
        let find = |list: &str, name: &str| {
            get(list).as_array().unwrap().iter().find(|item| item["name"] == name).cloned().unwrap()
        };
        assert_eq!(find("/spec/initContainers", "i1"), pod["spec"]["initContainers"][0]);
        assert_eq!(find("/spec/initContainers", "i2"), pod["spec"]["initContainers"][1]);
        assert_eq!(find("/spec/volumes", "v"), pod["spec"]["volumes"][0]);
        let app = find("/spec/containers", "app");
        assert_eq!((&app["newContainer"], &app["ports"]), (&json!(true), &pod["spec"]["containers"][0]["ports"]));
        assert_eq!(
            app["livenessProbe"],
            json!({"newProbe": 1, "httpGet": {"path": "/osm-liveness-probe/app", "port": 15901, "newGet": 2}})
        );
    }
}
