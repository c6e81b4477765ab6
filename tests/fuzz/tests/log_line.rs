//! The access log: one request is one line, JSON is JSON, and what peers send never reaches a reader's terminal raw.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bolero::check;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use oxmesh_proxy::{
    config::access_log::{AccessLog, Format, JsonValue, Sink, Template},
    telemetry::{
        Registry,
        access_log::{Connection, Loggers, Request, Sinks},
    },
};
use serde_json::Value;
use tokio::time::Instant;

/// Strings of ours and of theirs, and bytes of a header.
type Input = (String, String, Vec<u8>, String);

#[test]
fn one_request_is_one_line_without_control_characters() {
    check!().with_iterations(50).with_type::<Vec<Input>>().for_each(|inputs| {
        let inputs = &inputs[..inputs.len().min(16)];
        let dir = tempfile::tempdir().expect("a folder");
        let (text, json) = written(dir.path().into(), inputs);
        for lines in [&text, &json] {
            let lines = std::str::from_utf8(lines).expect("UTF-8");
            assert!(lines.is_empty() || lines.ends_with('\n'));
            assert_eq!(lines.matches('\n').count(), inputs.len(), "{lines:?}");
            assert!(!lines.chars().any(|c| c.is_control() && c != '\n'), "{lines:?}");
        }
        for (line, (path, authority, header, details)) in json.split(|b| *b == b'\n').zip(inputs) {
            let line: Value = serde_json::from_slice(line).expect("JSON");
            assert_eq!(line["path"], path.as_str());
            assert_eq!(line["both"], format!("{} {path}", if authority.is_empty() { "-" } else { authority }));
            let header = HeaderValue::from_bytes(header).ok();
            assert_eq!(
                line["inner"]["header"].as_str(),
                header.as_ref().map(|h| String::from_utf8_lossy(h.as_bytes())).as_deref()
            );
            assert_eq!(line["code"], 200);
            assert_eq!(line["details"], details.replace(char::is_whitespace, "_"));
        }
    });
}

/// What a text log and a JSON log hold after a request for each input.
fn written(dir: PathBuf, inputs: &[Input]) -> (Vec<u8>, Vec<u8>) {
    let template = |text: &str| Template::parse(text).expect("a template");
    let value = |text: &str| JsonValue::Template(template(text));
    let text = "[%START_TIME%] %REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% \"%REQ(X-A)%\" %RESPONSE_CODE_DETAILS% \
                %ROUTE_NAME% %DOWNSTREAM_PEER_URI_SAN% %REQUESTED_SERVER_NAME%\n";
    let fields = [
        ("path", value("%REQ(:PATH)%")),
        ("both", value("%REQ(:AUTHORITY)% %REQ(:PATH)%")),
        ("inner", JsonValue::Object(vec![("header".to_owned(), value("%REQ(X-A)%"))])),
        ("code", value("%RESPONSE_CODE%")),
        ("details", value("%RESPONSE_CODE_DETAILS%")),
        ("san", value("%DOWNSTREAM_PEER_URI_SAN%")),
        ("cut", value("%REQ(:PATH):3%")),
    ];
    let fields = fields.map(|(key, value)| (key.to_owned(), value)).into();
    let logs = [("text", Format::Text(template(text))), ("json", Format::Json(fields))];
    let logs = logs.map(|(name, format)| AccessLog { sink: Sink::File(dir.join(name)), format, filter: None });
    let sinks = Sinks::new(&Registry::default());
    let loggers = Arc::new(Loggers::build(&logs, &sinks).expect("files can be made"));
    for (path, authority, header, details) in inputs {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(header) {
            headers.insert("x-a", value);
        }
        let mut entry = loggers.begin(&connection(authority), Instant::now()).expect("there are logs");
        let (method, version) = (&Method::GET, Version::HTTP_11);
        entry.request(Request { method, version, scheme: "http", authority, path, headers: &headers });
        entry.status = Some(StatusCode::OK);
        entry.details = Some(details.clone().into());
        entry.route = Some(path.as_str().into());
    }
    sinks.flush(Duration::from_secs(10));
    let read = |name| std::fs::read(dir.join(name)).expect("it was made");
    (read("text"), read("json"))
}

/// Names in a certificate are the peer's words too.
fn connection(name: &str) -> Arc<Connection> {
    let address: SocketAddr = "10.0.0.1:80".parse().expect("an address");
    Arc::new(Connection {
        peer: address,
        local: address,
        server_name: Some(name.to_owned()),
        tls_version: None,
        peer_uri_sans: vec![name.to_owned()],
        peer_dns_sans: Vec::new(),
        peer_subject: None,
        listener: "l".into(),
        chain: "".into(),
    })
}
