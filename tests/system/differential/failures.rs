//! Servers that refuse, reset, stall and talk nonsense; clusters without room; retries.

use super::{
    row::{Row, get, raw, with},
    upstream::Step::{Last, Reset, Say, Stall},
};

pub(super) fn rows() -> Vec<Row> {
    vec![
        get("a refused connection", "/f/refused"),
        with("a refused connection for gRPC", "/f/refused", "content-type: application/grpc"),
        raw("a refused connection for a POST", "POST /f/refused HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab"),
        get("a cluster without endpoints", "/f/empty"),
        get("a cluster that is not there", "/f/missing"),
        get("a cluster that is not there, as 404", "/f/missing404"),
        get("a cluster that takes no requests", "/f/full"),
        get("a cluster that lets nobody wait", "/f/pending"),
        get("a time-out", "/f/timeout").up(&[Stall]),
        with("a time-out for gRPC", "/f/timeout", "content-type: application/grpc").up(&[Stall]),
        get("a reset before the head", "/x").up(&[Reset]),
        get("an end before the head", "/x").up(&[Last("")]),
        get("half a head", "/x").up(&[Last("HTTP/1.1 200 OK\r\nx-a: ")]),
        get("an answer that is no HTTP", "/x").up(&[Last("hello\r\n\r\n")]),
        get("an answer with a length of nonsense", "/x").up(&[Last("HTTP/1.1 200 OK\r\ncontent-length: a\r\n\r\n")]),
        get("an answer with two lengths", "/x")
            .up(&[Last("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab")]),
        get("an answer with length and chunks", "/x").up(&[Last(
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        )]),
        get("half a body by length", "/x").up(&[Last("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")]),
        get("half a body in chunks", "/x")
            .up(&[Last("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")]),
        get("an upgrade nobody asked for", "/x")
            .up(&[Last("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")]),
        get("503 of the server's own", "/x").up(&[Say(UNAVAILABLE)]),
        // Retries.
        get("5xx, then good", "/f/retry-5xx").up(&[Say(UNAVAILABLE)]),
        get("5xx to the last", "/f/retry-5xx").up(&[Say(UNAVAILABLE), Say(ERROR), Say(UNAVAILABLE)]),
        get("5xx by resets", "/f/retry-5xx").up(&[Reset, Reset]),
        get("5xx by resets to the last", "/f/retry-5xx").up(&[Reset, Reset, Reset]),
        get("404 is no 5xx", "/f/retry-5xx").up(&[Say(NOT_FOUND)]),
        raw("5xx with a body", "POST /f/retry-5xx HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .up(&[Say(UNAVAILABLE)]),
        get("gateway-error by 503", "/f/retry-gateway").up(&[Say(UNAVAILABLE)]),
        get("gateway-error is not 500", "/f/retry-gateway").up(&[Say(ERROR)]),
        get("gateway-error by a reset", "/f/retry-gateway").up(&[Reset]),
        get("reset", "/f/retry-reset").up(&[Reset]),
        get("reset is not 503", "/f/retry-reset").up(&[Say(UNAVAILABLE)]),
        get("connect-failure", "/f/retry-connect"),
        get("retriable-4xx by 409", "/f/retry-4xx").up(&[Say(CONFLICT)]),
        get("retriable-4xx is not 404", "/f/retry-4xx").up(&[Say(NOT_FOUND)]),
        get("a retriable status", "/f/retry-codes").up(&[Say(TEAPOT)]),
        get("a retriable header", "/f/retry-headers").up(&[Say(AGAIN)]),
        get("a try's time-out", "/f/retry-try").up(&[Stall]),
        get("a try's time-out to the last", "/f/retry-try").up(&[Stall, Stall]),
    ]
}

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
const ERROR: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops";
const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone";
const CONFLICT: &str = "HTTP/1.1 409 Conflict\r\ncontent-length: 4\r\n\r\nmine";
const TEAPOT: &str = "HTTP/1.1 418 I'm a teapot\r\ncontent-length: 3\r\n\r\ntea";
const AGAIN: &str = "HTTP/1.1 200 OK\r\nx-again: 1\r\ncontent-length: 5\r\n\r\nagain";
