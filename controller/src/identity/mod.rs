//! Who is who: names of identities, the built-in certificate authority, leaf certificates and
//! their rotation.
//!
//! Owns no policy: who may talk to whom is the mesh's business. Private keys are never logged.

pub mod ca;
pub mod ca_secret;
pub mod issuer;
pub mod leaf;
pub mod name;
pub mod sign;

pub use ca::{Ca, CaError};
pub use issuer::{Issuer, PodCertificates, Policy};
pub use leaf::{Certified, Leaf, LeafRequest};
pub use name::{KeyHome, NameError, ServiceIdentity, SidecarIdentity};
