//! Images: every layer form, archives in and out, push.

use gantry_testkit::{Compression, Daemon, Image, Layer};

use crate::support::{World, with_client, with_each_client};

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

#[test]
fn root_inspect_shows_the_whole_tree() {
    with_client("gantry", Daemon::gantryd().start(), |world: &mut World| {
        let image = Image::builder().layers(2).build();
        let reference = world.pull(&image, "inspected:1");
        let text = world.ctl.ok(["images", "inspect", &reference]);
        assert!(text.starts_with(&format!("{reference}\n")), "{text}");
        for descriptor in image.descriptors() {
            assert!(text.contains(descriptor.digest.as_str()), "{}: {text}", descriptor.digest);
        }
        assert!(!text.contains("missing"), "{text}");
        let whole = world.ctl.ok(["images", "inspect", "--content", &reference]);
        assert!(whole.contains("\"rootfs\"") && whole.contains("\"layers\""), "{whole}");
        let json = world.ctl.ok(["--format", "json", "images", "inspect", &reference]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["target"]["digest"], image.top().digest.as_str());
        let children = json["target"]["children"].as_array().unwrap();
        assert!(children.iter().all(|child| child["present"] == true), "{json}");
        let missing = world.ctl.fail(["images", "inspect", "docker.io/library/none:1"]);
        assert!(missing.contains("not found"), "{missing}");
    });
}

#[test]
fn root_prune_leaves_what_is_used() {
    with_client("gantry", Daemon::gantryd().start(), |world: &mut World| {
        let image = Image::busybox();
        let used = world.pull(&image, "used:1");
        let free = world.pull(&image, "free:1");
        let labelled = world.pull(&image, "labelled:1");
        world.ctl.ok(["images", "label", &labelled, "team=x"]);
        world.ctl.ok(["containers", "create", &used, "c1", "true"]);

        let nothing = world.ctl.fail(["images", "prune"]);
        assert!(nothing.contains("nothing chosen"), "{nothing}");
        let dry = world.ctl.ok(["images", "prune", "--all", "--dry-run"]);
        assert!(dry.contains(&free) && dry.contains(&labelled) && !dry.contains(&used), "{dry}");
        assert_eq!(world.ctl.ok(["images", "ls", "-q"]).lines().count(), 3);

        assert_eq!(world.ctl.ok(["images", "prune", "--label", "team=x"]).trim(), labelled);
        assert_eq!(world.ctl.ok(["images", "prune", "--until", "1h"]), "");
        assert_eq!(world.ctl.ok(["images", "prune", "--all"]).trim(), free);
        assert_eq!(world.ctl.ok(["images", "ls", "-q"]).trim(), used);
        world.ctl.ok(["containers", "delete", "c1"]);
        world.ctl.ok(["images", "prune", "--all"]);
        assert_eq!(world.ctl.ok(["content", "ls", "-q"]), "", "content is collected");
    });
}
