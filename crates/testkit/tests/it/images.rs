//! Images are what other tools take for images.

use std::process::Command;

use gantry_testkit::{Compression, Image, Layer, Registry, Reply, StubRegistry, system_program};

fn skopeo(args: &[&str]) -> String {
    let output = Command::new(system_program("skopeo")).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_same_image_has_the_same_digest() {
    let build = || Image::builder().layers(3).compression(Compression::Zstd).build();
    assert_eq!(build().top(), build().top());
    assert_eq!(build().diff_ids().len(), 3);
}

#[test]
fn skopeo_reads_what_was_pushed() {
    let registry = Registry::start();
    for (name, compression, docker) in
        [("gzip:1", Compression::Gzip, false), ("docker:1", Compression::Gzip, true)]
    {
        let mut builder = Image::builder().layers(2).compression(compression);
        if docker {
            builder = builder.docker_types();
        }
        let image = builder.build();
        let reference = image.push(&registry, name);
        let shown = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{reference}")]);
        assert!(shown.contains(image.top().digest.as_str()), "{shown}");
    }
    assert_eq!(registry.status_of("/v2/gzip/manifests/1"), 200);
    assert_eq!(registry.status_of("/v2/gzip/manifests/2"), 404);
}

#[test]
fn skopeo_reads_archives() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::new().whiteout("etc/group").opaque("tmp").hardlink("bin/x", "bin/busybox");
    let image = Image::builder().layer(layer).build();
    image.write_oci_layout(&dir.path().join("layout"), "example.com/x:1");
    image.write_oci_tar(&dir.path().join("oci.tar"), "example.com/x:1");
    image.write_docker_tar(&dir.path().join("docker.tar"), "example.com/x:1");
    for source in ["oci:layout:1", "oci-archive:oci.tar:1", "docker-archive:docker.tar"] {
        let (scheme, rest) = source.split_once(':').unwrap();
        let source = format!("{scheme}:{}/{rest}", dir.path().display());
        let shown = skopeo(&["inspect", "--config", &source]);
        assert!(shown.contains(image.diff_ids()[1].as_str()), "{shown}");
    }
}

#[test]
fn the_stub_serves_images_and_garbage() {
    let stub = StubRegistry::start();
    let image =
        Image::index([Image::busybox(), Image::builder().platform("linux", "riscv64", "").build()]);
    let reference = stub.serve_image(&image, "a/b", "1");
    let shown =
        skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    assert!(shown.contains("riscv64"), "{shown}");
    stub.reply("/v2/a/b/manifests/1", Reply::status(500));
    let output = Command::new(system_program("skopeo"))
        .args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(stub.requests().iter().any(|r| r == "GET /v2/a/b/manifests/1"));
}
