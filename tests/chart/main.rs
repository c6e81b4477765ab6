//! The Helm chart, by real helm and the API's own schemas: what it renders, what it refuses.
//!
//! helm and the schemas come from `make tools`. The golden files in `tests/data/chart` are written anew by
//! `UPDATE_GOLDEN=1 cargo test -p oxmesh-tests --test chart`; read the difference before committing it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Arguments;
use oxmesh_controller::api::MeshConfigSpec;
use oxmesh_tests::mesh::tools;
use oxmesh_tests::trial::trial;
use serde_json::Value;

/// Values that bring everything that is off by default.
const REPLICATED: &[&str] = &[
    "osm.osmController.replicaCount=2",
    "osm.osmController.autoScale.enable=true",
    "osm.osmController.nodeSelector.disk=ssd",
    "osm.osmController.podLabels.team=mesh",
    "osm.controlPlaneTolerations[0].key=control",
    "osm.imagePullSecrets[0].name=registry",
    "osm.featureFlags.enableSPIFFE=true",
    "osm.image.digest.osmController=sha256:0123456789012345678901234567890123456789012345678901234567890123",
    "osm.enablePermissiveTrafficPolicy=false",
    "osm.outboundPortExclusionList={5432}",
    "osm.controllerLogLevel=disabled",
    "osm.meshName=second",
    "osm.injector.nativeSidecars=never",
];

