//! Access logs: sinks, filters, formats.

use std::path::PathBuf;

use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{
                AccessLog as Log, AccessLogFilter, ComparisonFilter, access_log::ConfigType,
                access_log_filter::FilterSpecifier, comparison_filter,
            },
            core::v3::{SubstitutionFormatString, substitution_format_string},
        },
        extensions::access_loggers::{file::v3 as file, stream::v3 as stream},
    },
    google::protobuf::{Struct, value::Kind},
};

use super::{
    context::{Cx, type_of},
    matcher,
};
use crate::{
    config::access_log::{AccessLog, Comparison, Format, JsonValue, LogFilter, Operator, Part, Sink, Template},
    xds::{path::At, schema::short},
};

/// Envoy's default line.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// All logs of a list.
pub(super) fn logs(list: &[Log], at: &At<'_>, cx: &mut Cx<'_>) -> Vec<AccessLog> {
    list.iter().enumerate().filter_map(|(i, l)| log(l, &at.index(i), cx)).collect()
}

/// A log into a file in Envoy's default format (the deprecated `access_log_path`).
pub(super) fn default_file(path: &str, at: &At<'_>, cx: &mut Cx<'_>) -> Option<AccessLog> {
    Some(AccessLog { sink: Sink::File(PathBuf::from(path)), format: format(None, at, cx)?, filter: None })
}

fn log(log: &Log, at: &At<'_>, cx: &mut Cx<'_>) -> Option<AccessLog> {
    let filter = match log.filter.as_ref() {
        Some(f) => Some(filter_of(f, &at.field("filter"), cx)?),
        None => None,
    };
    let at = at.field("typed_config");
    let Some(ConfigType::TypedConfig(any)) = log.config_type.as_ref() else { return cx.refuse(&at, "is required") };
    let inside = at.inside(&any.type_url);
    let (sink, format_string) = match short(type_of(any)) {
        "StdoutAccessLog" => (Sink::Stdout, stdout_format(cx.decode::<stream::StdoutAccessLog>(any, &at)?)),
        "StderrAccessLog" => (Sink::Stderr, stderr_format(cx.decode::<stream::StderrAccessLog>(any, &at)?)),
        "FileAccessLog" => {
            let config: file::FileAccessLog = cx.decode(any, &at)?;
            (Sink::File(PathBuf::from(&config.path)), file_format(config))
        }
        other => return cx.refuse(&at, format_args!("{other} not supported")),
    };
    let format = format(format_string.as_ref(), &inside.field("log_format"), cx)?;
    Some(AccessLog { sink, format, filter })
}

fn stdout_format(config: stream::StdoutAccessLog) -> Option<SubstitutionFormatString> {
    let stream::stdout_access_log::AccessLogFormat::LogFormat(format) = config.access_log_format?;
    Some(format)
}

fn stderr_format(config: stream::StderrAccessLog) -> Option<SubstitutionFormatString> {
    let stream::stderr_access_log::AccessLogFormat::LogFormat(format) = config.access_log_format?;
    Some(format)
}

fn file_format(config: file::FileAccessLog) -> Option<SubstitutionFormatString> {
    match config.access_log_format? {
        file::file_access_log::AccessLogFormat::LogFormat(format) => Some(format),
        // The older arms are refused by the walk.
        _ => None,
    }
}

fn format(format: Option<&SubstitutionFormatString>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Format> {
    use substitution_format_string::Format as Source;
    let Some(format) = format else { return template(DEFAULT, true, at, cx).map(Format::Text) };
    let without_query = !format.formatters.is_empty();
    match format.format.as_ref() {
        Some(Source::TextFormat(text)) => template(text, without_query, &at.field("text_format"), cx).map(Format::Text),
        Some(Source::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            let Ok(text) = String::from_utf8(cx.data(source, &at)?) else { return cx.refuse(&at, "not UTF-8") };
            template(&text, without_query, &at, cx).map(Format::Text)
        }
        Some(Source::JsonFormat(json)) => object(json, without_query, &at.field("json_format"), cx).map(Format::Json),
        None => cx.refuse(at, "needs a format"),
    }
}

fn template(text: &str, without_query: bool, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Template> {
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(e) => return cx.refuse(at, e),
    };
    let uses = |p: &Part| matches!(p, Part::Operator(Operator::ReqWithoutQuery(..), _));
    if !without_query && template.parts.iter().any(uses) {
        return cx
            .refuse(at, "%REQ_WITHOUT_QUERY% needs its formatter (envoy.formatter.req_without_query) in formatters");
    }
    Some(template)
}

/// The members of a JSON line, sorted by key as Envoy prints them.
fn object(json: &Struct, without_query: bool, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<(String, JsonValue)>> {
    let mut members = Vec::with_capacity(json.fields.len());
    for (key, value) in &json.fields {
        let at = at.key(key);
        let value = match value.kind.as_ref() {
            Some(Kind::StringValue(text)) => JsonValue::Template(template(text, without_query, &at, cx)?),
            Some(Kind::StructValue(inner)) => JsonValue::Object(object(inner, without_query, &at, cx)?),
            _ => return cx.refuse(&at, "only text and objects are supported here"),
        };
        members.push((key.clone(), value));
    }
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(members)
}

/// A filter of access logs or local replies.
pub(super) fn filter_of(filter: &AccessLogFilter, at: &At<'_>, cx: &mut Cx<'_>) -> Option<LogFilter> {
    Some(match filter.filter_specifier.as_ref() {
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => LogFilter::NotHealthCheck,
        Some(FilterSpecifier::StatusCodeFilter(f)) => {
            LogFilter::StatusCode(comparison(f.comparison.as_ref(), &at.field("status_code_filter"), cx)?)
        }
        Some(FilterSpecifier::DurationFilter(f)) => {
            LogFilter::Duration(comparison(f.comparison.as_ref(), &at.field("duration_filter"), cx)?)
        }
        Some(FilterSpecifier::HeaderFilter(f)) => {
            let at = at.field("header_filter");
            let Some(header) = f.header.as_ref() else { return cx.refuse(&at, "needs a header") };
            LogFilter::Header(matcher::header(header, &at.field("header"), cx)?)
        }
        Some(FilterSpecifier::ResponseFlagFilter(f)) => LogFilter::ResponseFlag(f.flags.clone()),
        Some(FilterSpecifier::AndFilter(f)) => LogFilter::And(filters(&f.filters, &at.field("and_filter"), cx)?),
        Some(FilterSpecifier::OrFilter(f)) => LogFilter::Or(filters(&f.filters, &at.field("or_filter"), cx)?),
        _ => return cx.refuse(at, "needs a condition"),
    })
}

fn filters(list: &[AccessLogFilter], at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<LogFilter>> {
    let at = at.field("filters");
    list.iter().enumerate().map(|(i, f)| filter_of(f, &at.index(i), cx)).collect()
}

fn comparison(filter: Option<&ComparisonFilter>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Comparison> {
    let Some(filter) = filter else { return cx.refuse(at, "needs a comparison") };
    let value = filter.value.as_ref().map_or(0, |v| v.default_value);
    Some(match filter.op() {
        comparison_filter::Op::Eq => Comparison::Eq(value),
        comparison_filter::Op::Ge => Comparison::Ge(value),
        comparison_filter::Op::Le => Comparison::Le(value),
        comparison_filter::Op::Ne => Comparison::Ne(value),
    })
}
