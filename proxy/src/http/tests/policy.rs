//! The stack with a fake upstream: what each policy lets through, stops and changes, and what is logged of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use super::{World, get, status, text};
use crate::{
    body::Body,
    config::{
        access_log::{Comparison, LogFilter, Template},
        flags::Flag,
        headers::{AppendAction, HeaderAdd, HeaderEdits},
        http::{HttpFilter, HttpFilterKind, LocalReplyMapper, ServerHeader},
        listener::Direction,
        matcher::StringMatch,
        ratelimit::{HttpLocalRateLimit, TokenBucket},
        rbac::{Action, Permission, Policy, Principal, Rbac},
        route::{
            DirectResponse, PathMatch, PerRouteFilter, PerRouteFilters, RetryOn, RetryPolicy, RouteAction, Target,
            WeightedTarget,
        },
    },
    error::{Reason, Refusal},
    http::{
        exchange::Exchange,
        testing::{forward, retry_policy, route},
    },
};

async fn ok(exchange: Exchange) -> Result<Response<Body>, Refusal> {
    drop(exchange);
    Ok(Response::new(Body::full("fine")))
}

fn refuse(reason: Reason) -> impl FnMut(Exchange) -> std::future::Ready<Result<Response<Body>, Refusal>> + Clone {
    move |_| std::future::ready(Err(reason.into()))
}

/// Answers with the request's head as text.
async fn echo(exchange: Exchange) -> Result<Response<Body>, Refusal> {
    let request = &exchange.request;
    let mut lines = vec![format!("{} {}", request.method(), request.uri())];
    lines.extend(request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())));
    Ok(Response::new(Body::full(lines.join("\n"))))
}

fn one(add: (&'static str, &str)) -> HeaderEdits {
    let value = Template::parse(add.1).unwrap();
    let name = http::HeaderName::from_static(add.0);
    let add = HeaderAdd { name, value, action: AppendAction::Overwrite, keep_empty: false };
    HeaderEdits { remove: vec![], add: vec![add] }
}

fn rbac_filter(rules: Option<Rbac>) -> HttpFilter {
    HttpFilter { name: "rbac".into(), kind: HttpFilterKind::Rbac(rules.map(Arc::new)), disabled: false }
}

fn rules(action: Action, permission: Permission) -> Rbac {
    let policy = Policy { permissions: vec![permission], principals: vec![Principal::Any] };
    Rbac { action, policies: [("p1".to_owned(), policy)].into() }
}

fn per_route(filter: PerRouteFilter) -> PerRouteFilters {
    PerRouteFilters { by_name: [("rbac".into(), filter)].into() }
}

fn limit(max: u32) -> HttpLocalRateLimit {
    HttpLocalRateLimit {
        stat_prefix: "rl".into(),
        bucket: Some(TokenBucket { max, fill: 1, interval: Duration::from_secs(3600) }),
        status: StatusCode::TOO_MANY_REQUESTS,
        response_headers: one(("x-limit", "yes")),
        enabled_ppm: 1_000_000,
        enforced_ppm: 1_000_000,
    }
}

fn limit_filter(limit: HttpLocalRateLimit) -> HttpFilter {
    HttpFilter { name: "limit".into(), kind: HttpFilterKind::LocalRateLimit(Arc::new(limit)), disabled: false }
}

#[tokio::test]
async fn every_refusal_has_the_status_flags_details_and_body_of_its_row() {
    for reason in Reason::ALL.iter().filter(|r| r.row().status != 0) {
        let proxy = World::to(&[]).start();
        let response = proxy.answer(get(), refuse(*reason)).await;
        let row = reason.row();
        assert_eq!(response.status(), row.status, "{}", row.code);
        assert_eq!(response.headers()["x-oxmesh-why"], row.code);
        assert_eq!(response.headers()["server"], "envoy", "{}", row.code);
        assert_eq!(response.headers().contains_key("connection"), row.close, "{}", row.code);
        assert_eq!(response.headers().contains_key("x-envoy-overloaded"), *reason == Reason::Overflow);
        let typed = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(typed.as_deref(), (!row.body.is_empty()).then_some("text/plain"), "{}", row.code);
        assert_eq!(text(response).await, row.body, "{}", row.code);
        let line = format!("{} {} {} ", row.status, row.flags, row.details);
        assert!(proxy.log()[0].starts_with(&line), "{line} but {:?}", proxy.log());
    }
}

#[tokio::test]
async fn grpc_clients_get_a_status_in_headers_instead() {
    let request = || {
        let mut request = get();
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request
    };
    for reason in Reason::ALL.iter().filter(|r| r.row().status != 0) {
        let proxy = World::to(&[]).start();
        let response = proxy.answer(request(), refuse(*reason)).await;
        let row = reason.row();
        assert_eq!(response.status(), 200, "{}", row.code);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], row.grpc.to_string(), "{}", row.code);
        let message = response.headers().get("grpc-message").map_or("", |m| m.to_str().unwrap());
        assert_eq!(message, row.body, "{}", row.code);
        assert_eq!(text(response).await, "");
        assert!(proxy.log()[0].starts_with(&format!("200 {} ", row.flags)));
    }
}

