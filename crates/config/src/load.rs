//! Reading a file with its drop-ins.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use toml::{Table, Value};

use super::{Config, Flavour, VERSION_MAX, glob, migrate};

/// Most files one configuration may consist of.
const FILES_MAX: usize = 1024;

/// Largest configuration file in bytes; real ones have a few KiB.
const FILE_LEN_MAX: u64 = 4 << 20;

/// Sections whose entries replace each other whole when files are merged.
const REPLACED_SECTIONS: [&str; 4] = ["plugins", "proxy_plugins", "stream_processors", "timeouts"];

/// A configuration with what was odd about its files.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// One line for each thing the operator should know, mostly unknown keys.
    pub warnings: Vec<String>,
}

/// Reads `path` and everything it imports.
///
/// # Errors
/// NotFound when `path` does not exist; InvalidArgument for what cannot be understood: broken
/// TOML, wrong types, a version above [`VERSION_MAX`], a drop-in newer than the main file.
pub fn load(path: &Path, flavour: Flavour) -> Result<Loaded> {
    let mut warnings = Vec::new();
    let table = read_all(path, &mut warnings)?;
    from_table(table, flavour, warnings)
}

/// Takes a configuration from TOML text without imports.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, flavour: Flavour) -> Result<Loaded> {
    let mut warnings = Vec::new();
    let mut table = parse_table(text, "config")?;
    migrate::migrate(&mut table, &mut warnings)?;
    from_table(table, flavour, warnings)
}

fn from_table(table: Table, flavour: Flavour, mut warnings: Vec<String>) -> Result<Loaded> {
    let mut base = to_table(&Config::defaults(flavour))?;
    // Deadlines the file does not name keep their defaults; in all else absent keys get them
    // from serde. The merge is per key, not per section, since these are defaults, not files.
    deep_merge(&mut base, table.clone());
    let config: Config = Value::Table(base).try_into().map_err(|e: toml::de::Error| {
        Error::invalid_argument(format!("config: {}", e.message().trim()))
    })?;
    unknown_keys(&table, &to_table(&config)?, &mut Vec::new(), &mut warnings);
    for name in config.plugins.other.keys() {
        warnings
            .push(format!("plugins.{name:?}: this plugin is not built, its section is ignored"));
    }
    Ok(Loaded { config, warnings })
}

fn to_table(config: &Config) -> Result<Table> {
    Table::try_from(config).map_err(|e| Error::internal(format!("config: {e}")))
}

fn read_all(main: &Path, warnings: &mut Vec<String>) -> Result<Table> {
    let mut merged: Option<(Table, i64)> = None;
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([main.to_owned()]);
    while let Some(path) = queue.pop_front() {
        // By its real name, so that files that import each other end.
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            continue;
        }
        if seen.len() > FILES_MAX {
            return Err(Error::resource_exhausted(format!(
                "config {}: more than {FILES_MAX} imported files",
                main.display()
            )));
        }
        let name = path.display().to_string();
        let mut table = parse_table(&read(&path)?, &name)?;
        let version = migrate::version_of(&table).context(|| &name)?;
        migrate::migrate(&mut table, warnings).context(|| &name)?;
        queue.extend(imports_of(&table, &path)?);
        match &mut merged {
            None => merged = Some((table, version)),
            Some((_, first)) if version > *first => {
                return Err(Error::invalid_argument(format!(
                    "config {name}: version {version} of a drop-in is above version {first} of {}",
                    main.display()
                )));
            }
            Some((into, _)) => merge(into, table),
        }
    }
    Ok(merged.map(|(table, _)| table).unwrap_or_default())
}

fn read(path: &Path) -> Result<String> {
    let len = std::fs::metadata(path).context(|| format!("config {}", path.display()))?.len();
    if len > FILE_LEN_MAX {
        return Err(Error::resource_exhausted(format!(
            "config {}: {len} bytes, more than {FILE_LEN_MAX}",
            path.display()
        )));
    }
    std::fs::read_to_string(path).context(|| format!("config {}", path.display()))
}

fn parse_table(text: &str, name: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|e| {
        let line =
            e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Error::invalid_argument(format!("{name}: line {line}: {}", e.message().trim()))
    })
}

fn imports_of(table: &Table, file: &Path) -> Result<Vec<PathBuf>> {
    let base = file.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    let patterns = table.get("imports").and_then(Value::as_array).into_iter().flatten();
    for pattern in patterns.filter_map(Value::as_str) {
        found.extend(glob::expand(&base.join(pattern))?);
    }
    Ok(found)
}

/// Merges a drop-in: scalars override when they are not zero, lists gain what they lack, and in
/// [`REPLACED_SECTIONS`] an entry replaces its namesake whole.
pub(super) fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        let replaced = REPLACED_SECTIONS.contains(&key.as_str());
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if replaced => old.extend(new),
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => {
                for item in new {
                    if !old.contains(&item) {
                        old.push(item);
                    }
                }
            }
            (Some(_), value) if is_zero(&value) => {}
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(s) => s.is_empty(),
        Value::Integer(i) => *i == 0,
        Value::Float(f) => *f == 0.0,
        Value::Boolean(b) => !b,
        Value::Datetime(_) => false,
        Value::Array(a) => a.is_empty(),
        Value::Table(t) => t.is_empty(),
    }
}

fn deep_merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => deep_merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Every key of `given` that the typed form does not know: the typed form prints all it knows.
fn unknown_keys(given: &Table, known: &Table, at: &mut Vec<String>, out: &mut Vec<String>) {
    for (key, value) in given {
        at.push(if key.contains('.') { format!("{key:?}") } else { key.clone() });
        match (value, known.get(key)) {
            (Value::Table(g), Some(Value::Table(k))) => unknown_keys(g, k, at, out),
            (_, Some(_)) => {}
            (_, None) => out.push(format!("{}: unknown key, ignored", at.join("."))),
        }
        at.pop();
    }
}

impl Config {
    /// Loads `path` when it is given (and must exist then), the flavour's own file when it
    /// exists, and the defaults otherwise.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(path: Option<&Path>, flavour: Flavour) -> Result<Loaded> {
        match path {
            Some(path) => load(path, flavour),
            None => match load(&flavour.config_path(), flavour) {
                Err(e) if e.is_not_found() => {
                    Ok(Loaded { config: Self::defaults(flavour), warnings: Vec::new() })
                }
                other => other,
            },
        }
    }
}

const _: () = assert!(VERSION_MAX == 4, "migrate() must reach the newest version");
