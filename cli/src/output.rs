//! How commands print what they found.

use std::io::{ErrorKind, IsTerminal as _, Write as _};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// The form of a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs, and for people who like it.
    Yaml,
}

/// Prints a value as JSON or YAML; `table` makes the form for people.
///
/// # Errors
/// When the value can't be written in the form.
pub fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    match format {
        Format::Table => say(&table(value)),
        Format::Json => say(&serde_json::to_string_pretty(value)?),
        Format::Yaml => say(&serde_saphyr::to_string(value)?),
    }
}

/// Prints a text and ends its last line. Unlike `println!`, it survives a reader such as `head` that has seen enough.
///
/// # Errors
/// The system's.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}

/// Rows below a header, without lines.
pub(crate) fn table<const N: usize>(header: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// True when standard output takes colours: a terminal, and no `NO_COLOR`.
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
