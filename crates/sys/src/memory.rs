//! How much memory the allocator keeps, for processes that mostly wait.

/// Keeps the allocator from holding on to memory: one arena for all threads, large buffers given
/// back at once. Call it before there is a second thread.
pub fn be_frugal() {
    #[cfg(target_env = "gnu")]
    {
        /// A buffer this large is a mapping of its own, gone when it is freed.
        const LARGE_BYTES: libc::c_int = 32 * 1024;
        // SAFETY: sets numbers of the allocator; values it does not like it refuses.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BYTES);
        }
    }
}

/// Gives free memory back to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
