//! Access logs: a record per request or connection, filled on the way, rendered and handed to a writer when it ends.
//!
//! [`Loggers`] are made once per chain; [`Loggers::begin`] gives nothing when no log is configured, so that nothing is
//! filled either. Lines never wait for a disk: a sink that is slow loses lines and counts them.

mod clock;
mod line;
mod record;
mod sink;

use std::{
    cell::RefCell,
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use http::{HeaderMap, HeaderName};
use tokio::time::Instant;

use self::line::Line;
pub use self::{
    line::render,
    record::{Connection, Kept, Record, Request},
    sink::{SinkHandle, Sinks},
};
use crate::config::{
    access_log::{AccessLog, FilterView, Format, LogFilter},
    route::RequestView,
};

/// The access logs of one chain or listener.
#[derive(Debug, Default)]
pub struct Loggers {
    logs: Vec<Log>,
    needs: Needs,
}

#[derive(Debug)]
struct Log {
    sink: SinkHandle,
    line: Line,
    filter: Option<LogFilter>,
}

impl Log {
    fn takes(&self, record: &Record) -> bool {
        let Some(filter) = &self.filter else { return true };
        let headers = record.request_headers.to_map();
        filter.matches(&record.filter_view(&headers))
    }
}

/// Longest line whose memory is kept for the next one.
const MAX_SPARE_BYTES: usize = 16 << 10;

/// The headers that lines and filters look at; only these are kept in records.
#[derive(Debug, Default)]
pub struct Needs {
    pub(self) request: Vec<HeaderName>,
    pub(self) response: Vec<HeaderName>,
    pub(self) trailers: Vec<HeaderName>,
}

impl Loggers {
    /// Opens the sinks and compiles the lines.
    ///
    /// # Errors
    /// Words with the path when a file can't be opened.
    pub fn build(logs: &[AccessLog], sinks: &Sinks) -> Result<Self, String> {
        let mut needs = Needs::default();
        let mut out = Vec::with_capacity(logs.len());
        for AccessLog { sink, format, filter } in logs {
            let line = match format {
                Format::Text(template) => Line::text(template, &mut needs),
                Format::Json(fields) => Line::json(fields, &mut needs),
            };
            if let Some(filter) = filter {
                needs.of_filter(filter);
            }
            out.push(Log { sink: sinks.open(sink)?, line, filter: filter.clone() });
        }
        Ok(Self { logs: out, needs })
    }

    /// True when nothing is logged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Starts a record of what began (just) at `started`, to be written when the entry is dropped; none when no log is
    /// configured.
    #[must_use]
    pub fn begin(self: &Arc<Self>, connection: &Arc<Connection>, started: Instant) -> Option<Box<Entry>> {
        (!self.is_empty()).then(|| {
            Box::new(Entry { record: Record::new(Arc::clone(connection), started), loggers: Arc::clone(self) })
        })
    }

    /// Renders the record for each log that takes it and hands the lines to the sinks. Never blocks.
    pub fn write(&self, record: &Record) {
        thread_local! {
            static LINE: RefCell<String> = const { RefCell::new(String::new()) };
        }
        LINE.with_borrow_mut(|line| {
            for log in self.logs.iter().filter(|log| log.takes(record)) {
                line.clear();
                log.line.render(record, line);
                log.sink.write(line);
            }
            line.shrink_to(MAX_SPARE_BYTES);
        });
    }
}

/// A record on its way; written once, when it is dropped. Keep it with the stream's last byte (in the response body).
pub struct Entry {
    record: Record,
    loggers: Arc<Loggers>,
}

impl Entry {
    /// Keeps what the logs need of the request. Call again after header edits to log the edited request.
    /// `path` is the path with its query.
    pub fn request(&mut self, request: Request<'_>) {
        self.record.request(request, &self.loggers.needs.request);
    }

    /// Keeps what the logs need of the response's headers.
    pub fn response(&mut self, headers: &HeaderMap) {
        self.record.response_headers.keep(headers, &self.loggers.needs.response);
    }

    /// Keeps what the logs need of the response's trailers.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.record.response_trailers.keep(trailers, &self.loggers.needs.trailers);
    }
}

