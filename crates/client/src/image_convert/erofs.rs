//! Layers as erofs images, made by Debian's `mkfs.erofs` on this machine.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use gantry_archive::{ApplyOptions, Lowers, Target};
use serde_json::{Value, json};

use super::{Leaving, Made};

/// The type of such a layer.
pub(super) const LAYER: &str = "application/vnd.erofs.layer.v1";

/// What a platform needs to run an image of such layers.
const FEATURE: &str = "erofs";

/// Identifier of every image, so that the same layer makes the same image.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// The layers of one image on their way: a layer is what it changes of those below it.
#[derive(Clone)]
pub(super) struct Stack(Arc<Scratch>);

impl Stack {
    /// One without layers.
    pub(super) fn new() -> io::Result<Self> {
        Scratch::new().map(|scratch| Self(Arc::new(scratch)))
    }

    fn tree(&self, number: usize) -> PathBuf {
        self.0.0.join(number.to_string())
    }

    /// Makes the image of the layer `number`, counted from the lowest; those below it were made.
    pub(super) fn make(
        &self,
        number: usize,
        layer: impl Read + Send,
        mut out: Leaving,
    ) -> io::Result<Made> {
        let (tree, image) = (self.tree(number), self.0.0.join("image"));
        DirBuilder::new().mode(0o755).create(&tree)?;
        let options = ApplyOptions {
            // Whiteouts become what overlayfs takes for one.
            target: Target::OverlayUpper { userxattr: false },
            lowers: Lowers::Known((0..number).rev().map(|n| self.tree(n)).collect()),
            ..ApplyOptions::default()
        };
        gantry_archive::apply(layer, &tree, &options).map_err(io::Error::other)?;
        run(&tree, &image)?;
        io::copy(&mut File::open(&image)?, &mut out)?;
        out.flush()?;
        fs::remove_file(&image)?;
        let digest = out.digester.finish();
        Ok(Made { diff_id: digest.clone(), digest, size: out.size })
    }
}

fn run(tree: &Path, image: &Path) -> io::Result<()> {
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.args(["--quiet", "--preserve-mtime", "-U", UUID]).arg(image).arg(tree);
    let done = mkfs.stdin(Stdio::null()).output();
    let done = done.map_err(|e| io::Error::new(e.kind(), format!("mkfs.erofs: {e}")))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(io::Error::other(format!("mkfs.erofs: {}: {said}", done.status)))
}

/// Has an image config tell of layers with these digests.
pub(super) fn tell_config(config: &mut Value, layers: &[String]) {
    config["rootfs"]["diff_ids"] = json!(layers);
    tell_platform(config);
}

/// Has a platform, or what says one, tell what it takes to run the image.
pub(super) fn tell_platform(platform: &mut Value) {
    let mut features = platform["os.features"].as_array().cloned().unwrap_or_default();
    if !features.iter().any(|feature| feature == FEATURE) {
        features.push(json!(FEATURE));
    }
    platform["os.features"] = Value::Array(features);
}

/// A directory of one's own, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
        let path = std::env::temp_dir().join(format!("gantry-erofs-{random}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %err, "a layer being converted is left");
        }
    }
}
