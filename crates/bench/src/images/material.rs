//! The images that are moved.

use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_testkit::{Compression, Image, Layer};

/// Where images are kept between runs, if anywhere.
const KEEP_IN: &str = "GANTRY_BENCH_IMAGES";

/// Directories of this machine that the layers of the big image are made of: programs, many
/// small files, and libraries, over a gigabyte together.
const BIG_LAYERS: [&str; 6] = ["bin", "sbin", "share", "lib/python3", "lib/gcc", "lib/git-core"];

/// The image `name`, made by `make` unless it was kept.
pub(super) fn kept(name: &str, make: impl FnOnce() -> Image) -> Image {
    let Some(dir) = std::env::var_os(KEEP_IN).map(|dir| PathBuf::from(dir).join(name)) else {
        return make();
    };
    if dir.join("index.json").exists() {
        return Image::read_oci_layout(&dir);
    }
    let image = make();
    image.write_oci_layout(&dir, name);
    image
}

/// Six layers of files of this machine.
pub(super) fn from_usr(compression: Compression) -> Image {
    let layers = BIG_LAYERS.iter().map(|part| layer_of(&Path::new("/usr").join(part)));
    Image::builder().only_layers(layers).compression(compression).build()
}

fn layer_of(dir: &Path) -> Layer {
    let mut layer = Layer::new();
    let list = Command::new("find").arg(dir).args(["-type", "f"]).output();
    let list = list.map(|o| o.stdout).unwrap_or_default();
    for path in String::from_utf8_lossy(&list).lines() {
        if let Ok(data) = std::fs::read(path) {
            layer = layer.file(path.trim_start_matches('/'), 0o644, data);
        }
    }
    layer
}
