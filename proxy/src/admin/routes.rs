//! Which page is where, and by which method.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use http::{Method, Request, StatusCode, header};

use super::{
    Admin, Ask, Page,
    query::{Query, bad},
    word,
};
use crate::{
    app::sockets::Close,
    logging::{self, Level},
    telemetry::{Filter, Format, Kind, server::State},
};

/// Path, whether it changes something, what it does.
const PAGES: [(&str, bool, &str); 21] = [
    ("/", false, "this page"),
    ("/certs", false, "certificates in use and their expiry"),
    ("/clusters", false, "clusters and their endpoints (format=json)"),
    ("/config_dump", false, "configuration as received (include_eds, resource, name_regex)"),
    ("/drain_listeners", true, "stop to accept (inboundonly, graceful, skip_exit)"),
    ("/healthcheck/fail", true, "make /ready fail"),
    ("/healthcheck/ok", true, "undo /healthcheck/fail"),
    ("/help", false, "this list as text"),
    ("/hot_restart_version", false, "always \"disabled\""),
    ("/init_dump", false, "what the start, or an update, waits for"),
    ("/listeners", false, "listening addresses (format=json)"),
    ("/logging", true, "show or change log levels (level, <part>, paths)"),
    ("/memory", false, "memory of the process"),
    ("/quitquitquit", true, "end the process as SIGTERM does, without --shutdown-delay"),
    ("/ready", false, "200 LIVE when the traffic threads serve, else 503 and the state"),
    ("/reopen_logs", true, "open log files anew"),
    ("/reset_counters", true, "set counters and histograms to zero"),
    ("/runtime", false, "runtime values (none)"),
    ("/server_info", false, "version, state, command line, node"),
    ("/stats", false, "statistics (usedonly, filter, format=text|json|prometheus, type)"),
    ("/stats/prometheus", false, "statistics for Prometheus (usedonly, filter)"),
];

impl Admin {
    /// The page for a request.
    pub(super) async fn route<B>(&self, request: &Request<B>, local: SocketAddr) -> Page {
        let path = request.uri().path();
        let Some((_, changes, _)) = PAGES.iter().find(|(known, ..)| *known == path) else {
            return Page::error(StatusCode::NOT_FOUND, format!("invalid path. {}", help()));
        };
        let method = request.method();
        if *changes && method != Method::POST {
            return Page::error(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("Method {method} not allowed, POST required.\n"),
            );
        }
        if !*changes && !matches!(*method, Method::GET | Method::HEAD | Method::POST) {
            return Page::error(StatusCode::METHOD_NOT_ALLOWED, format!("Method {method} not allowed.\n"));
        }
        if *changes && !host_is_trusted(request, local) {
            return Page::error(StatusCode::FORBIDDEN, "the Host header names neither this address nor localhost\n");
        }
        let query = Query::new(request.uri().query());
        self.page(path, &query).await.unwrap_or_else(|refusal| refusal)
    }

    async fn page(&self, path: &str, query: &Query) -> Result<Page, Page> {
        match path {
            "/" => Ok(home()),
            "/help" => Ok(Page::text(help())),
            "/ready" => Ok(self.ready().await),
            "/stats" => {
                self.stats(query, &["usedonly", "filter", "format", "type", "text_readouts", "histogram_buckets"])
            }
            "/stats/prometheus" => self.prometheus(query),
            "/config_dump" => self.config_dump(query),
            "/clusters" => self.clusters(query),
            "/listeners" => self.listeners(query),
            "/certs" => Ok(self.certs()),
            "/server_info" => Ok(self.server_info()),
            "/memory" => Ok(super::pages::memory()),
            "/runtime" => Ok(Page::json(&serde_json::json!({"entries": {}, "layers": []}))),
            "/hot_restart_version" => Ok(Page::text("disabled")),
            "/init_dump" => Ok(self.init_dump()),
            _ => self.change(path, query).await,
        }
    }

    async fn change(&self, path: &str, query: &Query) -> Result<Page, Page> {
        match path {
            "/logging" => return self.log_levels(query),
            "/drain_listeners" => {
                query.only(&["inboundonly", "graceful", "skip_exit"])?;
                let which = if query.has("inboundonly") { Close::Inbound } else { Close::All };
                let after = if query.has("graceful") && !query.has("skip_exit") {
                    self.args.drain_time
                } else {
                    Duration::ZERO
                };
                // With skip_exit a graceful drain only tells clients to go, which every answer does while draining.
                if query.has("graceful") && query.has("skip_exit") {
                    return Err(bad("graceful with skip_exit is not supported\n".to_owned()));
                }
                self.ask(Ask::CloseListeners { which, after }).await?;
            }
            "/quitquitquit" => self.ask(Ask::Quit).await?,
            "/healthcheck/fail" => self.failed.store(true, Relaxed),
            "/healthcheck/ok" => self.failed.store(false, Relaxed),
            "/reset_counters" => self.shared.metrics.reset_counters(),
            "/reopen_logs" => {
                self.logging.reopen();
                self.shared.sinks.reopen();
            }
            _ => return Err(Page::error(StatusCode::NOT_FOUND, help())),
        }
        Ok(Page::text("OK\n"))
    }

