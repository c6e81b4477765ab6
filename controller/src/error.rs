//! Why a control plane does not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::identity::CaError;
use crate::xds::server::TlsError;

/// Why [`crate::app::App::start`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate authority isn't usable.
    #[error("certificate authority: {0}")]
    Ca(#[from] CaError),
    /// The ADS server's TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A folder of manifests isn't there.
    #[error("the folder {} can't be read: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An address can't be listened on.
    #[error("listen on {address} for {what}: {source} (is another control plane running? choose another with {flag})")]
    Listen {
        /// What for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The command line's flag for it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
