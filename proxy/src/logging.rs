//! The process's own log: levels with Envoy's words, levels of parts, the layout of lines, a file that can be reopened.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use parking_lot::Mutex;
use time::OffsetDateTime;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer, Registry,
    filter::Targets,
    layer::{Context, SubscriberExt as _},
    reload,
    util::{SubscriberInitExt as _, TryInitError},
};

/// A log level by Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(LevelFilter, &'static str);

impl Level {
    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.1
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Ok(match word {
            "trace" => Self(LevelFilter::TRACE, "trace"),
            "debug" => Self(LevelFilter::DEBUG, "debug"),
            "info" => Self(LevelFilter::INFO, "info"),
            "warning" | "warn" => Self(LevelFilter::WARN, "warning"),
            "error" => Self(LevelFilter::ERROR, "error"),
            // We have nothing above errors; asking for less than errors still shows them.
            "critical" => Self(LevelFilter::ERROR, "critical"),
            "off" => Self(LevelFilter::OFF, "off"),
            _ => return Err(format!("{word:?} is none of trace, debug, info, warning, error, critical, off")),
        })
    }
}

/// Reads `part:level` of `--component-log-level`.
///
/// # Errors
/// For parts that we do not have.
pub fn component(text: &str) -> Result<(&'static str, Level), String> {
    let (part, level) = text.split_once(':').ok_or_else(|| format!("{text:?} is not part:level"))?;
    let part = COMPONENTS.iter().find(|(name, _)| *name == part).ok_or_else(|| {
        let known: Vec<&str> = COMPONENTS.iter().map(|(name, _)| *name).collect();
        format!("no part {part:?}; there are {}", known.join(", "))
    })?;
    Ok((part.0, level.parse()?))
}

/// Envoy's names of its loggers, as far as we have something that does the same, and our modules.
pub const COMPONENTS: [(&str, &str); 18] = [
    ("admin", "oxmesh_proxy::admin"),
    ("client", "oxmesh_proxy::upstream"),
    ("config", "oxmesh_proxy::xds"),
    ("connection", "oxmesh_proxy::net"),
    ("conn_handler", "oxmesh_proxy::net"),
    ("dns", "oxmesh_proxy::upstream::dns"),
    ("file", "oxmesh_proxy::telemetry::access_log"),
    ("filter", "oxmesh_proxy::net"),
    ("grpc", "oxmesh_proxy::xds::stream"),
    ("hc", "oxmesh_proxy::upstream"),
    ("http", "oxmesh_proxy::http"),
    ("http2", "h2"),
    ("main", "oxmesh_proxy::app"),
    ("pool", "oxmesh_proxy::upstream"),
    ("rbac", "oxmesh_proxy::http"),
    ("router", "oxmesh_proxy::http"),
    ("secret", "oxmesh_proxy::xds"),
    ("upstream", "oxmesh_proxy::upstream"),
];

/// The layout of log lines, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Year,
    Month,
    Day,
    Time,
    Millis,
    Process,
    Thread,
    Level,
    LevelLetter,
    Part,
    Message,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                plain.push(c);
                continue;
            }
            let piece = match chars.next() {
                Some('%') => {
                    plain.push('%');
                    continue;
                }
                Some('Y') => Piece::Year,
                Some('m') => Piece::Month,
                Some('d') => Piece::Day,
                Some('T') => Piece::Time,
                Some('e') => Piece::Millis,
                Some('P') => Piece::Process,
                Some('t') => Piece::Thread,
                Some('l') => Piece::Level,
                Some('L') => Piece::LevelLetter,
                Some('n') => Piece::Part,
                // Ours are on one line anyway.
                Some('v' | '_' | 'j') => Piece::Message,
                Some(other) => return Err(format!("%{other} is not supported")),
                None => return Err("ends with %".to_owned()),
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(piece);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }
}

impl Pattern {
    fn line(&self, now: OffsetDateTime, metadata: &Metadata<'_>, message: &str) -> String {
        let mut line = String::with_capacity(message.len() + 80);
        for piece in &self.0 {
            // Writing to a string can't fail.
            let _ = match piece {
                Piece::Text(text) => line.write_str(text),
                Piece::Year => write!(line, "{}", now.year()),
                Piece::Month => write!(line, "{:02}", u8::from(now.month())),
                Piece::Day => write!(line, "{:02}", now.day()),
                Piece::Time => write!(line, "{:02}:{:02}:{:02}", now.hour(), now.minute(), now.second()),
                Piece::Millis => write!(line, "{:03}", now.millisecond()),
                Piece::Process => write!(line, "{}", std::process::id()),
                Piece::Thread => line.write_str(std::thread::current().name().unwrap_or("-")),
                Piece::Level => line.write_str(word(*metadata.level())),
                Piece::LevelLetter => line.write_str(&word(*metadata.level())[..1].to_ascii_uppercase()),
                Piece::Part => line.write_str(part(metadata.target())),
                Piece::Message => line.write_str(message),
            };
        }
        line.push('\n');
        line
    }
}

