//! Rules of the tree that no compiler checks.
//!
//! Each rule is a function from the tree to a list of problems; an empty list is a pass. The
//! test at the end runs them all, so `cargo test -p xtask` is the gate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Result;

/// Lines above which a file should have been split.
const FILE_LINES_MAX: usize = 800;

/// The one crate with unsafe code.
const UNSAFE_CRATE: &str = "sys";

/// What each crate may use, directly; nothing may use what is not here. The order is from the
/// bottom up, and a crate may only name crates above it in this list, so there are no cycles.
/// Tests may use more: see [`ALLOWED_IN_TESTS`].
const ALLOWED: &[(&str, &[&str])] = &[
    ("errdefs", &[]),
    ("failpoint", &[]),
    ("core", &["errdefs"]),
    ("config", &["errdefs"]),
    ("sys", &["errdefs"]),
    ("mount", &["errdefs", "core", "sys"]),
    ("store", &["errdefs", "failpoint", "core", "sys"]),
    ("ttrpc", &["errdefs"]),
    ("api", &["errdefs", "ttrpc"]),
    ("oci", &["errdefs", "core"]),
    ("content", &["errdefs", "failpoint", "core", "sys"]),
    ("snapshots", &["errdefs", "failpoint", "core", "sys", "mount", "store"]),
    ("archive", &["errdefs", "core", "sys", "mount"]),
    ("layout", &["errdefs", "core", "archive"]),
    ("registry", &["errdefs", "core"]),
    ("events", &["errdefs", "failpoint", "core"]),
    ("metadata", &["errdefs", "core", "store", "content", "snapshots", "mount", "events"]),
    ("mounts", &["errdefs", "failpoint", "core", "sys", "mount", "metadata"]),
    (
        "images",
        &[
            "errdefs",
            "core",
            "sys",
            "mount",
            "content",
            "snapshots",
            "archive",
            "layout",
            "registry",
            "events",
            "metadata",
        ],
    ),
    ("proxy", &["errdefs", "core", "mount", "content", "snapshots", "images", "api"]),
    ("runtime", &["errdefs", "failpoint", "core", "sys", "mount", "ttrpc", "api", "events"]),
    ("doctor", &["errdefs", "failpoint", "core", "mount", "metadata", "images", "runtime"]),
    (
        "services",
        &[
            "errdefs",
            "core",
            "sys",
            "mount",
            "store",
            "content",
            "snapshots",
            "archive",
            "layout",
            "registry",
            "events",
            "metadata",
            "mounts",
            "images",
            "proxy",
            "ttrpc",
            "api",
            "runtime",
            "doctor",
            "oci",
        ],
    ),
    ("restart", &["errdefs", "core", "mount", "api", "events", "metadata", "runtime"]),
    ("shim", &["errdefs", "failpoint", "core", "sys", "mount", "ttrpc", "api"]),
    (
        "daemon",
        &[
            "errdefs",
            "failpoint",
            "config",
            "core",
            "sys",
            "mount",
            "store",
            "content",
            "snapshots",
            "archive",
            "registry",
            "events",
            "metadata",
            "mounts",
            "images",
            "proxy",
            "ttrpc",
            "api",
            "runtime",
            "doctor",
            "restart",
            "services",
        ],
    ),
    ("client", &["errdefs", "core", "mount", "archive", "layout", "registry", "api", "oci"]),
    ("libcontainerd", &["errdefs", "core", "api", "oci", "client"]),
    (
        "cli",
        &[
            "errdefs", "core", "sys", "archive", "registry", "images", "api", "oci", "client",
            "daemon",
        ],
    ),
    (
        "fuzzing",
        &["errdefs", "config", "core", "store", "ttrpc", "archive", "registry", "metadata"],
    ),
    ("testkit", &["errdefs", "core"]),
    ("blackbox", &["testkit"]),
    ("bench", &["errdefs", "core", "api", "oci", "testkit"]),
];

/// What any crate may use in its tests, beyond itself and all that is below it.
const ALLOWED_IN_TESTS: &str = "testkit";

/// Ways to make a queue without a limit, each in two halves so that this file passes.
const UNBOUNDED: &[(&str, &str)] = &[
    ("unbounded_", "channel"),
    ("mpsc::", "unbounded"),
    ("std::sync::mpsc::", "channel("),
    ("flume::", "unbounded"),
];

/// Checks the tree at `root`.
pub(crate) fn run(root: &Path) -> Result<()> {
    let problems = check(root)?;
    if problems.is_empty() {
        return Ok(());
    }
    Err(format!("{} problems\n{}", problems.len(), problems.join("\n")).into())
}

