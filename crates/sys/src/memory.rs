//! Giving memory back that the process does not use.

use std::io;

/// Heaps that threads share. glibc makes up to eight per core, each of which keeps what it once
/// needed; the daemon's threads seldom allocate at the same time.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;

/// Allocations of at least this many bytes are mapped and unmapped one by one. glibc raises the
/// bound by itself after the first large one, and the heap then keeps holes of that size.
#[cfg(target_env = "gnu")]
const MAPPED_LEN_MIN: libc::c_int = 512 * 1024;

/// Free bytes at the end of the heap that go back to the kernel at once.
#[cfg(target_env = "gnu")]
const TRIM_LEN_MIN: libc::c_int = 256 * 1024;

/// What the environment of a process says that wants to be frugal, name and value: that freed
/// memory is not kept back for the thread that freed it. glibc keeps up to seven pieces of each size
/// so, which hold a page each after a busy moment, and takes no other word for it than this, before
/// the program begins. Children should not have it; see [`be_frugal`] for the rest.
pub const FRUGAL_ENV: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");

/// Sets the allocator up for a daemon that is idle most of the time. Call it before the first
/// thread is started. Nothing happens with an allocator other than glibc's.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    set_allocator(ARENAS_MAX, MAPPED_LEN_MIN, TRIM_LEN_MIN);
}

/// Keeps the allocator of a process that mostly waits from holding on to memory: one arena for all
/// threads, large buffers given back at once. Call it before there is a second thread.
pub fn be_frugal() {
    #[cfg(target_env = "gnu")]
    {
        /// A buffer this large is a mapping of its own, gone when it is freed.
        const LARGE_BYTES: libc::c_int = 32 * 1024;
        set_allocator(1, LARGE_BYTES, LARGE_BYTES);
    }
}

#[cfg(target_env = "gnu")]
fn set_allocator(arenas_max: libc::c_int, mapped_len_min: libc::c_int, trim_len_min: libc::c_int) {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, arenas_max),
        (libc::M_MMAP_THRESHOLD, mapped_len_min),
        (libc::M_TRIM_THRESHOLD, trim_len_min),
    ] {
        // SAFETY: the call takes numbers only and may be made at any time. One it refuses leaves
        // the default.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

/// Gives freed heap memory back to the kernel. Takes the heap's locks for some milliseconds.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number only and locks what it works on.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of the program's own code. They stay in the page cache, and each comes back at
/// its next use: of what start-up needed, most never does.
///
/// # Errors
/// When the process's own mappings cannot be read.
pub fn release_code() -> io::Result<()> {
    let program = std::env::current_exe()?;
    let program = program.to_string_lossy();
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, len)) = code_mapping(line, &program) else { continue };
        // SAFETY: the range is a private mapping of a file that is readable and executable and
        // was never writable, so every page equals the file's and is read from it again when
        // it is used next. No Rust object lives in it that could change.
        unsafe {
            libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED);
        }
    }
    Ok(())
}

/// Start and length of the mapping that `line` of `/proc/self/maps` tells of, if it is code of the
/// file `program` that cannot be written.
fn code_mapping(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "r-xp" || fields.nth(3)? != program || fields.next().is_some() {
        return None;
    }
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_released() {
        let line = |perms: &str, file: &str| {
            format!("1000-3000 {perms} 00580000 fd:00 1234                       {file}")
        };
        assert_eq!(code_mapping(&line("r-xp", "/bin/d"), "/bin/d"), Some((0x1000, 0x2000)));
        assert_eq!(code_mapping(&line("r--p", "/bin/d"), "/bin/d"), None);
        assert_eq!(code_mapping(&line("rwxp", "/bin/d"), "/bin/d"), None);
        assert_eq!(code_mapping(&line("r-xp", "/lib/libc.so"), "/bin/d"), None);
        assert_eq!(code_mapping(&line("r-xp", "/bin/d (deleted)"), "/bin/d"), None);
        assert_eq!(code_mapping("nonsense", "/bin/d"), None);
    }

    #[test]
    fn the_program_goes_on() {
        tune_allocator();
        let kept = vec![7_u8; 3_000_000];
        drop(vec![8_u8; 9_000_000]);
        trim_heap();
        release_code().unwrap();
        assert!(kept.iter().all(|byte| *byte == 7));
    }
}
