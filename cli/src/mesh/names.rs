//! Service names and their addresses, as the controller sees them. Pure.

use oxmesh_controller::api::Objects;
use oxmesh_controller::mesh::Mesh;
use oxmesh_controller::settings::Settings;

use crate::pod::hosts::ServiceName;

/// The names that pods resolve. The objects come from [`super::read`], which gives Services their
/// addresses as the controller does.
pub(super) fn services(objects: &Objects, settings: &Settings) -> Vec<ServiceName> {
    let mesh = Mesh::build(objects, settings).mesh;
    let mut names = Vec::new();
    for service in mesh.services().values() {
        let name = |name: &str| ServiceName {
            name: name.to_owned(),
            namespace: service.name.namespace.clone(),
            ips: service.dialed.clone(),
        };
        names.push(name(&service.name.name));
        // `<pod>.<service>` of a headless service: the service's own name is all of its pods.
        if let Some((_, headless)) = service.name.name.split_once('.') {
            names.push(name(headless));
        }
    }
    names
}
