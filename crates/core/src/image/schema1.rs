//! Docker's schema 1: what images were before they had a config. A manifest lists blobs and, for
//! each, a line of history as JSON within JSON; the one on top also says how to run the image.

use std::collections::BTreeSet;

use gantry_errdefs::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::History;
use crate::Digest;

/// Layers of one image: far above any real one.
const LAYER_COUNT_MAX: usize = 4096;

/// The blob of a layer that holds nothing, as docker packs it.
const EMPTY_BLOB: &str = "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4";

/// The plain tar of a layer that holds nothing: two blocks of zeros.
const EMPTY_TAR: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// What the line of history on top says of itself and not of the image.
const OF_THE_LAYER: [&str; 6] = ["id", "parent", "parent_id", "layer_id", "Size", "throwaway"];

/// An image of schema 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema1 {
    /// Lowest first.
    layers: Vec<Layer>,
    /// The image config to be, without what only the layers tell.
    config: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
struct Layer {
    blob: Digest,
    history: History,
    /// Whether its maker says that it has no files; None when nothing is said.
    empty: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    architecture: String,
    fs_layers: Vec<FsLayer>,
    history: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    v1_compatibility: String,
}

/// What a line of history says of its layer.
#[derive(Deserialize)]
struct OfLayer {
    created: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    throwaway: Option<bool>,
    #[serde(rename = "Size")]
    size: Option<i64>,
    #[serde(default)]
    container_config: Option<Command>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Command {
    #[serde(default)]
    cmd: Option<Vec<String>>,
}

impl Schema1 {
    /// Reads a manifest; its signatures are not looked at.
    ///
    /// # Errors
    /// InvalidArgument when it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |why: String| Error::invalid_argument(format!("schema 1 manifest: {why}"));
        let document: Document = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let (blobs, lines) = (document.fs_layers, document.history);
        if document.schema_version != 1 {
            return Err(bad(format!("schema version {}", document.schema_version)));
        }
        if blobs.len() != lines.len() || lines.is_empty() || lines.len() > LAYER_COUNT_MAX {
            return Err(bad(format!("{} layers, {} lines of history", blobs.len(), lines.len())));
        }
        let top = &lines[0].v1_compatibility;
        let mut config: Map<String, Value> =
            serde_json::from_str(top).map_err(|e| bad(format!("history: {e}")))?;
        for key in OF_THE_LAYER {
            config.remove(key);
        }
        let is_missing = |key| config.get(key).is_none_or(|v| v.as_str() == Some(""));
        let (no_os, no_architecture) = (is_missing("os"), is_missing("architecture"));
        if no_os {
            config.insert("os".to_owned(), json!("linux"));
        }
        if no_architecture {
            config.insert("architecture".to_owned(), json!(document.architecture));
        }
        // The top comes first.
        let pairs = blobs.into_iter().zip(&lines).rev();
        let layers = pairs.map(|(blob, line)| layer(blob.blob_sum, line)).collect::<Result<_>>()?;
        Ok(Self { layers, config })
    }

    /// The blobs that are needed, lowest first, each once.
    pub fn blobs(&self) -> Vec<Digest> {
        let mut seen = BTreeSet::new();
        let full = self.layers.iter().filter(|layer| layer.empty != Some(true));
        full.map(|layer| layer.blob.clone()).filter(|blob| seen.insert(blob.clone())).collect()
    }

