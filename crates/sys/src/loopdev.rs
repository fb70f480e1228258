//! Loop devices: block devices over files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// How often a free loop device is asked for again when another process took it first.
const ATTACH_TRIES_MAX: u32 = 100;

/// A loop device over a file. It detaches itself once nothing uses it: dropping this value is
/// right after the device was mounted, and frees the device when it was not.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: File,
}

impl LoopDevice {
    /// The device node, such as `/dev/loop3`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the device stay when nothing uses it, until [`detach`].
    ///
    /// # Errors
    /// The kernel's error; the device then goes as it would have.
    pub fn keep(self) -> io::Result<PathBuf> {
        let mut info = LoopInfo::default();
        let fd = self.device.as_raw_fd();
        // SAFETY: LOOP_GET_STATUS64 writes a `struct loop_info64`, which `info` is, by layout and
        // size; it lives for the call.
        if unsafe { libc::ioctl(fd, LOOP_GET_STATUS64, &raw mut info) } != 0 {
            return Err(io::Error::last_os_error());
        }
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        // SAFETY: LOOP_SET_STATUS64 reads the same structure.
        if unsafe { libc::ioctl(fd, LOOP_SET_STATUS64, &raw const info) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.path)
    }
}

/// Takes the file off the loop device `device`: at once, or when its last user is gone. A device
/// without a file is success.
///
/// # Errors
/// The I/O error.
pub fn detach(device: &Path) -> io::Result<()> {
    let device = File::open(device)?;
    // SAFETY: LOOP_CLR_FD takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) } == 0 {
        return Ok(());
    }
    let err = io::Error::last_os_error();
    if err.raw_os_error() == Some(libc::ENXIO) { Ok(()) } else { Err(err) }
}

/// The file that is on the loop device `device`.
pub fn backing(device: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let name = device.file_name()?;
    let known = Path::new("/sys/block").join(name).join("loop/backing_file");
    let mut path = std::fs::read(known).ok()?;
    if path.last() == Some(&b'\n') {
        path.pop();
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

/// The loop device that has the file `backing`, by its path, if one has.
pub fn attached(backing: &Path) -> Option<PathBuf> {
    let devices = std::fs::read_dir("/sys/block").ok()?.flatten();
    let mut loops = devices.filter(|d| d.file_name().as_encoded_bytes().starts_with(b"loop"));
    loops.find_map(|found| {
        let device = Path::new("/dev").join(found.file_name());
        (self::backing(&device)? == backing).then_some(device)
    })
}

/// Attaches `backing` to a free loop device.
///
/// # Errors
/// The I/O error; ResourceBusy when every try lost the race for a device.
pub fn attach(backing: &Path, read_only: bool) -> io::Result<LoopDevice> {
    let file = OpenOptions::new().read(true).write(!read_only).open(backing)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTACH_TRIES_MAX {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number or an error.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
        let mut config = LoopConfig::new(file.as_raw_fd() as u32, read_only);
        // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `config` is, by layout and
        // size; it lives for the call.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
        if rc == 0 {
            return Ok(LoopDevice { path, device });
        }
        let err = io::Error::last_os_error();
        if err.raw_os_error() != Some(libc::EBUSY) {
            return Err(err);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_NAME_LEN: usize = 64;
const LO_KEY_LEN: usize = 32;

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LO_NAME_LEN],
    crypt_name: [u8; LO_NAME_LEN],
    encrypt_key: [u8; LO_KEY_LEN],
    init: [u64; 2],
}

impl Default for LoopInfo {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; LO_NAME_LEN],
            crypt_name: [0; LO_NAME_LEN],
            encrypt_key: [0; LO_KEY_LEN],
            init: [0; 2],
        }
    }
}

impl LoopConfig {
    fn new(fd: u32, read_only: bool) -> Self {
        let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        let info = LoopInfo { flags, ..LoopInfo::default() };
        Self { fd, block_size: 0, info, reserved: [0; 8] }
    }
}

const _: () = assert!(std::mem::size_of::<LoopInfo>() == 232);
const _: () = assert!(std::mem::size_of::<LoopConfig>() == 304);
