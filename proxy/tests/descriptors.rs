//! The descriptor set in `data/envoy.fds` is what protox makes of the protos that the package `envoy-types` ships.

use std::{path::PathBuf, process::Command};

/// Where cargo keeps the package's sources.
fn protos() -> PathBuf {
    // Only this platform's packages: the others' need not be here.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("an array");
    let package = packages.iter().find(|p| p["name"] == "envoy-types").expect("a dependency of ours");
    PathBuf::from(package["manifest_path"].as_str().expect("a path")).with_file_name("proto")
}

fn compiled() -> Vec<u8> {
    let root = protos();
    let includes = [
        "data-plane-api",
        "googleapis",
        "protoc-gen-validate",
        "xds",
        "cel-spec/proto",
        "client_model",
        "opentelemetry-proto",
    ];
    let mut compiler = protox::Compiler::new(includes.map(|dir| root.join(dir))).expect("the folders are there");
    compiler.include_imports(true).include_source_info(false);
    for file in include_str!("../data/envoy.protos.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        compiler.open_file(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    compiler.encode_file_descriptor_set()
}

#[test]
fn the_descriptor_set_is_made_from_the_protos_of_envoy_types() {
    let made = compiled();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/envoy.fds");
    if std::env::var_os("OXMESH_BLESS").is_some() {
        std::fs::write(path, &made).expect("writable");
    }
    let kept = std::fs::read(path).unwrap_or_default();
    assert!(kept == made, "data/envoy.fds is stale: run this test with OXMESH_BLESS=1");
}
