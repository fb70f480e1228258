//! Names in an OCI image layout (image-layout.md).

use gantry_errdefs::{Result, ResultExt};

use crate::Digest;

/// Where a layout has the blob `digest`: `blobs/<algorithm>/<hex>`.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// The digest that the name of an archive's member promises; none for one that is not below
/// `blobs`.
///
/// # Errors
/// InvalidArgument for a name there that is no digest.
pub fn blob_digest(name: &str) -> Result<Option<Digest>> {
    let Some(rest) = name.strip_prefix("blobs/") else { return Ok(None) };
    let digest: Result<Digest> = rest.replacen('/', ":", 1).parse();
    digest.map(Some).context(|| format!("archive member {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_promises_its_digest() {
        let digest = Digest::of(b"blob");
        assert_eq!(blob_digest(&blob_path(&digest)).unwrap(), Some(digest));
        assert_eq!(blob_digest("index.json").unwrap(), None);
        assert!(blob_digest("blobs/sha256/short").unwrap_err().is_invalid_argument());
    }
}
