//! The path normaliser: its result is canonical, or it refuses.

use bolero::check;
use oxmesh_proxy::{
    config::http::{EscapedSlashes, PathRules},
    http::path::{Canonical, canonical},
};

const STRICT: PathRules =
    PathRules { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::UnescapeAndForward };

#[test]
fn a_canonical_path_is_its_own_canonical_form_and_cannot_climb() {
    check!().with_iterations(20_000).with_type::<Vec<u8>>().for_each(|bytes| {
        let path = path_of(bytes);
        let Ok(Canonical::Forward(once)) = canonical(&path, STRICT) else { return };
        assert!(once.starts_with('/'), "{path:?} became {once:?}");
        for segment in once.split('/') {
            assert!(segment != "." && segment != "..", "{path:?} became {once:?}");
        }
        assert!(!once.contains("//") && !once.contains('\\') && !once.contains('#'), "{path:?} became {once:?}");
        match canonical(&once, STRICT) {
            Ok(Canonical::Forward(twice)) => assert_eq!(once, twice, "from {path:?}"),
            other => panic!("{once:?}, made from {path:?}, became {other:?}"),
        }
    });
}

/// Paths made mostly of the bytes that matter.
fn path_of(bytes: &[u8]) -> String {
    const PIECES: [&str; 16] =
        ["/", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", "a", "b", "%25", "%00", "//", "#", "%c0%ae"];
    let mut path = String::from("/");
    for byte in bytes {
        match byte {
            0..=199 => path.push_str(PIECES[usize::from(byte % 16)]),
            _ => path.push(char::from(byte - 128)),
        }
    }
    path
}
