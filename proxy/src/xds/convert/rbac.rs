//! Access control rules.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::rbac::v3::{
    Permission as InPermission, Policy as InPolicy, Principal as InPrincipal, Rbac as InRbac, permission, principal,
    rbac,
};

use super::{context::Cx, matcher};
use crate::{
    config::rbac::{Action, Permission, Policy, Principal, Rbac},
    xds::path::At,
};

/// Rules; none when something in them is refused.
pub(super) fn rules(rules: &InRbac, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Rbac> {
    let action = match rules.action() {
        rbac::Action::Allow => Action::Allow,
        rbac::Action::Deny => Action::Deny,
        rbac::Action::Log => return cx.refuse(&at.field("action"), "LOG not supported"),
    };
    let at = at.field("policies");
    let mut policies = BTreeMap::new();
    for (name, policy) in &rules.policies {
        policies.insert(name.clone(), self::policy(policy, &at.key(name), cx)?);
    }
    Some(Rbac { action, policies })
}

/// Rules for connections: what only requests have is refused, since a condition that never holds would deny or, negated,
/// allow everybody.
pub(super) fn connection_rules(rules: &InRbac, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Rbac> {
    let converted = self::rules(rules, at, cx)?;
    let at = at.field("policies");
    let mut fits = true;
    for (name, policy) in &converted.policies {
        if policy.permissions.iter().any(asks_request) || policy.principals.iter().any(asks_caller) {
            cx.report.error(&at.key(name), "header and url_path are not supported for connections");
            fits = false;
        }
    }
    fits.then_some(converted)
}

fn asks_request(permission: &Permission) -> bool {
    match permission {
        Permission::Header(_) | Permission::UrlPath(_) => true,
        Permission::And(list) | Permission::Or(list) => list.iter().any(asks_request),
        Permission::Not(not) => asks_request(not),
        Permission::Any
        | Permission::DestinationIp(_)
        | Permission::DestinationPort(_)
        | Permission::RequestedServerName(_) => false,
    }
}

fn asks_caller(principal: &Principal) -> bool {
    match principal {
        Principal::Header(_) | Principal::UrlPath(_) => true,
        Principal::And(list) | Principal::Or(list) => list.iter().any(asks_caller),
        Principal::Not(not) => asks_caller(not),
        Principal::Any | Principal::Authenticated(_) | Principal::DirectRemoteIp(_) | Principal::RemoteIp(_) => false,
    }
}

fn policy(policy: &InPolicy, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Policy> {
    Some(Policy {
        permissions: permissions(&policy.permissions, &at.field("permissions"), cx)?,
        principals: principals(&policy.principals, &at.field("principals"), cx)?,
    })
}

fn permissions(list: &[InPermission], at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<Permission>> {
    list.iter().enumerate().map(|(i, p)| permission(p, &at.index(i), cx)).collect()
}

fn permission(permission: &InPermission, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Permission> {
    use permission::Rule;
    Some(match permission.rule.as_ref() {
        Some(Rule::Any(_)) => Permission::Any,
        Some(Rule::AndRules(set)) => {
            Permission::And(permissions(&set.rules, &at.field("and_rules").field("rules"), cx)?)
        }
        Some(Rule::OrRules(set)) => Permission::Or(permissions(&set.rules, &at.field("or_rules").field("rules"), cx)?),
        Some(Rule::NotRule(not)) => Permission::Not(Box::new(self::permission(not, &at.field("not_rule"), cx)?)),
        Some(Rule::Header(h)) => Permission::Header(matcher::header(h, &at.field("header"), cx)?),
        Some(Rule::UrlPath(p)) => Permission::UrlPath(matcher::path(p, &at.field("url_path"), cx)?),
        Some(Rule::DestinationIp(range)) => Permission::DestinationIp(cx.network(range, &at.field("destination_ip"))?),
        Some(Rule::DestinationPort(port)) => match u16::try_from(*port) {
            Ok(port) => Permission::DestinationPort(port),
            Err(_) => return cx.refuse(&at.field("destination_port"), format_args!("{port} is no port")),
        },
        Some(Rule::RequestedServerName(s)) => {
            Permission::RequestedServerName(matcher::string(s, &at.field("requested_server_name"), cx)?)
        }
        _ => return cx.refuse(at, "needs a rule"),
    })
}

fn principals(list: &[InPrincipal], at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<Principal>> {
    list.iter().enumerate().map(|(i, p)| principal(p, &at.index(i), cx)).collect()
}

fn principal(principal: &InPrincipal, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Principal> {
    use principal::Identifier;
    Some(match principal.identifier.as_ref() {
        Some(Identifier::Any(_)) => Principal::Any,
        Some(Identifier::AndIds(set)) => Principal::And(principals(&set.ids, &at.field("and_ids").field("ids"), cx)?),
        Some(Identifier::OrIds(set)) => Principal::Or(principals(&set.ids, &at.field("or_ids").field("ids"), cx)?),
        Some(Identifier::NotId(not)) => Principal::Not(Box::new(self::principal(not, &at.field("not_id"), cx)?)),
        Some(Identifier::Authenticated(a)) => Principal::Authenticated(match a.principal_name.as_ref() {
            Some(name) => Some(matcher::string(name, &at.field("authenticated").field("principal_name"), cx)?),
            None => None,
        }),
        Some(Identifier::DirectRemoteIp(range)) => {
            Principal::DirectRemoteIp(cx.network(range, &at.field("direct_remote_ip"))?)
        }
        Some(Identifier::RemoteIp(range)) => Principal::RemoteIp(cx.network(range, &at.field("remote_ip"))?),
        Some(Identifier::Header(h)) => Principal::Header(matcher::header(h, &at.field("header"), cx)?),
        Some(Identifier::UrlPath(p)) => Principal::UrlPath(matcher::path(p, &at.field("url_path"), cx)?),
        _ => return cx.refuse(at, "needs an identifier"),
    })
}
