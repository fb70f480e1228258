//! Images: pull, list, check, tag, mount, import, export.

use gantry_testkit::{Compression, Image, Layer};

use crate::support::{World, with_each_client};

/// Layers that hide, replace and link what is below them.
fn tricky() -> Image {
    Image::builder()
        .layer(
            Layer::new()
                .dir("data", 0o755)
                .file("data/kept", 0o644, "kept\n")
                .file("data/hidden", 0o644, "hidden\n")
                .dir("swept", 0o755)
                .file("swept/old", 0o644, "old\n"),
        )
        .layer(
            Layer::new()
                .whiteout("data/hidden")
                .opaque("swept")
                .file("swept/new", 0o640, "new\n")
                .owned_by(1000, 1000)
                .hardlink("data/linked", "data/kept"),
        )
        .build()
}

#[test]
fn root_pull_takes_every_layer_form() {
    with_each_client(|world: &mut World| {
        let forms = [
            ("gzip", Compression::Gzip, false),
            ("zstd", Compression::Zstd, false),
            ("plain", Compression::None, false),
            ("docker", Compression::Gzip, true),
        ];
        for (name, compression, docker) in forms {
            for layers in [1, 12] {
                let mut builder =
                    Image::builder().compression(compression).layers(layers).hardlinked();
                if docker {
                    builder = builder.docker_types();
                }
                let reference = world.pull(&builder.build(), &format!("{name}{layers}:1"));
                let last = layers - 1;
                let command = format!("test {last} = 0 || cat /layers/{last}");
                let output = world.ctl.ok(["run", "--rm", &reference, "c1", "sh", "-c", &command]);
                let want = if last == 0 { String::new() } else { format!("layer {last}\n") };
                assert_eq!(output, want, "{reference}");
            }
        }
    });
}

#[test]
fn root_whiteouts_and_links_unpack() {
    with_each_client(|world: &mut World| {
        let reference = world.pull(&tricky(), "tricky:1");
        let command = "ls /data /swept; stat -c '%u:%g %a %h' /swept/new /data/linked";
        let output = world.ctl.ok(["run", "--rm", &reference, "c1", "sh", "-c", command]);
        let want = "/data:\nkept\nlinked\n\n/swept:\nnew\n1000:1000 640 1\n0:0 644 2\n";
        assert_eq!(output, want);
    });
}

#[test]
fn root_indexes_resolve_to_this_platform() {
    with_each_client(|world: &mut World| {
        let index = Image::index([
            Image::builder().platform("linux", "s390x", "").layers(2).build(),
            Image::busybox(),
        ]);
        let reference = world.pull(&index, "many:1");
        let listed = world.ctl.ok(["images", "ls"]);
        assert!(listed.contains("linux/s390x"), "{listed}");
        assert_eq!(world.ctl.ok(["run", "--rm", &reference, "c1", "echo", "hi"]), "hi\n");
    });
}

#[test]
fn root_images_are_listed_checked_tagged_and_removed() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        let image = Image::builder().layers(3).build();
        let reference = world.pull(&image, "busybox:1");
        let listed = ctl.ok(["images", "ls"]);
        for word in ["REF", "PLATFORMS", reference.as_str(), image.top().digest.as_str()] {
            assert!(listed.contains(word), "no {word} in {listed}");
        }
        let checked = ctl.ok(["images", "check"]);
        assert!(checked.contains("complete (5/5)") && checked.contains("true"), "{checked}");
        ctl.ok(["images", "tag", &reference, "example.com/other:2"]);
        assert!(ctl.run(["images", "tag", &reference, "example.com/other:2"]).code != 0);
        ctl.ok(["images", "tag", "--force", &reference, "example.com/other:2"]);
        ctl.ok(["images", "label", "example.com/other:2", "a=b"]);
        let found = ctl.ok(["images", "ls", "-q", "labels.a==b"]);
        assert_eq!(found, "example.com/other:2\n");
        ctl.ok(["images", "rm", &reference]);
        assert_eq!(ctl.ok(["images", "ls", "-q"]), "example.com/other:2\n");
        assert_eq!(ctl.ok(["run", "--rm", "example.com/other:2", "c1", "echo", "hi"]), "hi\n");
        ctl.ok(["images", "rm", "--sync", "example.com/other:2"]);
        assert_eq!(ctl.ok(["content", "ls", "-q"]), "");
        let failure = ctl.fail(["run", "--rm", "example.com/other:2", "c1", "echo"]);
        assert!(failure.contains("not found"), "{failure}");
        assert_eq!(failure.lines().count(), 1, "{failure}");
    });
}

#[test]
fn root_images_mount_and_unmount() {
    with_each_client(|world: &mut World| {
        let reference = world.busybox();
        let target = tempfile::tempdir().unwrap();
        let path = target.path().to_str().unwrap();
        world.ctl.ok(["images", "mount", &reference, path]);
        assert!(target.path().join("bin/busybox").is_file());
        assert!(std::fs::write(target.path().join("x"), "x").is_err());
        world.ctl.ok(["images", "unmount", "--rm", path]);
        assert!(!target.path().join("bin").exists());
        for lease in world.ctl.ok(["leases", "ls", "-q"]).lines() {
            world.ctl.ok(["leases", "rm", lease]);
        }
    });
}

#[test]
fn root_archives_go_in_and_out() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let image = tricky();
        image.write_oci_tar(&dir.path().join("oci.tar"), "example.com/oci:1");
        image.write_docker_tar(&dir.path().join("docker.tar"), "example.com/docker:1");
        for (name, kind) in
            [("example.com/oci:1", "oci.tar"), ("example.com/docker:1", "docker.tar")]
        {
            ctl.ok(["images", "import", &file(kind)]);
            assert_eq!(
                ctl.ok(["run", "--rm", name, "c1", "cat", "/data/kept"]),
                "kept\n",
                "{name}"
            );
            // Out and in again under the same name.
            ctl.ok(["images", "export", &file("again.tar"), name]);
            world.remove_images();
            ctl.ok(["images", "import", &file("again.tar")]);
            assert_eq!(ctl.ok(["run", "--rm", name, "c1", "cat", "/swept/new"]), "new\n", "{name}");
            world.remove_images();
        }
        std::fs::write(dir.path().join("bad.tar"), vec![b'x'; 4096]).unwrap();
        ctl.fail(["images", "import", &file("bad.tar")]);
    });
}

#[test]
fn root_images_are_pushed() {
    with_each_client(|world: &mut World| {
        let reference = world.busybox();
        let copy = format!("{}/copy:2", world.registry.host());
        world.ctl.ok(["images", "push", "--plain-http", &copy, &reference]);
        assert_eq!(world.registry.status_of("/v2/copy/manifests/2"), 200);
        world.remove_images();
        world.ctl.ok(["images", "pull", "--plain-http", &copy]);
        assert_eq!(world.ctl.ok(["run", "--rm", &copy, "c1", "echo", "hi"]), "hi\n");
    });
}
