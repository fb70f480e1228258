//! User namespaces for id-mapped mounts, from the `uidmap=` and `gidmap=` options.

use std::os::fd::OwnedFd;

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::userns::{self, parse_ranges};

use crate::options::Options;

/// A user namespace with the mappings of `options`, which must have both.
///
/// # Errors
/// InvalidArgument for a missing or malformed mapping; the kernel's error.
pub(crate) fn user_namespace(options: &Options) -> Result<OwnedFd> {
    let (Some(uids), Some(gids)) = (&options.uid_map, &options.gid_map) else {
        return Err(Error::invalid_argument("an id-mapped mount needs both uidmap and gidmap"));
    };
    let uids = parse_ranges(uids).context(|| "uidmap")?;
    let gids = parse_ranges(gids).context(|| "gidmap")?;
    userns::create(&uids, &gids).context(|| "make a user namespace for the mapping")
}
