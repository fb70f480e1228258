//! Walking the containers as they are stored, also by several threads.

use std::ops::ControlFlow;

use gantry_errdefs::Result;
use gantry_store::{KvRead, Snapshot, prefix_end};

use crate::keys;
use crate::records::StoredContainer;

/// What visits containers; `Break` ends the walk.
pub type VisitStored<'v> = dyn FnMut(StoredContainer<'_>) -> Result<ControlFlow<()>> + 'v;

/// The containers of a namespace by id, or a run of them, as they were at one moment. A walk does not
/// wait for anything; long ones belong off the async threads.
#[derive(Clone, Debug)]
pub struct StoredContainers {
    view: Snapshot,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl StoredContainers {
    pub(crate) fn new(view: Snapshot, within: Vec<u8>) -> Self {
        let end = prefix_end(&within);
        Self { view, start: within, end }
    }

    /// Visits them by id.
    ///
    /// # Errors
    /// DataLoss for a damaged record; what `visit` returns.
    pub fn walk(&self, visit: &mut VisitStored<'_>) -> Result<()> {
        self.view.scan_range(&self.start, self.end.as_deref(), &mut |key, value| {
            let [_, id] = keys::parts(key)?;
            visit(StoredContainer::parse(&id, value)?)
        })
    }

    /// Visits the first `count`; returns the others, if there are any.
    ///
    /// # Errors
    /// As [`Self::walk`].
    pub fn walk_some(&self, mut count: usize, visit: &mut VisitStored<'_>) -> Result<Option<Self>> {
        let mut next = None;
        self.view.scan_range(&self.start, self.end.as_deref(), &mut |key, value| {
            if count == 0 {
                next = Some(key.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            count -= 1;
            let [_, id] = keys::parts(key)?;
            visit(StoredContainer::parse(&id, value)?)
        })?;
        Ok(next.map(|start| Self { start, ..self.clone() }))
    }

    /// Two runs of about as many, if the ids are spread evenly; the second is there unless the first
    /// has all of them.
    ///
    /// # Errors
    /// DataLoss when the database can't be read.
    pub fn halves(self) -> Result<(Self, Option<Self>)> {
        let Some(middle) = self.view.middle(&self.start, self.end.as_deref())? else {
            return Ok((self, None));
        };
        let high = Self { start: middle.clone(), ..self.clone() };
        Ok((Self { end: Some(middle), ..self }, Some(high)))
    }
}
