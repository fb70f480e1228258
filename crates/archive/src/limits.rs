//! What one archive may cost.

/// The bounds of one [`crate::apply`]; an archive that passes one is InvalidArgument.
///
/// The defaults admit every image seen in practice with much room; they are there so that a
/// layer of a few kilobytes cannot fill a disk's inodes, the memory or a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of an archive. Each costs an inode, and some memory for the names.
    pub entry_count_max: u64,
    /// Bytes of the archive once inflated: the bound for a bomb of compressed zeros.
    pub stream_bytes_max: u64,
    /// Bytes of one file as it will appear, holes included: a sparse file claims any size with
    /// no content behind it.
    pub file_bytes_max: u64,
    /// Bytes of all files as they will appear, holes included.
    pub total_bytes_max: u64,
    /// Device nodes. Real images hold a handful.
    pub device_count_max: u64,
    /// Extended attributes of one entry; the kernel lists at most 64 KiB of names.
    pub xattr_count_max: usize,
    /// Extension headers of one entry (PAX, GNU long names) in bytes.
    pub metadata_bytes_max: u32,
    /// Data regions of one sparse file.
    pub sparse_count_max: usize,
    /// Symlinks followed while one path is resolved, as the kernel's own bound.
    pub symlink_count_max: usize,
}

/// Bytes of a path the kernel takes in one call (PATH_MAX without the final NUL).
pub(crate) const PATH_LEN_MAX: usize = 4095;

/// Bytes of one name in a path (NAME_MAX).
pub(crate) const NAME_LEN_MAX: usize = 255;

/// Most that a parser may ask to see at once: the headers of one entry with all extensions.
pub(crate) const HEADERS_BYTES_MAX: usize = 4 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            entry_count_max: 4_000_000,
            stream_bytes_max: 1 << 40,
            file_bytes_max: 1 << 40,
            total_bytes_max: 4 << 40,
            device_count_max: 4096,
            xattr_count_max: 512,
            metadata_bytes_max: 1 << 20,
            sparse_count_max: 100_000,
            symlink_count_max: 40,
        }
    }
}
