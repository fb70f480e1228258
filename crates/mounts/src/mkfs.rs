//! Files with a filesystem in them, made where they are not there yet.
//!
//! | option | means |
//! |---|---|
//! | `X-containerd.mkfs.size=<n>[unit]` | size of the file, with `K`, `M`, `G` or `T` (1024 each, `iB` or `B` may follow); required |
//! | `X-containerd.mkfs.fs=<fs>` | `ext2`, `ext3`, `ext4` (unless given) or `xfs` |
//! | `X-containerd.mkfs.uuid=<uuid>` | identifier of the filesystem |
//!
//! A file that is there is used as it is if it holds that filesystem, and refused if not: what
//! looks like garbage to us may be somebody's data. A file is made whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_core::sizes;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::Mount;

/// What the options begin with.
const PREFIX: &str = "X-containerd.mkfs.";

/// Smallest file, in bytes: no filesystem fits in less.
const SIZE_MIN: u64 = 1 << 20;

/// Largest file, in bytes, the largest that ext4 holds.
const SIZE_MAX: u64 = 16 << 40;

/// Most bytes of a program's complaints that go into an error.
const STDERR_BYTES_MAX: usize = 2048;

/// What to make.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    size: u64,
    kind: Kind,
    uuid: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ext(&'static str),
    Xfs,
}

/// Makes sure that the source of `mount` is a file with the filesystem that its options ask for,
/// and takes those away.
///
/// # Errors
/// InvalidArgument for options that do not make sense and a source that is no plain absolute path;
/// FailedPrecondition for a file that holds something else; Unknown with the words of the program
/// that makes the filesystem; the I/O error.
pub(crate) fn ensure(mount: &mut Mount) -> Result<()> {
    let wanted = Wanted::of(&mount.options)?;
    mount.options.retain(|option| !option.starts_with(PREFIX));
    let path = PathBuf::from(&mount.source);
    let plain = |c| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) {
        return Err(Error::invalid_argument(format!("mkfs: source {path:?} is no plain path")));
    }
    match File::options().read(true).custom_flags(no_follow()).open(&path) {
        Ok(file) => wanted.kind.check(&file).context(|| path.display().to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => wanted.make(&path),
        Err(e) => Err(Error::io(path.display(), e)),
    }
}

fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

impl Wanted {
    fn of(options: &[String]) -> Result<Self> {
        let (mut size, mut kind, mut uuid) = (None, Kind::Ext("ext4"), None);
        for (key, value) in options.iter().filter_map(|o| o.strip_prefix(PREFIX)?.split_once('=')) {
            let bad = |why: &str| {
                Error::invalid_argument(format!("mount option {PREFIX}{key}={value}: {why}"))
            };
            match key {
                "size" => size = Some(parse_size(value).ok_or_else(|| bad("is no size"))?),
                "fs" => kind = Kind::of(value).ok_or_else(|| bad("is none we make"))?,
                "uuid" if is_uuid(value) => uuid = Some(value.to_owned()),
                "uuid" => return Err(bad("is no UUID")),
                _ => return Err(bad("is not known")),
            }
        }
        let size = size.ok_or_else(|| {
            Error::invalid_argument(format!("mkfs: the mount needs an option {PREFIX}size"))
        })?;
        Ok(Self { size, kind, uuid })
    }

    /// Makes the file beside its place and puts it there.
    fn make(&self, path: &Path) -> Result<()> {
        let what = || path.display().to_string();
        let mut new = path.as_os_str().to_owned();
        new.push(".mkfs-new");
        let new = PathBuf::from(new);
        let made = self.make_at(&new).and_then(|()| {
            // Nothing that came meanwhile is replaced.
            fs::hard_link(&new, path).context(what)
        });
        let removed = fs::remove_file(&new);
        made?;
        removed.context(what)?;
        path.parent().map_or(Ok(()), gantry_sys::durable::sync_dir).context(what)
    }

    fn make_at(&self, new: &Path) -> Result<()> {
        let what = || new.display().to_string();
        // One that a crash left may be in the way.
        match fs::remove_file(new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(what),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new);
        let file = file.context(what)?;
        file.set_len(self.size).context(what)?;
        let (program, args) = self.command();
        let done = Command::new(program).args(args).arg(new).stdin(Stdio::null()).output();
        let done = done.context(|| format!("run {program}"))?;
        if !done.status.success() {
            let said = &done.stderr[done.stderr.len().saturating_sub(STDERR_BYTES_MAX)..];
            return Err(Error::unknown(format!(
                "{program} {}: {}: {}",
                new.display(),
                done.status,
                String::from_utf8_lossy(said).trim()
            )));
        }
        file.sync_all().context(what)
    }

