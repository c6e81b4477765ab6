//! TLS contexts and the secrets that they name.
//!
//! A client checks the server's name against the service's accounts; a server checks that the client's certificate is of
//! the mesh and leaves the name to the access rules.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret,
    SubjectAltNameMatcher, TlsCertificate, TlsParameters, UpstreamTlsContext,
    common_tls_context::ValidationContextType, secret, subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
};
use envoy_types::pb::google::protobuf::BoolValue;

use super::message::{ads, exact, watched_file};
use super::{OwnCertificate, Scene};
use crate::identity::ServiceIdentity;
use crate::mesh::{Service, Tls, TlsVersion};

/// The protocol name of mesh connections, in ALPN.
pub(super) const ALPN: &str = "osm";

/// Where a sidecar that made its own key keeps its certificates.
pub const IDENTITY_DIR: &str = "/etc/oxmesh/identity";
/// The SDS file in which it names the certificate of its service identity.
pub const SERVICE_CERT_FILE: &str = "/etc/oxmesh/identity/service_cert_sds_secret.yaml";
/// The secret's name in that file.
pub const SERVICE_CERT_SECRET: &str = "service-cert";

/// Name of the secret with the workload's own certificate.
pub(super) fn own_certificate(identity: &ServiceIdentity) -> String {
    format!("service-cert:{identity}")
}

/// Name of the secret with the roots that clients' certificates must come from.
pub(super) fn inbound_roots(identity: &ServiceIdentity) -> String {
    format!("root-cert-for-mtls-inbound:{identity}")
}

/// Name of the secret with the roots and names that the service's certificates must have.
pub(super) fn outbound_roots(service: &Service) -> String {
    format!("root-cert-for-mtls-outbound:{}", service.name)
}

/// How a client speaks to `service`.
pub(super) fn upstream(scene: &Scene<'_>, service: &Service) -> UpstreamTlsContext {
    let mut common = common(scene, Some(outbound_roots(service)));
    common.alpn_protocols = vec![ALPN.to_owned()];
    UpstreamTlsContext { common_tls_context: Some(common), sni: service.fqdn(), ..Default::default() }
}

/// How a server speaks; clients need a certificate of the mesh if `client_certificate`.
pub(super) fn downstream(scene: &Scene<'_>, client_certificate: bool) -> DownstreamTlsContext {
    let roots = client_certificate.then(|| inbound_roots(&scene.workload.identity));
    DownstreamTlsContext {
        common_tls_context: Some(common(scene, roots)),
        require_client_certificate: Some(BoolValue { value: client_certificate }),
        ..Default::default()
    }
}

fn common(scene: &Scene<'_>, roots: Option<String>) -> CommonTlsContext {
    let tls: &Tls = &scene.mesh.config().tls;
    let version = |v| match v {
        TlsVersion::V1_2 => TlsProtocol::TlSv12,
        TlsVersion::V1_3 => TlsProtocol::TlSv13,
    };
    let sds = |name: String| SdsSecretConfig { name, sds_config: ads() };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: version(tls.min).into(),
            tls_maximum_protocol_version: version(tls.max).into(),
            cipher_suites: tls.cipher_suites.clone(),
            ecdh_curves: tls.ecdh_curves.clone(),
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![match scene.certificate {
            OwnCertificate::Sent { .. } => sds(own_certificate(&scene.workload.identity)),
            OwnCertificate::InPod => SdsSecretConfig {
                name: SERVICE_CERT_SECRET.to_owned(),
                sds_config: watched_file(SERVICE_CERT_FILE, IDENTITY_DIR),
            },
        }],
        validation_context_type: roots.map(|name| ValidationContextType::ValidationContextSdsSecretConfig(sds(name))),
        ..Default::default()
    }
}

/// The secret with the workload's own certificate and key, if they are sent to it.
pub(super) fn own_certificate_secret(scene: &Scene<'_>) -> Option<Secret> {
    let OwnCertificate::Sent { chain_pem, key_pem } = scene.certificate else { return None };
    let certificate =
        TlsCertificate { certificate_chain: inline(chain_pem), private_key: inline(key_pem), ..Default::default() };
    let name = own_certificate(&scene.workload.identity);
    Some(Secret { name, r#type: Some(secret::Type::TlsCertificate(certificate)) })
}

/// The secret with which a server checks clients.
pub(super) fn inbound_roots_secret(scene: &Scene<'_>) -> Secret {
    roots_secret(inbound_roots(&scene.workload.identity), scene.roots_pem, Vec::new())
}

/// The secret with which a client checks `service`. A service without accounts gets a name that nobody has, because an
/// empty list would let every certificate of the mesh pass.
pub(super) fn outbound_roots_secret(scene: &Scene<'_>, service: &Service) -> Secret {
    let trust_domain = scene.mesh.trust_domain();
    let mut names: Vec<String> = service.identities.iter().map(|id| id.principal(trust_domain)).collect();
    if names.is_empty() {
        names.push(NOBODY.to_owned());
    }
    let matchers = names.iter().map(|name| SubjectAltNameMatcher {
        san_type: SanType::Dns.into(),
        matcher: Some(exact(name)),
        ..Default::default()
    });
    roots_secret(outbound_roots(service), scene.roots_pem, matchers.collect())
}

fn roots_secret(name: String, roots_pem: &str, names: Vec<SubjectAltNameMatcher>) -> Secret {
    let context = CertificateValidationContext {
        trusted_ca: inline(roots_pem),
        match_typed_subject_alt_names: names,
        ..Default::default()
    };
    Secret { name, r#type: Some(secret::Type::ValidationContext(context)) }
}

fn inline(pem: &str) -> Option<DataSource> {
    let specifier = Some(data_source::Specifier::InlineBytes(pem.as_bytes().to_vec()));
    Some(DataSource { specifier, ..Default::default() })
}

const NOBODY: &str = "no-service-account.invalid";
