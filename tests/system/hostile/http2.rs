//! HTTP/2 clients that flood, hoard or lie.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    alone::{read_all, talk},
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
        SETTINGS, WINDOW_UPDATE, fields, frame, get, indexed_field, parse, preface, request,
    },
    witness::{Witness, say},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use super::{Failures, Front, add};

pub(super) fn trials(trials: &mut Vec<Trial>) {
    add(
        trials,
        "HTTP/2 streams opened and reset are cut before they reach the server, beside a fast neighbour",
        resets,
    );
    add(trials, "HTTP/2 frames without use are cut before 10,000 of them", floods);
    add(trials, "HTTP/2 heads that never end or unfold without bound are cut, with little memory", heads);
    add(trials, "HTTP/2 clients that read nothing hold little memory", unread);
    add(trials, "HTTP/2 bodies in frames of one byte hold little memory", one_byte_frames);
    add(trials, "HTTP/2 fields that HTTP/1 would read otherwise never reach the server", downgrade);
    add(trials, "HTTP/2 messages against the rules are refused and never reach the server", violations);
}

const WHOLE: u8 = END_HEADERS | END_STREAM;
const QUIET: Duration = Duration::from_millis(400);
const MIB: u64 = 1 << 20;

/// How a flood ended.
#[derive(Debug)]
struct Flood {
    /// Times that the unit was written.
    sent: usize,
    bytes: usize,
    /// The proxy ended the connection.
    cut: bool,
}

/// Writes units until the proxy ends the connection or `most` were written, waiting a little after each batch so that
/// what lies in socket buffers counts little.
async fn flood(port: u16, opening: &[u8], batch: usize, most: usize, unit: impl Fn(u32) -> Vec<u8>) -> Result<Flood> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(opening).await?;
    let (mut reader, mut writer) = stream.into_split();
    let (end, ended) = watch::channel(false);
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(1..) = reader.read(&mut buffer).await {}
        end.send_replace(true);
    });
    let mut flood = Flood { sent: 0, bytes: 0, cut: false };
    while flood.sent < most && !*ended.borrow() {
        let bytes: Vec<u8> = (0..batch).flat_map(|n| unit((flood.sent + n) as u32)).collect();
        if writer.write_all(&bytes).await.is_err() {
            break;
        }
        flood.sent += batch;
        flood.bytes += bytes.len();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // The end may be on its way.
    flood.cut = tokio::time::timeout(Duration::from_secs(2), reading).await.is_ok();
    Ok(flood)
}

fn stream_id(n: u32) -> u32 {
    n * 2 + 1
}

async fn resets() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    type Unit = fn(u32) -> Vec<u8>;
    let open = |n: u32| frame(HEADERS, WHOLE, stream_id(n), &get("/"));
    let rows: [(&str, Unit); 5] = [
        ("RST_STREAM", |n| frame(RST_STREAM, 0, stream_id(n), &8_u32.to_be_bytes())),
        ("WINDOW_UPDATE of 0", |n| frame(WINDOW_UPDATE, 0, stream_id(n), &[0; 4])),
        ("WINDOW_UPDATE over the top", |n| frame(WINDOW_UPDATE, 0, stream_id(n), &[0x7f, 0xff, 0xff, 0xff])),
        ("DATA after the end", |n| frame(DATA, 0, stream_id(n), b"x")),
        ("a short PRIORITY", |n| frame(PRIORITY, 0, stream_id(n), &[0; 4])),
    ];
    for (name, unit) in rows {
        let opening = preface(&[]);
        let running = flood(front.front, &opening, 50, 6_000, |n| [open(n), unit(n)].concat());
        let (flood, neighbour) = tokio::join!(running, async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            front.serves(Duration::from_millis(500)).await
        });
        neighbour?;
        let flood = flood?;
        let (requests, _) = up.take();
        let stolen = requests.iter().filter(|r| !r.contains("/neighbour")).count();
        failures.check(flood.cut, || format!("{name}: not cut: {flood:?}"));
        failures.check(stolen < 200, || format!("{name}: {stolen} requests reached the server: {flood:?}"));
    }
    front.proxy.healthy()?;
    failures.none()
}