    async fn ask(&self, ask: Ask) -> Result<(), Page> {
        let gone = |_| Page::error(StatusCode::SERVICE_UNAVAILABLE, "the process is ending\n");
        self.asks.send(ask).await.map_err(gone)
    }

    async fn ready(&self) -> Page {
        let state = self.state();
        if state != State::Live {
            let why = self.awaited_identity().map(|why| format!("no certificate yet: {why}\n")).unwrap_or_default();
            return Page::error(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n{why}", word(state)));
        }
        if !self.workers.respond(WORKER_PATIENCE).await {
            return Page::error(StatusCode::SERVICE_UNAVAILABLE, "a traffic thread does not respond\n");
        }
        Page::text("LIVE\n")
    }

    fn stats(&self, query: &Query, known: &[&str]) -> Result<Page, Page> {
        query.only(known)?;
        let format = match query.value("format") {
            None | Some("" | "text") => Format::Text,
            Some("json") => Format::Json,
            Some("prometheus") => Format::Prometheus,
            Some(other) => return Err(bad(format!("format {other:?} is none of text, json, prometheus\n"))),
        };
        let kind = match query.value("type") {
            None | Some("" | "All") => None,
            Some("Counters") => Some(Kind::Counters),
            Some("Gauges") => Some(Kind::Gauges),
            Some("Histograms") => Some(Kind::Histograms),
            Some(other) => return Err(bad(format!("type {other:?} is none of All, Counters, Gauges, Histograms\n"))),
        };
        let filter = Filter { pattern: query.regex("filter")?, used_only: query.has("usedonly"), kind };
        Ok(self.render(format, &filter))
    }

    fn prometheus(&self, query: &Query) -> Result<Page, Page> {
        query.only(&["usedonly", "filter", "text_readouts", "histogram_buckets"])?;
        let filter = Filter { pattern: query.regex("filter")?, used_only: query.has("usedonly"), kind: None };
        Ok(self.render(Format::Prometheus, &filter))
    }

    fn render(&self, format: Format, filter: &Filter) -> Page {
        self.stats.refresh(self.state());
        let mut page = Page::text(self.shared.metrics.render(format, filter));
        match format {
            Format::Json => page.kind = "application/json",
            Format::Prometheus => page.kind = "text/plain; version=0.0.4; charset=utf-8",
            Format::Text => {}
        }
        page
    }

    fn log_levels(&self, query: &Query) -> Result<Page, Page> {
        let level = |word: &str| word.parse::<Level>().map_err(|error| bad(format!("{error}\n")));
        for (key, value) in query.pairs() {
            match key {
                "level" => self.logging.set(None, level(value)?),
                "paths" => {
                    for pair in value.split(',') {
                        let (part, level) = logging::component(pair).map_err(|error| bad(format!("{error}\n")))?;
                        self.logging.set(Some(part), level);
                    }
                }
                part => {
                    let (part, level) =
                        logging::component(&format!("{part}:{value}")).map_err(|error| bad(format!("{error}\n")))?;
                    self.logging.set(Some(part), level);
                }
            }
        }
        let mut body = "active loggers:\n".to_owned();
        for (part, level) in self.logging.levels() {
            // Writing to a string can't fail.
            let _ = writeln!(body, "  {part}: {level}");
        }
        Ok(Page::text(body))
    }
}

/// A name that resolves to this machine may have been made to do so by a web page that wants to post here; an address
/// can't be made to.
fn host_is_trusted<B>(request: &Request<B>, local: SocketAddr) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    let Some(authority) = host.to_str().ok().and_then(|host| host.parse::<http::uri::Authority>().ok()) else {
        return false;
    };
    let host = authority.host();
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    address.is_ok_and(|address| address.is_loopback() || local.ip() == address)
}

fn help() -> String {
    let mut text = "admin commands are:\n".to_owned();
    for (path, changes, what) in PAGES {
        let method = if changes { " (POST)" } else { "" };
        // Writing to a string can't fail.
        let _ = writeln!(text, "  {path}{method}: {what}");
    }
    text
}

fn home() -> Page {
    let mut body = "<!doctype html><title>oxmesh-proxy admin</title><h1>oxmesh-proxy</h1><table>\n".to_owned();
    for (path, changes, what) in PAGES {
        let way = if changes {
            format!("<form method=post action={path}><button>{path}</button></form>")
        } else {
            format!("<a href={path}>{path}</a>")
        };
        // Writing to a string can't fail.
        let _ = writeln!(body, "<tr><td>{way}<td>{what}");
    }
    Page { kind: "text/html; charset=UTF-8", ..Page::text(body) }
}

/// Longest time that a traffic thread may take to pick up a task and still count as ready.
const WORKER_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use http::Request;

    use super::host_is_trusted;

    #[test]
    fn only_addresses_of_ours_and_localhost_are_trusted_hosts() {
        let local = "10.0.0.7:15000".parse().unwrap();
        for (host, trusted) in [
            ("localhost:15000", true),
            ("127.0.0.1:15000", true),
            ("[::1]", true),
            ("10.0.0.7:15000", true),
            ("10.0.0.8", false),
            ("evil.example:15000", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            let request = Request::builder().header("host", host).body(()).unwrap();
            assert_eq!(host_is_trusted(&request, local), trusted, "{host}");
        }
    }
}
