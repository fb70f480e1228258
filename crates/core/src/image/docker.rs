//! docker's archives: what their `manifest.json` says, and the OCI documents it stands for.

use std::collections::BTreeMap;

use gantry_errdefs::{Error, Result, ResultExt};
use serde::{Deserialize, Serialize};

use super::{ImageConfig, Manifest, NAME_ANNOTATION, REF_ANNOTATION};
use crate::{Descriptor, Platform, media_types, reference};

/// Images in one archive.
const IMAGE_COUNT_MAX: usize = 10_000;

/// One image of an archive. Its parts are named by the archive's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedImage {
    /// The member with the image config.
    #[serde(rename = "Config", default)]
    pub config: String,
    /// The image's names, as docker shortens them.
    #[serde(rename = "RepoTags", default, deserialize_with = "super::null_is_empty")]
    pub names: Vec<String>,
    /// The members with the layers, lowest first.
    #[serde(rename = "Layers", default, deserialize_with = "super::null_is_empty")]
    pub layers: Vec<String>,
}

impl ArchivedImage {
    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// InvalidArgument when it is none, or lists too many images.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<Self>> {
        let bad =
            |why: String| Error::invalid_argument(format!("archive member manifest.json: {why}"));
        let images: Vec<Self> = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if images.len() > IMAGE_COUNT_MAX {
            return Err(bad(format!("over {IMAGE_COUNT_MAX} images")));
        }
        Ok(images)
    }

    /// The manifest of the image, of whose parts `config` and `layers` are the descriptors; a
    /// layer's media type says whether it is compressed.
    ///
    /// # Errors
    /// InvalidArgument for what does not fit together. What a compressed layer holds is not known
    /// before it is unpacked.
    pub fn manifest(
        &self,
        config: Descriptor,
        parsed: &ImageConfig,
        layers: Vec<Descriptor>,
    ) -> Result<Manifest> {
        let diff_ids = &parsed.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            return Err(Error::invalid_argument(format!(
                "image config {}: it has {} layers, manifest.json {}",
                config.digest,
                diff_ids.len(),
                layers.len()
            )));
        }
        for ((layer, diff_id), name) in layers.iter().zip(diff_ids).zip(&self.layers) {
            if layer.media_type == media_types::DOCKER_LAYER && layer.digest != *diff_id {
                return Err(Error::invalid_argument(format!(
                    "archive member {name}: its digest is {}, the image config says {diff_id}",
                    layer.digest
                )));
            }
        }
        Ok(Manifest {
            schema_version: 2,
            media_type: media_types::DOCKER_MANIFEST.to_owned(),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        })
    }

    /// The entries of an index for the image whose manifest is `target`: one for each name, or one
    /// without.
    ///
    /// # Errors
    /// InvalidArgument for a name that is none.
    pub fn entries(&self, mut target: Descriptor, parsed: &ImageConfig) -> Result<Vec<Descriptor>> {
        let platform = Platform::from(parsed.platform.clone());
        if !platform.os.is_empty() || !platform.architecture.is_empty() {
            target.platform = Some(platform);
        }
        if self.names.is_empty() {
            return Ok(vec![target]);
        }
        let named = |name: &String| {
            let full = reference::normalize_docker(name)
                .context(|| "archive member manifest.json, RepoTags")?;
            let mut named = target.clone();
            named.annotations.insert(NAME_ANNOTATION.to_owned(), full.to_string());
            let object = full.object();
            if !object.is_empty() {
                named.annotations.insert(REF_ANNOTATION.to_owned(), object);
            }
            Ok(named)
        };
        self.names.iter().map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn described(media_type: &str, name: &str) -> Descriptor {
        Descriptor::new(media_type, Digest::of(name.as_bytes()), 1)
    }

    #[test]
    fn what_dockers_manifest_says() {
        let json = br#"[{"Config":"c.json","RepoTags":["busybox:1","example.com/b"],
            "Layers":["a/layer.tar"]},{"Config":"d.json","RepoTags":null,"Layers":null}]"#;
        let images = ArchivedImage::parse_all(json).unwrap();
        let config = ImageConfig::parse(
            &Digest::of(b"c"),
            format!(
                r#"{{"os":"linux","architecture":"arm64","rootfs":{{"diff_ids":["{}"]}}}}"#,
                Digest::of(b"layer")
            )
            .as_bytes(),
        )
        .unwrap();
        let entries = images[0].entries(described("m", "m"), &config).unwrap();
        let names: Vec<_> =
            entries.iter().map(|e| e.annotations[NAME_ANNOTATION].as_str()).collect();
        assert_eq!(names, ["docker.io/library/busybox:1", "example.com/b:latest"]);
        assert_eq!(entries[0].annotations[REF_ANNOTATION], "1");
        assert_eq!(entries[0].platform.as_ref().unwrap().architecture, "arm64");
        let nameless = images[1].entries(described("m", "m"), &ImageConfig::default()).unwrap();
        assert_eq!(nameless, [described("m", "m")]);
        assert!(ArchivedImage::parse_all(b"{}").unwrap_err().is_invalid_argument());
        let bad = ArchivedImage { names: vec!["UPPER CASE".to_owned()], ..images[1].clone() };
        assert!(bad.entries(described("m", "m"), &config).unwrap_err().is_invalid_argument());

        // What does not fit together is refused.
        let config_of = || described(media_types::DOCKER_CONFIG, "c");
        let layer = |name| vec![described(media_types::DOCKER_LAYER, name)];
        let manifest = images[0].manifest(config_of(), &config, layer("layer")).unwrap();
        assert_eq!(manifest.layers, layer("layer"));
        let other = images[0].manifest(config_of(), &config, layer("other")).unwrap_err();
        assert!(other.message().contains("a/layer.tar"), "{other}");
        let fewer = images[0].manifest(config_of(), &config, Vec::new()).unwrap_err();
        assert!(fewer.is_invalid_argument(), "{fewer}");
        let packed = vec![described(media_types::DOCKER_LAYER_GZIP, "packed")];
        images[0].manifest(config_of(), &config, packed).unwrap();
    }
}
