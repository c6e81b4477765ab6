//! TLS contexts and secrets.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret as InSecret,
    TlsCertificate, TlsParameters, UpstreamTlsContext, common_tls_context::ValidationContextType, secret,
    subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
};

use super::{
    context::Cx,
    matcher,
    source::{self, Source},
};
use crate::{
    config::{
        Name, Wanted,
        tls::{
            CertificatePair, CommonTls, DownstreamTls, SanKind, SanMatch, Secret, SecretSource, TlsParams, TlsVersion,
            UpstreamTls, Validation,
        },
    },
    xds::path::At,
};

/// OpenSSL's names of TLS 1.2 suites, and rustls's for those that it has.
const SUITES: [(&str, Option<&str>); 17] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", Some("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")),
    ("ECDHE-RSA-AES128-GCM-SHA256", Some("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", Some("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")),
    ("ECDHE-RSA-AES256-GCM-SHA384", Some("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384")),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", Some("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256")),
    ("ECDHE-RSA-CHACHA20-POLY1305", Some("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256")),
    ("ECDHE-ECDSA-AES128-SHA", None),
    ("ECDHE-RSA-AES128-SHA", None),
    ("ECDHE-ECDSA-AES256-SHA", None),
    ("ECDHE-RSA-AES256-SHA", None),
    ("ECDHE-ECDSA-AES128-SHA256", None),
    ("ECDHE-RSA-AES128-SHA256", None),
    ("AES128-GCM-SHA256", None),
    ("AES256-GCM-SHA384", None),
    ("AES128-SHA", None),
    ("AES256-SHA", None),
    ("DES-CBC3-SHA", None),
];

/// BoringSSL's names of groups, and rustls's for those that it has.
const GROUPS: [(&str, Option<&str>); 5] = [
    ("X25519", Some("X25519")),
    ("P-256", Some("secp256r1")),
    ("P-384", Some("secp384r1")),
    ("X25519MLKEM768", Some("X25519MLKEM768")),
    ("P-521", None),
];

/// The server's side.
pub(super) fn downstream(c: &DownstreamTlsContext, at: &At<'_>, cx: &mut Cx<'_>) -> Option<DownstreamTls> {
    let common = common(c.common_tls_context.as_ref(), &at.field("common_tls_context"), cx)?;
    if common.certificate.is_none() {
        return cx.refuse(&at.field("common_tls_context"), "no TLS certificates found for server context");
    }
    let require_client_certificate = c.require_client_certificate.as_ref().is_some_and(|r| r.value);
    if require_client_certificate && common.validation.is_none() {
        let reason = "nothing says which client certificates are good: a validation context with a CA is needed";
        return cx.refuse(&at.field("require_client_certificate"), reason);
    }
    let require_sni = c.require_sni.as_ref().is_some_and(|r| r.value);
    Some(DownstreamTls { common, require_client_certificate, require_sni })
}

/// The client's side.
pub(super) fn upstream(c: &UpstreamTlsContext, at: &At<'_>, cx: &mut Cx<'_>) -> Option<UpstreamTls> {
    let common_at = at.field("common_tls_context");
    let common = common(c.common_tls_context.as_ref(), &common_at, cx)?;
    if common.validation.is_none() {
        cx.report.warn(&common_at, "no validation context: the server's certificate is not verified");
    }
    Some(UpstreamTls { common, sni: (!c.sni.is_empty()).then(|| c.sni.clone()) })
}

