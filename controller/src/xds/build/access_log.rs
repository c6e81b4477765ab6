//! The access log's message.

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog as Entry, access_log};
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, data_source, substitution_format_string,
};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{StdoutAccessLog, stdout_access_log};

use super::message::{any, any_as};
use super::sorted::{JsonFormat, Kind, StdoutJsonAccessLog, Struct, Value};
use crate::mesh::AccessLog;

/// The log on standard output that a workload writes.
pub(super) fn entry(log: &AccessLog) -> Entry {
    let config = match log {
        AccessLog::Default => json(Struct {
            fields: FIELDS
                .iter()
                .map(|(name, format)| ((*name).to_owned(), Value { kind: Some(Kind::String((*format).to_owned())) }))
                .collect(),
        }),
        AccessLog::Json(map) => json(map.into()),
        AccessLog::Text(text) => any(&StdoutAccessLog {
            access_log_format: Some(stdout_access_log::AccessLogFormat::LogFormat(text_format(text))),
        }),
    };
    Entry {
        name: "envoy.access_loggers.stream".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn json(fields: Struct) -> envoy_types::pb::google::protobuf::Any {
    any_as::<StdoutAccessLog>(&StdoutJsonAccessLog { log_format: Some(JsonFormat { json_format: Some(fields) }) })
}

fn text_format(text: &str) -> SubstitutionFormatString {
    let source =
        DataSource { specifier: Some(data_source::Specifier::InlineString(text.to_owned())), ..Default::default() };
    SubstitutionFormatString {
        format: Some(substitution_format_string::Format::TextFormatSource(source)),
        ..Default::default()
    }
}

/// OSM's fields.
const FIELDS: [(&str, &str); 19] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("start_time", "%START_TIME%"),
    ("time_to_first_byte", "%RESPONSE_DURATION%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];
