//! Overlay mounts: option strings of any length, and id-mapped lower directories.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::mountattr::idmapped_tree;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::Mount;
use crate::make::{attach, from_errno, plain};
use crate::options::Options;
use crate::unmount::{UnmountFlags, is_mount_point, unmount};

/// Longest option string `mount(2)` takes, in bytes: it copies one page, with the ending NUL.
const MOUNT_DATA_LEN_MAX: usize = 4095;

/// Longest value `fsconfig(2)` takes, in bytes.
const FSCONFIG_VALUE_LEN_MAX: usize = 255;

/// Mounts an overlay.
pub(crate) fn mount(mount: &Mount, options: &Options, target: &Path) -> Result<()> {
    if options.uid_map.is_none() && options.gid_map.is_none() {
        return mount_layers(&mount.source, options, target);
    }
    let lowers = lower_dirs(options);
    let mapped = Mapped::mount(&lowers, options)?;
    // The overlay holds its lower layers itself, so the helper mounts go away right after.
    mount_layers(&mount.source, &with_lower_dirs(options, &mapped.lowers), target)
}

/// Id-mapped mounts of lower directories, for as long as this lives.
struct Mapped {
    /// Where the lower directories are found in them.
    lowers: Vec<String>,
    _bases: Vec<IdmappedBase>,
}

impl Mapped {
    /// Maps the directory above all of `lowers`; those that are mounts of their own, which such a
    /// mapping does not reach, one by one.
    fn mount(lowers: &[String], options: &Options) -> Result<Self> {
        let apart = lowers.iter().map(|l| is_mount_point(Path::new(l)));
        let apart = apart.collect::<Result<Vec<bool>>>()?;
        let together: Vec<String> = lowers
            .iter()
            .zip(&apart)
            .filter(|(_, apart)| !**apart)
            .map(|(l, _)| l.clone())
            .collect();
        let mut bases = Vec::new();
        let mut common = None;
        if !together.is_empty() {
            let base = common_parent(&together).ok_or_else(|| {
                Error::invalid_argument("overlay: id-mapping needs absolute lowerdirs")
            })?;
            bases.push(IdmappedBase::mount(&base, options)?);
            common = Some((base, bases[0].0.clone()));
        }
        let mut moved = Vec::new();
        for (lower, apart) in lowers.iter().zip(apart) {
            let found = match &common {
                _ if apart => {
                    bases.push(IdmappedBase::mount(Path::new(lower), options)?);
                    bases[bases.len() - 1].0.clone()
                }
                Some((base, at)) => Path::new(lower)
                    .strip_prefix(base)
                    .map_or_else(|_| lower.into(), |rest| at.join(rest)),
                None => lower.into(),
            };
            moved.push(found.to_string_lossy().into_owned());
        }
        Ok(Self { lowers: moved, _bases: bases })
    }
}

fn mount_layers(source: &str, options: &Options, target: &Path) -> Result<()> {
    let data = options.data_string();
    if data.len() <= MOUNT_DATA_LEN_MAX {
        return plain(Path::new(source), "overlay", options, &data, target);
    }
    let fits = lower_dirs(options).iter().all(|l| l.len() <= FSCONFIG_VALUE_LEN_MAX);
    if fits {
        match mount_by_fsconfig(source, options, target) {
            // Kernels before 6.7 do not know `lowerdir+`.
            Err(e) if e.is_invalid_argument() || e.is_unimplemented() => {
                tracing::debug!(%e, "overlay: fsconfig refused, trying short paths");
            }
            other => return other,
        }
    }
    mount_relative(source, options, target)
}

/// Hands the layers over one by one.
fn mount_by_fsconfig(source: &str, options: &Options, target: &Path) -> Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| from_errno("fsopen", e))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(fs.as_fd(), key, value)
            .map_err(|e| from_errno(&format!("fsconfig {key}={value}"), e))
    };
    set("source", source)?;
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                split_lower(layers).iter().try_for_each(|layer| set("lowerdir+", layer))?;
            }
            Some((key, value)) => set(key, value)?,
            None => fsconfig_set_flag(fs.as_fd(), option.as_str())
                .map_err(|e| from_errno(&format!("fsconfig {option}"), e))?,
        }
    }
    fsconfig_create(fs.as_fd()).map_err(|e| from_errno("fsconfig create", e))?;
    // The bits of MOUNT_ATTR_* begin like those of MS_*; see `Options::attributes`.
    let (set_bits, _) = options.attributes();
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(set_bits).unwrap_or(0));
    let tree = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| from_errno("fsmount", e))?;
    attach(&tree, target)
}

