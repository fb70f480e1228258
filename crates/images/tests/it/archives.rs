//! Image archives in and out.

use std::process::Command;

use gantry_core::platforms::Matcher;
use gantry_core::{Digest, Labels, media_types};
use gantry_images::{
    ExportImage, ExportOptions, ImageNames, ImportOptions, Imported, export, import, store_images,
};

use crate::support::{Fixture, Image, gzip, layer, member};

const NAME: &str = "docker.io/library/app:1.0";

fn layers() -> Vec<Vec<u8>> {
    vec![layer(&[("bin/sh", "#!")]), layer(&[("app", "1")])]
}

async fn load(fixture: &Fixture, bytes: Vec<u8>) -> gantry_errdefs::Result<Imported> {
    import(&fixture.db, &fixture.ctx, std::io::Cursor::new(bytes), &ImportOptions::default()).await
}

/// Makes image records as the archive names them.
async fn named(fixture: &Fixture, imported: &Imported) -> Vec<gantry_metadata::Image> {
    store_images(&fixture.db, &fixture.ctx, imported, &ImageNames::default()).await.unwrap()
}

async fn save(fixture: &Fixture, images: &[ExportImage], options: &ExportOptions) -> Vec<u8> {
    let mut out = Vec::new();
    export(&fixture.db, &fixture.ctx, images, options, &mut out).await.unwrap();
    out
}

/// Replaces a member of an archive, or drops it.
pub(crate) type Change<'a> = &'a dyn Fn(&str, Vec<u8>) -> Option<Vec<u8>>;

/// An OCI layout of the image, with one member replaced or dropped.
pub(crate) fn layout(image: &Image, change: Change<'_>) -> Vec<u8> {
    let mut manifest = image.manifest.clone();
    manifest.annotations.insert("org.opencontainers.image.ref.name".into(), "1.0".into());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
    ];
    for (_, bytes) in &image.blobs {
        members.push((format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.clone()));
    }
    let mut out = Vec::new();
    for (name, bytes) in members {
        if let Some(bytes) = change(&name, bytes) {
            member(&mut out, &name, &bytes);
        }
    }
    out.extend_from_slice(&gantry_archive::tar::END);
    out
}

/// docker's own archive of the image, as `docker save` wrote it for years.
pub(crate) fn docker_archive(image: &Image, plain: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let config = &image.blobs.iter().find(|(t, _)| t == media_types::OCI_CONFIG).unwrap().1;
    let config_name = format!("{}.json", Digest::of(config).hex());
    let mut names = Vec::new();
    for (i, layer) in plain.iter().enumerate() {
        let name = format!("{i}/layer.tar");
        member(&mut out, &name, layer);
        names.push(name);
    }
    member(&mut out, &config_name, config);
    member(&mut out, "repositories", b"{}");
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    member(&mut out, "manifest.json", &serde_json::to_vec(&manifest).unwrap());
    out.extend_from_slice(&gantry_archive::tar::END);
    out
}

#[tokio::test]
async fn root_an_oci_layout_comes_in_names_its_image_and_unpacks() {
    let fixture = Fixture::new();
    let image = Image::new(&layers());
    let plain = layout(&image, &|_, bytes| Some(bytes));
    for bytes in [gzip(&plain), plain] {
        let imported = load(&fixture, bytes).await.unwrap();
        assert_eq!(imported.manifests.len(), 1);
        let names = ImageNames {
            index: Some("whole".into()),
            prefix: Some("example.com/app".into()),
            digests: true,
            labels: Labels::from([("a".to_owned(), "b".to_owned())]),
            ..ImageNames::default()
        };
        let images = store_images(&fixture.db, &fixture.ctx, &imported, &names).await.unwrap();
        let names: Vec<_> = images.iter().map(|i| i.name.clone()).collect();
        let by_digest = format!("example.com/app@{}", image.manifest.digest);
        assert_eq!(names, ["whole", "example.com/app:1.0", &by_digest]);
        assert_eq!(images[0].target, imported.index);
        assert_eq!(images[1].target.digest, image.manifest.digest);
        assert_eq!(images[1].labels["a"], "b");
    }
    let manifest = fixture.db.content().info(&fixture.ctx, &image.manifest.digest).await.unwrap();
    assert_eq!(
        manifest.labels["containerd.io/gc.ref.content.config"],
        image.config.digest.to_string()
    );
    assert_eq!(
        manifest.labels["containerd.io/gc.ref.content.l.1"],
        image.layers[1].digest.to_string()
    );
    let stored = fixture.db.images().get(&fixture.ctx, "whole").await.unwrap();
    let done = fixture
        .unpacker
        .unpack(&fixture.ctx, &stored.target, "overlayfs", &Matcher::host())
        .await
        .unwrap();
    assert_eq!(done.layers_unpacked, 2);
    assert!(fixture.db.leases().list(&fixture.ctx, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn root_a_docker_archive_comes_in() {
    let fixture = Fixture::new();
    let image = Image::new(&layers());
    let archive = docker_archive(&image, &layers(), &["app:1.0", "example.com/b:2"]);
    let imported = load(&fixture, archive).await.unwrap();
    let images = named(&fixture, &imported).await;
    let names: Vec<_> = images.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, [NAME, "example.com/b:2"]);
    assert_eq!(images[0].target.media_type, media_types::DOCKER_MANIFEST);
    assert!(images[0].target.platform.is_some());
    let done = fixture
        .unpacker
        .unpack(&fixture.ctx, &images[0].target, "overlayfs", &Matcher::host())
        .await
        .unwrap();
    assert_eq!(done.chain_id, image.chain.last().cloned());

    let nameless = load(&fixture, docker_archive(&image, &layers(), &[])).await.unwrap();
    assert_eq!(nameless.manifests.len(), 1);
}

#[tokio::test]
async fn root_what_is_exported_is_imported_and_the_same_twice() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    let other = fixture.image(&layers()[..1]).await;
    let images = [
        ExportImage { name: Some(NAME.into()), target: image.manifest.clone() },
        ExportImage {
            name: Some("docker.io/library/app:2".into()),
            target: image.manifest.clone(),
        },
        ExportImage { name: None, target: other.manifest.clone() },
    ];
    let options = ExportOptions::default();
    let archive = save(&fixture, &images, &options).await;
    assert_eq!(archive, save(&fixture, &images, &options).await);

    let elsewhere = Fixture::new();
    let imported = load(&elsewhere, archive).await.unwrap();
    let stored = named(&elsewhere, &imported).await;
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[0].target.digest, image.manifest.digest);
    assert_eq!(imported.manifests[2].digest, other.manifest.digest);
}

