//! The floors that the head of `lib.rs` lists are the code's: no module imports one from a higher floor.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashMap, fs, path::Path};

#[test]
fn no_module_imports_from_a_higher_floor() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(source.join("lib.rs")).unwrap();
    let floors = floors(&lib);
    assert!(floors.len() > 15, "the list was not read: {floors:?}");
    let mut files = Vec::new();
    collect(&source, &mut files);
    for file in files {
        let path = file.strip_prefix(&source).unwrap();
        let first = path.iter().next().unwrap().to_str().unwrap();
        let Some(own) = floors.get(first.trim_end_matches(".rs")) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        // Tests may start from anything.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for module in imports(code) {
            let floor = floors.get(module).copied().unwrap_or(0);
            assert!(floor <= *own, "{} (floor {own}) imports {module} (floor {floor})", path.display());
        }
    }
}

/// Module → floor, from lines such as ``//! 2. `telemetry`, `error`, `tls` ``.
fn floors(lib: &str) -> HashMap<&str, usize> {
    let mut floors = HashMap::new();
    for line in lib.lines() {
        let Some((number, modules)) = line.trim_start_matches("//! ").split_once(". ") else { continue };
        let Ok(number) = number.parse() else { continue };
        let modules = modules.split(':').next().unwrap();
        floors.extend(
            modules.split('`').filter(|m| m.chars().all(|c| c.is_alphanumeric() || c == '_')).map(|m| (m, number)),
        );
    }
    floors.remove("");
    floors
}

/// The modules of the crate that a file names: in `crate::x` paths and at the first level of `use crate::{…}`.
fn imports(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (at, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && c.is_alphabetic() => {
                        start = false;
                        found.push(word(&group[at..]));
                    }
                    _ => {}
                }
            }
        } else {
            found.push(word(rest));
        }
    }
    found
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(text)
}

fn collect(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            collect(&path, files);
        } else if name.ends_with(".rs") && !name.contains("test") {
            files.push(path);
        }
    }
}