async fn floods() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let open = [preface(&[]), frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[]))].concat();
    let rows: [(&str, Vec<u8>); 9] = [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("empty SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PING answers", frame(PING, END_STREAM, 0, &[0; 8])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        ("WINDOW_UPDATE of the connection", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("WINDOW_UPDATE of a stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("empty DATA", frame(DATA, 0, 1, &[])),
        ("frames of an unknown type", frame(0xbb, 0, 0, &[])),
    ];
    for (name, unit) in rows {
        let flood = flood(front.front, &open, 200, 12_000, |_| unit.clone()).await?;
        failures.check(flood.cut && flood.sent <= 10_000, || format!("{name}: {flood:?}"));
    }
    front.serves(Duration::from_secs(1)).await?;
    front.proxy.healthy()?;
    failures.none()
}

async fn heads() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    front.serves(Duration::from_secs(5)).await?;
    let before = front.proxy.resident()?;
    // A literal's value that goes on and on, and one that begins anew in each frame.
    let long = {
        let mut head = request("GET", "/", &[]);
        // Name `x`, a value of 4 MiB.
        head.extend([0x10, 1, b'x', 0x7f, 0x81, 0xff, 0xff, 0x01]);
        head
    };
    let open = [preface(&[]), frame(HEADERS, END_STREAM, 1, &request("GET", "/", &[]))].concat();
    let open_long = [preface(&[]), frame(HEADERS, END_STREAM, 1, &long)].concat();
    let field = |bytes: usize| fields(&[("x", &vec![b'a'; bytes])]);
    let rows: [(&str, &[u8], Vec<u8>, usize); 5] = [
        ("one endless value", &open_long, vec![b'a'; 16_384], 256 << 10),
        ("endless fields", &open, field(16_000), 256 << 10),
        ("endless small fields", &open, field(1), 256 << 10),
        ("endless tiny pieces", &open_long, vec![b'a'], 256 << 10),
        ("endless nothing", &open, vec![], 10_000 * 9),
    ];
    for (name, opening, payload, most) in rows {
        let unit = frame(CONTINUATION, 0, 1, &payload);
        let batch = (4_096 / unit.len()).max(1);
        let flood = flood(front.front, opening, batch, 2 * most / unit.len(), |_| unit.clone()).await?;
        failures.check(flood.cut && flood.bytes <= most, || format!("{name}: {flood:?}"));
    }
    // Heads that are small on the wire.
    let bomb = {
        let mut head = request("GET", "/bomb", &[]);
        head.extend(indexed_field("x-bomb", &[b'a'; 3_900]));
        head.extend([0xbe; 10_000]);
        head
    };
    let crumbs =
        [request("GET", "/bomb", &[]), [0x10, 6, b'c', b'o', b'o', b'k', b'i', b'e', 1, b'a'].repeat(3_000)].concat();
    let empties = [request("GET", "/bomb", &[]), [0x10, 1, b'x', 0].repeat(4_000)].concat();
    let hosts = [request("GET", "/bomb", &[]), [0x10, 4, b'h', b'o', b's', b't', 1, b'h'].repeat(2_000)].concat();
    for (name, head) in [
        ("an indexed field, again and again", bomb),
        ("cookie crumbs", crumbs),
        ("empty fields", empties),
        ("copies of host", hosts),
    ] {
        let mut bytes = preface(&[]);
        for n in 0..50 {
            let mut parts = head.chunks(16_000).peekable();
            let mut kind = HEADERS;
            while let Some(part) = parts.next() {
                let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
                let flags = if kind == HEADERS { last | END_STREAM } else { last };
                bytes.extend(frame(kind, flags, stream_id(n), part));
                kind = CONTINUATION;
            }
        }
        let came = talk(front.front, &bytes, QUIET).await?;
        let served = parse(&came.bytes).iter().any(|f| f.status() == Some(200));
        failures.check(!served, || format!("{name}: was served"));
    }
    let (requests, _) = up.take();
    failures.check(requests.iter().all(|r| r.contains("/neighbour")), || {
        format!("upstream saw {} requests", requests.len())
    });
    let grown = front.proxy.resident()?.saturating_sub(before);
    failures.check(grown < 8 * MIB, || format!("memory grew by {grown}"));
    front.proxy.healthy()?;
    failures.none()
}

async fn unread() -> Result<()> {
    const BIG: usize = 4 << 20;
    let up = Witness::start(|asked, stream| {
        let size = if asked.path == "/big" { BIG } else { 2 };
        let answer =
            [format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n").into_bytes(), vec![b'x'; size]].concat();
        say(stream, answer)
    })
    .await?;
    let mut front = Front::before(&up).await?;
    front.serves(Duration::from_secs(5)).await?;
    let before = front.proxy.resident()?;
    let mut holders = Vec::new();
    // No window, a window of one byte, and all the window but no reading.
    for window in [0, 1, 0x7fff_ffff] {
        let mut bytes = preface(&[(4, window)]);
        if window > 1 {
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x7ff0_0000_u32.to_be_bytes()));
        }
        bytes.extend((0..90).flat_map(|n| frame(HEADERS, WHOLE, stream_id(n), &get("/big"))));
        let mut stream = TcpStream::connect(("127.0.0.1", front.front)).await?;
        stream.write_all(&bytes).await?;
        holders.push(stream);
    }
    // Until the server's answers are stuck: nothing moves any more.
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut last, mut same) = (0, 0);
    while same < 6 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = front.proxy.resident()?;
        same = if now.abs_diff(last) < MIB / 4 { same + 1 } else { 0 };
        last = now;
    }
    let grown = front.proxy.resident()?.saturating_sub(before);
    ensure!(up.requests().len() > 90, "the requests did not arrive: {}", up.requests().len());
    ensure!(grown < 3 * 32 * MIB, "memory grew by {} MiB for three clients", grown / MIB);
    front.serves(Duration::from_secs(1)).await?;
    drop(holders);
    front.proxy.healthy()
}