/// Mounts with paths relative to the directory the layers share, on a thread with a working
/// directory of its own.
fn mount_relative(source: &str, options: &Options, target: &Path) -> Result<()> {
    let lowers = lower_dirs(options);
    let base = common_parent(&lowers)
        .ok_or_else(|| Error::invalid_argument("overlay: the lowerdirs share no directory"))?;
    let short: Vec<String> = lowers
        .iter()
        .map(|l| Path::new(l).strip_prefix(&base).map_or(l.clone(), |r| r.display().to_string()))
        .collect();
    let options = with_lower_dirs(options, &short);
    let data = options.data_string();
    if data.len() > MOUNT_DATA_LEN_MAX {
        return Err(Error::invalid_argument(format!(
            "overlay: {} layers need {} bytes of options, the kernel takes {MOUNT_DATA_LEN_MAX}",
            short.len(),
            data.len()
        )));
    }
    let target = std::path::absolute(target).context(|| target.display().to_string())?;
    gantry_sys::thread::in_directory(&base, || {
        plain(Path::new(source), "overlay", &options, &data, &target)
    })
    .context(|| base.display().to_string())?
}

/// The lower directories, topmost first, unescaped neither here nor by the callers: the kernel
/// does that.
fn lower_dirs(options: &Options) -> Vec<String> {
    options
        .data
        .iter()
        .filter_map(|o| o.strip_prefix("lowerdir="))
        .flat_map(|l| split_lower(l).into_iter().map(str::to_owned))
        .collect()
}

/// Splits at colons that are not escaped.
fn split_lower(layers: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (i, c) in layers.char_indices() {
        match c {
            ':' if !escaped => {
                parts.push(&layers[start..i]);
                start = i + 1;
            }
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            _ => {}
        }
        escaped = false;
    }
    parts.push(&layers[start..]);
    parts
}

fn with_lower_dirs(options: &Options, lowers: &[String]) -> Options {
    let mut out = options.clone();
    out.uid_map = None;
    out.gid_map = None;
    out.data.retain(|o| !o.starts_with("lowerdir="));
    out.data.push(format!("lowerdir={}", lowers.join(":")));
    out
}

/// The deepest directory above all of `paths`; `None` unless all are absolute.
fn common_parent(paths: &[String]) -> Option<PathBuf> {
    let mut common = Path::new(paths.first()?).parent()?.to_owned();
    for path in paths {
        let path = Path::new(path);
        if !path.is_absolute() {
            return None;
        }
        while !path.parent()?.starts_with(&common) {
            common.pop();
        }
    }
    Some(common)
}

/// An id-mapped mount of a directory at a temporary place, detached again on drop.
struct IdmappedBase(PathBuf);

impl IdmappedBase {
    fn mount(base: &Path, options: &Options) -> Result<Self> {
        let userns = crate::idmap::user_namespace(options)?;
        let tree = idmapped_tree(base, userns.as_fd(), false)
            .context(|| format!("id-map {}", base.display()))?;
        let place = fresh_dir()?;
        let mounted = Self(place);
        attach(&tree, &mounted.0)?;
        Ok(mounted)
    }
}

impl Drop for IdmappedBase {
    fn drop(&mut self) {
        let gone = unmount(&self.0, UnmountFlags::DETACH)
            .and_then(|()| fs::remove_dir(&self.0).context(|| self.0.display().to_string()));
        if let Err(err) = gone {
            tracing::warn!(%err, "an id-mapped helper mount is left");
        }
    }
}

/// A fresh private directory below the system's temporary one.
fn fresh_dir() -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gantry-idmap-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(path.display(), e)),
        }
    }
}