#[tokio::test]
async fn root_other_tools_read_our_archives() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    let images = [ExportImage { name: Some(NAME.into()), target: image.manifest.clone() }];
    let archive = save(&fixture, &images, &ExportOptions::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    std::fs::write(&path, archive).unwrap();
    let path = path.to_str().unwrap();
    for (source, digest) in [
        (format!("oci-archive:{path}:1.0"), Some(image.manifest.digest.to_string())),
        (format!("docker-archive:{path}:app:1.0"), None),
    ] {
        let out = Command::new("skopeo").args(["inspect", &source]).output().unwrap();
        assert!(out.status.success(), "{source}: {}", String::from_utf8_lossy(&out.stderr));
        let seen: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(seen["Layers"].as_array().unwrap().len(), 2, "{source}");
        if let Some(digest) = digest {
            assert_eq!(seen["Digest"], digest);
        }
    }
    // And a copy of it by skopeo comes back in.
    for kind in ["oci-archive", "docker-archive"] {
        let copy = dir.path().join(format!("{kind}.tar"));
        let to = format!("{kind}:{}:app:9", copy.display());
        let done = Command::new("skopeo")
            .args(["copy", "--insecure-policy", &format!("oci-archive:{path}:1.0"), &to])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let elsewhere = Fixture::new();
        let imported = load(&elsewhere, std::fs::read(copy).unwrap()).await.unwrap();
        let stored = named(&elsewhere, &imported).await;
        assert!(stored[0].name.ends_with("app:9"), "{}", stored[0].name);
        let target = &stored[0].target;
        let host = Matcher::host();
        let done = elsewhere.unpacker.unpack(&elsewhere.ctx, target, "overlayfs", &host).await;
        assert_eq!(done.unwrap().chain_id, image.chain.last().cloned());
    }
}

#[tokio::test]
async fn root_bad_archives_are_refused_with_a_reason() {
    let fixture = Fixture::new();
    let image = Image::new(&layers());
    let blob = |d: &Digest| format!("blobs/sha256/{}", d.hex());
    let layer_name = blob(&image.layers[0].digest);
    let config_name = blob(&image.config.digest);
    let replace = |name: &str, with: &[u8]| {
        let (name, with) = (name.to_owned(), with.to_vec());
        layout(&image, &move |n, bytes| Some(if n == name { with.clone() } else { bytes }))
    };
    let drop_member = |name: &str| {
        let name = name.to_owned();
        layout(&image, &move |n, bytes| (n != name).then_some(bytes))
    };
    let plain = layout(&image, &|_, bytes| Some(bytes));
    let mut odd_name = Vec::new();
    member(&mut odd_name, "blobs/sha256/../../etc", b"x");
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("noise", vec![7; 5000]),
        ("cut", plain[..plain.len() / 2].to_vec()),
        ("cut gzip", gzip(&plain)[..300].to_vec()),
        ("no index", drop_member("index.json")),
        ("no layout or manifest", drop_member("oci-layout")),
        ("version", replace("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#)),
        ("layout is no JSON", replace("oci-layout", b"x")),
        ("index is no JSON", replace("index.json", b"{")),
        (
            "index is a manifest",
            replace("index.json", br#"{"schemaVersion":2,"config":{},"layers":[]}"#),
        ),
        ("blob of another digest", replace(&layer_name, b"x")),
        ("config of another digest", replace(&config_name, b"{}")),
        ("layer missing", drop_member(&layer_name)),
        ("config missing", drop_member(&config_name)),
        ("manifest missing", drop_member(&blob(&image.manifest.digest))),
        ("blob name", odd_name),
        ("docker: one layer too few", docker_archive(&image, &layers()[..1], &["a:1"])),
        (
            "docker: other layers",
            docker_archive(&image, &[layers()[1].clone(), layers()[0].clone()], &["a:1"]),
        ),
        ("docker: bad name", docker_archive(&image, &layers(), &["A b"])),
    ];
    for (what, bytes) in bad {
        // Each in a store of its own: what one brings must not help the next.
        let fresh = Fixture::new();
        let err = load(&fresh, bytes).await.expect_err(what);
        assert!(err.is_invalid_argument(), "{what}: {err}");
        assert!(fresh.db.leases().list(&fresh.ctx, &[]).await.unwrap().is_empty(), "{what}");
    }
    let missing = ExportImage { name: None, target: image.manifest.clone() };
    let result =
        export(&fixture.db, &fixture.ctx, &[missing], &ExportOptions::default(), Vec::new()).await;
    assert!(result.unwrap_err().is_not_found());
}