async fn one_byte_frames() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    front.serves(Duration::from_secs(5)).await?;
    let before = front.proxy.resident()?;
    let mut peak = before;
    let length = b"1000000";
    let mut bytes = preface(&[]);
    for n in 0..4 {
        bytes.extend(frame(HEADERS, END_HEADERS, stream_id(n), &request("POST", "/", &[("content-length", length)])));
    }
    let mut stream = TcpStream::connect(("127.0.0.1", front.front)).await?;
    stream.write_all(&bytes).await?;
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(1..) = reader.read(&mut buffer).await {}
    });
    let chunk: Vec<u8> = (0..4_u32).flat_map(|n| frame(DATA, 0, stream_id(n), b"x")).collect::<Vec<_>>().repeat(1_000);
    for _ in 0..200 {
        if writer.write_all(&chunk).await.is_err() {
            break;
        }
        peak = peak.max(front.proxy.resident()?);
    }
    reading.abort();
    ensure!(peak - before < 8 * MIB, "memory grew by {} KiB", (peak - before) / 1024);
    front.serves(Duration::from_secs(1)).await?;
    front.proxy.healthy()
}

/// What a client got for a request on stream 1.
fn outcome(frames: &[Frame], ended: bool) -> String {
    for frame in frames {
        match (frame.status(), frame.error()) {
            (Some(status), _) if frame.stream == 1 => return status.to_string(),
            (_, Some(code)) if frame.kind == GOAWAY && code != 0 => return format!("GOAWAY {code}"),
            (_, Some(code)) if frame.kind == RST_STREAM => return format!("RST_STREAM {code}"),
            _ => {}
        }
    }
    if ended { "end".to_owned() } else { "nothing".to_owned() }
}

