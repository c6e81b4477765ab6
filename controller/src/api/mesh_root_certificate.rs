//! `MeshRootCertificate` (config.openservicemesh.io/v1alpha2): who signs the mesh's certificates.

use k8s_openapi::api::core::v1::SecretReference;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// A root of trust.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "config.openservicemesh.io",
    version = "v1alpha2",
    kind = "MeshRootCertificate",
    plural = "meshrootcertificates",
    shortname = "mrc",
    namespaced,
    status = "PolicyStatus",
    doc = "One root of trust and the part it plays now; rotation is two of them changing parts.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshRootCertificateSpec {
    /// Last part of identities; default `cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// `active`, `passive` or `inactive`; earlier versions of OSM have `intent` with the same values.
    #[serde(alias = "intent")]
    pub role: String,
    /// Adds SPIFFE URIs to certificates.
    #[serde(default)]
    pub spiffe_enabled: bool,
    /// Who signs.
    pub provider: ProviderSpec,
}

/// Exactly one of the providers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderSpec {
    /// cert-manager signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManagerProviderSpec>,
    /// HashiCorp Vault signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultProviderSpec>,
    /// The controller signs with a root that it keeps in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tresor: Option<TresorProviderSpec>,
}

/// cert-manager's issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertManagerProviderSpec {
    /// Name of the issuer.
    pub issuer_name: String,
    /// `Issuer` or `ClusterIssuer`.
    pub issuer_kind: String,
    /// API group of the issuer.
    pub issuer_group: String,
}

/// Vault's address and credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultProviderSpec {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Vault's role for signing.
    pub role: String,
    /// `http` or `https`.
    pub protocol: String,
    /// Where the token is kept.
    pub token: VaultTokenSpec,
}

/// Where Vault's token is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultTokenSpec {
    /// The Secret and the key in it.
    pub secret_key_ref: SecretKeyReferenceSpec,
}

/// A key in a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyReferenceSpec {
    /// Name of the Secret.
    pub name: String,
    /// Key in the Secret.
    pub key: String,
    /// Namespace of the Secret.
    pub namespace: String,
}

/// The built-in authority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TresorProviderSpec {
    /// Its root.
    pub ca: TresorCaSpec,
}

/// The built-in authority's root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TresorCaSpec {
    /// The Secret with `ca.crt` and `private.key`.
    pub secret_ref: SecretReference,
}
