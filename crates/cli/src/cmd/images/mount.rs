//! `images mount`.

use std::path::Path;
use std::time::Duration;

use gantry_client::{Client, LeaseOptions, UnpackOptions, rootfs};
use gantry_core::{Labels, Platform};
use gantry_errdefs::{Error, Result};

/// How an image is mounted.
pub(super) struct How {
    pub(super) snapshotter: String,
    pub(super) rw: bool,
    pub(super) platform: Option<Platform>,
    /// How long the snapshot is kept if nobody unmounts it; zero for ever.
    pub(super) expiration: Duration,
}

pub(super) async fn run(client: &Client, how: How, image: &str, target: &Path) -> Result<()> {
    let How { snapshotter, rw, platform, expiration } = how;
    let resolved = client.resolve_image(image, platform.as_ref()).await?;
    client.unpack(&resolved, &UnpackOptions::with_snapshotter(&snapshotter)).await?;
    let key = target.display().to_string();
    // The mount holds nothing by itself: the lease does, until it is unmounted or expires.
    let expires = Some(expiration).filter(|time| !time.is_zero());
    let options = LeaseOptions { expires, ..LeaseOptions::default() };
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
