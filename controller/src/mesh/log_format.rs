//! Checks access log formats: a proxy refuses a listener as a whole if one operator in its log is wrong, so a wrong format
//! must not get that far.

/// Checks a format string: text, `%%`, and operators `%NAME%`, `%NAME(arguments)%`, `%NAME(arguments):length%`.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check(format: &str) -> Result<(), String> {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        rest = operator(rest)?;
    }
    Ok(())
}

/// Checks all strings of a JSON format.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check_json(value: &serde_json::Value) -> Result<(), String> {
    match value {
        serde_json::Value::String(format) => check(format),
        serde_json::Value::Array(list) => list.iter().try_for_each(check_json),
        serde_json::Value::Object(map) => map.values().try_for_each(check_json),
        _ => Ok(()),
    }
}

/// Checks the operator whose name begins `text`, and returns what follows it.
fn operator(text: &str) -> Result<&str, String> {
    let stray = || "a % begins no operator (write %% for a percent sign)".to_owned();
    let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).ok_or_else(stray)?;
    let (name, mut rest) = text.split_at(end);
    let mut arguments = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let (inside, after) = inside.split_once(')').ok_or_else(stray)?;
        (arguments, rest) = (Some(inside), after);
    }
    let mut has_length = false;
    if let Some(length) = rest.strip_prefix(':') {
        has_length = true;
        rest = length.trim_start_matches(|c: char| c.is_ascii_digit());
        if rest.len() == length.len() {
            return Err(stray());
        }
    }
    let rest = rest.strip_prefix('%').filter(|_| !name.is_empty()).ok_or_else(stray)?;
    if has_length && !OF_HEADERS.contains(&name) {
        return Err(format!("%{name}% takes no length"));
    }
    match (OF_HEADERS.contains(&name), arguments) {
        (true, Some(headers)) if is_header_pair(headers) => Ok(rest),
        (true, _) => Err(format!("%{name}% needs a header's name in brackets, or two with ? between")),
        (false, format) if name == "START_TIME" => time_format(format.unwrap_or_default()).map(|()| rest),
        (false, None | Some("")) if SIMPLE.contains(&name) => Ok(rest),
        (false, Some(_)) if SIMPLE.contains(&name) => Err(format!("%{name}% takes no arguments")),
        (false, _) => Err(format!("%{name}% is not an operator that all proxies of the mesh know")),
    }
}

fn is_header_pair(text: &str) -> bool {
    let is_known = |name: &str| super::text::is_token(name) || PSEUDO.contains(&name.to_ascii_lowercase().as_str());
    text.split('?').count() <= 2 && text.split('?').all(is_known)
}

/// Checks the conversions of a time, which are those of `strftime` and Envoy's own for fractions of a second.
fn time_format(format: &str) -> Result<(), String> {
    let mut rest = format;
    if format.contains(['\n', '\0']) {
        return Err("the format of a time has one line".to_owned());
    }
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        let length = match rest.as_bytes() {
            [b'E', b'1'..=b'9', b'S' | b'f', ..] => 3,
            [b'E', b'z', ..] | [b'1'..=b'9', b'f', ..] => 2,
            [c, ..] if b"YmdHMSsfyjebBhaAuwzZTFDRpItGCkl%".contains(c) => 1,
            _ => return Err(format!("%{} is not a part of a time", rest.chars().next().unwrap_or_default())),
        };
        rest = &rest[length..];
    }
    Ok(())
}

const PSEUDO: [&str; 6] = [":method", ":path", ":authority", ":scheme", ":status", ":protocol"];
const OF_HEADERS: [&str; 3] = ["REQ", "RESP", "TRAILER"];

/// Operators without arguments that both Envoy and our proxy have.
const SIMPLE: [&str; 31] = [
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CONNECTION_TERMINATION_DETAILS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_VERSION",
    "DURATION",
    "FILTER_CHAIN_NAME",
    "GRPC_STATUS",
    "HOSTNAME",
    "PROTOCOL",
    "REQUESTED_SERVER_NAME",
    "REQUEST_DURATION",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "ROUTE_NAME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_HOST",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_a_proxy_would_refuse_are_refused_here() {
        let good = [
            "",
            "plain",
            "100%%",
            "%START_TIME%",
            "%START_TIME(%Y-%m-%dT%H:%M:%S.%3f %E3S)%",
            "[%REQ(:METHOD)%] %REQ(X-A?:PATH):10% %DURATION%",
        ];
        for format in good {
            assert_eq!(check(format), Ok(()), "{format}");
        }
        let bad = [
            "%",
            "%x%",
            "%DURATION",
            "%NONSENSE%",
            "%REQ%",
            "%REQ()%",
            "%REQ(a?b?c)%",
            "%DURATION(1)%",
            "%DURATION:%",
            "%DURATION:10%",
            "%START_TIME:3%",
            "%START_TIME(%Q)%",
            "%START_TIME(%n)%",
            "%START_TIME(a\nb)%",
            "%REQ(:foo)%",
            "100% of it",
        ];
        for format in bad {
            assert!(check(format).is_err(), "{format}");
        }
        assert!(check_json(&serde_json::json!({"a": {"b": ["%DURATION%", "%NO%"]}})).is_err());
    }
}