fn check(root: &Path) -> Result<Vec<String>> {
    let tree = Tree::read(root)?;
    let mut problems = Vec::new();
    problems.extend(file_sizes(&tree));
    problems.extend(trailing_space(&tree));
    problems.extend(unsafe_code(&tree));
    problems.extend(unbounded_queues(&tree));
    problems.extend(shared_lints(&tree));
    problems.extend(crate_graph(&tree));
    problems.extend(test_binaries(&tree));
    problems.extend(crate::tested::problems(&tree.files));
    Ok(problems)
}

/// The text files of the work tree by their path from its top.
#[derive(Default)]
struct Tree {
    files: BTreeMap<PathBuf, String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        for top in ["crates", "examples", "xtask", "docs"] {
            tree.walk(root, &root.join(top))?;
        }
        for entry in std::fs::read_dir(root)? {
            tree.add(root, &entry?.path())?;
        }
        Ok(tree)
    }

    fn walk(&mut self, root: &Path, dir: &Path) -> Result<()> {
        if !dir.is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let built = path.file_name().is_some_and(|n| n == "target" || n == "generated");
            if path.is_dir() && !built {
                self.walk(root, &path)?;
            } else {
                self.add(root, &path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, root: &Path, path: &Path) -> Result<()> {
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if path.is_file() && ["rs", "toml", "md", "proto"].contains(&kind) {
            let name = path.strip_prefix(root)?.to_owned();
            self.files.insert(name, std::fs::read_to_string(path)?);
        }
        Ok(())
    }

    fn rust(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.files
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "rs"))
            .map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// The names below `crates` with their manifests.
    fn manifests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| {
            let mut parts = path.iter().map(|p| p.to_str().unwrap_or_default());
            let (top, name, file) = (parts.next()?, parts.next()?, parts.next()?);
            (top == "crates" && file == "Cargo.toml").then_some((name, text.as_str()))
        })
    }
}

fn file_sizes(tree: &Tree) -> Vec<String> {
    tree.rust()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| {
            format!("{}: {lines} lines, at most {FILE_LINES_MAX}: split it", path.display())
        })
        .collect()
}

fn trailing_space(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in &tree.files {
        for (number, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t']) {
                problems.push(format!("{}:{}: trailing space", path.display(), number + 1));
            }
        }
    }
    problems
}

/// Only one crate has unsafe code, and every other crate root says so.
fn unsafe_code(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let home = Path::new("crates").join(UNSAFE_CRATE);
    for (path, text) in tree.rust().filter(|(path, _)| !path.starts_with(&home)) {
        for (number, line) in text.lines().enumerate() {
            if has_unsafe(line) {
                problems.push(format!(
                    "{}:{}: unsafe code belongs in crates/{UNSAFE_CRATE}",
                    path.display(),
                    number + 1
                ));
            }
        }
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if is_root && !text.contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{}: no #![forbid(unsafe_code)]", path.display()));
        }
    }
    problems
}

/// Whether a line opens something unsafe, outside comments.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = concat!("un", "safe");
    let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '{'));
    while let Some(one) = words.next() {
        if one == word {
            let next = words.find(|w| !w.is_empty()).unwrap_or_default();
            let opens = ["fn", "impl", "extern", "trait"].contains(&next) || next.starts_with('{');
            // A line that ends in the word has its block on the next one.
            if opens || next.is_empty() && code.trim_end().ends_with(word) {
                return true;
            }
        }
    }
    false
}

fn unbounded_queues(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in tree.rust() {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let found = UNBOUNDED.iter().any(|(a, b)| code.contains(&format!("{a}{b}")));
            if found {
                problems.push(format!(
                    "{}:{}: a queue without a limit",
                    path.display(),
                    number + 1
                ));
            }
        }
    }
    problems
}

/// Every crate takes the lints of the workspace: documented items, no unwrap.
fn shared_lints(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, text) in tree.manifests() {
        let shared = text.split("[lints]").nth(1).is_some_and(|after| {
            after.lines().take_while(|l| !l.starts_with('[')).any(|l| l == "workspace = true")
        });
        if !shared {
            problems.push(format!("crates/{name}/Cargo.toml: no [lints] workspace = true"));
        }
    }
    problems
}

/// Dependencies go one way, by [`ALLOWED`].
fn crate_graph(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, text) in tree.manifests() {
        let Some(level) = ALLOWED.iter().position(|(one, _)| *one == name) else {
            problems.push(format!("crates/{name}: not in the table of allowed dependencies"));
            continue;
        };
        let allowed = ALLOWED[level].1;
        for (section, used) in gantry_dependencies(text) {
            let below = || ALLOWED[..=level].iter().any(|(one, _)| *one == used);
            let in_tests = section == "[dev-dependencies]" && (used == ALLOWED_IN_TESTS || below());
            if !in_tests && !allowed.contains(&used.as_str()) {
                problems.push(format!("crates/{name}: {section} must not name {used}"));
            }
        }
    }
    problems
}

