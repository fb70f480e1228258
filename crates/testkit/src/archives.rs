//! Images as files: OCI layout directories and tars, Docker archives.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gantry_core::image::blob_path;
use gantry_core::{Descriptor, Digest, media_types};
use serde_json::{Value, json};

use crate::image::Image;
use crate::registry::Registry;

/// Annotation by which containerd names an image within an archive.
const NAME_ANNOTATION: &str = "io.containerd.image.name";

impl Image {
    /// Writes an OCI layout into the directory `dir`; `name` is the image's full reference.
    ///
    /// # Panics
    /// On an I/O error.
    pub fn write_oci_layout(&self, dir: &Path, name: &str) {
        for (digest, bytes) in self.blobs() {
            let path = dir.join(blob_path(digest));
            fs::create_dir_all(path.parent().unwrap_or(dir)).expect("making the blob directory");
            fs::write(path, bytes).expect("writing a blob");
        }
        fs::write(dir.join("oci-layout"), OCI_LAYOUT).expect("writing oci-layout");
        fs::write(dir.join("index.json"), self.layout_index(name)).expect("writing index.json");
    }

    /// Reads back what [`Image::write_oci_layout`] wrote for a single image.
    ///
    /// # Panics
    /// When it is not that.
    pub fn read_oci_layout(dir: &Path) -> Self {
        let mut blobs = BTreeMap::new();
        for entry in fs::read_dir(dir.join("blobs/sha256")).expect("the blob directory") {
            let bytes = fs::read(entry.expect("a blob's name").path()).expect("reading a blob");
            blobs.insert(Digest::of(&bytes), bytes);
        }
        let index = fs::read(dir.join("index.json")).expect("reading index.json");
        let index: Value = serde_json::from_slice(&index).expect("index.json is JSON");
        let mut top: Descriptor =
            serde_json::from_value(index["manifests"][0].clone()).expect("a descriptor");
        top.annotations.clear();
        Self::of_blobs(blobs, top)
    }

    /// Writes the OCI layout as a tar, as `images import` takes it.
    ///
    /// # Panics
    /// On an I/O error.
    pub fn write_oci_tar(&self, path: &Path, name: &str) {
        let mut tar = tar_file(path);
        append(&mut tar, "oci-layout", OCI_LAYOUT.as_bytes());
        append(&mut tar, "index.json", self.layout_index(name).as_bytes());
        for (digest, bytes) in self.blobs() {
            append(&mut tar, &blob_path(digest), bytes);
        }
        tar.finish().expect("finishing the tar");
    }

    /// Writes the archive that `docker save` makes: plain layer tars beside `manifest.json`.
    /// `name` must have a tag. Takes a single image, not an index.
    ///
    /// # Panics
    /// On an I/O error, or when a layer can't be decompressed.
    pub fn write_docker_tar(&self, path: &Path, name: &str) {
        let manifest = self.manifest();
        let parse = |v: &serde_json::Value| -> Descriptor {
            serde_json::from_value(v.clone()).expect("we wrote the descriptor")
        };
        let mut tar = tar_file(path);
        let mut layers = Vec::new();
        for (n, layer) in manifest["layers"].as_array().into_iter().flatten().enumerate() {
            let layer = parse(layer);
            let entry = format!("layer{n}/layer.tar");
            append(&mut tar, &entry, &plain_tar(&layer.media_type, self.blob(&layer.digest)));
            layers.push(entry);
        }
        let config = parse(&manifest["config"]);
        let config_name = format!("{}.json", config.digest.hex());
        append(&mut tar, &config_name, self.blob(&config.digest));
        let body = json!([{"Config": config_name, "RepoTags": [name], "Layers": layers}]);
        append(&mut tar, "manifest.json", body.to_string().as_bytes());
        tar.finish().expect("finishing the tar");
    }

    /// Pushes the image into `registry` as `repository:tag` (or `repository`, tag `latest`) and
    /// returns the full reference, `host:port/repository:tag`.
    ///
    /// # Panics
    /// When the registry refuses.
    pub fn push(&self, registry: &Registry, name: &str) -> String {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let host = registry.host();
        for descriptor in self.descriptors() {
            let bytes = self.blob(&descriptor.digest);
            let media_type = descriptor.media_type.as_str();
            if media_types::is_document(media_type) {
                let mut names = vec![descriptor.digest.to_string()];
                if descriptor.digest == self.top().digest {
                    names.push(tag.to_owned());
                }
                for name in names {
                    let path = format!("/v2/{repository}/manifests/{name}");
                    registry.put(&path, media_type, bytes);
                }
            } else {
                push_blob(registry, repository, descriptor, bytes);
            }
        }
        format!("{host}/{repository}:{tag}")
    }

    fn layout_index(&self, name: &str) -> String {
        let mut top = self.top().clone();
        top.annotations.insert(NAME_ANNOTATION.to_owned(), name.to_owned());
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        top.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.to_owned());
        json!({"schemaVersion": 2, "manifests": [top]}).to_string()
    }
}

const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

fn push_blob(registry: &Registry, repository: &str, descriptor: &Descriptor, bytes: &[u8]) {
    let blob = format!("/v2/{repository}/blobs/{}", descriptor.digest);
    if registry.request("HEAD", &blob, &[], b"").status == 200 {
        return;
    }
    let host = registry.host();
    let start = registry.request("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
    assert_eq!(start.status, 202, "starting an upload to {host}/{repository}: {start:?}");
    let location = start.header("location").expect("an upload has a location");
    let path = location.strip_prefix(&format!("http://{host}")).unwrap_or(location);
    let joiner = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{joiner}digest={}", descriptor.digest);
    registry.put(&path, "application/octet-stream", bytes);
}

fn plain_tar(media_type: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if media_type.ends_with("gzip") {
        std::io::copy(&mut flate2::read::GzDecoder::new(bytes), &mut out)
            .expect("inflating a layer we made");
    } else if media_type.ends_with("zstd") {
        out = zstd::decode_all(bytes).expect("inflating a layer we made");
    } else {
        out = bytes.to_vec();
    }
    out
}

fn tar_file(path: &Path) -> tar::Builder<fs::File> {
    let file = fs::File::create(path).expect("creating the archive");
    tar::Builder::new(file)
}

fn append(tar: &mut tar::Builder<fs::File>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, data).expect("writing the archive");
}
