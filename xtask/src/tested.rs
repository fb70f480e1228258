//! The tables of `docs/client-tests.md`: each test they name is there, on both daemons unless it is
//! named in full, and each symbol is in `docs/symbols.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TABLE: &str = "docs/client-tests.md";
const SYMBOLS: &str = "docs/symbols.md";

/// What the two tests of one name end with.
const DAEMONS: [&str; 2] = ["_on_gantryd", "_on_containerd"];

/// Checks the tables against the files of the tree.
pub(crate) fn problems(files: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let Some(table) = files.get(Path::new(TABLE)) else { return Vec::new() };
    let symbols = words(files.get(Path::new(SYMBOLS)).map_or("", String::as_str));
    let mut problems = Vec::new();
    for (n, line) in table.lines().enumerate() {
        let [_, names, tests, _] = line.split('|').collect::<Vec<_>>()[..] else { continue };
        let line = n + 1;
        for name in spans(names) {
            // `Container.Labels` is there as that, or in a list of the methods of Container.
            let last = name.rsplit(['.', '/']).next().unwrap_or(name);
            if !words(last).iter().all(|word| symbols.contains(word)) {
                problems.push(format!("{TABLE}:{line}: {name} is not in {SYMBOLS}"));
            }
        }
        for test in spans(tests) {
            if !is_there(files, test) {
                problems.push(format!("{TABLE}:{line}: there is no test {test}"));
            }
        }
    }
    problems
}

/// The pieces of a text that are marked as code.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The identifiers in a text.
fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect()
}

/// Whether `crate::module::test` is a function of the crate's tests, or the name of two.
fn is_there(files: &BTreeMap<PathBuf, String>, test: &str) -> bool {
    let [owner, module, name] = test.split("::").collect::<Vec<_>>()[..] else { return false };
    let owner =
        if owner == "examples" { PathBuf::from(owner) } else { Path::new("crates").join(owner) };
    let file = owner.join("tests/it").join(format!("{module}.rs"));
    let Some(text) = files.get(&file) else { return false };
    let known = words(text);
    let both = DAEMONS.map(|daemon| format!("{name}{daemon}"));
    known.contains(&name) || both.iter().all(|one| known.contains(&one.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(row: &str) -> Vec<String> {
        let files = [
            (TABLE, row),
            (SYMBOLS, "| `Client.Pull`, `Container`, `.ID` | here |"),
            (
                "crates/a/tests/it/b.rs",
                "on_both!(x, root_x_on_containerd, root_x_on_gantryd);\nfn root_y() {}",
            ),
        ];
        problems(&files.map(|(path, text)| (PathBuf::from(path), text.to_owned())).into())
    }

    #[test]
    fn names_are_looked_for() {
        assert!(
            problems_of("| `Client.Pull`, `Container.ID` | `a::b::root_x`, `a::b::root_y` |")
                .is_empty()
        );
        for wrong in [
            "| `Client.Push` | `a::b::root_x` |",
            "| `Client.Pull` | `a::b::root_z` |",
            "| `Client.Pull` | `a::c::root_x` |",
            "| `Client.Pull` | `root_x` |",
        ] {
            assert_eq!(problems_of(wrong).len(), 1, "{wrong}");
        }
    }
}
