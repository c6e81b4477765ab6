//! The book's table of limits and the code say the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

const TABLE: &str = include_str!("../../docs/reference/limits.md");

#[test]
fn each_limit_of_the_table_stands_in_the_code_with_its_value() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rows: Vec<&str> = TABLE.lines().filter(|l| l.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "the table was not read");
    for row in rows {
        let cell = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        let mut code = cell.split('`').filter(|part| !part.trim().is_empty());
        let (file, says) = (code.next().unwrap(), code.next().unwrap());
        let text = fs::read_to_string(source.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let found = match says.split_once(" = ") {
            // A constant: its name, a type, its value.
            Some((name, value)) => text
                .lines()
                .any(|line| line.contains(&format!("const {name}: ")) && line.ends_with(&format!(" = {value};"))),
            None => text.contains(says),
        };
        assert!(found, "{file} does not say `{says}`, as the table has it: {row}");
    }
}

/// A counter is registered by its last name, or made by a class of names (`downstream_rq_4xx`).
#[test]
fn each_counter_of_the_table_stands_in_the_code() {
    let mut code = String::new();
    for dir in ["net", "http", "upstream", "telemetry", "telemetry/access_log", "."] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                code += &fs::read_to_string(path).unwrap();
            }
        }
    }
    for row in TABLE.lines().filter(|l| l.starts_with("| ")).skip(1) {
        let counters = row.split('|').nth(4).unwrap();
        for counter in counters.split('`').filter(|c| c.contains('_')) {
            let name = counter.rsplit('.').next().unwrap();
            assert!(code.contains(name.trim_end_matches("4xx")), "no counter {name}, as the table has it: {row}");
        }
    }
}
