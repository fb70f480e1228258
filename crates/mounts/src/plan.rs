//! What has to be done to mounts, from their kinds.
//!
//! | kind | means |
//! |---|---|
//! | `format/<kind>` | `{{ source N }}`, `{{ target N }}`, `{{ mount N }}`, `{{ overlay N M }}` in source and options stand for the N-th mount: its source, its target, where it is mounted, and the places of N to M joined by colons; all before it are mounted first |
//! | `mkdir/<kind>` | options `X-containerd.mkdir.path=<path>[:<mode>[:<uid>:<gid>]]` are directories to make, below the activation's own |
//! | `mkfs/<kind>` | the source is a file to make with a filesystem in it, where it is not there yet (see [`crate::mkfs`]) |
//! | `erofs` | mounted here: callers need not know the filesystem |
//! | `loop` | the source is put on a loop device, which is at the mount's place |
//!
//! Prefixes may be combined: `format/mkdir/overlay`.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::Mount;

use crate::mkfs;

/// Kinds that are made here.
const HANDLED: [&str; 2] = ["erofs", LOOP];

/// The kind that is a loop device.
pub(crate) const LOOP: &str = "loop";

/// Option that names a directory to make.
const MKDIR: &str = "X-containerd.mkdir.path=";

/// Permissions of a directory without any.
const MKDIR_MODE: u32 = 0o700;

/// A mount split into what it is and what is to be done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) mount: Mount,
    format: bool,
    mkdir: bool,
    mkfs: bool,
}

impl Step {
    /// Splits the kind of `mount`.
    ///
    /// # Errors
    /// Unimplemented for something to be done that is not built.
    fn of(mount: &Mount) -> Result<Self> {
        let mut step = Self { mount: mount.clone(), format: false, mkdir: false, mkfs: false };
        let (kind, mut rest) = (&mount.kind, mount.kind.as_str());
        while let Some((what, inner)) = rest.split_once('/') {
            match what {
                "format" => step.format = true,
                "mkdir" => step.mkdir = true,
                "mkfs" => step.mkfs = true,
                _ => {
                    let text = format!("mount kind {kind:?}: {what:?} is not built");
                    return Err(Error::unimplemented(text));
                }
            }
            rest = inner;
        }
        step.mount.kind = rest.to_owned();
        Ok(step)
    }

    fn is_handled(&self) -> bool {
        HANDLED.contains(&self.mount.kind.as_str())
    }
}

/// Whether callers cannot make these mounts by themselves.
pub fn needs_activation(mounts: &[Mount]) -> bool {
    mounts.iter().any(|m| m.kind.contains('/') || HANDLED.contains(&m.kind.as_str()))
}

/// The steps, and how many of them are made here; the others are the caller's.
///
/// # Errors
/// Unimplemented when there is nothing to do here, which callers rely on, or for a kind of which
/// something is not built.
pub(crate) fn plan(mounts: &[Mount], temporary: bool) -> Result<(Vec<Step>, usize)> {
    let steps: Vec<Step> = mounts.iter().map(Step::of).collect::<Result<_>>()?;
    if !temporary && !needs_activation(mounts) {
        return Err(Error::unimplemented("no mount needs activation"));
    }
    let first_left = steps.iter().enumerate().fold(0, |left, (i, step)| {
        if step.is_handled() {
            i + 1
        } else if step.format {
            left.max(i)
        } else {
            left
        }
    });
    let made = if temporary { steps.len() } else { first_left };
    Ok((steps, made))
}

/// What `step` comes to, once those before it are at `places`. `dir` is the activation's own.
///
/// # Errors
/// InvalidArgument for text that stands for nothing, or a directory that is not below `dir`; the
/// I/O error.
pub(crate) fn resolve(
    step: &Step,
    mounts: &[Mount],
    places: &[PathBuf],
    dir: &Path,
) -> Result<Mount> {
    let mut mount = step.mount.clone();
    if step.format {
        mount.source = fill(&mount.source, mounts, places)?;
        for option in &mut mount.options {
            *option = fill(option, mounts, places)?;
        }
    }
    if step.mkdir {
        for wanted in mount.options.iter().filter_map(|o| o.strip_prefix(MKDIR)) {
            make_dir(wanted, dir)?;
        }
        mount.options.retain(|o| !o.starts_with(MKDIR));
    }
    if step.mkfs {
        mkfs::ensure(&mut mount)?;
    }
    Ok(mount)
}