#[tokio::test]
async fn inbound_replies_tell_a_remote_client_nothing_of_the_mesh() {
    let mut world = World::to(&[]);
    world.direction = Direction::Inbound;
    let response = world.start().answer(get(), refuse(Reason::NoHealthyUpstream)).await;
    assert!(!response.headers().contains_key("x-oxmesh-why"));
}

#[tokio::test]
async fn without_virtual_host_or_route_it_is_404_nr() {
    let mut none = World::to(&[]);
    none.host.domains = vec!["other".into()];
    let proxy = none.start();
    assert_eq!(status(proxy.answer(get(), ok).await).await, 404);
    assert!(proxy.log()[0].starts_with("404 NR route_not_found "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("http.test.no_route"), 1);
    assert_eq!(World::new().cluster(&[], |_| {}).start().answer(get(), ok).await.status(), 404);
}

#[tokio::test]
async fn an_unknown_cluster_is_503_nc_or_the_status_asked_for() {
    let proxy = World::new().forward(|_| {}).start();
    assert_eq!(status(proxy.answer(get(), ok).await).await, 503);
    assert!(proxy.log()[0].starts_with("503 NC cluster_not_found "), "{:?}", proxy.log());
    let proxy = World::new().forward(|f| f.cluster_not_found = StatusCode::NOT_FOUND).start();
    assert_eq!(status(proxy.answer(get(), ok).await).await, 404);
}

#[tokio::test]
async fn requests_that_pass_are_counted_and_logged_when_their_last_byte_is_out() {
    let proxy = World::to(&[]).start();
    let response = proxy.answer(get(), ok).await;
    assert!(proxy.log().is_empty(), "the answer is not out yet");
    assert_eq!(proxy.stat("http.test.downstream_rq_active"), 1);
    assert_eq!(text(response).await, "fine");
    assert_eq!(proxy.log(), ["200 - - 0 4 0 /"]);
    assert_eq!(proxy.stat("http.test.downstream_rq_active"), 0);
    assert_eq!(proxy.stat("http.test.downstream_rq_2xx"), 1);
    assert_eq!(proxy.stat("http.test.downstream_rq_total"), 1);
}

#[tokio::test]
async fn head_gets_the_headers_of_a_reply_and_is_no_disconnect() {
    let mut request = get();
    *request.method_mut() = Method::HEAD;
    let proxy = World::to(&[]).start();
    let response = proxy.answer(request, refuse(Reason::NoHealthyUpstream)).await;
    assert_eq!(response.headers()["content-length"], "19");
    assert_eq!(text(response).await, "");
    assert!(proxy.log()[0].starts_with("503 UH no_healthy_upstream 0 0 "), "{:?}", proxy.log());
}

#[tokio::test]
async fn a_client_that_goes_away_is_logged_with_dc() {
    let proxy = World::to(&[]).start();
    drop(proxy.answer(get(), ok).await);
    assert!(proxy.log()[0].starts_with("200 DC downstream_remote_disconnect "), "{:?}", proxy.log());
    let waiting = proxy.answer(get(), |_| std::future::pending());
    assert!(tokio::time::timeout(Duration::from_millis(10), waiting).await.is_err());
    assert!(proxy.log()[1].starts_with("0 DC downstream_remote_disconnect "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("http.test.downstream_rq_active"), 0);
    assert_eq!(proxy.stat("http.test.downstream_rq_rx_reset"), 2);
}

#[tokio::test]
async fn a_fault_of_the_proxy_answers_500_and_is_counted() {
    let proxy = World::to(&[]).start();
    let response = proxy.answer(get(), |_| async { panic!("a test asks for it") }).await;
    assert_eq!(response.status(), 500);
    let at_once = |_| -> std::future::Ready<Result<Response<Body>, Refusal>> { panic!("a test asks for it") };
    assert_eq!(proxy.answer(get(), at_once).await.status(), 500);
    assert_eq!(proxy.stat("http.test.downstream_rq_panicked"), 2);
}

#[tokio::test]
async fn the_upstream_sees_one_form_of_the_request() {
    let proxy = World::to(&[]).start();
    let mut request = get();
    *request.uri_mut() = "/a/..//%61?q=%2e".parse().unwrap();
    for (name, value) in
        [("x-envoy-retry-on", "5xx"), ("x-forwarded-client-cert", "By=me"), ("connection", "x-own"), ("x-own", "1")]
    {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let seen = text(proxy.answer(request, echo).await).await;
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[0], "GET /a?q=%2e");
    for line in ["host: h", "x-forwarded-proto: http", "x-envoy-expected-rq-timeout-ms: 15000"] {
        assert!(lines.contains(&line), "{line} in {seen}");
    }
    for name in ["x-envoy-retry-on", "x-forwarded-client-cert", "connection", "x-own"] {
        assert!(!seen.contains(name), "{name} in {seen}");
    }
    assert!(seen.contains("x-request-id: "));
    assert_eq!(proxy.log(), [format!("200 - - 0 {} 0 /a?q=%2e", seen.len())]);
}

#[tokio::test]
async fn rbac_denies_with_the_policy_named_and_allows() {
    let filter = rbac_filter(Some(rules(Action::Deny, Permission::UrlPath(StringMatch::exact("/secret")))));
    let proxy = World::to(&[]).manager(|m| m.filters = vec![filter]).start();
    assert_eq!(status(proxy.answer(get(), ok).await).await, 200);
    let mut secret = get();
    *secret.uri_mut() = "/x/..//secret".parse().unwrap();
    let response = proxy.answer(secret, ok).await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (403, "RBAC: access denied"));
    let details = "rbac_access_denied_matched_policy[p1]";
    assert!(proxy.log().last().unwrap().starts_with(&format!("403 - {details} ")), "{:?}", proxy.log());
    assert_eq!(proxy.stat("http.test.rbac.allowed"), 1);
    assert_eq!(proxy.stat("http.test.rbac.denied"), 1);
    let filter = rbac_filter(Some(rules(Action::Allow, Permission::DestinationPort(1))));
    let proxy = World::to(&[]).manager(|m| m.filters = vec![filter]).start();
    assert_eq!(status(proxy.answer(get(), ok).await).await, 403);
    assert!(proxy.log()[0].starts_with("403 - rbac_access_denied_matched_policy[none] "));
}

#[tokio::test]
async fn the_most_specific_setting_of_a_filter_wins_whole() {
    let deny = || PerRouteFilter::Rbac(Some(Arc::new(rules(Action::Deny, Permission::Any))));
    let pass = || PerRouteFilter::Rbac(None);
    let off = || PerRouteFilter::Disabled;
    for (table, host, on_route, share, expected) in [
        (None, None, None, None, 200),
        (Some(deny()), None, None, None, 403),
        (Some(deny()), Some(pass()), None, None, 200),
        (None, Some(deny()), Some(off()), None, 200),
        (None, Some(off()), Some(deny()), None, 403),
        (None, None, Some(deny()), Some(pass()), 200),
        (None, None, Some(pass()), Some(deny()), 403),
    ] {
        let all = |f: &Option<PerRouteFilter>| f.clone().map(per_route).unwrap_or_default();
        let mut route = route(RouteAction::Forward(Box::new(crate::config::route::Forward {
            target: Target::Weighted(vec![WeightedTarget {
                cluster: "c".into(),
                weight: 1,
                request_headers: HeaderEdits::default(),
                response_headers: HeaderEdits::default(),
                filters: all(&share),
            }]),
            ..forward("c")
        })));
        route.filters = all(&on_route);
        let mut world = World::new().cluster(&[], |_| {}).route(route).manager(|m| m.filters = vec![rbac_filter(None)]);
        world.table.filters = all(&table);
        world.host.filters = all(&host);
        let status = world.start().answer(get(), ok).await.status();
        assert_eq!(status, expected, "{table:?} {host:?} {on_route:?} {share:?}");
    }
}

#[tokio::test]
async fn a_filter_that_is_off_runs_only_where_a_route_turns_it_on() {
    let disabled = HttpFilter { disabled: true, ..rbac_filter(Some(rules(Action::Deny, Permission::Any))) };
    let proxy = World::to(&[]).manager(|m| m.filters = vec![disabled.clone()]).start();
    assert_eq!(status(proxy.answer(get(), ok).await).await, 200);
    let mut world = World::to(&[]).manager(|m| m.filters = vec![disabled]);
    world.host.filters = per_route(PerRouteFilter::Rbac(Some(Arc::new(rules(Action::Deny, Permission::Any)))));
    assert_eq!(world.start().answer(get(), ok).await.status(), 403);
}

#[tokio::test]
async fn settings_of_another_kind_of_filter_let_nobody_pass() {
    let mut world = World::to(&[]).manager(|m| m.filters = vec![rbac_filter(None)]);
    world.host.filters = per_route(PerRouteFilter::LocalRateLimit(Arc::new(limit(100))));
    assert_eq!(world.start().answer(get(), ok).await.status(), 403);
}

#[tokio::test]
async fn the_rate_limit_refuses_the_request_above_it() {
    let proxy = World::to(&[]).manager(|m| m.filters = vec![limit_filter(limit(2))]).start();
    for expected in [200, 200, 429] {
        let response = proxy.answer(get(), ok).await;
        assert_eq!(response.status(), expected);
        assert_eq!(response.headers().contains_key("x-limit"), expected == 429);
        text(response).await;
    }
    assert!(proxy.log()[2].starts_with("429 RL local_rate_limited "), "{:?}", proxy.log());
    for (name, value) in [("enabled", 3), ("ok", 2), ("rate_limited", 1), ("enforced", 1)] {
        assert_eq!(proxy.stat(&format!("rl.http_local_rate_limit.{name}")), value, "{name}");
    }
}

#[tokio::test]
async fn a_limit_that_is_not_enforced_counts_only() {
    let limit = HttpLocalRateLimit { enforced_ppm: 0, ..limit(1) };
    let proxy = World::to(&[]).manager(|m| m.filters = vec![limit_filter(limit)]).start();
    for _ in 0..3 {
        assert_eq!(status(proxy.answer(get(), ok).await).await, 200);
    }
    assert_eq!(proxy.stat("rl.http_local_rate_limit.rate_limited"), 2);
    assert_eq!(proxy.stat("rl.http_local_rate_limit.enforced"), 0);
}

#[tokio::test]
async fn header_edits_run_from_the_inside_out() {
    let edits = |level: &str| one(("x-level", level));
    for (most_specific_wins, expected) in [(false, "table"), (true, "route")] {
        let mut route = route(RouteAction::Forward(Box::new(forward("c"))));
        route.request_headers = edits("route");
        route.response_headers = edits("route");
        let mut world = World::new().cluster(&[], |_| {}).route(route);
        world.host.request_headers = edits("host");
        world.host.response_headers = edits("host");
        world.table.request_headers = edits("table");
        world.table.response_headers = edits("table");
        world.table.most_specific_wins = most_specific_wins;
        let proxy = world.start();
        let response = proxy.answer(get(), echo).await;
        assert_eq!(response.headers()["x-level"], expected);
        assert!(text(response).await.contains(&format!("x-level: {expected}")));
    }
}

#[tokio::test]
async fn header_values_may_hold_operators_of_request_and_response() {
    let mut world = World::to(&[]);
    world.host.request_headers = one(("x-peer", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"));
    world.host.response_headers = one(("x-asked", "%REQ(:PATH)%-%REQ(missing)%"));
    let response = world.start().answer(get(), echo).await;
    assert_eq!(response.headers()["x-asked"], "/-");
    assert!(text(response).await.contains("x-peer: 10.0.0.9"));
}

#[tokio::test]
async fn refusals_from_behind_the_edits_are_edited_too() {
    let mut world = World::to(&[]);
    world.host.response_headers = one(("x-edited", "1"));
    let response = world.start().answer(get(), refuse(Reason::NoHealthyUpstream)).await;
    assert_eq!((response.status().as_u16(), response.headers()["x-edited"].as_bytes()), (503, &b"1"[..]));
}

#[tokio::test]
async fn the_first_mapper_that_takes_a_reply_edits_it() {
    let mapper = |filter, name| LocalReplyMapper { filter, headers: one((name, "1")) };
    let filters = vec![
        mapper(LogFilter::ResponseFlag(vec!["NR".into()]), "x-nr"),
        mapper(LogFilter::StatusCode(Comparison::Ge(500)), "x-5xx"),
        mapper(LogFilter::StatusCode(Comparison::Ge(400)), "x-4xx"),
    ];
    let proxy = World::to(&[]).manager(|m| m.local_replies = filters).start();
    let response = proxy.answer(get(), refuse(Reason::NoHealthyUpstream)).await;
    assert!(response.headers().contains_key("x-5xx") && !response.headers().contains_key("x-4xx"));
    let answered = proxy.answer(get(), |_| async { Ok(Response::builder().status(500).body(Body::empty()).unwrap()) });
    assert!(!answered.await.headers().contains_key("x-5xx"), "an upstream's answer is not ours");
}

#[tokio::test]
async fn routes_answer_directly_and_redirect() {
    let direct = RouteAction::Direct(DirectResponse { status: StatusCode::IM_A_TEAPOT, body: "short".into() });
    let mut upload = get();
    *upload.method_mut() = Method::POST;
    let proxy = World::new().route(route(direct)).start();
    let response = proxy.answer(upload, ok).await;
    assert_eq!(response.status(), 418);
    assert_eq!(text(response).await, "short");
    assert!(proxy.log()[0].starts_with("418 - direct_response "), "{:?}", proxy.log());
    let redirect = crate::config::route::Redirect {
        status: StatusCode::MOVED_PERMANENTLY,
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: None,
        strip_query: false,
    };
    let proxy = World::new().route(route(RouteAction::Redirect(Box::new(redirect)))).start();
    let response = proxy.answer(get(), ok).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[header::LOCATION]),
        (301, &"https://h/".parse().unwrap())
    );
    assert_eq!(proxy.stat("http.test.rq_redirect"), 1);
}

#[tokio::test]
async fn paths_without_meaning_are_400() {
    let proxy = World::to(&[]).start();
    let mut request = get();
    *request.uri_mut() = "/%252e%252e/x".parse().unwrap();
    assert_eq!(status(proxy.answer(request, ok).await).await, 400);
    assert!(proxy.log()[0].starts_with("400 - path_normalization_failed "), "{:?}", proxy.log());
}

#[tokio::test]
async fn prefix_and_host_are_rewritten_and_the_original_path_told() {
    let mut route = route(RouteAction::Forward(Box::new(crate::config::route::Forward {
        prefix_rewrite: Some("/new".into()),
        host_rewrite: Some("other:81".into()),
        ..forward("c")
    })));
    route.matcher.path = PathMatch::Prefix("/old".into());
    let proxy = World::new().cluster(&[], |_| {}).route(route).start();
    let mut request = get();
    *request.uri_mut() = "/old/x?q".parse().unwrap();
    let seen = text(proxy.answer(request, echo).await).await;
    assert!(seen.starts_with("GET /new/x?q\n"), "{seen}");
    assert!(seen.contains("host: other:81") && seen.contains("x-envoy-original-path: /old/x?q"), "{seen}");
}

#[tokio::test]
async fn the_server_header_follows_its_rule() {
    let with_server = |_| async { Ok(Response::builder().header("server", "theirs").body(Body::empty()).unwrap()) };
    for (rule, expected) in [
        (ServerHeader::Overwrite("envoy".into()), "envoy"),
        (ServerHeader::AppendIfAbsent("envoy".into()), "theirs"),
        (ServerHeader::PassThrough, "theirs"),
    ] {
        let proxy = World::to(&[]).manager(|m| m.server_header = rule).start();
        assert_eq!(proxy.answer(get(), with_server).await.headers()["server"], expected);
    }
}

#[tokio::test]
async fn osms_destination_headers_end_at_the_clients_side_and_are_counted() {
    let send =
        |_| async { Ok(Response::builder().header("osm-stats-name", "bookstore-v1").body(Body::empty()).unwrap()) };
    let proxy = World::to(&[]).start();
    let response = proxy.answer(get(), send).await;
    assert!(!response.headers().contains_key("osm-stats-name"));
    drop(response);
    let out = proxy.registry.render(crate::telemetry::Format::Prometheus, &crate::telemetry::Filter::default());
    assert!(out.contains("destination_name=\"bookstore-v1\""), "{out}");
    let mut inbound = World::to(&[]);
    inbound.direction = Direction::Inbound;
    assert!(inbound.start().answer(get(), send).await.headers().contains_key("osm-stats-name"));
}

fn retrying(on: RetryOn, change: impl FnOnce(&mut RetryPolicy)) -> World {
    let mut policy = RetryPolicy { on, ..retry_policy() };
    change(&mut policy);
    World::new().forward(|f| f.retry = Some(Arc::new(policy))).cluster(&[], |_| {})
}

type Answered = std::future::Ready<Result<Response<Body>, Refusal>>;

/// Fails `failures` times, then answers.
fn flaky(failures: u32, status: u16) -> (Arc<AtomicU32>, impl FnMut(Exchange) -> Answered + Clone) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let send = move |_| {
        let failed = counted.fetch_add(1, SeqCst) < failures;
        let status = if failed { status } else { 200 };
        std::future::ready(Ok(Response::builder().status(status).body(Body::empty()).unwrap()))
    };
    (calls, send)
}

