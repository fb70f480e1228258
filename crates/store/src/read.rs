//! Reading: what snapshots and transactions have in common.

use std::ops::ControlFlow;
use std::sync::Arc;

use gantry_errdefs::Result;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Visits one pair; `Break` ends the scan.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'v;

/// Reads of one consistent state.
pub trait KvRead {
    /// The value of `key`.
    ///
    /// # Errors
    /// DataLoss or Unavailable when the database can't be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Visits the pairs with `start <= key < end` in key order; no `end` means to the last key.
    /// Nothing is copied: the slices live for the visit.
    ///
    /// # Errors
    /// What the visitor returns; DataLoss or Unavailable when the database can't be read.
    fn scan_range(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()>;

    /// The last key with `start <= key < end`. Looks at all of them unless the state can be read from
    /// its end.
    ///
    /// # Errors
    /// As [`KvRead::get`].
    fn last_key(&self, start: &[u8], end: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let mut last = None;
        self.scan_range(start, end, &mut |key, _| {
            last = Some(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(last)
    }

    /// A key that parts those with `start <= key < end` in two: the first is below it, the last is
    /// not, and about as many are on either side where keys are spread evenly. None for less than two
    /// keys.
    ///
    /// # Errors
    /// As [`KvRead::get`].
    fn middle(&self, start: &[u8], end: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let mut first = None;
        self.scan_range(start, end, &mut |key, _| {
            first = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        let (Some(first), Some(last)) = (first, self.last_key(start, end)?) else {
            return Ok(None);
        };
        let same = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
        let Some(&high) = last.get(same) else { return Ok(None) };
        let low = first.get(same).copied().unwrap_or(0);
        let mut middle = last[..same].to_vec();
        middle.push(low + (high - low).div_ceil(2));
        Ok(Some(middle))
    }

    /// Whether `key` has a value.
    ///
    /// # Errors
    /// As [`KvRead::get`].
    fn has(&self, key: &[u8]) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// Visits the pairs whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// As [`KvRead::scan_range`].
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.scan_range(prefix, prefix_end(prefix).as_deref(), visit)
    }

    /// Copies the pairs whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// As [`KvRead::scan_range`].
    fn range(&self, prefix: &[u8]) -> Result<Vec<Pair>> {
        let mut pairs = Vec::new();
        self.scan(prefix, &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(pairs)
    }

    /// The first pair whose key starts with `prefix`.
    ///
    /// # Errors
    /// As [`KvRead::scan_range`].
    fn first(&self, prefix: &[u8]) -> Result<Option<Pair>> {
        let mut found = None;
        self.scan(prefix, &mut |key, value| {
            found = Some((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

/// The state after some commit, unchanged for as long as it is held. Cheap to clone and to send.
///
/// A held snapshot keeps the pages it sees from being reused: hold it for a request or a
/// collection, not for good.
#[derive(Clone)]
pub struct Snapshot(Arc<dyn KvRead + Send + Sync>);

impl Snapshot {
    pub(crate) fn new(state: impl KvRead + Send + Sync + 'static) -> Self {
        Self(Arc::new(state))
    }
}

impl KvRead for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.get(key)
    }

    fn scan_range(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        self.0.scan_range(start, end, visit)
    }

    fn last_key(&self, start: &[u8], end: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        self.0.last_key(start, end)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot")
    }
}

/// The least key above every key that starts with `prefix`; none when there is no such key.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return Some(end);
        }
        end.pop();
    }
    None
}
