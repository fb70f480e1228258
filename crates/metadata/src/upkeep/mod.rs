//! Looking after what the backends hold: is it whole, does a record name it, and if not, what
//! can be done about it.
//!
//! Everything here runs beside clients. What is found is looked at again, with its name held
//! exclusively, before it is called lost or is changed: an object that is being made or used right
//! now is never touched.

mod blobs;
mod layers;
mod orphans;

use crate::db::Db;

pub use blobs::{BadBlob, BlobScan};
pub use layers::{BadLayer, LayerScan, RemadeTree, Remaking};
pub use orphans::Orphan;

/// See the module.
#[derive(Clone, Debug)]
pub struct Upkeep {
    db: Db,
}

impl Upkeep {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }
}