fn common(c: Option<&CommonTlsContext>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<CommonTls> {
    let empty = CommonTlsContext::default();
    let c = c.unwrap_or(&empty);
    let params = params(c.tls_params.as_ref(), &at.field("tls_params"), cx);
    let certificate = certificate(c, at, cx);
    let (validation, default_validation) = validation(c, at, cx)?;
    Some(CommonTls {
        params: params?,
        alpn: c.alpn_protocols.clone(),
        certificate: certificate?,
        validation,
        default_validation,
    })
}

/// None inside = there is none.
fn certificate(c: &CommonTlsContext, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Option<SecretSource>> {
    let (inline_at, sds_at) = (at.field("tls_certificates"), at.field("tls_certificate_sds_secret_configs"));
    match (c.tls_certificates.as_slice(), c.tls_certificate_sds_secret_configs.as_slice()) {
        ([], []) => Some(None),
        ([pair], []) => {
            let pair = certificate_pair(pair, &inline_at.index(0), cx)?;
            Some(Some(SecretSource::Inline(Arc::new(Secret::Certificate(pair)))))
        }
        ([], [sds]) => secret_source(sds, &sds_at.index(0), cx).map(Some),
        ([_, _, ..], _) => cx.refuse(&inline_at.index(1), "only one certificate is supported"),
        (_, [_, _, ..]) => cx.refuse(&sds_at.index(1), "only one certificate is supported"),
        ([_], [_]) => cx.refuse(&inline_at, "not supported beside tls_certificate_sds_secret_configs"),
    }
}

type Checks = (Option<SecretSource>, Option<Arc<Validation>>);

fn validation(c: &CommonTlsContext, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Checks> {
    match c.validation_context_type.as_ref() {
        None => Some((None, None)),
        Some(ValidationContextType::ValidationContext(v)) => {
            let validation = validation_context(v, true, &at.field("validation_context"), cx)?;
            Some((Some(SecretSource::Inline(Arc::new(Secret::Validation(validation)))), None))
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(sds)) => {
            Some((Some(secret_source(sds, &at.field("validation_context_sds_secret_config"), cx)?), None))
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            let sds_at = at.field("validation_context_sds_secret_config");
            let Some(sds) = combined.validation_context_sds_secret_config.as_ref() else {
                return cx.refuse(&sds_at, "is required");
            };
            let default = match combined.default_validation_context.as_ref() {
                Some(v) => Some(validation_context(v, false, &at.field("default_validation_context"), cx)?),
                None => None,
            };
            Some((Some(secret_source(sds, &sds_at, cx)?), default.map(Arc::new)))
        }
        Some(_) => cx.refuse(at, "needs another kind of validation context"),
    }
}

fn secret_source(sds: &SdsSecretConfig, at: &At<'_>, cx: &mut Cx<'_>) -> Option<SecretSource> {
    let name: Name = cx.name(&sds.name, &at.field("name"))?;
    if sds.sds_config.is_none() {
        return Some(SecretSource::Static(name));
    }
    Some(match source::source(sds.sds_config.as_ref(), &at.field("sds_config"), cx)? {
        Source::Ads(patience) => SecretSource::Ads(Wanted { name, patience }),
        Source::File(path) => SecretSource::File { name, path: cx.base.join(path) },
    })
}

/// A secret with its name.
pub(super) fn secret(s: &InSecret, at: &At<'_>, cx: &mut Cx<'_>) -> Option<(Name, Secret)> {
    let name = cx.name(&s.name, &at.field("name"))?;
    let secret = match s.r#type.as_ref() {
        Some(secret::Type::TlsCertificate(pair)) => {
            Secret::Certificate(certificate_pair(pair, &at.field("tls_certificate"), cx)?)
        }
        Some(secret::Type::ValidationContext(v)) => {
            Secret::Validation(validation_context(v, true, &at.field("validation_context"), cx)?)
        }
        _ => return cx.refuse(at, "needs a tls_certificate or a validation_context"),
    };
    Some((name, secret))
}

fn certificate_pair(pair: &TlsCertificate, at: &At<'_>, cx: &mut Cx<'_>) -> Option<CertificatePair> {
    let (chain_at, key_at) = (at.field("certificate_chain"), at.field("private_key"));
    let Some(chain) = pair.certificate_chain.as_ref() else { return cx.refuse(&chain_at, "is required") };
    let Some(key) = pair.private_key.as_ref() else { return cx.refuse(&key_at, "is required") };
    let (chain, key) = (cx.data(chain, &chain_at)?, cx.data(key, &key_at)?);
    Some(CertificatePair { chain_pem: chain.into(), key_pem: key.into() })
}

/// With `needs_ca` a CA must be there: without one every certificate would be good.
fn validation_context(
    v: &CertificateValidationContext,
    needs_ca: bool,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<Validation> {
    let ca_at = at.field("trusted_ca");
    let trusted_ca_pem = match v.trusted_ca.as_ref() {
        Some(source) => cx.data(source, &ca_at)?,
        None if needs_ca => {
            let reason = "is required: without a CA every certificate would be good, and its names prove nothing";
            return cx.refuse(&ca_at, reason);
        }
        None => Vec::new(),
    };
    if needs_ca && trusted_ca_pem.is_empty() {
        return cx.refuse(&ca_at, "is empty");
    }
    let subject_alt_names = san_matchers(v, at, cx)?;
    Some(Validation { trusted_ca_pem: trusted_ca_pem.into(), subject_alt_names })
}

fn san_matchers(v: &CertificateValidationContext, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<SanMatch>> {
    let (typed_at, plain_at) = (at.field("match_typed_subject_alt_names"), at.field("match_subject_alt_names"));
    if !v.match_subject_alt_names.is_empty() && !v.match_typed_subject_alt_names.is_empty() {
        return cx.refuse(&plain_at, "not supported beside match_typed_subject_alt_names");
    }
    let mut matchers = Vec::new();
    for (i, m) in v.match_typed_subject_alt_names.iter().enumerate() {
        let at = typed_at.index(i);
        let kind = match m.san_type() {
            SanType::Dns => SanKind::Dns,
            SanType::Uri => SanKind::Uri,
            SanType::IpAddress => SanKind::Ip,
            SanType::Email => SanKind::Email,
            other => return cx.refuse(&at.field("san_type"), format_args!("{} not supported", other.as_str_name())),
        };
        let Some(string) = m.matcher.as_ref() else { return cx.refuse(&at.field("matcher"), "is required") };
        matchers.push(SanMatch { kind, matcher: matcher::string(string, &at.field("matcher"), cx)? });
    }
    for (i, m) in v.match_subject_alt_names.iter().enumerate() {
        matchers.push(SanMatch { kind: SanKind::Any, matcher: matcher::string(m, &plain_at.index(i), cx)? });
    }
    Some(matchers)
}

fn params(p: Option<&TlsParameters>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<TlsParams> {
    let Some(p) = p else { return Some(TlsParams::default()) };
    let (min_at, max_at) = (at.field("tls_minimum_protocol_version"), at.field("tls_maximum_protocol_version"));
    let min = match p.tls_minimum_protocol_version() {
        TlsProtocol::TlSv13 => TlsVersion::V1_3,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            cx.report.warn(&min_at, "raised to TLSv1_2: there is nothing older here");
            TlsVersion::V1_2
        }
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => TlsVersion::V1_2,
    };
    let max = match p.tls_maximum_protocol_version() {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => TlsVersion::V1_3,
        TlsProtocol::TlSv12 => TlsVersion::V1_2,
        other => {
            let reason = format_args!("{} not supported (supported: TLSv1_2, TLSv1_3)", other.as_str_name());
            return cx.refuse(&max_at, reason);
        }
    };
    if min > max {
        return cx.refuse(&min_at, "is above tls_maximum_protocol_version");
    }
    let suites: Vec<&str> = p.cipher_suites.iter().flat_map(|s| alternatives(s)).collect();
    Some(TlsParams {
        min,
        max,
        cipher_suites: usable(&suites, &SUITES, &at.field("cipher_suites"), cx)?,
        groups: usable(
            &p.ecdh_curves.iter().map(String::as_str).collect::<Vec<_>>(),
            &GROUPS,
            &at.field("ecdh_curves"),
            cx,
        )?,
    })
}

/// BoringSSL's `[A|B]` is a group of equal preference.
fn alternatives(suite: &str) -> impl Iterator<Item = &str> {
    suite.trim_start_matches('[').trim_end_matches(']').split('|')
}

/// Our names of those that our TLS has; unknown names are errors, known ones that it doesn't have are left out.
fn usable(names: &[&str], table: &[(&str, Option<&str>)], at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<String>> {
    let mut found = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        match table.iter().find(|(known, _)| known == name) {
            Some((_, Some(ours))) => found.push((*ours).to_owned()),
            Some((_, None)) => cx.report.warn(at, format_args!("{name} is left out: our TLS library does not have it")),
            None => return cx.refuse(&at.index(i), format_args!("{name:?} is not known")),
        }
    }
    if found.is_empty() && !names.is_empty() {
        return cx.refuse(at, "none of them is in our TLS library");
    }
    Some(found)
}