fn main() -> ExitCode {
    let helm = || (!helm().is_file()).then(|| "helm is not there (make tools fetches it)".to_owned());
    let schemas = || {
        helm().or_else(|| {
            (!validate().join(".done").is_file())
                .then(|| "the schemas are not there (make tools fetches them)".to_owned())
        })
    };
    let trials = vec![
        trial("lint_finds_nothing", helm(), || async { run(&["lint", "--strict", &chart()]).map(drop) }),
        trial("the_chart_renders_as_the_golden_file", helm(), || async { golden("default", &[]) }),
        trial("a_replicated_chart_renders_as_its_golden_file", helm(), || async { golden("replicated", REPLICATED) }),
        trial("an_unknown_key_is_refused_by_name_at_every_level", helm(), unknown_keys),
        trial("what_would_be_missed_is_refused_with_words", helm(), refused),
        trial("keys_of_osm_that_change_nothing_render_the_same", helm(), inert),
        trial("the_controller_understands_every_field_of_the_first_mesh_config", helm(), preset),
        trial("the_objects_are_valid_for_kubernetes_1_28_to_1_34", schemas(), valid),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn helm() -> PathBuf {
    tools().join("bin/helm")
}

fn validate() -> PathBuf {
    tools().join("validate")
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> String {
    project().join("charts/oxmesh").display().to_string()
}

/// What helm printed, or its error as one.
fn run(words: &[&str]) -> Result<String> {
    // Without a cluster: a kubeconfig of the machine must not matter.
    let output = Command::new(helm()).args(words).env("KUBECONFIG", "/dev/null").output().context("running helm")?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("{}{}", text(&output.stderr), text(&output.stdout));
    }
    Ok(text(&output.stdout))
}

fn render(values: &[&str]) -> Result<String> {
    render_for("v1.34.0", values)
}

fn render_for(kubernetes: &str, values: &[&str]) -> Result<String> {
    let chart = chart();
    let mut words = vec!["template", "osm", &chart, "--namespace", "osm-system", "--kube-version", kubernetes];
    for value in values {
        words.extend(["--set", value]);
    }
    run(&words)
}

fn golden(name: &str, values: &[&str]) -> Result<()> {
    let rendered = render(values)?;
    let file = project().join(format!("tests/data/chart/{name}.yaml"));
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(file.parent().context("a file has a folder")?)?;
        return Ok(fs::write(&file, rendered)?);
    }
    let expected = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let differing = rendered.lines().zip(expected.lines()).position(|(a, b)| a != b);
    let line = differing.unwrap_or_else(|| rendered.lines().count().min(expected.lines().count()));
    ensure!(
        rendered == expected,
        "{}:{}: expected {:?}, rendered {:?}",
        file.display(),
        line + 1,
        expected.lines().nth(line),
        rendered.lines().nth(line)
    );
    Ok(())
}

async fn unknown_keys() -> Result<()> {
    for key in [
        "osmm.x",
        "osm.unknown",
        "osm.image.x",
        "osm.image.name.x",
        "osm.osmController.replicas",
        "osm.featureFlags.x",
        "osm.tracing.x",
        "osm.injector.x",
        "osm.certificateProvider.x",
        "osm.osmController.autoScale.cpu.x",
        "smi.x",
    ] {
        let error = render(&[&format!("{key}=1")]).err().with_context(|| format!("{key} was taken"))?.to_string();
        let last = key.split('.').next_back().unwrap_or(key);
        ensure!(
            error.contains("Additional property") && (error.contains(last) || error.contains("osmm")),
            "{key}: {error}"
        );
    }
    for (value, word) in [
        ("osm.osmController.replicaCount=0", "replicaCount"),
        ("osm.meshName=Not_A_Name", "meshName"),
        ("osm.certificateProvider.serviceCertValidityDuration=soon", "serviceCertValidityDuration"),
        ("osm.dataPlane=nginx", "dataPlane"),
        ("osm.injector.nativeSidecars=yes", "nativeSidecars"),
        ("osm.inboundPortExclusionList={70000}", "inboundPortExclusionList"),
    ] {
        let error = render(&[value]).err().with_context(|| format!("{value} was taken"))?.to_string();
        ensure!(error.contains(word), "{value}: {error}");
    }
    Ok(())
}

async fn refused() -> Result<()> {
    let values = [
        "osm.deployPrometheus=true",
        "osm.deployGrafana=true",
        "osm.deployJaeger=true",
        "osm.tracing.enable=true",
        "osm.enableFluentbit=true",
        "osm.enableReconciler=true",
        "osm.certificateProvider.kind=vault",
        "osm.featureFlags.enableMulticlusterMode=true",
        "osm.featureFlags.enableMeshRootCertificate=true",
        "osm.featureFlags.enableEnvoyActiveHealthChecks=true",
        "osm.webhookConfigNamePrefix=mine",
        "contour.enabled=true",
    ];
    for value in values {
        let (key, _) = value.split_once('=').context("a value has a key")?;
        let error = render(&[value]).err().with_context(|| format!("{value} was taken"))?.to_string();
        ensure!(error.contains(&format!("- {key}: ")), "{value}: {error}");
    }
    let always = ["osm.injector.nativeSidecars=always"];
    render(&always)?;
    let old = render_for("v1.28.15-gke.1", &always).err().context("native sidecars on 1.28 were taken")?.to_string();
    ensure!(old.contains("- osm.injector.nativeSidecars: ") && old.contains("v1.28.15-gke.1"), "{old}");
    render_for("v1.29.0+k3s1", &always)?;
    let all = render(&values).err().context("all of them were taken")?.to_string();
    ensure!(all.matches("\n- ").count() == values.len(), "not all at once: {all}");
    Ok(())
}

async fn inert() -> Result<()> {
    let plain = render(&[])?;
    let osm = [
        "osm.deployPrometheus=false",
        "osm.curlImage=curlimages/curl",
        "osm.prometheus.port=7070",
        "osm.grafana.port=3000",
        "osm.fluentBit.tag=1",
        "osm.vault.host=v",
        "osm.certmanager.issuerName=i",
        "osm.cleanup.nodeSelector.a=b",
        "osm.preinstall.nodeSelector.a=b",
        "osm.osmBootstrap.replicaCount=2",
        "osm.injector.replicaCount=2",
        "osm.image.name.osmBootstrap=x",
        "osm.webhookConfigNamePrefix=osm-webhook",
        "osm.sidecarWindowsImage=w",
        "osm.validatorWebhook.webhookConfigurationName=v",
        "smi.validateTrafficTarget=true",
        "contour.enabled=false",
    ];
    ensure!(render(&osm)? == plain, "a key without effect has one");
    Ok(())
}

async fn preset() -> Result<()> {
    let rendered = render(&["osm.outboundPortExclusionList={5432}", "osm.enableEgress=false"])?;
    let documents = rendered.split("\n---\n").filter(|text| text.contains("name: preset-mesh-config\n"));
    let document = documents.into_iter().find(|text| text.contains("kind: ConfigMap")).context("no preset")?;
    let map: Value = serde_saphyr::from_str(document)?;
    let json = map["data"]["preset-mesh-config.json"].as_str().context("no preset-mesh-config.json")?;
    let spec: MeshConfigSpec = serde_json::from_str(json)?;
    ensure!(spec.traffic.outbound_port_exclusion_list == [5432]);
    ensure!(spec.traffic.enable_egress == Some(false));
    ensure!(spec.traffic.enable_permissive_traffic_policy_mode == Some(true));
    ensure!(spec.sidecar.max_data_plane_connections == Some(0));
    Ok(())
}

async fn valid() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut files = Vec::new();
    for (name, values) in [("default.yaml", &[][..]), ("replicated.yaml", REPLICATED)] {
        let file = folder.path().join(name);
        fs::write(&file, render(values)?)?;
        files.push(file);
    }
    for minor in 28..=34 {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", validate()).args(["-m", "kubernetes_validate", "--strict", "--kubernetes-version"]);
        let output = python.arg(format!("1.{minor}")).args(&files).output().context("running python3")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "1.{minor}: {said}");
    }
    Ok(())
}
