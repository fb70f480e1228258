//! What a checkpoint needs besides criu's images: how it was taken, and the names of its streams.
//!
//! A restore has to be asked for with the options of the checkpoint (open connections, locks), and
//! no client says them again; so they are kept with the image, in [`NOTES`].
//!
//! **Streams.** A handed-over FIFO (see [`crate::stdio`]) is a file outside the container's mounts, and criu
//! refuses what it cannot find again. It takes such a file when told its name, `file[mount:inode]`,
//! and at a restore a descriptor to put in its place. The runtime has no option for either and
//! passes on what it likes, so criu is told by a configuration file of its own.
//!
//! An image without notes is somebody else's: its streams are pipes, which the runtime sees to.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt as _};
use serde::{Deserialize, Serialize};

use crate::engine::Checkpoint;
use crate::state::VERSION;

/// The file in the image's directory.
const NOTES: &str = "gantry-checkpoint.json";
/// The configuration of criu for one call, in the bundle.
const CONFIG: &str = "criu.conf";
/// Names a file with more options for criu; what it says is kept.
pub(crate) const CONFIG_ENV: &str = "CRIU_CONFIG_FILE";

/// What is kept with an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Notes {
    version: u32,
    /// Descriptors 0 to 2 as criu names them; empty where it needs no help.
    names: [String; 3],
    /// It has open TCP connections.
    pub(crate) open_tcp: bool,
    /// It has unix sockets whose other end is outside.
    pub(crate) external_unix_sockets: bool,
    /// It has a terminal.
    pub(crate) terminal: bool,
    /// It has file locks.
    pub(crate) file_locks: bool,
    /// Namespaces that were left empty.
    pub(crate) empty_namespaces: Vec<String>,
}

impl Notes {
    /// Those of a checkpoint of the process `pid`, taken as `call` says.
    ///
    /// # Errors
    /// Its mounts cannot be read: it has ended.
    pub(crate) fn of(pid: u32, call: &Checkpoint) -> Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let path = process.join("mountinfo");
        let mounts = fs::read_to_string(&path).context(|| path.display().to_string())?;
        let name = |fd: usize| outside(&process, fd, &mounts).unwrap_or_default();
        Ok(Self {
            version: VERSION,
            names: [name(0), name(1), name(2)],
            open_tcp: call.open_tcp,
            external_unix_sockets: call.external_unix_sockets,
            terminal: call.terminal,
            file_locks: call.file_locks,
            empty_namespaces: call.empty_namespaces.clone(),
        })
    }

    /// Those of an image; somebody else's has none, which is like empty ones.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn load(image: &Path) -> Result<Self> {
        let path = image.join(NOTES);
        let text = match fs::read(&path) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            other => other.context(|| path.display().to_string())?,
        };
        let notes: Self = serde_json::from_slice(&text)
            .map_err(|err| Error::invalid_argument(format!("{}: {err}", path.display())))?;
        // An image may come from anywhere, and its names become lines of a configuration.
        match notes.names.iter().all(|name| is_name(name)) {
            true => Ok(notes),
            false => Err(Error::invalid_argument(format!("{}: not a name", path.display()))),
        }
    }

    /// Keeps them with an image.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub(crate) fn save(&self, image: &Path) -> Result<()> {
        let path = image.join(NOTES);
        let text = serde_json::to_vec(self).map_err(|err| Error::internal(err.to_string()))?;
        fs::write(&path, text).context(|| path.display().to_string())
    }

    /// Writes the configuration for a checkpoint; none when there is nothing to say.
    ///
    /// # Errors
    /// The bundle cannot be written to.
    pub(crate) fn for_checkpoint(&self, bundle: &Path) -> Result<Option<PathBuf>> {
        self.configure(bundle, |_, name| format!("external {name}\n"))
    }

    /// Writes the configuration for a restore to descriptors 0 to 2 of the runtime.
    ///
    /// # Errors
    /// The bundle cannot be written to.
    pub(crate) fn for_restore(&self, bundle: &Path) -> Result<Option<PathBuf>> {
        self.configure(bundle, |fd, name| format!("inherit-fd fd[{fd}]:{name}\n"))
    }

    fn configure(
        &self,
        bundle: &Path,
        line: impl Fn(usize, &str) -> String,
    ) -> Result<Option<PathBuf>> {
        let named = self.names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        let lines: String = named.map(|(fd, name)| line(fd, name)).collect();
        if lines.is_empty() {
            return Ok(None);
        }
        let others = std::env::var_os(CONFIG_ENV).map(PathBuf::from);
        let mut text = match others {
            Some(path) => fs::read_to_string(&path).context(|| path.display().to_string())? + "\n",
            None => String::new(),
        };
        text.push_str(&lines);
        let path = bundle.join(CONFIG);
        fs::write(&path, text).context(|| path.display().to_string())?;
        Ok(Some(path))
    }
}