/// Replaces each `{{ ... }}`.
fn fill(text: &str, mounts: &[Mount], places: &[PathBuf]) -> Result<String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        let bad = || Error::invalid_argument(format!("mount option {text:?}: {{{{ without }}}}"));
        let (inside, after) = after.split_once("}}").ok_or_else(bad)?;
        filled.push_str(before);
        filled.push_str(&value(inside, text, mounts, places)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(inside: &str, text: &str, mounts: &[Mount], places: &[PathBuf]) -> Result<String> {
    let bad = |why: &str| {
        Error::invalid_argument(format!("mount option {text:?}: {:?} {why}", inside.trim()))
    };
    let words: Vec<&str> = inside.split_whitespace().collect();
    let number = |word: &str| word.parse::<usize>().map_err(|_| bad("is no mount's number"));
    let place = |n: usize| {
        let path = places.get(n).ok_or_else(|| bad("is not mounted before this one"))?;
        Ok(path.display().to_string())
    };
    match words.as_slice() {
        ["mount", n] => place(number(n)?),
        ["source", n] => {
            let mount = mounts.get(number(n)?).ok_or_else(|| bad("is no mount"))?;
            Ok(mount.source.clone())
        }
        ["target", n] => {
            let mount = mounts.get(number(n)?).ok_or_else(|| bad("is no mount"))?;
            Ok(mount.target.clone())
        }
        ["overlay", from, to] => {
            let (from, to) = (number(from)?, number(to)?);
            let mut range: Vec<usize> = (from.min(to)..=from.max(to)).collect();
            if from > to {
                range.reverse();
            }
            if range.len() > mounts.len() {
                return Err(bad("names more mounts than there are"));
            }
            let places: Vec<String> = range.into_iter().map(place).collect::<Result<_>>()?;
            Ok(places.join(":"))
        }
        _ => Err(bad("stands for nothing")),
    }
}

fn make_dir(wanted: &str, dir: &Path) -> Result<()> {
    let bad = |why: &str| Error::invalid_argument(format!("mount option {MKDIR}{wanted}: {why}"));
    let mut parts = wanted.split(':');
    let path = Path::new(parts.next().unwrap_or_default());
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    // The daemon is root: only its own directories are made for others.
    if !plain || !path.starts_with(dir) {
        return Err(bad("is not below the activation's directory"));
    }
    let mode = match parts.next() {
        Some(mode) => u32::from_str_radix(mode, 8).map_err(|_| bad("bad mode"))?,
        None => MKDIR_MODE,
    };
    let owner =
        |id: Option<&str>| id.map(|id| id.parse::<u32>().map_err(|_| bad("bad owner"))).transpose();
    let (uid, gid) = (owner(parts.next())?, owner(parts.next())?);
    let what = || path.display().to_string();
    let mut made = dir.to_owned();
    for part in path.strip_prefix(dir).unwrap_or(path) {
        made.push(part);
        match made.symlink_metadata() {
            // A link in a filesystem of somebody else could lead anywhere.
            Ok(found) if !found.is_dir() => {
                return Err(bad("passes something that is no directory"));
            }
            Ok(_) => {}
            Err(_) => DirBuilder::new().mode(mode).create(&made).context(what)?,
        }
    }
    std::os::unix::fs::chown(path, uid, gid).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(kinds: &[&str]) -> Vec<Mount> {
        kinds.iter().map(|kind| Mount::new(kind, "/s", [] as [&str; 0])).collect()
    }

    #[test]
    fn what_is_made_here_follows_from_the_kinds() {
        for (of, temporary, made) in [
            (vec!["erofs", "overlay"], false, Some(1)),
            (vec!["bind", "bind", "format/overlay"], false, Some(2)),
            (vec!["erofs", "bind", "format/overlay"], false, Some(2)),
            (vec!["bind", "erofs"], false, Some(2)),
            (vec!["mkdir/bind"], false, Some(0)),
            (vec!["bind"], false, None),
            (vec!["bind"], true, Some(1)),
            (vec!["mkfs/ext4"], false, Some(0)),
            (vec!["mkfs/loop", "format/ext4"], false, Some(1)),
            (vec!["mkzip/ext4"], false, None),
        ] {
            let planned = plan(&kinds(&of), temporary).map(|(_, made)| made);
            match made {
                Some(made) => assert_eq!(planned.unwrap(), made, "{of:?}"),
                None => assert!(planned.unwrap_err().is_unimplemented(), "{of:?}"),
            }
        }
    }

    #[test]
    fn text_stands_for_earlier_mounts() {
        let mounts = kinds(&["erofs", "erofs"]);
        let places = [PathBuf::from("/t/0"), PathBuf::from("/t/1")];
        let filled = |text: &str| fill(text, &mounts, &places);
        assert_eq!(filled("lowerdir={{ overlay 1 0 }}").unwrap(), "lowerdir=/t/1:/t/0");
        assert_eq!(filled("{{mount 0}}/{{source 1}}").unwrap(), "/t/0//s");
        assert_eq!(filled("plain").unwrap(), "plain");
        for bad in
            ["{{ mount 2 }}", "{{ mount x }}", "{{ mount", "{{ rm 0 }}", "{{ overlay 0 99 }}"]
        {
            assert!(filled(bad).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }

    #[test]
    fn directories_are_made_below_the_activation_only() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        make_dir(&format!("{}:0711", below.display()), dir.path()).unwrap();
        assert!(below.is_dir());
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let link = format!("{}/link/x", dir.path().display());
        for bad in [&link, "/etc/x", "relative", &format!("{}/../x", dir.path().display())] {
            assert!(make_dir(bad, dir.path()).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }
}