fn word(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::TRACE => "trace",
        tracing::Level::DEBUG => "debug",
        tracing::Level::INFO => "info",
        tracing::Level::WARN => "warning",
        tracing::Level::ERROR => "error",
    }
}

/// `oxmesh_proxy::xds::stream` is the part `xds`.
fn part(target: &str) -> &str {
    let target = target.strip_prefix("oxmesh_proxy::").unwrap_or(target);
    target.split("::").next().unwrap_or(target)
}

/// The running log: its levels can be changed, its file reopened.
#[derive(Clone)]
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
    levels: Arc<Mutex<Levels>>,
    out: Arc<Mutex<Out>>,
    path: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Levels {
    default: Level,
    parts: Vec<(&'static str, Level)>,
}

enum Out {
    Stderr,
    File(File),
}

/// Starts the process's log.
///
/// # Errors
/// When the file can't be opened, or there is a log already.
pub fn start(
    level: Level,
    parts: &[(&'static str, Level)],
    pattern: Pattern,
    path: Option<&Path>,
) -> Result<Logging, String> {
    let levels = Levels { default: level, parts: parts.to_vec() };
    let out = Arc::new(Mutex::new(Out::open(path)?));
    let (filter, handle) = reload::Layer::new(levels.targets());
    let lines = Lines { pattern, out: Arc::clone(&out) }.with_filter(filter);
    let started: Result<(), TryInitError> = tracing_subscriber::registry().with(lines).try_init();
    started.map_err(|error| error.to_string())?;
    Ok(Logging { filter: handle, levels: Arc::new(Mutex::new(levels)), out, path: path.map(Path::to_owned) })
}

impl Logging {
    /// Sets the level of one part, or of all.
    pub fn set(&self, part: Option<&'static str>, level: Level) {
        let mut levels = self.levels.lock();
        match part {
            Some(part) => {
                levels.parts.retain(|(name, _)| *name != part);
                levels.parts.push((part, level));
            }
            None => *levels = Levels { default: level, parts: Vec::new() },
        }
        if let Err(error) = self.filter.reload(levels.targets()) {
            tracing::error!(%error, "log levels stay as they were");
        }
    }

    /// `part: level` for each part.
    #[must_use]
    pub fn levels(&self) -> Vec<(&'static str, &'static str)> {
        let levels = self.levels.lock();
        let of = |part: &str| levels.parts.iter().find(|(name, _)| *name == part).map_or(levels.default, |(_, l)| *l);
        COMPONENTS.iter().map(|(name, _)| (*name, of(name).word())).collect()
    }

    /// Opens the file again, after a log rotation. The old one stays in use when that fails.
    pub fn reopen(&self) {
        match Out::open(self.path.as_deref()) {
            Ok(out) => *self.out.lock() = out,
            Err(error) => tracing::error!(error, "log file not reopened"),
        }
    }
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("levels", &*self.levels.lock()).finish_non_exhaustive()
    }
}

impl Levels {
    fn targets(&self) -> Targets {
        let parts = self.parts.iter().flat_map(|(part, level)| {
            COMPONENTS.iter().filter(move |(name, _)| name == part).map(move |(_, target)| (*target, level.0))
        });
        // Libraries speak of their insides; what matters of it is in our own lines.
        let libraries = ["h2", "hyper", "hyper_util", "tonic", "tower", "rustls", "hickory_resolver", "hickory_proto"];
        let quiet = libraries.map(|library| (library, self.default.0.min(LevelFilter::ERROR)));
        Targets::new().with_default(self.default.0).with_targets(quiet).with_targets(parts)
    }
}

impl Out {
    fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::Stderr) };
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map(Self::File).map_err(|error| format!("log file {}: {error}", path.display()))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().write_all(line),
            Self::File(file) => file.write_all(line),
        }
    }
}

struct Lines {
    pattern: Pattern,
    out: Arc<Mutex<Out>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        message.text.push_str(&message.fields);
        let line = self.pattern.line(OffsetDateTime::now_utc(), event.metadata(), &message.text);
        // There is nowhere left to complain to.
        let _ = self.out.lock().write(line.as_bytes());
    }
}

/// The message first, then `key=value` of the other fields.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Message {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Values may come from peers: a line stays one line.
        let value = value.to_string().replace(['\n', '\r'], " ");
        if field.name() == "message" {
            self.text = value;
        } else {
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }
}

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::{Level, Pattern, component};

    #[test]
    fn levels_are_envoys_words() {
        for (word, shown) in [("warn", "warning"), ("critical", "critical"), ("off", "off")] {
            assert_eq!(word.parse::<Level>().unwrap().word(), shown);
        }
        assert!("loud".parse::<Level>().is_err());
        assert_eq!(component("upstream:debug").unwrap().0, "upstream");
        assert!(component("upstream").is_err() && component("lua:debug").is_err());
    }

    #[test]
    fn unknown_parts_of_a_layout_are_refused() {
        assert!("%Y-%m-%d %T.%e %v".parse::<Pattern>().is_ok());
        for bad in ["%", "%v %q"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
