//! The mesh as the server sees it: renders a proxy's resources with its identity's certificate.

use std::sync::Arc;
use std::time::SystemTime;

use super::Kind;
use super::build::{self, Issued};
use super::cache::{Resource, State};
use super::server::{Denied, View};
use crate::identity::{Issuer, KeyHome, SidecarIdentity};
use crate::mesh::Mesh;

/// A mesh together with the authority whose certificates its proxies get.
#[derive(Debug, Clone)]
pub struct World {
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// Issues leaves.
    pub issuer: Arc<Issuer>,
}

impl View for World {
    fn state(&self, proxy: &SidecarIdentity, keys: KeyHome) -> Result<State, Denied> {
        let no_pod = || Denied::NoSuchPod(proxy.clone());
        // Before a certificate is issued for a name that nobody has.
        self.mesh.workload_of(proxy).ok_or_else(no_pod)?;
        let roots_pem = self.issuer.ca().cert_pem();
        let resources = match keys {
            KeyHome::Pod => build::build_key_in_pod(&self.mesh, proxy, roots_pem),
            KeyHome::Controller => {
                let leaf = self.issuer.leaf(&proxy.service, SystemTime::now());
                let leaf = leaf.map_err(|error| Denied::Unavailable(error.to_string()))?;
                let issued = Issued { chain_pem: &leaf.chain_pem, key_pem: &leaf.key_pem, roots_pem };
                build::build(&self.mesh, proxy, &issued)
            }
        };
        let resources = resources.ok_or_else(no_pod)?;
        let mut state = State::default();
        for kind in Kind::ALL {
            for (name, message) in resources.of(kind) {
                state.insert(kind, Resource::new(kind, name.as_str(), message.value.clone()));
            }
        }
        Ok(state)
    }

    fn max_proxies(&self) -> Option<usize> {
        let limit = self.mesh.config().max_data_plane_connections;
        usize::try_from(limit).ok().filter(|limit| *limit > 0)
    }
}
