//! Targets: as they come to a listener that normalises nothing, and to one that does what its options say.

use super::row::{Row, get, raw};

/// Name and target.
const PATHS: [(&str, &str); 24] = [
    ("a query", "/x?a=1&b=%20&c"),
    ("an empty query", "/x?"),
    ("two question marks", "/x?a?b"),
    ("dot segments", "/x/../x/./y"),
    ("dot segments to the root and beyond", "/../../x"),
    ("a dot segment at the end", "/x/y/.."),
    ("escaped dots", "/x/%2e%2E/x"),
    ("escaped letters", "/%78/%41"),
    ("escapes in lower case", "/x/%c3%a9"),
    ("an escaped slash", "/x/a%2Fb"),
    ("an escaped backslash", "/x/a%5cb"),
    ("a backslash", "/x\\y"),
    ("two slashes", "/x//y"),
    ("two slashes in front", "//x"),
    ("parameters of a segment", "/x;a=1/y;b"),
    ("an escaped semicolon and question mark", "/x/%3B%3F"),
    ("a fragment", "/x#frag"),
    ("half an escape", "/x/%2"),
    ("an escape of nonsense", "/x/%zz"),
    ("an escaped NUL", "/x/%00"),
    ("double escapes", "/x/%252e%252e/y"),
    ("characters outside of URIs", "/x/<>\"|^`{}"),
    ("sub-delimiters", "/x/!$&'()*+,;=:@~"),
    ("an escaped percent", "/x/100%25"),
];

pub(super) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (name, path) in PATHS {
        rows.push(get(name, path));
    }
    for (name, path) in PATHS {
        rows.push(Row { name: Box::leak(format!("{name}, normalised").into_boxed_str()), ..get(name, path).edge() });
    }
    rows.push(raw("bytes above 127", b"GET /x/\xc3\xa9 HTTP/1.1\r\nhost: h\r\n\r\n".to_vec()));
    rows.push(raw("a target without a slash", "GET x HTTP/1.1\r\nhost: h\r\n\r\n"));
    rows.push(raw("a space in the target", "GET /x y HTTP/1.1\r\nhost: h\r\n\r\n"));
    rows.push(get("a path of 4 kB", &format!("/x/{}", "a".repeat(4000))));
    rows
}
