//! Header edits: the result is that of doing them one by one on a plain list, and never holds an invalid value.

use bolero::check;
use http::{HeaderMap, HeaderName, HeaderValue};
use oxmesh_proxy::config::{
    access_log::{Operator, Part, SimpleOperator, Template},
    headers::{AppendAction, HeaderAdd, HeaderEdits},
};

const NAMES: [&str; 4] = ["x-a", "x-b", "cookie", "set-cookie"];
const ACTIONS: [AppendAction; 4] =
    [AppendAction::Append, AppendAction::AddIfAbsent, AppendAction::Overwrite, AppendAction::OverwriteIfExists];

/// Name, action, value, is it rendered, is it kept when empty.
type Added = (u8, u8, String, bool, bool);

#[test]
fn edits_do_what_they_say_one_by_one() {
    type Input = (Vec<(u8, u8)>, Vec<u8>, Vec<Added>);
    check!().with_iterations(5_000).with_type::<Input>().for_each(|(before, remove, add)| {
        let mut list: Vec<(&str, Vec<u8>)> =
            before.iter().map(|(at, value)| (name(*at), value.to_string().into_bytes())).collect();
        let mut headers: HeaderMap = list
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("digits")))
            .collect();
        let edits = HeaderEdits {
            remove: remove.iter().map(|at| HeaderName::from_static(name(*at))).collect(),
            add: add.iter().map(made).collect(),
        };
        // Each rendered template is asked for in turn; its text is the value itself.
        edits.apply(&mut headers, |template| match template.parts.as_slice() {
            [Part::Literal(text), Part::Operator(..)] => text.clone(),
            _ => panic!("plain text needs no rendering"),
        });
        list.retain(|(name, _)| !remove.iter().any(|at| self::name(*at) == *name));
        for added in add {
            add_to(&mut list, added);
        }
        for name in NAMES {
            let expected: Vec<&[u8]> = list.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.as_slice()).collect();
            let found: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(headers.len(), list.len());
    });
}

fn name(at: u8) -> &'static str {
    NAMES[usize::from(at) % NAMES.len()]
}

fn made((at, action, value, rendered, keep_empty): &Added) -> HeaderAdd {
    let mut parts = vec![Part::Literal(value.clone())];
    if *rendered {
        parts.push(Part::Operator(Operator::Simple(SimpleOperator::RouteName), None));
    }
    HeaderAdd {
        name: HeaderName::from_static(name(*at)),
        value: Template { parts },
        action: ACTIONS[usize::from(action % 4)],
        keep_empty: *keep_empty,
    }
}

fn add_to(list: &mut Vec<(&'static str, Vec<u8>)>, (at, action, value, _, keep_empty): &Added) {
    let name = name(*at);
    let present = list.iter().any(|(n, _)| *n == name);
    // RFC 9110 section 5.5, without the line ends and NUL that it leaves to the recipient.
    let valid = value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f));
    if !valid || (value.is_empty() && !keep_empty) {
        return;
    }
    match (ACTIONS[usize::from(action % 4)], present) {
        (AppendAction::AddIfAbsent, true) | (AppendAction::OverwriteIfExists, false) => return,
        (AppendAction::Overwrite | AppendAction::OverwriteIfExists, _) => list.retain(|(n, _)| *n != name),
        (AppendAction::Append | AppendAction::AddIfAbsent, _) => {}
    }
    list.push((name, value.clone().into_bytes()));
}
