//! Images made in memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use gantry_core::{Descriptor, Digest, Platform, media_types};
use serde_json::{Value, json};

use crate::layer::{Compression, Layer};

/// The applets that the busybox image links to its one binary.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "false", "find",
    "free", "grep", "head", "hostname", "id", "ip", "kill", "ln", "ls", "mkdir", "mkfifo", "mount",
    "mv", "nproc", "pidof", "printf", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "sh",
    "sleep", "sort", "stat", "stty", "sync", "tail", "tar", "tee", "test", "touch", "tr", "true",
    "tty", "umount", "uname", "wc", "which", "whoami", "yes",
];

/// A finished image or index: its blobs and the descriptor of its top.
#[derive(Clone, Debug)]
pub struct Image {
    blobs: BTreeMap<Digest, Vec<u8>>,
    top: Descriptor,
    /// Descriptors in the order a pusher sends them: layers and configs, then manifests.
    order: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

/// Describes an image before it is built.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    compression: Compression,
    docker_types: bool,
    platform: Platform,
    config: serde_json::Map<String, Value>,
}

impl Image {
    /// An image of one gzip layer with busybox, running `/bin/sh`.
    pub fn busybox() -> Self {
        Self::builder().build()
    }

    /// Starts from the busybox layer.
    pub fn builder() -> ImageBuilder {
        ImageBuilder {
            layers: vec![busybox_layer(false)],
            compression: Compression::Gzip,
            docker_types: false,
            platform: host_platform(),
            config: default_config(),
        }
    }

    /// An index over images for several platforms.
    pub fn index(images: impl IntoIterator<Item = Image>) -> Self {
        let mut blobs = BTreeMap::new();
        let mut order = Vec::new();
        let mut manifests = Vec::new();
        let mut diff_ids = Vec::new();
        for image in images {
            blobs.extend(image.blobs);
            order.extend(image.order);
            if diff_ids.is_empty() {
                diff_ids = image.diff_ids;
            }
            manifests.push(image.top);
        }
        let body = json!({
            "schemaVersion": 2,
            "mediaType": media_types::OCI_INDEX,
            "manifests": manifests,
        });
        let top = add_blob(&mut blobs, media_types::OCI_INDEX, to_bytes(&body));
        order.push(top.clone());
        Self { blobs, top, order, diff_ids }
    }

    /// The image whose manifest is `top`, of blobs that are there.
    pub(crate) fn of_blobs(blobs: BTreeMap<Digest, Vec<u8>>, top: Descriptor) -> Self {
        let mut image = Self { blobs, top, order: Vec::new(), diff_ids: Vec::new() };
        let manifest = image.manifest();
        let parse = |value: &Value| -> Descriptor {
            serde_json::from_value(value.clone()).expect("manifests have descriptors")
        };
        image.order.extend(manifest["layers"].as_array().into_iter().flatten().map(parse));
        let config = parse(&manifest["config"]);
        let diff_ids = image.json(&config.digest)["rootfs"]["diff_ids"].clone();
        image.diff_ids = serde_json::from_value(diff_ids).expect("the config has diff IDs");
        image.order.extend([config, image.top.clone()]);
        image
    }

    /// The descriptor of the manifest or index.
    pub fn top(&self) -> &Descriptor {
        &self.top
    }

    /// Diff IDs of the (first) image's layers, lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// The bytes of one blob.
    ///
    /// # Panics
    /// When the image has no such blob.
    pub fn blob(&self, digest: &Digest) -> &[u8] {
        self.blobs.get(digest).unwrap_or_else(|| panic!("image has no blob {digest}"))
    }

    /// Every blob by digest.
    pub fn blobs(&self) -> &BTreeMap<Digest, Vec<u8>> {
        &self.blobs
    }

    /// Every descriptor, children before parents.
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.order
    }

    /// The parsed JSON of the manifest at the top, or of the first one of an index.
    pub fn manifest(&self) -> Value {
        let top = self.json(&self.top.digest);
        match top.get("manifests") {
            None => top,
            Some(list) => {
                let digest = list[0]["digest"].as_str().expect("descriptors have digests");
                self.json(&digest.parse().expect("we wrote a valid digest"))
            }
        }
    }

    fn json(&self, digest: &Digest) -> Value {
        serde_json::from_slice(self.blob(digest)).expect("we wrote valid JSON")
    }
}

impl ImageBuilder {
    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Replaces all layers, busybox included.
    #[must_use]
    pub fn only_layers(mut self, layers: impl IntoIterator<Item = Layer>) -> Self {
        self.layers = layers.into_iter().collect();
        self
    }

    /// Adds small layers until there are `count`; layer N has the file `/layers/N`.
    #[must_use]
    pub fn layers(mut self, count: usize) -> Self {
        while self.layers.len() < count {
            let n = self.layers.len();
            let layer = Layer::new().dir("layers", 0o755).file(
                &format!("layers/{n}"),
                0o644,
                format!("layer {n}\n"),
            );
            self.layers.push(layer);
        }
        self
    }

