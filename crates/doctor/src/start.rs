//! Making whole again what an unclean end may have damaged.
//!
//! What clients were told of is on disk before they are told, so after the death of the process
//! alone nothing should be missing, and only what came since the last start is verified. After the
//! machine went down the disk may have lied, or lost more than it should: then all layers are
//! verified (names and attributes, no contents), the sizes of all blobs, and the digests of those
//! that came since the last start. One thing at a time, with as long a pause after each as it
//! took: at most half of one disk's time. Clients are served meanwhile; a layer known to be
//! damaged is no parent of new snapshots until it is whole.

use std::sync::PoisonError;
use std::time::SystemTime;

use gantry_errdefs::Result;
use gantry_metadata::{BlobScan, LayerScan};

use crate::thing::Thing;
use crate::{Doctor, START_FINDINGS_MAX};

/// How the daemon before this one ended, if it was not told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unclean {
    /// When it had started; none if that cannot be told.
    pub since: Option<SystemTime>,
    /// The machine has run all the time since.
    pub same_boot: bool,
}

impl Doctor {
    /// Verifies what the end of the last daemon may have damaged, mends it, and tells the log.
    /// After a clean one only layers that lost their directory are looked at.
    /// False when that could not be done.
    pub async fn after_start(&self, unclean: Option<Unclean>) -> bool {
        let verified = self.verify(unclean).await;
        if let Err(err) = &verified {
            tracing::error!(%err, "not verified after an unclean end");
        }
        verified.is_ok()
    }

    async fn verify(&self, unclean: Option<Unclean>) -> Result<()> {
        let (blobs, layers) = match unclean {
            None => (None, LayerScan::Known),
            Some(Unclean { since: Some(since), same_boot: true }) => {
                (Some(BlobScan::Since(since)), LayerScan::Since(since))
            }
            Some(Unclean { since: Some(since), same_boot: false }) => {
                (Some(BlobScan::Since(since)), LayerScan::All)
            }
            Some(Unclean { since: None, .. }) => (Some(BlobScan::All), LayerScan::All),
        };
        let upkeep = self.db.upkeep();
        if let Some(scan) = blobs {
            for bad in upkeep.bad_blobs(scan).await? {
                self.mend_at_start(Thing::Blob(bad)).await;
            }
        }
        for bad in upkeep.bad_layers(layers).await? {
            self.mend_at_start(Thing::Layer(bad)).await;
        }
        if let Some(unclean) = unclean {
            tracing::info!(?unclean, "verified what the last run left");
        }
        Ok(())
    }

    async fn mend_at_start(&self, thing: Thing) {
        let finding = thing.finding();
        tracing::error!(
            kind = finding.kind,
            namespace = finding.namespace,
            id = finding.id,
            what = finding.reason,
            "damaged"
        );
        let Some(mut finding) = self.fix(thing).await else { return };
        finding.reason = format!("found damaged when the daemon started: {}", finding.reason);
        let mut told = self.at_start.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < START_FINDINGS_MAX {
            told.push(finding);
        }
    }
}
