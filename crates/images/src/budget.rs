//! What all transfers of a node may use together: connections, bytes a second, disk.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_core::Descriptor;
use gantry_errdefs::{Class, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may come at once after a pause, as time: a link that was idle may catch up a little.
const BURST: Duration = Duration::from_millis(100);

/// Layers unpacked at once while they are downloaded. Each holds some 3 MiB for it, in buffers
/// between network, inflater and disk; the others are unpacked from the store, where they go anyway.
const FEEDS_MAX: usize = 16;

/// Limits of a node; 0 everywhere is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetOptions {
    /// Blobs fetched at once by all pulls together.
    pub downloads_max: usize,
    /// Bytes a second that all pulls together fetch.
    pub rate_max: u64,
    /// Bytes of the disk under `disk` that pulls leave free.
    pub disk_free_min: u64,
    /// A directory on the disk that content is stored on.
    pub disk: PathBuf,
}

/// The limits, and what is used of them. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: BudgetOptions,
    downloads: Arc<Semaphore>,
    feeds: Arc<Semaphore>,
    /// When the bytes that were granted so far will have come at the rate allowed.
    paid_until: Mutex<Instant>,
    /// Bytes that downloads under way still have to write.
    promised: AtomicU64,
}

/// One download's share; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    /// Bytes promised and not written yet.
    left: u64,
    _slot: OwnedSemaphorePermit,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(BudgetOptions::default())
    }
}

impl Budget {
    /// These limits, nothing used yet.
    pub fn new(options: BudgetOptions) -> Self {
        let slots = match options.downloads_max {
            0 => Semaphore::MAX_PERMITS,
            max => max.min(Semaphore::MAX_PERMITS),
        };
        Self(Arc::new(Inner {
            options,
            downloads: Arc::new(Semaphore::new(slots)),
            feeds: Arc::new(Semaphore::new(FEEDS_MAX)),
            paid_until: Mutex::new(Instant::now()),
            promised: AtomicU64::new(0),
        }))
    }

    /// Waits until one more blob may be fetched, of which `left` bytes are still to come.
    ///
    /// # Errors
    /// ResourceExhausted when the disk would be left with less than is to stay free.
    pub(crate) async fn share(&self, blob: &Descriptor, left: u64) -> Result<Share> {
        let slot = self.0.downloads.clone().acquire_owned().await;
        let slot = slot.map_err(|_| Error::internal("the download budget is closed"))?;
        self.check_disk(blob, left)?;
        self.0.promised.fetch_add(left, Ordering::Relaxed);
        Ok(Share { budget: self.clone(), left, _slot: slot })
    }

    /// Room for one more layer to be unpacked while it is downloaded, if there is any.
    pub(crate) fn feed(&self) -> Option<OwnedSemaphorePermit> {
        self.0.feeds.clone().try_acquire_owned().ok()
    }

    fn check_disk(&self, blob: &Descriptor, left: u64) -> Result<()> {
        let BudgetOptions { disk, disk_free_min, .. } = &self.0.options;
        if *disk_free_min == 0 {
            return Ok(());
        }
        let stat = rustix::fs::statvfs(disk)
            .map_err(|e| Error::io(disk.display().to_string(), e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let promised = self.0.promised.load(Ordering::Relaxed);
        if free < promised.saturating_add(left).saturating_add(*disk_free_min) {
            return Err(Error::new(
                Class::ResourceExhausted,
                format!(
                    "blob {}: {left} bytes to fetch, but of {free} bytes free on the disk of {} \
                     {promised} are promised to other downloads and {disk_free_min} stay free",
                    blob.digest,
                    disk.display()
                ),
            ));
        }
        Ok(())
    }

    /// When `bytes` more may go on.
    fn pay(&self, bytes: u64) -> Duration {
        let rate = self.0.options.rate_max;
        if rate == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let now = Instant::now();
        let mut paid = self.0.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + cost;
        paid.saturating_duration_since(now + BURST)
    }
}

impl Share {
    /// Accounts for `bytes` that came, and waits where that is faster than allowed. Those who
    /// wait are served in their order.
    pub(crate) async fn spend(&mut self, bytes: u64) {
        let written = bytes.min(self.left);
        self.left -= written;
        self.budget.0.promised.fetch_sub(written, Ordering::Relaxed);
        let wait = self.budget.pay(bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.promised.fetch_sub(self.left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use gantry_core::{Digest, media_types};

    use super::*;

    fn blob() -> Descriptor {
        Descriptor::new(media_types::OCI_LAYER, Digest::of(b"x"), 1)
    }

    #[tokio::test]
    async fn what_is_promised_counts_until_it_is_written() {
        let disk = std::env::temp_dir();
        let stat = rustix::fs::statvfs(&disk).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        // Half of what is free stays so; others on this machine use a little of the rest.
        let options = BudgetOptions { disk, disk_free_min: free / 2, ..BudgetOptions::default() };
        let budget = Budget::new(options);
        let mut first = budget.share(&blob(), free / 3).await.unwrap();
        let refused = budget.share(&blob(), free / 3).await.unwrap_err();
        assert_eq!(refused.class(), Class::ResourceExhausted);
        assert!(refused.message().contains("stay free"), "{refused}");
        first.spend(free / 3).await;
        drop(budget.share(&blob(), free / 3).await.unwrap());
        drop(first);
        assert_eq!(budget.0.promised.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_wait_for_each_other() {
        let budget = Budget::new(BudgetOptions { downloads_max: 1, ..BudgetOptions::default() });
        let first = budget.share(&blob(), 1).await.unwrap();
        let blob = blob();
        let second = budget.share(&blob, 1);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut second).await.is_err());
        drop(first);
        second.await.unwrap();
    }

    #[test]
    fn bytes_cost_time() {
        let budget = Budget::new(BudgetOptions { rate_max: 1000, ..BudgetOptions::default() });
        let waits: Vec<Duration> = (0..3).map(|_| budget.pay(1000)).collect();
        // One second each, but for what may come at once and the time this takes.
        for (n, wait) in (1..).zip(waits) {
            let most = Duration::from_secs(n) - BURST;
            assert!(wait <= most && wait > most - Duration::from_millis(500), "{n}: {wait:?}");
        }
        assert!(Budget::default().pay(u64::MAX).is_zero());
    }
}
