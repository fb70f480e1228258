//! One caller's transaction: a buffer of writes over the state they go to.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use gantry_errdefs::Result;

use crate::read::{KvRead, Visit};

/// Writes by key; `None` is a removal.
pub(crate) type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Runs once the commit that holds a transaction is durable.
pub(crate) type Hook = Box<dyn FnOnce() + Send>;

/// A caller's view of the database inside [`crate::StoreExt::update`]: reads see the state of the
/// batch so far and its own writes; writes stay here until the closure returns `Ok`.
pub struct Txn<'a> {
    base: &'a dyn KvRead,
    writes: Writes,
    hooks: Vec<Hook>,
}

impl<'a> Txn<'a> {
    pub(crate) fn new(base: &'a dyn KvRead) -> Self {
        Self { base, writes: Writes::new(), hooks: Vec::new() }
    }

    pub(crate) fn into_parts(self) -> (Writes, Vec<Hook>) {
        (self.writes, self.hooks)
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, key: &[u8], value: impl Into<Vec<u8>>) {
        self.writes.insert(key.to_vec(), Some(value.into()));
    }

    /// Removes `key`; a missing key is no error.
    pub fn delete(&mut self, key: &[u8]) {
        self.writes.insert(key.to_vec(), None);
    }

    /// Removes every key that starts with `prefix`; returns how many there were.
    ///
    /// # Errors
    /// As [`KvRead::scan_range`].
    pub fn delete_prefix(&mut self, prefix: &[u8]) -> Result<usize> {
        let mut keys = Vec::new();
        self.scan(prefix, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        let count = keys.len();
        self.writes.extend(keys.into_iter().map(|key| (key, None)));
        Ok(count)
    }

    /// Runs `hook` on the writer thread when the commit with these writes is durable: after the
    /// hooks of earlier transactions, before the caller's future resolves, and even if that future
    /// was dropped. Not run when the closure or the commit fails. It must not block.
    pub fn after_commit(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.hooks.push(Box::new(hook));
    }
}

impl KvRead for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.base.get(key),
        }
    }

    fn scan_range(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let mut own = self.writes.range::<[u8], _>(bounds).peekable();
        let mut stopped = false;
        self.base.scan_range(start, end, &mut |key, value| {
            while let Some((own_key, own_value)) = own.next_if(|(k, _)| k.as_slice() < key) {
                let Some(own_value) = own_value else { continue };
                if visit(own_key, own_value)?.is_break() {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            let flow = match own.next_if(|(k, _)| k.as_slice() == key) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(own_value))) => visit(key, own_value)?,
                None => visit(key, value)?,
            };
            stopped = flow.is_break();
            Ok(flow)
        })?;
        if stopped {
            return Ok(());
        }
        for (key, value) in own {
            let Some(value) = value else { continue };
            if visit(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Txn").field("writes", &self.writes.len()).finish_non_exhaustive()
    }
}
