//! `images mount`.

use std::path::Path;
use std::time::Duration;

use gantry_client::{Client, LeaseOptions, UnpackOptions};
use gantry_core::{Labels, Platform};
use gantry_errdefs::{Error, Result};

use crate::rootfs;

/// How long the snapshot of a mounted image is kept if nobody unmounts it.
const MOUNT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) async fn run(
    client: &Client,
    snapshotter: &str,
    rw: bool,
    platform: Option<&Platform>,
    image: &str,
    target: &Path,
) -> Result<()> {
    let resolved = client.resolve_image(image, platform).await?;
    let unpack = UnpackOptions { snapshotter: snapshotter.to_owned() };
    client.unpack(&resolved, &unpack).await?;
    let key = target.display().to_string();
    // The mount holds nothing by itself: the lease does, until it is unmounted or a day is over.
    let options = LeaseOptions { expires: Some(MOUNT_LIFETIME), ..LeaseOptions::default() };
    let lease = client.leases().create(options).await?;
    let snapshots = client.under_lease(&lease.id).snapshots(snapshotter);
    let parent = resolved.chain_id().to_string();
    let prepared = if rw {
        snapshots.prepare(&key, &parent, Labels::new()).await
    } else {
        snapshots.view(&key, &parent, Labels::new()).await
    };
    let mounted = match prepared {
        // Mounted before and unmounted without --rm.
        Err(e) if e.is_already_exists() => snapshots.mounts(&key).await,
        other => other,
    };
    let done = match mounted {
        Ok(mounts) => rootfs::mount(&mounts, target).await.map_err(|e| (true, e)),
        Err(e) => Err((false, e)),
    };
    match done {
        Ok(()) => Ok(()),
        Err((made, e)) => {
            if made {
                let _ = snapshots.remove(&key).await;
            }
            let _ = client.leases().delete(&lease.id, false).await;
            Err(Error::context(e, format!("mounting {image:?}")))
        }
    }
}