    /// Adds a layer of `size` bytes that do not compress, from `seed`.
    #[must_use]
    pub fn big_layer(self, size: usize, seed: u64) -> Self {
        let mut data = vec![0_u8; size];
        fastrand::Rng::with_seed(seed).fill(&mut data);
        self.layer(Layer::new().file(&format!("big-{seed}"), 0o644, data))
    }

    /// Links the applets to busybox by hard links instead of symbolic ones.
    #[must_use]
    pub fn hardlinked(mut self) -> Self {
        self.layers[0] = busybox_layer(true);
        self
    }

    /// Compression of every layer that has none of its own.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Uses Docker's media types instead of OCI's.
    #[must_use]
    pub fn docker_types(mut self) -> Self {
        self.docker_types = true;
        self
    }

    /// The platform in the config and, within an index, in the descriptor.
    #[must_use]
    pub fn platform(mut self, os: &str, architecture: &str, variant: &str) -> Self {
        self.platform = Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Platform::default()
        };
        self
    }

    /// Sets a key of the image config's `config` object, such as `Cmd`, `Env`, `User`.
    #[must_use]
    pub fn config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config.insert(key.to_owned(), value.into());
        self
    }

    /// Builds blobs and manifest.
    pub fn build(self) -> Image {
        let mut blobs = BTreeMap::new();
        let mut order = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let tar = layer.tar();
            diff_ids.push(Digest::of(&tar));
            let compression = layer.own_compression().unwrap_or(self.compression);
            let media_type = compression.media_type(self.docker_types);
            order.push(add_blob(&mut blobs, media_type, compression.compress(&tar)));
        }
        let (config_type, manifest_type) = if self.docker_types {
            (media_types::DOCKER_CONFIG, media_types::DOCKER_MANIFEST)
        } else {
            (media_types::OCI_CONFIG, media_types::OCI_MANIFEST)
        };
        let config_body = self.config_body(&diff_ids);
        let config = add_blob(&mut blobs, config_type, to_bytes(&config_body));
        let body = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config,
            "layers": order,
        });
        order.push(config);
        let mut top = add_blob(&mut blobs, manifest_type, to_bytes(&body));
        top.platform = Some(self.platform);
        order.push(top.clone());
        Image { blobs, top, order, diff_ids }
    }

    fn config_body(&self, diff_ids: &[Digest]) -> Value {
        let mut body = json!({
            "created": "2020-09-13T12:26:40Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|d| json!({
                "created": "2020-09-13T12:26:40Z",
                "created_by": format!("testkit {d}"),
            })).collect::<Vec<_>>(),
        });
        let platform = serde_json::to_value(&self.platform).expect("plain strings");
        if let (Value::Object(body), Value::Object(platform)) = (&mut body, platform) {
            body.extend(platform);
        }
        body
    }
}

/// The layer with the busybox binary, its applets and the usual directories.
fn busybox_layer(hardlinks: bool) -> Layer {
    let binary = std::fs::read(crate::system_program("busybox"))
        .expect("busybox (package busybox-static) can be read");
    let mut layer = Layer::new();
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var"] {
        layer = layer.dir(dir, 0o755);
    }
    layer = layer
        .dir("home/app", 0o755)
        .owned_by(1000, 1000)
        .dir("tmp", 0o1777)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .file("etc/group", 0o644, "root:x:0:\napp:x:1000:\nextra:x:2000:app\n")
        .file("bin/busybox", 0o755, binary);
    for applet in APPLETS {
        let name = format!("bin/{applet}");
        layer = if hardlinks {
            layer.hardlink(&name, "bin/busybox")
        } else {
            layer.symlink(&name, "busybox")
        };
    }
    layer
}

/// Makes a root filesystem out of the directory `root`: busybox with links of its applets' names, and
/// places for mounts.
///
/// # Panics
/// When busybox is not installed, or `root` cannot be written to.
pub fn busybox_dir(root: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("made");
    }
    let busybox = root.join("bin/busybox");
    fs::copy(crate::system_program("busybox"), busybox).expect("busybox is copied");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("linked");
    }
}

fn default_config() -> serde_json::Map<String, Value> {
    let mut config = serde_json::Map::new();
    config.insert("Cmd".to_owned(), json!(["/bin/sh"]));
    config.insert("Env".to_owned(), json!(["PATH=/bin:/usr/bin:/sbin"]));
    config
}

fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let variant = if architecture == "arm64" { "v8" } else { "" };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}

fn add_blob(blobs: &mut BTreeMap<Digest, Vec<u8>>, media_type: &str, bytes: Vec<u8>) -> Descriptor {
    let digest = Digest::of(&bytes);
    let size = i64::try_from(bytes.len()).expect("images in memory are small");
    blobs.insert(digest.clone(), bytes);
    Descriptor::new(media_type, digest, size)
}

fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain JSON")
}