#[tokio::test(start_paused = true)]
async fn retries_follow_the_policy_and_stop_at_the_first_good_answer() {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let proxy = retrying(on, |p| p.num_retries = 3).start();
    let (calls, send) = flaky(2, 503);
    assert_eq!(status(proxy.answer(get(), send).await).await, 200);
    assert_eq!(calls.load(SeqCst), 3);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 2);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_success"), 1);
}

#[tokio::test(start_paused = true)]
async fn when_retries_are_used_up_the_last_answer_is_passed_on_with_urx() {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let proxy = retrying(on, |p| p.num_retries = 2).start();
    let (calls, send) = flaky(9, 503);
    let response = proxy.answer(get(), send).await;
    assert_eq!(response.status(), 503);
    drop(response);
    assert_eq!(calls.load(SeqCst), 3);
    assert!(proxy.log()[0].starts_with("503 URX via_upstream "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_limit_exceeded"), 1);
}

#[tokio::test(start_paused = true)]
async fn connect_failures_used_up_are_urx_and_uf() {
    let on = RetryOn { connect_failure: true, ..RetryOn::default() };
    let proxy = retrying(on, |_| {}).start();
    assert_eq!(status(proxy.answer(get(), refuse(Reason::ConnectFailed)).await).await, 503);
    assert!(proxy.log()[0].starts_with("503 URX,UF upstream_reset"), "{:?}", proxy.log());
}

#[tokio::test(start_paused = true)]
async fn a_try_that_takes_too_long_is_urx_ut() {
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let proxy = retrying(on, |p| p.per_try_timeout = Some(Duration::from_millis(100))).start();
    let response = proxy.answer(get(), |_| std::future::pending()).await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (504, "upstream request timeout"));
    assert!(proxy.log()[0].starts_with("504 URX,UT upstream_per_try_timeout "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_per_try_timeout"), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_retried_that_the_policy_does_not_name() {
    let on = RetryOn { connect_failure: true, ..RetryOn::default() };
    let (calls, send) = flaky(9, 503);
    assert_eq!(retrying(on, |p| p.num_retries = 3).start().answer(get(), send).await.status(), 503);
    assert_eq!(calls.load(SeqCst), 1);
    let (calls, send) = flaky(9, 503);
    assert_eq!(World::to(&[]).start().answer(get(), send).await.status(), 503);
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_clusters_limit_of_retries_holds() {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let mut policy = RetryPolicy { on, ..retry_policy() };
    policy.num_retries = 3;
    let world = World::new().forward(|f| f.retry = Some(Arc::new(policy)));
    let proxy = world.cluster(&[], |spec| spec.limits.max_retries = 0).start();
    let (calls, send) = flaky(9, 503);
    drop(proxy.answer(get(), send).await);
    assert_eq!(calls.load(SeqCst), 1);
    assert!(proxy.log()[0].starts_with("503 UO via_upstream "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_overflow"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retried_request_carries_its_whole_body() {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let proxy = retrying(on, |_| {}).start();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let send = move |exchange: Exchange| {
        let first = counted.fetch_add(1, SeqCst) == 0;
        async move {
            let body = text(Response::new(exchange.request.into_body())).await;
            assert_eq!(body, "whole");
            Ok(Response::builder().status(if first { 500 } else { 200 }).body(Body::empty()).unwrap())
        }
    };
    let request = Request::post("/").header("host", "h").body(Body::full("whole")).unwrap();
    assert_eq!(status(proxy.answer(request, send).await).await, 200);
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn the_routes_timeout_covers_all_tries() {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let mut policy = RetryPolicy { on, ..retry_policy() };
    policy.num_retries = 100;
    policy.base_interval = Duration::from_secs(1);
    policy.max_interval = Duration::from_secs(1);
    let world = World::new().forward(|f| {
        f.retry = Some(Arc::new(policy));
        f.timeout = Some(Duration::from_secs(2));
    });
    let proxy = world.cluster(&[], |_| {}).start();
    let (_, send) = flaky(1000, 503);
    let before = tokio::time::Instant::now();
    assert_eq!(status(proxy.answer(get(), send).await).await, 504);
    assert!(before.elapsed() < Duration::from_millis(2100));
    assert!(proxy.log()[0].starts_with("504 UT response_timeout "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_timeout"), 1);
}

#[tokio::test(start_paused = true)]
async fn limits_of_time_have_their_rows() {
    let pending = |_| std::future::pending();
    let half = || Request::post("/").header("host", "h").body(never_ending()).unwrap();
    let idle = |limit| {
        World::new().cluster(&[], |_| {}).forward(move |f| {
            f.timeout = None;
            f.idle_timeout = Some(Duration::from_secs(limit));
        })
    };
    let proxy = idle(7).start();
    assert_eq!(status(proxy.answer(get(), pending).await).await, 504);
    assert!(proxy.log()[0].starts_with("504 SI stream_idle_timeout "), "{:?}", proxy.log());
    assert_eq!(status(proxy.answer(half(), pending).await).await, 408);
    assert!(proxy.log()[1].starts_with("408 SI stream_idle_timeout "), "{:?}", proxy.log());
    let proxy = World::to(&[]).manager(|m| m.request_timeout = Duration::from_secs(3)).start();
    assert_eq!(status(proxy.answer(half(), pending).await).await, 408);
    assert!(proxy.log()[0].starts_with("408 - request_overall_timeout "), "{:?}", proxy.log());
    let proxy = World::to(&[]).manager(|m| m.max_stream_duration = Some(Duration::from_secs(3))).start();
    assert_eq!(status(proxy.answer(get(), pending).await).await, 504);
    assert!(proxy.log()[0].starts_with("504 - max_duration_timeout "), "{:?}", proxy.log());
}

/// A body of which nothing ever comes.
fn never_ending() -> Body {
    Body::boxed(http_body_util::StreamBody::new(futures_util::stream::pending::<
        Result<http_body::Frame<bytes::Bytes>, crate::body::Error>,
    >()))
}

#[tokio::test(start_paused = true)]
async fn the_routes_timeout_starts_when_the_request_is_complete() {
    let proxy = World::to(&[]).manager(|m| m.stream_idle_timeout = Duration::ZERO).start();
    let request = Request::post("/").header("host", "h").body(never_ending()).unwrap();
    let waiting = proxy.answer(request, |_| std::future::pending());
    let waited = tokio::time::timeout(Duration::from_secs(3600), waiting).await;
    assert!(waited.is_err(), "a slow upload is not the server's fault");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_passes_in_the_body_cuts_it() {
    let stalled = |_| async { Ok(Response::new(never_ending())) };
    let proxy = World::to(&[]).start();
    let response = proxy.answer(get(), stalled).await;
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    assert!(body.is_err(), "never a clean end");
    assert!(proxy.log()[0].starts_with("200 UT response_timeout "), "{:?}", proxy.log());
    let proxy = World::new().cluster(&[], |_| {}).forward(|f| f.timeout = None).start();
    let response = proxy.answer(get(), stalled).await;
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err());
    assert!(proxy.log()[0].starts_with("200 SI stream_idle_timeout "), "{:?}", proxy.log());
}

#[tokio::test]
async fn flags_of_the_log_are_those_of_the_table() {
    let proxy = World::to(&[]).start();
    let refusal = Refusal {
        more_flags: crate::config::flags::Flags::of(Flag::UpstreamRetryLimitExceeded),
        ..Reason::UpstreamClosed.into()
    };
    let send = move |_| std::future::ready(Err(refusal.clone()));
    text(proxy.answer(get(), send).await).await;
    assert!(proxy.log()[0].starts_with("503 URX,UC "), "{:?}", proxy.log());
}

#[tokio::test]
async fn futures_and_records_stay_small() {
    let proxy = World::to(&[]).start();
    let exchange = proxy.exchange(get());
    let per_try = size_of_val(&*tower::Service::call(&mut crate::http::attempt::Attempt, exchange));
    let exchange = proxy.exchange(get());
    let mut stack = crate::http::stack::stack(crate::http::attempt::Attempt);
    let whole = size_of_val(&tower::Service::call(&mut stack, exchange));
    let moved = size_of::<Exchange>();
    let context = size_of::<crate::http::exchange::Context>();
    for (what, bytes, most) in
        [("a try", per_try, 4096), ("the stack", whole, 256), ("an exchange", moved, 400), ("a context", context, 400)]
    {
        assert!(bytes <= most, "{what} takes {bytes} bytes");
    }
}
