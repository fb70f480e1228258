//! Unpacking a layer again whose tree is damaged.

use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::{BadLayer, Remaking};

use super::Unpacker;
use crate::differ::{Origin, Stop};

impl Unpacker {
    /// Unpacks a damaged layer again, from the blob it came from, and puts the new tree in the
    /// place of the old one: the snapshot keeps its name, and what is on top of it sees the new
    /// tree. It runs to its end even when the caller goes away.
    ///
    /// # Errors
    /// NotFound when layer or blob are gone; FailedPrecondition when the layer is in use, when a
    /// layer below it is damaged as well, or when the blob does not unpack to what was promised.
    pub async fn repair(&self, bad: &BadLayer) -> Result<()> {
        let (unpacker, bad) = (self.clone(), bad.clone());
        let work = tokio::spawn(async move { unpacker.repair_now(&bad).await });
        crate::differ::joined(work.await)
    }

    async fn repair_now(&self, bad: &BadLayer) -> Result<()> {
        let what = || format!("layer {}", bad.key);
        let upkeep = self.db.upkeep();
        let Remaking { reader, mounts, diff_id, tree } = upkeep.remake(bad).await.context(what)?;
        let reader = reader.into_blocking();
        let applied =
            self.differ.apply_until(reader, Origin::Store, mounts, false, Stop::default()).await;
        let checked = applied.and_then(|applied| {
            if applied.diff_id == diff_id {
                return Ok(());
            }
            Err(Error::failed_precondition(format!(
                "it was unpacked from {diff_id}, its blob unpacks to {}",
                applied.diff_id
            )))
        });
        let finished = upkeep.finish(bad, tree, checked.is_ok()).await;
        checked.and(finished).context(what)
    }
}