impl Deref for Entry {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl DerefMut for Entry {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.record
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.record.finish();
        self.loggers.write(&self.record);
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

impl Needs {
    fn of_filter(&mut self, filter: &LogFilter) {
        match filter {
            LogFilter::Header(header) => {
                if let crate::config::route::HeaderKey::Name(name) = &header.name {
                    line::need(&mut self.request, name);
                }
            }
            LogFilter::And(filters) | LogFilter::Or(filters) => filters.iter().for_each(|f| self.of_filter(f)),
            LogFilter::NotHealthCheck
            | LogFilter::StatusCode(_)
            | LogFilter::Duration(_)
            | LogFilter::ResponseFlag(_) => {}
        }
    }
}

impl Record {
    /// `headers`: those that were kept.
    fn filter_view<'a>(&'a self, headers: &'a HeaderMap) -> FilterView<'a> {
        let request = self.method.as_ref().map(|method| {
            let (path, query) = self.path.split_once('?').map_or((&*self.path, None), |(p, q)| (p, Some(q)));
            RequestView { method, authority: &self.authority, path, query, scheme: self.scheme, headers }
        });
        FilterView {
            status: self.status.map_or(0, |s| s.as_u16()),
            duration_ms: record::millis(self.elapsed()),
            flags: self.flags,
            request,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode, Version};

    use super::*;
    use crate::{
        config::{
            access_log::{Comparison, Sink, Template},
            flags::Flag,
            matcher::StringMatch,
            route::{HeaderKey, HeaderMatch, HeaderMatchKind},
        },
        telemetry::Registry,
    };

    fn connection() -> Arc<Connection> {
        Arc::new(Connection {
            peer: "10.0.0.9:4000".parse().unwrap(),
            local: "10.0.0.1:80".parse().unwrap(),
            server_name: None,
            tls_version: None,
            peer_uri_sans: vec![],
            peer_dns_sans: vec![],
            peer_subject: None,
            listener: "l".into(),
            chain: "".into(),
        })
    }

    #[test]
    fn without_a_log_there_is_no_record() {
        assert!(Arc::new(Loggers::default()).begin(&connection(), Instant::now()).is_none());
    }

    #[test]
    fn each_log_writes_what_its_filter_takes_once_when_the_record_ends() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = Sinks::new(&Registry::default());
        let header = HeaderMatch {
            name: HeaderKey::Name(HeaderName::from_static("x-debug")),
            kind: HeaderMatchKind::Value(StringMatch::exact("1")),
            invert: false,
            missing_as_empty: false,
        };
        let filters = [
            ("all", None),
            ("errors", Some(LogFilter::StatusCode(Comparison::Ge(500)))),
            ("flagged", Some(LogFilter::ResponseFlag(vec![]))),
            ("uf", Some(LogFilter::ResponseFlag(vec!["UF".into()]))),
            ("debug", Some(LogFilter::Header(header.clone()))),
            ("slow", Some(LogFilter::Duration(Comparison::Ge(60_000)))),
            (
                "or",
                Some(LogFilter::Or(vec![
                    LogFilter::Header(header.clone()),
                    LogFilter::StatusCode(Comparison::Eq(503)),
                ])),
            ),
            ("and", Some(LogFilter::And(vec![LogFilter::Header(header), LogFilter::StatusCode(Comparison::Eq(503))]))),
        ];
        let logs: Vec<_> = filters
            .into_iter()
            .map(|(name, filter)| AccessLog {
                sink: Sink::File(dir.path().join(name)),
                format: Format::Text(Template::parse("%REQ(:PATH)%\n").unwrap()),
                filter,
            })
            .collect();
        let loggers = Arc::new(Loggers::build(&logs, &sinks).unwrap());
        for (path, status, flag, debug) in [("/ok", 200, None, "1"), ("/broken", 503, Some(Flag::NoRouteFound), "0")] {
            let mut headers = HeaderMap::new();
            headers.insert("x-debug", debug.parse().unwrap());
            let mut entry = loggers.begin(&connection(), Instant::now()).unwrap();
            let (method, version) = (&Method::GET, Version::HTTP_11);
            entry.request(Request { method, version, scheme: "http", authority: "", path, headers: &headers });
            entry.status = StatusCode::from_u16(status).ok();
            if let Some(flag) = flag {
                entry.flags.set(flag);
            }
        }
        sinks.flush(Duration::from_secs(10));
        for (name, expected) in [
            ("all", "/ok\n/broken\n"),
            ("errors", "/broken\n"),
            ("flagged", "/broken\n"),
            ("uf", ""),
            ("debug", "/ok\n"),
            ("slow", ""),
            ("or", "/ok\n/broken\n"),
            ("and", ""),
        ] {
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), expected, "{name}");
        }
    }
}