async fn downgrade() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let pseudo = |method: &[u8], scheme: &[u8], path: &[u8], authority: &[u8]| {
        fields(&[(":method", method), (":scheme", scheme), (":path", path), (":authority", authority)])
    };
    let field = |name: &str, value: &[u8]| request("GET", "/", &[(name, value)]);
    let mut rows: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in [
        ("x", &b"a\r\nsmuggled: 1"[..]),
        ("x", b"a\nsmuggled: 1"),
        ("x", b"a\rb"),
        ("x", b"a\0b"),
        ("x", b"\x01"),
        ("x", b"\x7f"),
        ("x", b"\xff\xfe"),
        ("x\r\nsmuggled", b"1"),
        ("x\nsmuggled", b"1"),
        ("x\0", b"1"),
        ("x y", b"1"),
        ("x:", b"1"),
        ("x: 1", b"1"),
        ("", b"1"),
        ("Upper", b"1"),
        ("hOst", b"h"),
        ("x\u{e9}", b"1"),
        ("connection", b"close"),
        ("keep-alive", b"1"),
        ("proxy-connection", b"close"),
        ("upgrade", b"websocket"),
        ("transfer-encoding", b"chunked"),
        ("te", b"gzip"),
        ("content-length", b"5"),
        ("content-length", b"+0"),
        ("content-length", b"x"),
        ("host", b"other"),
        ("transfer_encoding", b"chunked"),
        ("content_length", b"5"),
        ("x_forwarded_for", b"1.2.3.4"),
        (":status", b"200"),
        (":unknown", b"1"),
        (":path", b"/twice"),
        (":method", b"POST"),
        (":scheme", b"https"),
        (":authority", b"twice"),
    ] {
        rows.push((format!("{name:?}: {:?}", String::from_utf8_lossy(value)), field(name, value)));
    }
    for (name, head) in [
        (":method with a line", pseudo(b"GET / HTTP/1.1\r\nx: 1\r\n\r\nGET", b"http", b"/", b"h")),
        (":method with a space", pseudo(b"GET x", b"http", b"/", b"h")),
        ("empty :method", pseudo(b"", b"http", b"/", b"h")),
        (":path with a line", pseudo(b"GET", b"http", b"/ HTTP/1.1\r\nsmuggled: 1", b"h")),
        (":path with a space", pseudo(b"GET", b"http", b"/a b", b"h")),
        (":path with NUL", pseudo(b"GET", b"http", b"/\0", b"h")),
        ("empty :path", pseudo(b"GET", b"http", b"", b"h")),
        (":path without slash", pseudo(b"GET", b"http", b"x", b"h")),
        (":path of another host", pseudo(b"GET", b"http", b"http://other/", b"h")),
        (":path *", pseudo(b"GET", b"http", b"*", b"h")),
        (":authority with a line", pseudo(b"GET", b"http", b"/", b"h\r\nsmuggled: 1")),
        (":authority with userinfo", pseudo(b"GET", b"http", b"/", b"user@h")),
        (":authority with a path", pseudo(b"GET", b"http", b"/", b"h/admin")),
        (":authority with a space", pseudo(b"GET", b"http", b"/", b"h x")),
        ("empty :authority", pseudo(b"GET", b"http", b"/", b"")),
        ("no :authority, no host", fields(&[(":method", b"GET"), (":scheme", b"http"), (":path", b"/")])),
        (":scheme with a line", pseudo(b"GET", b"http\r\nx: 1", b"/", b"h")),
        ("no :method", fields(&[(":scheme", b"http"), (":path", b"/"), (":authority", b"h")])),
        ("no :path", fields(&[(":method", b"GET"), (":scheme", b"http"), (":authority", b"h")])),
        ("no :scheme", fields(&[(":method", b"GET"), (":path", b"/"), (":authority", b"h")])),
        ("pseudo field behind others", [fields(&[("x", b"1")]), get("/")].concat()),
        ("host twice", request("GET", "/", &[("host", b"h"), ("host", b"h")])),
        ("length twice", request("GET", "/", &[("content-length", b"0"), ("content-length", b"1")])),
        ("CONNECT", fields(&[(":method", b"CONNECT"), (":authority", b"h:80")])),
        (
            "extended CONNECT",
            fields(&[
                (":method", b"CONNECT"),
                (":protocol", b"websocket"),
                (":scheme", b"http"),
                (":path", b"/"),
                (":authority", b"h"),
            ]),
        ),
    ] {
        rows.push((name.to_owned(), head));
    }
    for (name, head) in rows {
        let bytes = [preface(&[]), frame(HEADERS, WHOLE, 1, &head)].concat();
        let came = talk(front.front, &bytes, QUIET).await?;
        let frames = parse(&came.bytes);
        let outcome = outcome(&frames, came.ended);
        let (requests, rest) = up.take();
        let good =
            outcome.starts_with('4') || outcome == "501" || outcome.starts_with("RST") || outcome.starts_with("GOAWAY");
        failures.check(good, || format!("{name}: the client got {outcome}"));
        failures.check(requests.is_empty() && rest.is_empty(), || format!("{name}: upstream {requests:?} {rest:?}"));
    }
    // The same host in both is fine; case is no difference.
    let bytes =
        [preface(&[]), frame(HEADERS, WHOLE, 1, &request("GET", "/", &[("host", b"H"), ("te", b"trailers")]))].concat();
    let came = talk(front.front, &bytes, QUIET).await?;
    let good = outcome(&parse(&came.bytes), came.ended);
    failures.check(good == "200", || format!("a plain request got {good}"));
    front.proxy.healthy()?;
    failures.none()
}

