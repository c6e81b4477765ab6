//! The custom resource definitions of all our kinds, made of the types that parse them.
//!
//! Names, groups and versions are OSM's and SMI's. The schema of a version knows every field that the types know, so the
//! API server prunes nothing that we would read; it sets no defaults, so what a user wrote is what stands there.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt as _;
use kube::api::ApiResource;

use super::{
    Egress, ExtensionService, HTTPRouteGroup, IngressBackend, MeshConfig, MeshRootCertificate, Retry, TCPRoute,
    Telemetry, TrafficSplit, TrafficTarget, UDPRoute, UpstreamTrafficSetting,
};

/// The definitions, sorted by group and kind.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        TrafficTarget::crd(),
        ExtensionService::crd(),
        mesh_config(),
        MeshRootCertificate::crd(),
        Egress::crd(),
        IngressBackend::crd(),
        Retry::crd(),
        Telemetry::crd(),
        UpstreamTrafficSetting::crd(),
        HTTPRouteGroup::crd(),
        TCPRoute::crd(),
        UDPRoute::crd(),
        traffic_split(),
    ];
    for crd in &mut all {
        crd.metadata.labels = Some([(NAME_LABEL.0.to_owned(), NAME_LABEL.1.to_owned())].into());
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
                tidy(schema);
            }
        }
    }
    all
}

/// The custom kinds, each in a version that clusters with OSM's own definitions serve too.
#[must_use]
pub fn custom_resources() -> [ApiResource; 13] {
    [
        ApiResource::erase::<TrafficTarget>(&()),
        ApiResource::erase::<ExtensionService>(&()),
        ApiResource::erase::<MeshConfig>(&()),
        ApiResource::erase::<MeshRootCertificate>(&()),
        ApiResource::erase::<Egress>(&()),
        ApiResource::erase::<IngressBackend>(&()),
        ApiResource::erase::<Retry>(&()),
        ApiResource::erase::<Telemetry>(&()),
        ApiResource::erase::<UpstreamTrafficSetting>(&()),
        ApiResource::erase::<HTTPRouteGroup>(&()),
        ApiResource::erase::<TCPRoute>(&()),
        ApiResource::erase::<UDPRoute>(&()),
        ApiResource::erase::<TrafficSplit>(&()),
    ]
}

/// The definitions as one YAML file, as the chart has it.
///
/// # Errors
/// None that is known: the definitions are maps of plain values.
pub fn crds_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut yaml = String::from("# Written by `oxmesh-controller --crds`; do not edit.\n");
    for crd in crds() {
        yaml.push_str("---\n");
        yaml.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(yaml)
}

/// v1alpha1 is served for those who still write it; its fields are a part of v1alpha2's.
fn mesh_config() -> CustomResourceDefinition {
    let mut crd = MeshConfig::crd();
    let stored = crd.spec.versions.first().cloned();
    crd.spec.versions.extend(stored.map(|stored| {
        CustomResourceDefinitionVersion {
            name: "v1alpha1".to_owned(),
            storage: false,
            deprecated: Some(true),
            deprecation_warning: Some(
                "config.openservicemesh.io/v1alpha1 MeshConfig is deprecated; use config.openservicemesh.io/v1alpha2"
                    .to_owned(),
            ),
            ..stored
        }
    }));
    crd
}

/// v1alpha2 is stored, as in OSM. Its schema has the later versions' `matches` too, which else would be lost on the way
/// into the store, but nobody may write it as v1alpha2.
fn traffic_split() -> CustomResourceDefinition {
    let mut crd = TrafficSplit::crd();
    let Some(stored) = crd.spec.versions.first_mut() else { return crd };
    let later = ["v1alpha3", "v1alpha4"].map(|name| CustomResourceDefinitionVersion {
        name: name.to_owned(),
        storage: false,
        ..stored.clone()
    });
    let spec = stored.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()).and_then(|s| s.properties.as_mut());
    if let Some(spec) = spec.and_then(|properties| properties.get_mut("spec")) {
        spec.x_kubernetes_validations = Some(vec![ValidationRule {
            rule: "!has(self.matches)".to_owned(),
            message: Some("matches needs split.smi-spec.io/v1alpha4".to_owned()),
            ..ValidationRule::default()
        }]);
    }
    crd.spec.versions.extend(later);
    crd
}

/// What the API server wants otherwise than the generator writes it.
fn tidy(schema: &mut JSONSchemaProps) {
    // The types' own defaults: written into objects, they would look as if the user had asked for them.
    schema.default = None;
    // The type knows its fields; that no others are allowed goes without saying, and must not be said.
    if matches!(schema.additional_properties, Some(JSONSchemaPropsOrBool::Bool(false))) {
        schema.additional_properties = None;
    }
    match schema.format.as_deref() {
        Some("uint16") => schema.format = None,
        Some("uint32") => {
            schema.format = None;
            schema.maximum = Some(f64::from(u32::MAX));
        }
        _ => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        tidy(property);
        if matches!(name.as_str(), "limits" | "requests") {
            quantities(property);
        }
    }
}

/// Kubernetes takes `cpu: 1` for `cpu: "1"`.
fn quantities(schema: &mut JSONSchemaProps) {
    if let Some(JSONSchemaPropsOrBool::Schema(quantity)) = &mut schema.additional_properties {
        quantity.type_ = None;
        quantity.x_kubernetes_int_or_string = Some(true);
    }
}

/// By which OSM finds its definitions.
const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", "openservicemesh.io");
