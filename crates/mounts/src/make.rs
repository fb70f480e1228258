//! Making the mounts of an activation, and taking them away.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, UnmountFlags, is_mount_point, mount_all, unmount_all};
use gantry_sys::loopdev;

use crate::plan::{LOOP, Step, resolve};
use crate::record::ActiveMount;
use crate::store::file;

/// Mounts to make.
pub(crate) struct Work {
    pub(crate) dir: PathBuf,
    pub(crate) number: u64,
    pub(crate) steps: Vec<Step>,
    pub(crate) made: usize,
    pub(crate) mounts: Vec<Mount>,
}

impl Work {
    /// Makes them; on failure nothing is left.
    pub(crate) fn make(&self) -> Result<(Vec<ActiveMount>, Vec<Mount>)> {
        let done = self.make_all();
        if done.is_err()
            && let Err(err) = remove(&self.dir, self.number)
        {
            tracing::warn!(%err, "half-made mounts are left until the next start");
        }
        done
    }

    fn make_all(&self) -> Result<(Vec<ActiveMount>, Vec<Mount>)> {
        let own = self.dir.join(self.number.to_string());
        fs::create_dir(&own).context(|| own.display().to_string())?;
        let (mut active, mut places) = (Vec::new(), Vec::new());
        for (i, step) in self.steps[..self.made].iter().enumerate() {
            let mount = resolve(step, &self.mounts, &places, &own)?;
            let place = own.join(i.to_string());
            make_one(&mount, &place)?;
            places.push(place.clone());
            let mounted_at = SystemTime::now();
            active.push(ActiveMount { mount, mounted_at, mount_point: place });
        }
        let left = self.steps[self.made..].iter();
        let system = left.map(|step| resolve(step, &self.mounts, &places, &own));
        Ok((active, system.collect::<Result<_>>()?))
    }
}

fn make_one(mount: &Mount, place: &Path) -> Result<()> {
    if mount.kind == LOOP {
        return attach(mount, place);
    }
    fs::create_dir(place).context(|| place.display().to_string())?;
    // Its place here is its own: the target is for whoever makes a stack of mounts.
    let here = Mount { target: String::new(), ..mount.clone() };
    mount_all(&[here], place)
}

/// Puts a file on a loop device; the place becomes a link to it.
fn attach(mount: &Mount, place: &Path) -> Result<()> {
    let what = || format!("loop device over {:?}", mount.source);
    let read_only = mount.options.iter().any(|o| o == "ro");
    let source = fs::canonicalize(&mount.source).context(what)?;
    std::os::unix::fs::symlink(&source, backing_link(place)).context(what)?;
    let device = loopdev::attach(&source, read_only).context(what)?;
    // In this order: killed before the device is made to stay, it goes with us, and after, it is
    // found by the link.
    std::os::unix::fs::symlink(device.path(), place).context(what)?;
    device.keep().context(what).map(drop)
}

/// A link that tells which file was put on the loop device at `place`.
fn backing_link(place: &Path) -> PathBuf {
    place.with_extension("file")
}

/// Whether what was made is still there; after a reboot nothing is.
pub(crate) fn is_active(active: &ActiveMount) -> bool {
    if active.mount.kind != LOOP {
        return is_mount_point(&active.mount_point).unwrap_or(false);
    }
    let device = fs::read_link(&active.mount_point);
    device.is_ok_and(|device| is_ours(&device, &active.mount_point))
}

/// Unmounts what is mounted for an activation, the last first, and removes its directory and file.
pub(crate) fn remove(dir: &Path, number: u64) -> Result<()> {
    let own = dir.join(number.to_string());
    let mut places: Vec<(usize, PathBuf)> = match fs::read_dir(&own) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path())))
            .collect(),
        Err(_) => Vec::new(),
    };
    places.sort_unstable_by_key(|(i, _)| std::cmp::Reverse(*i));
    for (_, place) in places {
        if let Ok(device) = fs::read_link(&place) {
            if is_ours(&device, &place) {
                loopdev::detach(&device).context(|| device.display().to_string())?;
            }
            fs::remove_file(&place).context(|| place.display().to_string())?;
            continue;
        }
        unmount_all(&place, UnmountFlags::default())?;
        // Never anything in it: should the unmount not have worked, what is mounted stays whole.
        fs::remove_dir(&place).context(|| place.display().to_string())?;
    }
    match fs::remove_dir_all(&own) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(own.display(), e));
        }
        _ => {}
    }
    match fs::remove_file(file(dir, number)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir.display(), e)),
        _ => Ok(()),
    }
}

/// Whether `device` is the loop device made for `place`: after a reboot its number may be that of
/// another.
fn is_ours(device: &Path, place: &Path) -> bool {
    let file = fs::read_link(backing_link(place));
    file.is_ok_and(|file| loopdev::backing(device) == Some(file))
}
