//! A small virtual machine: Debian's cloud kernel under QEMU's tcg, booted from an initramfs made
//! of the programs under test.
//!
//! The machines the tests run on have cgroup v1 and lack some capabilities. What needs cgroup v2,
//! full capabilities or a power cut runs in here. `scripts/install-vm.sh` fetches the kernel.

mod disk;
mod writes;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::system_program;

pub use disk::RecordedDisk;
pub use writes::{Cut, Unflushed, WriteLog};

/// Memory of the machine, in MiB; the root file system lives in it.
const MEMORY_MIB: u32 = 2048;

/// What the init script prints in front of the test script's exit code.
const EXIT_MARK: &str = "gantry-vm-exit:";

/// Kernel modules a test may need, unless it says which, in no order (modprobe resolves it).
const MODULES: [&str; 7] = ["overlay", "virtio_pci", "virtio_blk", "loop", "erofs", "xfs", "btrfs"];

/// The first program: a root on tmpfs (runc can't pivot away from an initramfs), then the test.
/// Programs are on ramfs: a tmpfs knows seals, and runc then takes its binary for a memory file that
/// isn't sealed and copies itself for every container, which is most of an emulated start.
const INIT: &str = r"#!/bin/busybox sh
/bin/busybox --install -s /bin
if [ ! -e /switched ]; then
  mkdir -p /new && mount -t tmpfs -o size=90% tmpfs /new
  mkdir -p /new/bin && mount -t ramfs ramfs /new/bin
  for f in /*; do case $f in /new|/proc|/sys|/dev) ;; *) cp -a $f /new/ ;; esac; done
  mkdir -p /new/proc /new/sys /new/dev && : > /new/switched
  exec switch_root /new /init
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue /run /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for m in MODULES; do modprobe $m 2>/dev/null; done
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
sh /test.sh
echo gantry-vm-exit:$?
poweroff -f
";

/// A machine to be: files and a script.
#[derive(Debug)]
pub struct Vm {
    stage: tempfile::TempDir,
    timeout: Duration,
    /// More arguments of QEMU.
    devices: Vec<String>,
    modules: String,
}

/// What a machine left on its serial console.
#[derive(Debug)]
pub struct VmOutput {
    /// The console, kernel messages included.
    pub console: String,
    /// Exit code of the script; None when the machine ended before the script did.
    pub code: Option<i32>,
}

impl Vm {
    /// A machine with busybox, the kernel's modules and nothing else.
    ///
    /// # Panics
    /// When the kernel or a program is not installed.
    pub fn new() -> Self {
        let stage = tempfile::Builder::new().prefix("gvm").tempdir().expect("a directory");
        let vm = Self {
            stage,
            timeout: Duration::from_secs(180),
            devices: Vec::new(),
            modules: MODULES.join(" "),
        };
        for dir in ["bin", "proc", "sys", "dev", "root", "etc", "var"] {
            std::fs::create_dir_all(vm.path(dir)).expect("a directory");
        }
        vm.install(&system_program("busybox"), "/bin/busybox");
        vm.modules();
        vm
    }

    /// The same machine with a longer or shorter life; it is killed after that.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Loads these kernel modules only, which makes for a quicker start.
    #[must_use]
    pub fn only_modules(mut self, modules: &[&str]) -> Self {
        self.modules = modules.join(" ");
        self
    }

    /// Puts a disk in.
    #[must_use]
    pub fn disk(mut self, disk: &RecordedDisk) -> Self {
        self.devices.extend(disk.arguments());
        self
    }

    /// Copies a program, without its debug information, and the libraries it needs.
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn program(self, from: &Path, to: &str) -> Self {
        for library in libraries(from) {
            self.install(&library, &library.to_string_lossy());
        }
        self.install(from, to);
        let _ = Command::new("strip").arg("-S").arg(self.path(to)).status();
        self
    }

    /// Writes a file.
    ///
    /// # Panics
    /// When it can't be written.
    #[must_use]
    pub fn file(self, to: &str, content: &[u8]) -> Self {
        let path = self.path(to);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, content).expect("a file");
        self
    }

    /// Boots, runs `script` with busybox's shell and powers off.
    ///
    /// # Panics
    /// When the machine can't be built or started.
    pub fn run(self, script: &str) -> VmOutput {
        let init = INIT.replace("MODULES", &self.modules);
        let vm = self.file("/init", init.as_bytes()).file("/test.sh", script.as_bytes());
        run_in(vm.stage.path(), "chmod 755 init bin/busybox");
        let initrd = vm.stage.path().with_extension("cpio");
        let pack = format!("find . | cpio --quiet -o -H newc > {}", initrd.display());
        run_in(vm.stage.path(), &pack);
        let console = initrd.with_extension("console");
        let output = std::fs::File::create(&console).expect("a console file");
        let child = Command::new(system_program("qemu-system-x86_64"))
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-nographic", "-no-reboot"])
            .args(["-nodefaults", "-serial", "stdio", "-m", &MEMORY_MIB.to_string()])
            .args(["-append", "console=ttyS0 panic=-1 quiet cgroup_no_v1=all"])
            .arg("-kernel")
            .arg(kernel_dir().join("vmlinuz"))
            .arg("-initrd")
            .arg(&initrd)
            .args(&vm.devices)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        wait_or_kill(child, vm.timeout);
        let text = String::from_utf8_lossy(&std::fs::read(&console).expect("a console")).into();
        let _ = std::fs::remove_file(&initrd);
        let _ = std::fs::remove_file(&console);
        VmOutput::parse(text)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.stage.path().join(inside.trim_start_matches('/'))
    }

    fn install(&self, from: &Path, to: &str) {
        let to = self.path(to);
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
        std::fs::copy(from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }

    fn modules(&self) {
        let source = kernel_dir().join("modules");
        let release = std::fs::read_dir(&source)
            .unwrap_or_else(|e| panic!("{}: {e}: run scripts/install-vm.sh", source.display()))
            .next()
            .expect("a kernel release")
            .expect("a directory entry")
            .file_name();
        let target = self.path("lib/modules").join(&release);
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("a directory");
        let copy = format!("cp -a {} {}", source.join(&release).display(), target.display());
        run_in(self.stage.path(), &copy);
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self::new()
    }
}

impl VmOutput {
    fn parse(console: String) -> Self {
        // The firmware's escape sequences may stand before it on the line.
        let code =
            console.lines().rev().find_map(|l| l.split_once(EXIT_MARK)?.1.trim().parse().ok());
        Self { console, code }
    }

    /// Checks that the script ended with 0.
    ///
    /// # Panics
    /// When it did not, with the whole console.
    pub fn assert_ok(&self) {
        assert_eq!(self.code, Some(0), "the machine's console:\n{}", self.console);
    }
}

/// Where `scripts/install-vm.sh` puts the kernel and the modules.
fn kernel_dir() -> PathBuf {
    std::env::var_os("GANTRY_VM_KERNEL")
        .map_or_else(|| "/var/cache/gantry-vm".into(), PathBuf::from)
}

/// The shared libraries of a program, the loader included, as `ldd` lists them.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd runs");
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn run_in(dir: &Path, command: &str) {
    let status = Command::new("sh").args(["-ec", command]).current_dir(dir).status();
    assert!(status.is_ok_and(|s| s.success()), "{command}");
}

/// Waits for QEMU, which ends by itself when the machine powers off, or kills it.
fn wait_or_kill(mut child: Child, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if child.try_wait().expect("waiting for our own child").is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}
