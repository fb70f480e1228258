//! Bad input through real clients: nothing escapes, nothing is left, errors name the object.

use std::fs;

use gantry_testkit::{Image, Layer, Reply, StubRegistry};

use crate::rig::{Client, Rig};

gantryd_scenarios!(
    archives_that_escape_are_refused,
    a_layer_that_is_not_its_digest_is_refused,
    garbage_manifests_are_refused,
    truncated_archives_are_refused,
);

/// Nothing that a failed pull or import began may stay.
fn assert_nothing_left(rig: &Rig) {
    assert_eq!(rig.client.ok(["images", "ls", "-q"]), "");
    rig.client.ok(["leases", "create", "--id", "gc"]);
    rig.client.ok(["leases", "delete", "--sync", "gc"]);
    assert_eq!(rig.client.ok(["snapshots", "ls"]).lines().count(), 1);
    rig.daemon.assert_clean();
}

fn archives_that_escape_are_refused(rig: &mut Rig) {
    let victim = rig.scratch("victim");
    fs::create_dir(&victim).unwrap();
    let outside = victim.to_str().unwrap();
    let attacks = [
        ("parent", Layer::new().file("../../../../../../../../tmp/gantry-escape", 0o644, "x")),
        ("symlink", Layer::new().symlink("door", outside).file("door/escaped", 0o644, "x")),
        ("hardlink", Layer::new().hardlink("link", "../../../../../../etc/shadow")),
        (
            "hardlink through a symlink",
            Layer::new().symlink("door", "/etc").hardlink("link", "door/shadow"),
        ),
        ("whiteout of the parent", Layer::new().whiteout("..")),
    ];
    for (what, layer) in attacks {
        let image = Image::builder().layer(layer).build();
        let path = rig.scratch("attack.tar");
        image.write_oci_tar(&path, "docker.io/library/attack:1");
        // Refused, or confined to the root: both are safe, a write outside is not.
        let out = rig.client.run(["images", "import", path.to_str().unwrap()]);
        assert!(fs::read_dir(&victim).unwrap().next().is_none(), "{what} wrote outside");
        assert!(!std::path::Path::new("/tmp/gantry-escape").exists(), "{what} wrote outside");
        if out.code != 0 {
            assert!(out.stderr.contains("layer entry"), "{what}: {}", out.stderr);
        }
        rig.client.run(["images", "rm", "--sync", "docker.io/library/attack:1"]);
    }
    assert_nothing_left(rig);
}

fn a_layer_that_is_not_its_digest_is_refused(rig: &mut Rig) {
    let image = Image::builder().layer(Layer::new().file("a", 0o644, "a")).build();
    let stub = StubRegistry::start();
    let reference = stub.serve_image(&image, "bad", "1");
    let layer = image.manifest()["layers"][1]["digest"].as_str().unwrap().to_owned();
    stub.reply(&format!("/v2/bad/blobs/{layer}"), Reply::ok("application/octet-stream", "garbage"));
    let error = rig.client.fail(["images", "pull", "--plain-http", &reference]);
    // ctr fetches by itself and says less.
    let named = if rig.kind() == Client::Gantry { layer.as_str() } else { "failed to" };
    assert!(error.contains(named), "{error}");
    assert_nothing_left(rig);
}

fn garbage_manifests_are_refused(rig: &mut Rig) {
    let stub = StubRegistry::start();
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    for (n, body) in ["", "{", "[]", "null", "{\"layers\": 7}", "\u{0}\u{1}"].iter().enumerate() {
        let tag = format!("t{n}");
        stub.reply(&format!("/v2/bad/manifests/{tag}"), Reply::ok(manifest, *body));
        let reference = format!("{}/bad:{tag}", stub.host());
        let error = rig.client.fail(["images", "pull", "--plain-http", &reference]);
        assert!(!error.trim().is_empty());
    }
    assert_nothing_left(rig);
}

fn truncated_archives_are_refused(rig: &mut Rig) {
    let path = rig.scratch("whole.tar");
    Image::busybox().write_oci_tar(&path, "docker.io/library/cut:1");
    let whole = fs::read(&path).unwrap();
    let cut = rig.scratch("cut.tar");
    for part in [1, 3, 10, 50, 90, 99] {
        fs::write(&cut, &whole[..whole.len() * part / 100]).unwrap();
        let out = rig.client.run(["images", "import", cut.to_str().unwrap()]);
        assert_ne!(out.code, 0, "{part} % of an archive is not an archive");
    }
    assert_nothing_left(rig);
}