/// The name of a descriptor's file, when it is on none of the process's mounts.
fn outside(process: &Path, fd: usize, mounts: &str) -> Option<String> {
    let link = process.join(format!("fd/{fd}"));
    // Pipes, sockets and the like are on no mount at all, and the runtime sees to them.
    fs::read_link(&link).ok().filter(|target| target.is_absolute())?;
    let info = fs::read_to_string(process.join(format!("fdinfo/{fd}"))).ok()?;
    let mount: u64 =
        info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
    let of_line = |line: &str| line.split(' ').next().and_then(|id| id.parse::<u64>().ok());
    if mounts.lines().any(|line| of_line(line) == Some(mount)) {
        return None;
    }
    let inode = fs::metadata(&link).ok()?.ino();
    Some(format!("file[{mount:x}:{inode:x}]"))
}

fn is_name(text: &str) -> bool {
    let inner = text.strip_prefix("file[").and_then(|rest| rest.strip_suffix(']'));
    let is_hex = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
    let pair = inner.and_then(|inner| inner.split_once(':'));
    text.is_empty() || pair.is_some_and(|(mount, inode)| is_hex(mount) && is_hex(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(names: [&str; 3]) -> Notes {
        let names = names.map(str::to_owned);
        Notes { version: VERSION, names, open_tcp: true, ..Notes::default() }
    }

    #[test]
    fn notes_go_with_the_image_and_names_become_options() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Notes::load(dir.path()).expect("no file is fine"), Notes::default());
        let notes = notes(["", "file[1b:9b]", ""]);
        notes.save(dir.path()).expect("saved");
        assert_eq!(Notes::load(dir.path()).expect("loads"), notes);
        let read = |path: Option<PathBuf>| fs::read_to_string(path.expect("a file")).expect("text");
        let dump = read(notes.for_checkpoint(dir.path()).expect("written"));
        assert_eq!(dump, "external file[1b:9b]\n");
        let restore = read(notes.for_restore(dir.path()).expect("written"));
        assert_eq!(restore, "inherit-fd fd[1]:file[1b:9b]\n");
    }

    #[test]
    fn streams_that_need_no_help_make_no_file() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(notes(["", "", ""]).for_checkpoint(dir.path()).expect("nothing to do"), None);
        assert!(!dir.path().join(CONFIG).exists());
    }

    #[test]
    fn an_image_cannot_smuggle_options_in() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["file[1:2]\naction-script /x", "tty[1:2]", "file[:]", "file[1:2", "x"] {
            notes([name, "", ""]).save(dir.path()).expect("saved");
            assert!(Notes::load(dir.path()).expect_err(name).is_invalid_argument());
        }
    }

    #[test]
    fn a_file_on_the_processes_own_mounts_is_not_outside() {
        let call = Checkpoint { file_locks: true, ..Checkpoint::default() };
        let here = Notes::of(std::process::id(), &call).expect("this process");
        assert!(here.names.iter().all(String::is_empty) && here.file_locks, "{here:?}");
    }
}