async fn violations() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let post = frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[]));
    let post_of =
        |length: &str| frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("content-length", length.as_bytes())]));
    let open = |rest: Vec<u8>| [post.clone(), rest].concat();
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("DATA on the connection", frame(DATA, 0, 0, b"x")),
        ("HEADERS on the connection", frame(HEADERS, WHOLE, 0, &get("/"))),
        ("HEADERS on an even stream", frame(HEADERS, WHOLE, 2, &get("/"))),
        ("DATA on a stream that isn't open", frame(DATA, 0, 1, b"x")),
        ("RST_STREAM of a stream that isn't open", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("RST_STREAM of the connection", frame(RST_STREAM, 0, 0, &[0; 4])),
        ("RST_STREAM of three bytes", open(frame(RST_STREAM, 0, 1, &[0; 3]))),
        ("WINDOW_UPDATE on a stream that isn't open", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("WINDOW_UPDATE of 0 for the connection", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("WINDOW_UPDATE over the top", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ("an answer to SETTINGS with content", frame(SETTINGS, 1, 0, &[0; 6])),
        ("a window of more than 2^31-1", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("a frame size below the least", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])),
        ("PING of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8])),
        ("a frame larger than allowed", frame(0xbb, 0, 0, &[0; 16_385])),
        ("DATA larger than allowed", open(frame(DATA, END_STREAM, 1, &[0; 16_385]))),
        ("PUSH_PROMISE from a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 1, &get("/"))),
        (
            "another frame within a head",
            [frame(HEADERS, END_STREAM, 1, &get("/")), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        (
            "another stream's CONTINUATION",
            [frame(HEADERS, END_STREAM, 1, &get("/")), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
        ),
        ("padding longer than the frame", open(frame(DATA, 8 | END_STREAM, 1, &[9, 0]))),
        ("a stream that depends on itself", frame(HEADERS, WHOLE | 0x20, 1, &[vec![0, 0, 0, 1, 5], get("/")].concat())),
        ("an index out of HPACK's table", frame(HEADERS, WHOLE, 1, &[0xff, 0xff, 0x7f])),
        ("half a string in HPACK", frame(HEADERS, WHOLE, 1, &[get("/"), vec![0x10, 5, b'x']].concat())),
        (
            "HPACK's table larger than allowed",
            frame(HEADERS, WHOLE, 1, &[vec![0x3f, 0xe2, 0xff, 0x07], get("/")].concat()),
        ),
        ("more body than told", [post_of("1"), frame(DATA, END_STREAM, 1, b"xx")].concat()),
        ("less body than told", [post_of("3"), frame(DATA, END_STREAM, 1, b"xx")].concat()),
        ("trailers that do not end the stream", open(frame(HEADERS, END_HEADERS, 1, &fields(&[("x", b"1")])))),
        ("trailers in upper case", open(frame(HEADERS, WHOLE, 1, &fields(&[("X", b"1")])))),
        (
            "a stream of a lower number",
            [
                frame(HEADERS, END_HEADERS, 5, &request("POST", "/", &[])),
                frame(HEADERS, END_HEADERS, 3, &request("POST", "/", &[])),
            ]
            .concat(),
        ),
        (
            "HEADERS after the end",
            open(
                [frame(DATA, 0, 1, b"x"), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), frame(HEADERS, WHOLE, 1, &get("/"))]
                    .concat(),
            ),
        ),
    ];
    for (name, bytes) in rows {
        let came = talk(front.front, &[preface(&[]), bytes].concat(), QUIET).await?;
        let frames = parse(&came.bytes);
        let outcome = outcome(&frames, came.ended);
        let (requests, rest) = up.take();
        let good =
            outcome.starts_with("RST") || outcome.starts_with("GOAWAY") || outcome.starts_with('4') || outcome == "end";
        failures.check(good, || format!("{name}: the client got {outcome}"));
        failures.check(requests.is_empty() && !rest.contains("\r\n0\r\n\r\n"), || {
            format!("{name}: upstream {requests:?} {rest:?}")
        });
    }
    // What the codec takes from trailers does not go on.
    let bytes = open(frame(HEADERS, WHOLE, 1, &fields(&[(":path", b"/admin"), (":authority", b"other")])));
    talk(front.front, &[preface(&[]), bytes].concat(), QUIET).await?;
    let seen = format!("{:?}", up.take());
    failures.check(!seen.contains("/admin") && !seen.contains("other"), || format!("pseudo trailers: upstream {seen}"));
    // A preface that is none.
    let mut stream = TcpStream::connect(("127.0.0.1", front.front)).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n").await?;
    let came = read_all(&mut stream, Duration::from_secs(2)).await;
    failures.check(came.ended, || format!("no SETTINGS: {:?}", came.text()));
    failures.check(up.take().0.is_empty(), || "no SETTINGS: served".to_owned());
    front.proxy.healthy()?;
    failures.none()
}
