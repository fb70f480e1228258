//! Images in and out, and what they tell.

use gantry_client::core::{Digest, media_types, platforms};
use gantry_client::{Client, ImportOptions, PullOptions, PushOptions, Stdio};
use gantry_testkit::{Daemon, Image, Registry, Reply, StubRegistry};

use crate::support::{on_both, shell};

async fn images_story(_: &mut Daemon, client: Client) {
    let registry = Registry::start();
    let source = Image::busybox();
    let reference = source.push(&registry, "busybox:1");
    let options = PullOptions::new(&reference).plain_http().label("k", "v");
    let mut steps = 0;
    let image = client.pull_with(options, |_| steps += 1).await.unwrap();
    assert!(steps > 0);
    assert_eq!(image.name(), reference);
    assert_eq!(image.target().digest, source.top().digest);
    assert_eq!(image.labels()["k"], "v");
    assert!(image.is_unpacked("overlayfs").await.unwrap());
    assert_eq!(image.rootfs().await.unwrap(), source.diff_ids());
    assert!(!image.config().await.unwrap().config.env.is_empty());
    let size = image.size().await.unwrap();
    let usage = image.usage("overlayfs").await.unwrap();
    assert_eq!(usage.content, size);
    assert!(usage.snapshots > size, "{usage:?}, {size}");
    assert!(image.content_store().info(&image.target().digest).await.is_ok());
    let other = platforms::parse("linux/s390x").unwrap();
    assert!(image.for_platform(&other).resolve().await.is_ok(), "one manifest is for all");
    assert_eq!(client.list_images(&["labels.k==v".to_owned()]).await.unwrap().len(), 1);
    assert!(client.image("example.com/none:1").await.unwrap_err().is_not_found());
    let missing = PullOptions::new(format!("{}/none:1", registry.host())).plain_http();
    assert!(client.pull(missing).await.unwrap_err().is_not_found());

    // Where it came from is noted, so that a push to that registry need not send it.
    let layer = image.resolve().await.unwrap().manifest.layers[0].digest.clone();
    let source = format!("containerd.io/distribution.source.{}", registry.host());
    let origin = async || client.content().info(&layer).await.unwrap().labels[&source].clone();
    assert_eq!(origin().await, "busybox");

    // Out to the registry under another name, and out to an archive.
    let copy = format!("{}/copy:2", registry.host());
    client.push(PushOptions::new(&reference, &copy).plain_http()).await.unwrap();
    assert_eq!(registry.status_of("/v2/copy/manifests/2"), 200);
    assert_eq!(origin().await, "busybox,copy");
    let mut archive = Vec::new();
    let written =
        client.export(std::slice::from_ref(&reference), true, &mut archive).await.unwrap();
    assert_eq!(written, archive.len() as u64);
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.content().list(&[]).await.unwrap().is_empty());

    // And in again.
    let read = std::io::Cursor::new(archive);
    let unpack = Some("overlayfs".to_owned());
    let options = ImportOptions { unpack, all_platforms: true, ..ImportOptions::default() };
    let imported = client.import(read, options).await.unwrap();
    assert_eq!(imported.len(), 1, "{imported:?}");
    assert_eq!(imported[0].name(), reference);
    assert!(imported[0].is_unpacked("overlayfs").await.unwrap());
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.content().list(&[]).await.unwrap().is_empty());

    // Fetched only, by this program, and unpacked later.
    let options = PullOptions { local: true, ..PullOptions::new(&reference) };
    let image = client.pull(options.plain_http().unpack(None)).await.unwrap();
    assert!(!image.is_unpacked("overlayfs").await.unwrap());
    image.unpack("overlayfs").await.unwrap();
    assert!(image.is_unpacked("overlayfs").await.unwrap());
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.leases().list(&[]).await.unwrap().is_empty());
    let garbage = std::io::Cursor::new(vec![7; 4096]);
    assert!(client.import(garbage, ImportOptions::default()).await.is_err());
}

