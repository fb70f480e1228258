//! What durability costs at commit: a tree of N files of 4 KiB each is written, then made durable
//! file by file or by one `syncfs`, against doing nothing.
//!
//! `cargo run --release -p gantry-snapshots --example commit-cost -- <directory on the disk>`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, not a product")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_sys::{durable, tree};

fn fill(dir: &Path, files: usize) -> Duration {
    let start = Instant::now();
    for i in 0..files {
        let sub = dir.join((i / 32).to_string());
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(i.to_string()), [i as u8; 4096]).unwrap();
    }
    start.elapsed()
}

fn main() {
    let base = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    println!("{:>6} {:>12} {:>12} {:>12}", "files", "write", "each file", "syncfs");
    for files in [1, 4, 8, 16, 32, 64, 256, 1024, 4096] {
        let mut row = Vec::new();
        for whole in [false, true] {
            let dir = tempfile::tempdir_in(&base).unwrap();
            durable::sync_filesystem(dir.path()).unwrap();
            let wrote = fill(dir.path(), files);
            let start = Instant::now();
            if whole {
                durable::sync_filesystem(dir.path()).unwrap();
            } else {
                tree::sync(dir.path()).unwrap();
            }
            row.push((wrote, start.elapsed()));
        }
        println!("{files:>6} {:>12.1?} {:>12.1?} {:>12.1?}", row[0].0, row[0].1, row[1].1);
    }
}