/// Our own crates that a manifest names, with the section they are in.
fn gantry_dependencies(manifest: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim().to_owned();
        } else if section.ends_with("dependencies]")
            && let Some(rest) = line.strip_prefix("gantry-")
        {
            let name = rest.split(['.', ' ', '=']).next().unwrap_or_default();
            found.push((section.clone(), name.to_owned()));
        }
    }
    found
}

/// One test binary per crate (each links the whole crate again), and no file of it forgotten.
fn test_binaries(tree: &Tree) -> Vec<String> {
    let mut binaries: BTreeMap<PathBuf, Vec<&Path>> = BTreeMap::new();
    let mut problems = Vec::new();
    for (path, _) in tree.rust() {
        let parts: Vec<&str> = path.iter().map(|p| p.to_str().unwrap_or_default()).collect();
        let (crate_dir, inside) = match parts.as_slice() {
            ["crates", name, "tests", inside @ ..] => (Path::new("crates").join(name), inside),
            ["xtask", "tests", inside @ ..] => (PathBuf::from("xtask"), inside),
            _ => continue,
        };
        match inside {
            [_] | [_, "main.rs"] => binaries.entry(crate_dir).or_default().push(path),
            [binary, module] => {
                let main = crate_dir.join("tests").join(binary).join("main.rs");
                let name = module.trim_end_matches(".rs");
                let known = tree.files.get(&main).is_some_and(|text| {
                    text.lines().any(|l| l.trim_end().ends_with(&format!("mod {name};")))
                });
                if !known {
                    problems.push(format!("{}: not a module of its test", path.display()));
                }
            }
            _ => {}
        }
    }
    for (name, found) in binaries {
        if found.len() > 1 {
            problems.push(format!("{}: {} test binaries, at most 1", name.display(), found.len()));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root;

    #[test]
    fn the_tree_is_tidy() {
        let problems = check(&root()).expect("readable");
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    #[test]
    fn the_table_goes_one_way() {
        for (index, (name, allowed)) in ALLOWED.iter().enumerate() {
            for used in *allowed {
                let below = ALLOWED[..index].iter().any(|(one, _)| one == used);
                assert!(below, "{name} may use {used}, which is not below it");
            }
        }
    }

    fn tree(files: &[(&str, &str)]) -> Tree {
        let files = files.iter().map(|(p, t)| (PathBuf::from(p), (*t).to_owned())).collect();
        Tree { files }
    }

    #[test]
    fn each_rule_finds_its_problem() {
        let long = "x\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(file_sizes(&tree(&[("crates/a/src/b.rs", &long)])).len(), 1);
        assert_eq!(trailing_space(&tree(&[("a.md", "x \ny\n")])).len(), 1);
        let lib = concat!("un", "safe { x() }\n");
        // The block itself, and the missing attribute.
        assert_eq!(unsafe_code(&tree(&[("crates/a/src/lib.rs", lib)])).len(), 2);
        assert_eq!(unsafe_code(&tree(&[("crates/sys/src/lib.rs", lib)])).len(), 0);
        let queue = format!("let (a, b) = {}{}();", UNBOUNDED[0].0, UNBOUNDED[0].1);
        assert_eq!(unbounded_queues(&tree(&[("crates/a/src/b.rs", &queue)])).len(), 1);
        assert_eq!(shared_lints(&tree(&[("crates/a/Cargo.toml", "[package]\n")])).len(), 1);
        let up = "[dependencies]\ngantry-daemon.workspace = true\n";
        assert_eq!(crate_graph(&tree(&[("crates/core/Cargo.toml", up)])).len(), 1);
        let two = [("crates/a/tests/x.rs", ""), ("crates/a/tests/it/main.rs", "")];
        assert_eq!(test_binaries(&tree(&two)).len(), 1);
        let forgotten = [("crates/a/tests/it/main.rs", "mod a;\n"), ("crates/a/tests/it/b.rs", "")];
        assert_eq!(test_binaries(&tree(&forgotten)).len(), 1);
    }

    #[test]
    fn words_about_it_are_not_unsafe_code() {
        assert!(!has_unsafe("// unsafe { x }"));
        assert!(!has_unsafe("#![forbid(unsafe_code)]"));
        assert!(has_unsafe(concat!("    un", "safe { x }")));
        assert!(has_unsafe(concat!("pub un", "safe fn x() {}")));
    }
}
