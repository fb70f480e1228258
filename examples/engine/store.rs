//! What the engine knows of its containers, one file each.

use std::path::{Path, PathBuf};

use gantry_client::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::restart::Policy;

/// A container as it was asked for, and how it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) args: Vec<String>,
    pub(crate) restart: Policy,
    /// Whether it is meant to run.
    pub(crate) wanted: bool,
    pub(crate) restarts: u32,
    /// How it ended last.
    pub(crate) exit_code: Option<u32>,
}

/// The files.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let dir = dir.join("containers");
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(dir.display(), e))?;
        Ok(Self { dir })
    }

    pub(crate) fn save(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.name);
        let part = path.with_extension("part");
        let io = |e| Error::io(path.display(), e);
        // Whole or not at all.
        std::fs::write(&part, crate::api::line(record)).map_err(io)?;
        std::fs::rename(&part, &path).map_err(io)
    }

    pub(crate) fn get(&self, name: &str) -> Result<Record> {
        let path = self.path(name);
        let text = std::fs::read(&path).map_err(|e| {
            Error::io(path.display(), e).context(format!("no such container: {name}"))
        })?;
        serde_json::from_slice(&text).map_err(|e| Error::data_loss(format!("{name}: {e}")))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        std::fs::remove_file(&path).map_err(|e| Error::io(path.display(), e))
    }

    pub(crate) fn all(&self) -> Result<Vec<Record>> {
        let io = |e| Error::io(self.dir.display(), e);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".json") {
                records.push(self.get(name)?);
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}