/// Of an image for several platforms, those asked for.
async fn platforms_story(_: &mut Daemon, client: Client) {
    let registry = Registry::start();
    let host = platforms::default();
    let ours = Image::builder().platform(&host.os, &host.architecture, &host.variant).build();
    let other = Image::builder().platform("linux", "s390x", "").layers(2).build();
    let index = Image::index([other.clone(), ours.clone()]);
    let reference = index.push(&registry, "multi:1");
    let has = async |image: &Image| client.content().info(&image.top().digest).await.is_ok();
    for local in [false, true] {
        let options = || {
            let labels = [("k".to_owned(), "v".to_owned())].into();
            PullOptions { local, labels, ..PullOptions::new(&reference).plain_http() }
        };
        let image = client.pull(options()).await.unwrap();
        assert_eq!(
            (image.target().digest.clone(), has(&other).await),
            (index.top().digest.clone(), false)
        );
        assert_eq!(image.labels()["k"], "v");
        assert_eq!(image.rootfs().await.unwrap(), ours.diff_ids());
        let wanted = platforms::parse("linux/s390x").unwrap();
        assert!(image.for_platform(&wanted).resolve().await.unwrap_err().is_not_found());

        let image = client.pull(options().platform(wanted).unpack(None)).await.unwrap();
        assert!(has(&other).await);
        assert_eq!(image.config().await.unwrap().platform.architecture, "s390x");
        assert!(!image.is_unpacked("overlayfs").await.unwrap());
        let none = platforms::parse("linux/riscv64").unwrap();
        let missing = client.pull(options().platform(none)).await.unwrap_err();
        assert!(missing.is_not_found(), "{missing:?}");
        client.images().delete(&reference, true).await.unwrap();
        assert!(client.content().list(&[]).await.unwrap().is_empty());
    }
}

/// An image of the first kind, which no registry of today takes any more.
/// Metadata of every platform, with the layers of one and with none.
async fn metadata_story(_: &mut Daemon, client: Client) {
    let stub = StubRegistry::start();
    let here = Image::builder().layers(2).build();
    let other = Image::builder().layers(3).platform("linux", "s390x", "").build();
    let index = Image::index([here.clone(), other.clone()]);
    let reference = stub.serve_image(&index, "a/b", "v1");
    let found = async || {
        let all = client.content().list(&[]).await.unwrap();
        all.into_iter().map(|info| info.digest).collect::<std::collections::BTreeSet<_>>()
    };
    let pull = |metadata_only: bool| {
        let options = PullOptions::new(&reference).plain_http();
        client.pull(PullOptions { all_metadata: true, metadata_only, local: true, ..options })
    };
    for metadata_only in [true, false] {
        let image = pull(metadata_only).await.unwrap();
        let found = found().await;
        for (of, wanted) in [(&here, !metadata_only), (&other, false)] {
            for blob in of.descriptors() {
                let layer = media_types::is_layer(&blob.media_type);
                // Both begin with the same layer.
                let ours = here.descriptors().iter().any(|d| d.digest == blob.digest);
                let wanted = !layer || wanted || ours && !metadata_only;
                assert_eq!(found.contains(&blob.digest), wanted, "{blob:?}");
            }
        }
        assert_eq!(image.is_unpacked("overlayfs").await.unwrap_or(false), !metadata_only);
        client.images().delete(&reference, true).await.unwrap();
        assert!(client.content().list(&[]).await.unwrap().is_empty());
    }
}

