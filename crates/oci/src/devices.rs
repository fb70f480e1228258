//! Devices of the host inside the container.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use gantry_errdefs::{Error, Result, ResultExt};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use crate::builder::SpecBuilder;

/// Directories of devices nest no deeper than this.
const DEPTH_MAX: usize = 8;

/// Names under `/dev` that a container makes for itself.
const OWN_NAMES: [&str; 9] =
    ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"];

impl SpecBuilder {
    /// Adds the device at `path` of the host, or every device in the directory `path`, under the
    /// same name, with full access.
    #[must_use]
    pub fn device(mut self, path: &Path) -> Self {
        let mut found = Vec::new();
        match collect(path, DEPTH_MAX, &mut found) {
            Ok(()) if found.is_empty() => {
                return self.fail(format!("device {}: not a device node", path.display()));
            }
            Ok(()) => self.add_devices(found),
            Err(failure) => self.keep_failure(failure),
        }
        self
    }

    /// Adds every device of the host.
    #[must_use]
    pub fn host_devices(mut self) -> Self {
        let mut found = Vec::new();
        match collect(Path::new("/dev"), DEPTH_MAX, &mut found) {
            Ok(()) => self.add_devices(found),
            Err(failure) => self.keep_failure(failure),
        }
        self
    }

    /// Lifts the device list: every device may be used.
    #[must_use]
    pub fn all_devices_allowed(mut self) -> Self {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_access(Some("rwm".to_owned()));
        self.resources().set_devices(Some(vec![rule]));
        self
    }

    fn add_devices(&mut self, devices: Vec<LinuxDevice>) {
        for device in &devices {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(device.typ()))
                .set_major(Some(device.major()))
                .set_minor(Some(device.minor()))
                .set_access(Some("rwm".to_owned()));
            self.resources().devices_mut().get_or_insert_default().push(rule);
        }
        let mut all = self.linux().devices().clone().unwrap_or_default();
        all.extend(devices);
        self.linux().set_devices(Some(all));
    }
}

/// Adds the device at `path`, or those under the directory `path`.
fn collect(path: &Path, depth_left: usize, found: &mut Vec<LinuxDevice>) -> Result<()> {
    let what = || format!("device {}", path.display());
    let meta = std::fs::metadata(path).context(what)?;
    if meta.is_dir() {
        if depth_left == 0 {
            let why = format!("{}: directories nest deeper than {DEPTH_MAX}", what());
            return Err(Error::invalid_argument(why));
        }
        for entry in std::fs::read_dir(path).context(what)? {
            let entry = entry.context(what)?;
            let name = entry.file_name();
            let is_link = entry.file_type().context(what)?.is_symlink();
            if is_link || OWN_NAMES.iter().any(|own| name.as_os_str() == *own) {
                continue;
            }
            match collect(&entry.path(), depth_left - 1, found) {
                // Devices come and go while the directory is read.
                Err(gone) if gone.is_not_found() => {}
                other => other?,
            }
        }
        return Ok(());
    }
    let kind = if meta.file_type().is_block_device() {
        LinuxDeviceType::B
    } else if meta.file_type().is_char_device() {
        LinuxDeviceType::C
    } else {
        return Ok(());
    };
    let number = meta.rdev();
    let mut device = LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(kind)
        .set_major(i64::from(rustix::fs::major(number)))
        .set_minor(i64::from(rustix::fs::minor(number)))
        .set_file_mode(Some(meta.mode() & 0o7777))
        .set_uid(Some(meta.uid()))
        .set_gid(Some(meta.gid()));
    found.push(device);
    Ok(())
}
