//! Shell patterns for `imports`: `*` and `?` within path components.

use std::path::{Component, Path, PathBuf};

use gantry_errdefs::{Result, ResultExt};

/// Most files one pattern may name: a drop-in directory has a handful.
const MATCHES_MAX: usize = 1024;

/// The existing paths that `pattern` names, sorted. A pattern without wildcards names itself,
/// whether it exists or not.
///
/// # Errors
/// When a directory exists but cannot be read.
pub(super) fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    if !has_wildcard(&pattern.to_string_lossy()) {
        return Ok(vec![pattern.to_owned()]);
    }
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        found = step(&found, component)?;
    }
    found.retain(|p| p.exists());
    found.sort();
    Ok(found)
}

fn step(bases: &[PathBuf], component: Component<'_>) -> Result<Vec<PathBuf>> {
    let text = component.as_os_str().to_string_lossy();
    if !has_wildcard(&text) {
        return Ok(bases.iter().map(|b| b.join(component)).collect());
    }
    let mut next = Vec::new();
    for base in bases.iter().filter(|b| b.is_dir()) {
        for entry in std::fs::read_dir(base).context(|| base.display().to_string())? {
            let entry = entry.context(|| base.display().to_string())?;
            let name = entry.file_name();
            if next.len() < MATCHES_MAX && matches(&text, &name.to_string_lossy()) {
                next.push(base.join(name));
            }
        }
    }
    Ok(next)
}

fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether `name` fits `pattern`: the classic two-pointer walk, linear but for the last star.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn follows_shell_rules() {
        for (pattern, name, fits) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.tom", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("?", "", false),
            ("??", "ab", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
