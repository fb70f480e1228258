//! Several differs, tried in order.

use std::sync::Arc;

use gantry_core::{Context, Descriptor};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;

use super::{ApplyRequest, DiffRequest, LayerDiffer};

/// Differs in the order they are tried: one that answers Unimplemented leaves it to the next.
#[derive(Clone)]
pub struct Differs(Arc<[Arc<dyn LayerDiffer>]>);

impl Differs {
    /// These differs, in this order.
    pub fn new(differs: impl Into<Arc<[Arc<dyn LayerDiffer>]>>) -> Self {
        Self(differs.into())
    }

    /// As [`LayerDiffer::apply`], by the first that can.
    ///
    /// # Errors
    /// That of the differ that tried, or the last one's Unimplemented.
    pub async fn apply(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        mounts: &[Mount],
        request: ApplyRequest,
    ) -> Result<Descriptor> {
        let mut refused = none();
        for differ in self.0.iter() {
            match differ.apply(ctx, layer, mounts, request.clone()).await {
                Err(err) if err.is_unimplemented() => refused = err,
                done => return done,
            }
        }
        Err(refused)
    }

    /// As [`LayerDiffer::diff`], by the first that can.
    ///
    /// # Errors
    /// That of the differ that tried, or the last one's Unimplemented.
    pub async fn diff(
        &self,
        ctx: &Context,
        left: &[Mount],
        right: &[Mount],
        request: DiffRequest,
    ) -> Result<Descriptor> {
        let mut refused = none();
        for differ in self.0.iter() {
            match differ.diff(ctx, left, right, request.clone()).await {
                Err(err) if err.is_unimplemented() => refused = err,
                done => return done,
            }
        }
        Err(refused)
    }
}

fn none() -> Error {
    Error::unimplemented("no differ is loaded")
}

impl std::fmt::Debug for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Differs").field(&self.0.len()).finish()
    }
}
