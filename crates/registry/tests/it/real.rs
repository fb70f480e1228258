//! The happy path against Debian's docker-registry.

use std::sync::Arc;

use bytes::Bytes;
use gantry_core::{Descriptor, Digest, media_types};
use gantry_registry::limits::{MONOLITHIC_PUSH_MAX, PUSH_CHUNK};
use gantry_registry::{Hosts, Pushed};
use gantry_testkit::Registry;

use crate::fake::repository;

#[tokio::test(flavor = "multi_thread")]
async fn pushes_and_pulls_an_image() {
    let registry = Registry::start();
    let host = registry.host().to_owned();
    let to = async |name: &str| repository_at(&host, name).await;
    let first = to("one/image:v1").await;
    let config = Bytes::from_static(b"{\"rootfs\":{}}");
    let layer =
        Bytes::from(vec![7u8; usize::try_from(MONOLITHIC_PUSH_MAX + PUSH_CHUNK).unwrap() + 3]);
    let describe = |media_type: &str, bytes: &Bytes| {
        Descriptor::new(media_type, Digest::of(bytes), bytes.len() as i64)
    };
    let config_desc = describe(media_types::OCI_CONFIG, &config);
    let layer_desc = describe(media_types::OCI_LAYER, &layer);
    let manifest = Bytes::from(
        serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": media_types::OCI_MANIFEST,
            "config": config_desc, "layers": [layer_desc],
        }))
        .unwrap(),
    );
    let manifest_desc = describe(media_types::OCI_MANIFEST, &manifest);
    for (descriptor, bytes) in [(&config_desc, &config), (&layer_desc, &layer)] {
        for expected in [Pushed::Uploaded, Pushed::Existed] {
            let source = Arc::new(bytes.clone());
            let pushed = first.push_blob(descriptor, source, &[], &|_| {}).await.unwrap();
            assert_eq!(pushed, expected);
        }
    }
    for expected in [Pushed::Uploaded, Pushed::Existed] {
        let pushed = first.push_manifest(&manifest_desc, manifest.clone(), Some("v1")).await;
        assert_eq!(pushed.unwrap(), expected);
    }

    let resolved = first.resolve().await.unwrap();
    assert_eq!(resolved.descriptor, manifest_desc);
    let pinned =
        repository_at(registry.host(), &format!("one/image@{}", manifest_desc.digest)).await;
    assert_eq!(pinned.resolve().await.unwrap().descriptor, manifest_desc);
    assert_eq!(first.manifest(&manifest_desc).await.unwrap(), manifest);
    let mut stream = first.fetch(&layer_desc, 5).await.unwrap();
    let mut len = 5;
    while let Some(chunk) = stream.next().await.unwrap() {
        len += chunk.len();
    }
    assert_eq!(len, layer.len());

    let second = to("two/image:v1").await;
    let from = ["one/image".to_owned()];
    let source = Arc::new(layer.clone());
    let pushed = second.push_blob(&layer_desc, source, &from, &|_| {}).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted);
    assert!(to("none/image:v1").await.resolve().await.unwrap_err().is_not_found());
    let absent = Descriptor::new(media_types::OCI_LAYER, Digest::of(b"absent"), 6);
    assert!(first.fetch(&absent, 0).await.unwrap_err().is_not_found());
}

async fn repository_at(host: &str, name: &str) -> gantry_registry::Repository {
    repository(&format!("{host}/{name}"), Hosts::default()).await
}
