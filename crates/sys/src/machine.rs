//! What this machine runs, and since when.

use std::io;

/// Where the kernel tells one boot of the machine from another.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What changes with each boot of the machine.
///
/// # Errors
/// The I/O error.
pub fn boot_id() -> io::Result<String> {
    std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned())
}

/// The first two numbers of the kernel's release; 0 for what is no number.
pub fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
