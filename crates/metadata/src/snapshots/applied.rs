//! What clients have had unpacked into active snapshots: they commit in a call of its own, which
//! does not say what it is that is committed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_mount::Mount;
use gantry_snapshots::LayerOrigin;

/// Most that is remembered. A client commits a layer right after unpacking it; what is forgotten
/// lacks in the record and nowhere else.
const APPLIED_MAX: usize = 256;

/// The layers unpacked and not yet committed, by the mounts they were unpacked into.
#[derive(Debug, Default)]
pub(crate) struct Applied(Mutex<VecDeque<(Vec<Mount>, Option<LayerOrigin>)>>);

impl Applied {
    pub(crate) fn note(&self, mounts: &[Mount], origin: LayerOrigin) {
        let mut noted = self.noted();
        if let Some((_, known)) = noted.iter_mut().find(|(at, _)| at == mounts) {
            // Two layers in one: neither alone makes it again.
            *known = None;
            return;
        }
        if noted.len() >= APPLIED_MAX {
            noted.pop_front();
        }
        noted.push_back((mounts.to_vec(), Some(origin)));
    }

    /// What was unpacked into these mounts; forgotten from now on.
    pub(super) fn take(&self, mounts: &[Mount]) -> Option<LayerOrigin> {
        let mut noted = self.noted();
        let place = noted.iter().position(|(at, _)| at == mounts)?;
        noted.remove(place)?.1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.noted().is_empty()
    }

    fn noted(&self) -> MutexGuard<'_, VecDeque<(Vec<Mount>, Option<LayerOrigin>)>> {
        // One operation on the queue at a time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use gantry_core::Digest;

    use super::*;

    #[test]
    fn one_layer_is_remembered_once_and_two_are_none() {
        let applied = Applied::default();
        let at = |n: usize| vec![Mount::new("bind", format!("/{n}"), ["rw"])];
        let layer = |text: &str| LayerOrigin { diff_id: Digest::of(text.as_bytes()), blob: None };
        applied.note(&at(1), layer("one"));
        applied.note(&at(2), layer("two"));
        applied.note(&at(2), layer("three"));
        assert_eq!(applied.take(&at(1)), Some(layer("one")));
        assert_eq!(applied.take(&at(1)), None);
        assert_eq!(applied.take(&at(2)), None);
        for n in 0..2 * APPLIED_MAX {
            applied.note(&at(n), layer("many"));
        }
        assert_eq!(applied.noted().len(), APPLIED_MAX);
    }
}