async fn schema1_story(_: &mut Daemon, client: Client) {
    let stub = StubRegistry::start();
    let source = Image::busybox();
    let layer = source.descriptors().iter().find(|d| d.media_type.contains("layer")).unwrap();
    stub.reply(
        &format!("/v2/old/image/blobs/{}", layer.digest),
        Reply::ok("application/octet-stream", source.blob(&layer.digest)),
    );
    let line = |text: &str| format!("{{\"v1Compatibility\":{}}}", serde_json::json!(text));
    let top = line(
        r#"{"id":"b","parent":"a","throwaway":true,"os":"linux","architecture":"amd64",
        "config":{"Env":["KIND=old"],"Cmd":["sh"]},"container_config":{"Cmd":["CMD sh"]}}"#,
    );
    let low = line(r#"{"id":"a","created":"2014-01-01T00:00:00Z"}"#);
    let empty = Digest::of(b"never fetched");
    let manifest = format!(
        r#"{{"schemaVersion":1,"name":"old/image","tag":"1","architecture":"amd64",
            "fsLayers":[{{"blobSum":"{empty}"}},{{"blobSum":"{}"}}],"history":[{top},{low}]}}"#,
        layer.digest
    );
    let digest = Digest::of(manifest.as_bytes());
    for name in ["1".to_owned(), digest.to_string()] {
        let reply = Reply::ok(media_types::DOCKER_SCHEMA1, manifest.as_bytes());
        stub.reply(&format!("/v2/old/image/manifests/{name}"), reply);
    }
    let reference = format!("{}/old/image:1", stub.host());
    let options = || PullOptions::new(&reference).plain_http();
    let refused = client.pull(options()).await.unwrap_err();
    assert!(refused.is_invalid_argument() && refused.text().contains("schema 1"), "{refused:?}");

    let image = client.pull(options().convert_schema1()).await.unwrap();
    assert_eq!(image.target().media_type, media_types::OCI_MANIFEST);
    assert_eq!(image.rootfs().await.unwrap(), source.diff_ids());
    let config = image.config().await.unwrap();
    assert_eq!(config.config.env, ["KIND=old"]);
    assert_eq!(config.history.len(), 2);
    let container = shell(&client, &image, "c", "test $KIND = old").await;
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    client.images().delete(&reference, true).await.unwrap();

    // By digest it must be that manifest.
    let wrong = Digest::of(b"another");
    let reply = Reply::ok(media_types::DOCKER_SCHEMA1, manifest.as_bytes());
    stub.reply(&format!("/v2/old/image/manifests/{wrong}"), reply);
    let pinned = |digest: &Digest| {
        let reference = format!("{}/old/image@{digest}", stub.host());
        client.pull(PullOptions::new(reference).plain_http().convert_schema1())
    };
    let other = pinned(&wrong).await.unwrap_err();
    assert_eq!(other.class(), gantry_client::Class::DataLoss, "{other:?}");
    let image = pinned(&digest).await.unwrap();
    // What is of today's kind is left as it is.
    client.images().delete(image.name(), true).await.unwrap();
    let today = stub.serve_image(&source, "new/image", "1");
    let image = client.pull(PullOptions::new(&today).plain_http().convert_schema1()).await.unwrap();
    assert_eq!(image.target().digest, source.top().digest);
    client.images().delete(&today, true).await.unwrap();
    assert!(client.content().list(&[]).await.unwrap().is_empty());
}

/// What docker saves, whole, linked and packed, and what it does not.
async fn docker_story(_: &mut Daemon, client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    let image = Image::builder().layers(2).build();
    image.write_docker_tar(&path, "busybox:3");
    let plain = std::fs::read(&path).unwrap();
    let mut gzip = std::process::Command::new("gzip");
    let packed = gzip.arg("-c").arg(&path).output().unwrap().stdout;
    let options = || ImportOptions { all_platforms: true, ..ImportOptions::default() };
    for archive in [plain.clone(), packed] {
        let imported = client.import(std::io::Cursor::new(archive), options()).await.unwrap();
        assert_eq!(imported.len(), 1, "{imported:?}");
        let name = "docker.io/library/busybox:3";
        assert_eq!(imported[0].name(), name);
        assert_eq!(imported[0].rootfs().await.unwrap(), image.diff_ids());
        imported[0].unpack("overlayfs").await.unwrap();
        client.images().delete(name, true).await.unwrap();
        assert!(client.content().list(&[]).await.unwrap().is_empty());
        assert!(client.leases().list(&[]).await.unwrap().is_empty());
    }
    // Cut off: nothing stays.
    let cut = plain[..plain.len() / 2].to_vec();
    assert!(client.import(std::io::Cursor::new(cut), options()).await.is_err());
    assert!(client.list_images(&[]).await.unwrap().is_empty());
    assert!(client.leases().list(&[]).await.unwrap().is_empty());
}

on_both!(platforms_story, root_platforms_on_containerd, root_platforms_on_gantryd);
on_both!(metadata_story, root_metadata_on_containerd, root_metadata_on_gantryd);
on_both!(schema1_story, root_schema1_on_containerd, root_schema1_on_gantryd);
on_both!(docker_story, root_docker_archives_on_containerd, root_docker_archives_on_gantryd);
on_both!(images_story, root_images_on_containerd, root_images_on_gantryd);