    fn command(&self) -> (&'static str, Vec<String>) {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let (program, mut args) = match self.kind {
            Kind::Ext(name) => ("mke2fs", words(&["-q", "-F", "-t", name])),
            Kind::Xfs => ("mkfs.xfs", words(&["-q", "-f"])),
        };
        match (&self.uuid, self.kind) {
            (Some(uuid), Kind::Ext(_)) => args.extend(["-U".to_owned(), uuid.clone()]),
            (Some(uuid), Kind::Xfs) => args.extend(["-m".to_owned(), format!("uuid={uuid}")]),
            (None, _) => {}
        }
        (program, args)
    }
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ext2" => Self::Ext("ext2"),
            "ext3" => Self::Ext("ext3"),
            "ext4" | "" => Self::Ext("ext4"),
            "xfs" => Self::Xfs,
            _ => return None,
        })
    }

    /// Looks for the filesystem's mark: 0xef53 at byte 1080 (ext2 to ext4), `XFSB` at 0.
    fn check(self, file: &File) -> Result<()> {
        let (at, mark): (u64, &[u8]) = match self {
            Self::Ext(_) => (1080, &[0x53, 0xef]),
            Self::Xfs => (0, b"XFSB"),
        };
        let mut found = vec![0; mark.len()];
        let has = file.metadata().is_ok_and(|m| m.is_file())
            && file.read_exact_at(&mut found, at).is_ok()
            && found == mark;
        if has {
            return Ok(());
        }
        let text = "it is there and does not hold the filesystem asked for; it stays as it is";
        Err(Error::failed_precondition(text))
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let size = sizes::parse(text)?;
    (SIZE_MIN..=SIZE_MAX).contains(&size).then_some(size)
}

fn is_uuid(text: &str) -> bool {
    let hyphens = [8, 13, 18, 23];
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match hyphens.contains(&i) {
            true => b == b'-',
            false => b.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &Path, options: &[&str]) -> Mount {
        Mount::new("loop", source.display().to_string(), options.iter().copied())
    }

    const UUID: &str = "550e8400-e29b-41d4-a716-446655440000";

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("1048576", Some(1 << 20)),
            ("2M", Some(2 << 20)),
            ("3MiB", Some(3 << 20)),
            ("1gb", Some(1 << 30)),
            ("", None),
            ("M", None),
            ("1", None),
            ("99999999T", None),
            ("1.5G", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }

    #[test]
    fn files_are_made_once_and_never_over_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let uuid = format!("X-containerd.mkfs.uuid={UUID}");
        let options = ["X-containerd.mkfs.size=4MiB", "X-containerd.mkfs.fs=ext4", &uuid, "rw"];
        let mut made = mount(&path, &options);
        ensure(&mut made).unwrap();
        assert_eq!(made.options, ["rw"]);
        let first = fs::read(&path).unwrap();
        assert_eq!(first.len(), 4 << 20);
        // The identifier is at byte 104 of the superblock.
        let uuid: String = first[1128..1144].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(uuid, UUID.replace('-', ""));
        ensure(&mut mount(&path, &options)).unwrap();
        assert!(fs::read(&path).unwrap() == first, "it was there already");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        fs::write(&path, "somebody's data").unwrap();
        let err = ensure(&mut mount(&path, &options)).unwrap_err();
        assert!(err.is_failed_precondition(), "{err}");
        assert_eq!(fs::read(&path).unwrap(), b"somebody's data");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for options in [
            &["X-containerd.mkfs.fs=ext4"][..],
            &["X-containerd.mkfs.size=4MiB", "X-containerd.mkfs.fs=vfat"],
            &["X-containerd.mkfs.size=4MiB", "X-containerd.mkfs.uuid=1"],
            &["X-containerd.mkfs.size=4MiB", "X-containerd.mkfs.label=1"],
        ] {
            let err = ensure(&mut mount(&path, options)).unwrap_err();
            assert!(err.is_invalid_argument(), "{options:?}: {err}");
        }
        let size = ["X-containerd.mkfs.size=4MiB"];
        for bad in ["relative", "/tmp/../image"] {
            assert!(ensure(&mut mount(Path::new(bad), &size)).unwrap_err().is_invalid_argument());
        }
        // A xfs does not fit.
        let options = ["X-containerd.mkfs.size=1MiB", "X-containerd.mkfs.fs=xfs"];
        let err = ensure(&mut mount(&path, &options)).unwrap_err();
        assert!(err.message().contains("mkfs.xfs"), "{err}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
