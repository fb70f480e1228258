//! A lease for the time of one operation.

use std::time::{Duration, SystemTime};

use gantry_core::{Context, Labels, timestamp};
use gantry_errdefs::Result;
use gantry_metadata::{Db, LABEL_EXPIRE, Leases};

/// When a lease of ours ends that was not deleted, because the daemon died: long enough for a
/// restarted pull to find its partial downloads.
const LEASE_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Deletes a lease when dropped, unless [`OwnLease::end`] did.
#[derive(Debug)]
pub(crate) struct OwnLease {
    db: Db,
    ctx: Context,
    /// None: nothing to delete.
    id: Option<String>,
}

/// The context to work in: `ctx` itself if it has a lease, else `ctx` under a new one that ends
/// with the returned guard.
pub(crate) async fn ensure(db: &Db, ctx: &Context) -> Result<(Context, OwnLease)> {
    let mut own = OwnLease { db: db.clone(), ctx: ctx.clone(), id: None };
    if ctx.lease.is_some() {
        return Ok((ctx.clone(), own));
    }
    let until = SystemTime::now() + LEASE_LIFETIME;
    let labels = Labels::from([(LABEL_EXPIRE.to_owned(), timestamp::format(until))]);
    let id = Leases::invent_id();
    // Known before it is made: a caller that goes away meanwhile leaves one that is made all the
    // same, and the deletion by the guard comes after that.
    own.id = Some(id.clone());
    db.leases().create(ctx, &id, labels).await?;
    Ok((ctx.clone().with_lease(id), own))
}

impl OwnLease {
    /// Ends the work done under the lease: deletes the lease, if it is ours, and gives the work's
    /// `result`. What it held and nothing else holds becomes collectable.
    ///
    /// # Errors
    /// The work's own before the store's, which would hide it; a lease that is gone is no error.
    pub(crate) async fn end<T>(self, result: Result<T>) -> Result<T> {
        let released = self.release().await;
        result.and_then(|value| released.map(|()| value))
    }

    async fn release(mut self) -> Result<()> {
        let Some(id) = self.id.clone() else { return Ok(()) };
        let deleted = self.db.leases().delete(&self.ctx, &id, false).await;
        self.id = None;
        match deleted {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for OwnLease {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        // Without a runtime the process is ending; the lease expires by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (db, ctx) = (self.db.clone(), self.ctx.clone());
        runtime.spawn(async move {
            let deleted = db.leases().delete(&ctx, &id, false).await;
            if let Err(error) = deleted
                && !error.is_not_found()
            {
                tracing::warn!(lease = id, %error, "lease of an ended transfer not deleted");
            }
        });
    }
}