    /// The blobs that are the image's layers, lowest first, and its config as JSON. `diff_id` is
    /// the digest of the plain tar of each of [`Self::blobs`].
    ///
    /// # Errors
    /// NotFound for a blob that `diff_id` does not know.
    pub fn convert(
        &self,
        diff_id: impl Fn(&Digest) -> Option<Digest>,
    ) -> Result<(Vec<Digest>, Vec<u8>)> {
        let (mut blobs, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &self.layers {
            let mut line = layer.history.clone();
            line.empty_layer = layer.empty == Some(true);
            if !line.empty_layer {
                let missing = || Error::not_found(format!("blob {}: its diff ID", layer.blob));
                let diff = diff_id(&layer.blob).ok_or_else(missing)?;
                line.empty_layer = layer.empty.is_none() && diff.as_str() == EMPTY_TAR;
                if !line.empty_layer {
                    blobs.push(layer.blob.clone());
                    diff_ids.push(diff);
                }
            }
            history.push(line);
        }
        let mut config = self.config.clone();
        config.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
        config.insert("history".to_owned(), json!(history));
        let bytes = serde_json::to_vec(&config)
            .map_err(|e| Error::internal(format!("encoding an image config: {e}")))?;
        Ok((blobs, bytes))
    }
}

fn layer(blob: Digest, line: &Line) -> Result<Layer> {
    let of: OfLayer = serde_json::from_str(&line.v1_compatibility)
        .map_err(|e| Error::invalid_argument(format!("schema 1 manifest: history: {e}")))?;
    let said = of.throwaway.or(of.size.map(|size| size == 0));
    let empty = if blob.as_str() == EMPTY_BLOB { Some(true) } else { said };
    let command = of.container_config.and_then(|c| c.cmd).unwrap_or_default().join(" ");
    let history = History {
        created: of.created,
        created_by: Some(command).filter(|c| !c.is_empty()),
        author: of.author,
        comment: of.comment,
        empty_layer: false,
    };
    Ok(Layer { blob, history, empty })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    /// Four layers, the top first: nothing, the same as the lowest, nothing by its size, files.
    fn manifest() -> String {
        let top = json!({
            "id": "x", "parent": "y", "throwaway": true, "created": "2015-01-01T00:00:00Z",
            "architecture": "amd64", "os": "", "config": {"Env": ["A=b"], "Cmd": ["sh"]},
            "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) CMD"]}, "docker_version": "1.9"
        });
        let line = |value: &Value| json!({"v1Compatibility": value.to_string()});
        let low = json!({"id": "z", "Size": 7, "author": "someone", "container_config": {}});
        let history = [
            line(&top),
            line(&json!({"id": "w"})),
            line(&json!({"id": "v", "Size": 0})),
            line(&low),
        ];
        let layers = [digest("any"), digest("files"), digest("other"), digest("files")];
        let layers = layers.map(|blob| json!({"blobSum": blob}));
        json!({"schemaVersion": 1, "name": "n", "tag": "t", "architecture": "amd64",
            "fsLayers": layers, "history": history, "signatures": []})
        .to_string()
    }

    #[test]
    fn an_image_of_today_comes_out() {
        let old = Schema1::parse(manifest().as_bytes()).unwrap();
        assert_eq!(old.blobs(), [digest("files")]);
        let (blobs, config) = old.convert(|_| Some(digest("plain"))).unwrap();
        assert_eq!(blobs, [digest("files"), digest("files")]);
        let parsed = ImageConfig::parse(&digest("c"), &config).unwrap();
        assert_eq!(parsed.rootfs.diff_ids, [digest("plain"), digest("plain")]);
        assert_eq!((parsed.platform.os.as_str(), parsed.config.env.len()), ("linux", 1));
        let empty: Vec<bool> = parsed.history.iter().map(|line| line.empty_layer).collect();
        assert_eq!(empty, [false, true, false, true]);
        assert_eq!(parsed.history[0].author.as_deref(), Some("someone"));
        assert_eq!(parsed.history[3].created_by.as_deref(), Some("/bin/sh -c #(nop) CMD"));
        let json: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!((json.get("id"), json.get("throwaway")), (None, None));
        assert_eq!(json["docker_version"], "1.9", "what we do not know is kept");

        // Where nothing is said, the tar itself tells.
        let nothing = || Some(EMPTY_TAR.parse().unwrap());
        let (blobs, _) = old.convert(|_| nothing()).unwrap();
        assert_eq!(blobs.len(), 1, "the lowest says that it has files");
        assert!(old.convert(|_| None).unwrap_err().is_not_found());
    }

    #[test]
    fn what_is_none_is_refused() {
        for wrong in [
            "{}".to_owned(),
            r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#.to_owned(),
            manifest().replace("\"schemaVersion\":1", "\"schemaVersion\":2"),
            r#"{"schemaVersion":1,"fsLayers":[],"history":[{"v1Compatibility":"{}"}]}"#.to_owned(),
        ] {
            assert!(Schema1::parse(wrong.as_bytes()).unwrap_err().is_invalid_argument(), "{wrong}");
        }
    }
}
