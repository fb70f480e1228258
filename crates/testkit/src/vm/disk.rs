//! A data disk whose every write is recorded.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::writes::{Cut, MARK_PREFIX, WriteLog, copy_sparse};
use crate::system_program;

/// Sector size of the log; the disk's own.
const SECTOR_BYTES: u64 = 512;

/// What the disk has behind the file system, for marks.
const MARK_AREA_BYTES: u64 = 64 << 10;

/// A disk with an ext4 file system, for one machine; [`super::Vm::disk`] puts it in. The machine
/// finds it at `/dev/vda`.
///
/// Marks tell how far the machine had come at a point of the log. They are written past the file
/// system, straight to the disk and without a flush: a file would commit the file system's
/// journal, and so make durable what the program under test forgot to.
#[derive(Debug)]
pub struct RecordedDisk {
    dir: PathBuf,
    bytes: u64,
}

impl RecordedDisk {
    /// Makes a disk of `bytes` in the directory `dir`, which must outlive it.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn create(dir: &Path, bytes: u64) -> Self {
        let disk = Self { dir: dir.to_owned(), bytes };
        let base = disk.base();
        File::create(&base).expect("a base image").set_len(bytes).expect("room for an image");
        let done = Command::new(system_program("mkfs.ext4"))
            .args(["-q", "-E", "lazy_itable_init=0"])
            .arg(&base)
            .arg(format!("{}k", (bytes - MARK_AREA_BYTES) >> 10))
            .status();
        assert!(done.is_ok_and(|s| s.success()), "formatting {}", base.display());
        copy_sparse(&base, &disk.dir.join("live")).expect("a copy of the image");
        File::create(disk.dir.join("log")).expect("a log file");
        disk
    }

    /// A disk that was recorded in `dir` earlier.
    ///
    /// # Panics
    /// When there is none.
    pub fn open(dir: &Path) -> Self {
        let base = fs::metadata(dir.join("base"));
        let bytes = base.unwrap_or_else(|e| panic!("a disk in {}: {e}", dir.display())).len();
        Self { dir: dir.to_owned(), bytes }
    }

    /// A shell function `mark TEXT` for the machine's script, with a text of up to 100 bytes.
    pub fn mark_function(&self) -> String {
        let sector = (self.bytes - MARK_AREA_BYTES) / SECTOR_BYTES;
        format!(
            "mark() {{ printf '{MARK_PREFIX}%s' \"$1\" >/tmp/mark; \
             dd if=/tmp/mark of=/dev/vda bs={SECTOR_BYTES} seek={sector} conv=sync,notrunc \
             oflag=direct 2>/tmp/mark-log || {{ cat /tmp/mark-log; exit 1; }}; \
             echo \"marked $1\"; }}\n"
        )
    }

    /// What the machine wrote.
    ///
    /// # Panics
    /// When there is no log: the machine was not run.
    pub fn log(&self) -> WriteLog {
        let path = self.dir.join("log");
        WriteLog::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Makes the image `to` that `cut` leaves.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn replay(&self, log: &WriteLog, cut: Cut, to: &Path) {
        log.replay(cut, &self.base(), to)
            .unwrap_or_else(|e| panic!("{cut:?} of {}: {e}", self.dir.display()));
    }

    /// QEMU's arguments. The host's own disk is never flushed: the log is what counts.
    pub(super) fn arguments(&self) -> Vec<String> {
        let file = |node: &str| {
            let path = self.dir.join(node);
            format!("node-name={node},driver=file,cache.no-flush=on,filename={}", path.display())
        };
        let recorder = format!(
            "node-name=disk,driver=blklogwrites,file=live,log=log,log-sector-size={SECTOR_BYTES}"
        );
        [
            ["-blockdev", &file("live")],
            ["-blockdev", &file("log")],
            ["-blockdev", &recorder],
            ["-device", "virtio-blk-pci,drive=disk"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    fn base(&self) -> PathBuf {
        self.dir.join("base")
    }
}
