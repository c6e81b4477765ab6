//! From the text of a file to documents, each on its own: a mistake in one never hides another.

use std::path::Path;

use serde_json::Value;

/// One document of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Document {
    /// Counted from 1, empty ones included, as an editor shows them.
    pub(super) number: usize,
    /// Its values, several for a list; or what is wrong with the text.
    pub(super) values: Result<Vec<Value>, String>,
}

/// Takes a file's text apart.
pub(super) fn documents(path: &Path, text: &str) -> Vec<Document> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    if is_json { json(text) } else { yaml(text) }
}

fn json(text: &str) -> Vec<Document> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let document = |(n, value): (usize, Result<Value, serde_json::Error>)| Document {
        number: n + 1,
        values: value.map(unpack).map_err(|error| error.to_string()),
    };
    values.enumerate().map(document).collect()
}

fn yaml(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    for (number, (first_line, part)) in split(text).into_iter().enumerate() {
        let values = match yaml_value(&part, first_line) {
            // Nothing but comments.
            Ok(Value::Null) => continue,
            Ok(value) => Ok(unpack(value)),
            Err(words) => Err(words),
        };
        documents.push(Document { number: number + 1, values });
    }
    documents
}

/// Splits at the lines that begin with `---`, which no value can hold at the start of a line.
/// Each part comes with the number of lines before it.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(0, String::new())];
    let mut in_preamble = true;
    for (number, line) in text.lines().enumerate() {
        let marker = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = marker {
            // The marker that begins a file begins its first document.
            if in_preamble {
                parts.clear();
            }
            in_preamble = false;
            // Something may follow on the marker's line.
            parts.push((number, format!("{rest}\n")));
            continue;
        }
        in_preamble &= line.trim().is_empty() || line.starts_with('#') || line.starts_with('%');
        if let Some((_, part)) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    parts
}

fn yaml_value(text: &str, lines_before: usize) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        // `y`, `no` and `on` are texts, as in YAML 1.2.
        strict_booleans: true,
        with_snippet: false,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let words = error.to_string();
        let words = words.lines().next().unwrap_or("not YAML").trim_end_matches('.');
        match error.location() {
            Some(at) => {
                let line = usize::try_from(at.line()).unwrap_or(0) + lines_before;
                let own_place = format!(" at line {}, column {}", at.line(), at.column());
                format!("line {line}, column {}: {}", at.column(), words.replace(&own_place, ""))
            }
            None => words.to_owned(),
        }
    })
}

/// A `List`, or a `PodList` and the like, becomes its items.
fn unpack(value: Value) -> Vec<Value> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(item_kind) = kind.strip_suffix("List").map(str::to_owned) else {
        return vec![value];
    };
    let Value::Object(mut list) = value else { return vec![] };
    let version = list.get("apiVersion").cloned();
    let Some(Value::Array(items)) = list.remove("items") else {
        return vec![Value::Object(list)];
    };
    let complete = |mut item: Value| {
        // The items of a `PodList` leave out what the list says.
        if let Value::Object(item) = &mut item
            && !item_kind.is_empty()
        {
            item.entry("kind").or_insert_with(|| Value::String(item_kind.clone()));
            if let Some(version) = &version {
                item.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        item
    };
    items.into_iter().map(complete).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(text: &str) -> Vec<Document> {
        documents(Path::new("x.yaml"), text)
    }

    fn good(number: usize, value: Value) -> Document {
        Document { number, values: Ok(vec![value]) }
    }

    #[test]
    fn documents_are_split_at_markers_and_counted() {
        assert_eq!(of("a: 1\n---\nb: 2\n"), [good(1, json!({"a": 1})), good(2, json!({"b": 2}))]);
        assert_eq!(of("# c\n---\na: 1\n--- # x\nb: 2\n"), [good(1, json!({"a": 1})), good(2, json!({"b": 2}))]);
        assert_eq!(of("---\n---\na: 1\n---\n# nothing\n"), [good(2, json!({"a": 1}))]);
        assert_eq!(of("a: |\n  x\n   ---\n"), [good(1, json!({"a": "x\n ---\n"}))]);
        assert_eq!(of(""), []);
        assert_eq!(of("a: 1\r\n---\r\nb: 2\r\n").len(), 2);
    }

    #[test]
    fn a_broken_document_leaves_the_others_and_says_its_line() {
        let documents = of("a: 1\n---\nb: [1,\nc: 2\n---\nd: 4\n");
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[0], good(1, json!({"a": 1})));
        assert_eq!(documents[2], good(3, json!({"d": 4})));
        let words = documents[1].values.as_ref().unwrap_err();
        assert!(words.starts_with("line "), "{words}");
    }

    #[test]
    fn bare_words_that_old_yaml_takes_for_booleans_are_texts() {
        assert_eq!(of("a: no\nb: y\nc: on\nd: true\n"), [good(1, json!({"a": "no", "b": "y", "c": "on", "d": true}))]);
    }

    #[test]
    fn a_key_that_is_written_twice_is_an_error() {
        assert!(of("a: 1\na: 2\n")[0].values.is_err());
    }

    #[test]
    fn lists_are_taken_apart() {
        let list = "kind: List\napiVersion: v1\nitems:\n- {kind: Pod, apiVersion: v1}\n- {kind: Service}\n";
        assert_eq!(of(list)[0].values.as_ref().unwrap().len(), 2);
        let pods = "kind: PodList\napiVersion: v1\nitems:\n- {metadata: {name: a}}\n";
        let expected = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}});
        assert_eq!(of(pods), [good(1, expected)]);
    }

    #[test]
    fn json_files_hold_one_value_after_the_other() {
        let documents = documents(Path::new("x.json"), "{\"a\": 1}\n{\"b\": 2} {");
        assert_eq!(documents[0], good(1, json!({"a": 1})));
        assert_eq!(documents[1], good(2, json!({"b": 2})));
        assert!(documents[2].values.is_err());
    }
}
