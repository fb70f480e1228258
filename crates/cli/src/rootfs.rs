//! Mounting snapshots on this machine.

use std::path::{Path, PathBuf};

use gantry_client::Mount;
use gantry_client::oci::UserDatabase;
use gantry_errdefs::{Error, Result};
use gantry_mount::UnmountFlags;

/// Mounts snapshots at `target`.
pub(crate) async fn mount(mounts: &[Mount], target: &Path) -> Result<()> {
    let mounts = converted(mounts);
    let target = target.to_owned();
    blocking(move || gantry_mount::mount_all(&mounts, &target)).await
}

/// Unmounts everything at `target`.
pub(crate) async fn unmount(target: &Path) -> Result<()> {
    let target = target.to_owned();
    blocking(move || gantry_mount::unmount_all(&target, UnmountFlags::default())).await
}

/// Reads the users of the root filesystem in `mounts`, mounted read-only for the moment.
pub(crate) async fn users(mounts: &[Mount]) -> Result<UserDatabase> {
    let mounts: Vec<_> = converted(mounts).iter().map(gantry_mount::Mount::read_only).collect();
    blocking(move || {
        let dir = TempDir::make()?;
        gantry_mount::mount_all(&mounts, &dir.0)?;
        UserDatabase::from_rootfs(&dir.0)
    })
    .await
}

/// A fresh directory; on drop what is mounted there is unmounted and the directory removed.
struct TempDir(PathBuf);

impl TempDir {
    fn make() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
        let path = std::env::temp_dir().join(format!("gantry-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::io(format!("making {}", path.display()), e))?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let detached = gantry_mount::unmount_all(&self.0, UnmountFlags::DETACH);
        // Never recursively: if the unmount failed, that would empty the snapshot.
        if detached.is_ok() {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

fn converted(mounts: &[Mount]) -> Vec<gantry_mount::Mount> {
    mounts
        .iter()
        .cloned()
        .map(|m| gantry_mount::Mount {
            kind: m.kind,
            source: m.source,
            target: m.target,
            options: m.options,
        })
        .collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(format!("mounting: {e}")))?
}
