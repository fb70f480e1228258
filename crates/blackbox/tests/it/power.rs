//! Power cuts: a machine imports, runs and deletes on a disk whose every write is recorded. Then
//! the disk as it would be after a cut at random moments is mounted here, a daemon is started on
//! it, and everything the machine was told was done must be there, and whole.
//!
//! `GANTRY_POWER_CUTS` is the number of cuts (more of them also make the machine do more),
//! `GANTRY_TEST_SEED` repeats a run's choices. The machine's timing is not repeatable, so a
//! failure keeps its recording; `GANTRY_POWER_RECORDING=DIR` cuts that one again.

mod check;
mod steps;
mod trees;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gantry_testkit::{
    Cut, RecordedDisk, Unflushed, Vm, WriteLog, built_program, seed, system_program,
};

use check::Checker;
use steps::Steps;

/// Room for a few images, and little enough to copy for each cut.
const DISK_BYTES: u64 = 384 << 20;

/// The machine emulates its processor, on hosts that may be busy: so long to start and stop, and
/// for each step.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(300);
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts the daemon on the recorded disk. Without `auto_da_alloc` ext4 does not repair what
/// programs forget to sync before they rename.
const START: &str = r"
fail() { echo FAILED: $1; tail -40 /tmp/daemon.log; dmesg | tail -5; exit 1; }
mkdir -p /var/lib/gantry
mount -t ext4 -o noauto_da_alloc /dev/vda /var/lib/gantry || fail mount
start() {
  /bin/gantryd >>/tmp/daemon.log 2>&1 &
  daemon=$!
  i=0
  until $CTR version >/dev/null 2>&1; do i=$((i+1)); [ $i -gt 100 ] && fail start; sleep 0.1; done
}
export CTR='ctr -a /run/gantry/gantry.sock -n power'
start
mark 0
";

/// Number of cuts.
fn cuts() -> usize {
    std::env::var("GANTRY_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

/// A directory with the recorded disk, removed unless the test fails or was given it.
struct Recording {
    dir: PathBuf,
    given: bool,
}

impl Recording {
    fn find() -> Self {
        match std::env::var_os("GANTRY_POWER_RECORDING") {
            Some(dir) => Self { dir: dir.into(), given: true },
            None => Self { dir: tempfile::tempdir().unwrap().keep(), given: false },
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("cut it again with GANTRY_POWER_RECORDING={}", self.dir.display());
        } else if !self.given {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Runs the machine, or takes what it recorded before.
fn record(dir: &Path, seed: u64) -> (RecordedDisk, Steps) {
    let seed_file = dir.join("seed");
    if let Ok(recorded) = fs::read_to_string(&seed_file) {
        let (seed, count) = recorded.split_once(' ').unwrap();
        let steps = Steps::choose(seed.parse().unwrap(), count.parse().unwrap());
        return (RecordedDisk::open(dir), steps);
    }
    fs::create_dir_all(dir).unwrap();
    let count = if cuts() > 50 { 40_u32 } else { 10 };
    let steps = Steps::choose(seed, count as usize);
    let disk = RecordedDisk::create(dir, DISK_BYTES);
    let mut vm = Vm::new()
        .with_timeout(MACHINE_TIMEOUT + STEP_TIMEOUT * count)
        .only_modules(&["overlay", "virtio_pci", "virtio_blk"])
        .disk(&disk)
        .program(&system_program("runc"), "/bin/runc")
        .program(&system_program("ctr"), "/bin/ctr")
        .program(&built_program("gantryd"), "/bin/gantryd")
        .program(&built_program("containerd-shim-runc-v2"), "/bin/containerd-shim-runc-v2");
    for (n, image) in steps.images().iter().enumerate() {
        let archive = dir.join("archive");
        image.write_oci_tar(&archive, &Steps::name(n));
        vm = vm.file(&format!("/images/{n}.tar"), &fs::read(&archive).unwrap());
        fs::remove_file(archive).unwrap();
    }
    let script = format!("{}{START}{}", disk.mark_function(), steps.script());
    vm.run(&script).assert_ok();
    fs::write(seed_file, format!("{seed} {count}")).unwrap();
    (disk, steps)
}

/// Random cuts from the machine's first mark on. Every other one is right after a mark, where most
/// was promised and least is old.
fn choose_cuts(log: &WriteLog, marks: &[usize], seed: u64) -> Vec<Cut> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..cuts())
        .map(|n| {
            let entries = match n % 2 {
                0 => marks[random.usize(0..marks.len())],
                _ => random.usize(marks[0]..=log.len()),
            };
            let unflushed = match random.u8(0..4) {
                0 => Unflushed::Kept,
                1 => Unflushed::Lost,
                _ => Unflushed::Some(random.u64(..)),
            };
            Cut { entries, unflushed }
        })
        .collect()
}

#[test]
fn root_power_cuts_lose_nothing_acknowledged() {
    let seed = seed();
    let recording = Recording::find();
    let (disk, steps) = record(&recording.dir, seed);
    let log = disk.log();
    let marks = log.marks().unwrap();
    assert_eq!(marks.len(), steps.len() + 1, "one mark a step, and one before");
    assert!(log.flushes() > marks.len(), "the disk is told to flush");
    let marks: Vec<usize> = marks.iter().map(|(entries, _)| *entries).collect();
    let checker = Checker::new(&steps);
    for (n, cut) in choose_cuts(&log, &marks, seed).into_iter().enumerate() {
        let done = marks.iter().filter(|m| **m <= cut.entries).count() - 1;
        eprintln!(
            "cut {n}: {cut:?} of {}, {done} steps acknowledged, in flight: {:?}",
            log.len(),
            steps.get(done)
        );
        let image = recording.dir.join("cut");
        disk.replay(&log, cut, &image);
        let mounted = Mounted::new(&image, &recording.dir.join("root"));
        checker.check(&mounted.at, done);
        drop(mounted);
        fs::remove_file(image).unwrap();
    }
}

/// An image mounted by a loop device, which replays its journal.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-o", "loop"]).args([image, at]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Self { at: at.to_owned() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.at).status();
        if !done.is_ok_and(|s| s.success()) && !std::thread::panicking() {
            panic!("something still uses {}", self.at.display());
        }
    }
}
