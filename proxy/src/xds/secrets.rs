//! Where secrets are found, and whether one can be used at all.

use std::{collections::HashMap, sync::Arc};

use super::convert::Resource;
use super::{kind::Kind, sds_file::Files, state::Client};
use crate::{
    config::{
        Name,
        tls::{CommonTls, Secret, SecretSource, TlsParams, UpstreamTls},
    },
    tls::{ClientTls, ResolvedSecrets},
};

/// All places that secrets come from.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Over ADS.
    pub client: &'a Client,
    /// `static_resources.secrets`.
    pub statics: &'a HashMap<Name, Arc<Secret>>,
    /// Watched files.
    pub files: &'a Files,
}

impl Places<'_> {
    /// The secrets of a TLS context; none as long as one of them is missing.
    #[must_use]
    pub fn resolve(&self, tls: &CommonTls) -> Option<ResolvedSecrets> {
        let find = |source: &Option<SecretSource>| match source {
            Some(source) => self.find(source).map(Some),
            None => Some(None),
        };
        Some(ResolvedSecrets { certificate: find(&tls.certificate)?, validation: find(&tls.validation)? })
    }

    fn find(&self, source: &SecretSource) -> Option<(Name, Arc<Secret>)> {
        match source {
            SecretSource::Ads(wanted) => match &self.client.kind(Kind::Secret).entries().get(&wanted.name)?.resource {
                Resource::Secret { name, secret } => Some((Arc::clone(name), Arc::clone(secret))),
                _ => None,
            },
            SecretSource::File { name, path } => Some((Arc::clone(name), self.files.secret(path, name)?)),
            SecretSource::Static(name) => Some((Arc::clone(name), Arc::clone(self.statics.get(name)?))),
            SecretSource::Inline(secret) => Some((Name::from("in place"), Arc::clone(secret))),
        }
    }
}

/// Finds out whether a secret is of any use: PEM that parses, a key that belongs to its certificate.
///
/// # Errors
/// In words, without the secret's content.
pub fn check(name: &Name, secret: &Arc<Secret>) -> Result<(), String> {
    let source = Some(SecretSource::Inline(Arc::clone(secret)));
    let given = Some((Arc::clone(name), Arc::clone(secret)));
    let (common, secrets) = match &**secret {
        Secret::Certificate(_) => {
            (CommonTls { certificate: source, ..empty() }, ResolvedSecrets { certificate: given, validation: None })
        }
        // Without a CA it completes one that is written in the context that refers to it.
        Secret::Validation(validation) if validation.trusted_ca_pem.is_empty() => return Ok(()),
        Secret::Validation(_) => {
            (CommonTls { validation: source, ..empty() }, ResolvedSecrets { certificate: None, validation: given })
        }
    };
    ClientTls::build(&UpstreamTls { common, sni: None }, &secrets).map(drop).map_err(|error| error.to_string())
}

fn empty() -> CommonTls {
    CommonTls {
        params: TlsParams::default(),
        alpn: Vec::new(),
        certificate: None,
        validation: None,
        default_validation: None,
    }
}
