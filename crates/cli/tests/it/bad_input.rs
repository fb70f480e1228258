//! Images and names that are broken or mean harm.

use gantry_core::{Digest, media_types};
use gantry_testkit::{Image, Layer, Reply, StubRegistry};
use serde_json::json;

use crate::support::{World, with_each_client};

/// Pulls what must fail; returns the error.
fn refused(world: &World, reference: &str) -> String {
    let output = world.ctl.run(["images", "pull", "--plain-http", reference]);
    assert_ne!(output.code, 0, "{reference} was taken: {}", output.stdout);
    assert_eq!(world.ctl.ok(["images", "ls", "-q"]), "", "{reference}");
    output.stderr
}

#[test]
fn root_broken_manifests_are_refused() {
    with_each_client(|world: &mut World| {
        let stub = StubRegistry::start();
        let manifest = media_types::OCI_MANIFEST;
        let good = Image::busybox();
        let bodies: [(&str, Vec<u8>); 4] = [
            ("garbage", b"\x00\x01not json".to_vec()),
            ("empty", Vec::new()),
            ("cut", good.blob(&good.top().digest)[..40].to_vec()),
            ("shape", b"{\"schemaVersion\":2,\"layers\":7}".to_vec()),
        ];
        for (name, body) in bodies {
            let reply = Reply::ok(manifest, body);
            let digest = Digest::of(&reply.body);
            stub.reply(&format!("/v2/{name}/manifests/1"), reply.clone());
            stub.reply(&format!("/v2/{name}/manifests/{digest}"), reply);
            refused(world, &format!("{}/{name}:1", stub.host()));
        }
        let failure = refused(world, &format!("{}/absent:1", stub.host()));
        assert!(failure.contains("not found"), "{failure}");
    });
}

#[test]
fn root_layers_do_not_reach_outside_their_root() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let victim = victim.to_str().unwrap().to_owned();
    let dir = outside.path().to_str().unwrap().to_owned();
    let relative = victim.trim_start_matches('/').to_owned();
    with_each_client(|world: &mut World| {
        let climb = format!("../../../../../../../../../..{victim}");
        let attacks = [
            Layer::new().file(&climb, 0o644, "evil"),
            Layer::new().file(&victim, 0o644, "evil"),
            Layer::new().symlink("link", &dir).file("link/victim", 0o644, "evil"),
            Layer::new().hardlink("hard", &climb).file("hard", 0o644, "evil"),
            Layer::new().symlink("up", "../../../../../../../../..").file(
                &format!("up/{relative}"),
                0o644,
                "evil",
            ),
        ];
        for (n, attack) in attacks.into_iter().enumerate() {
            let image = Image::builder().layer(attack).build();
            let reference = image.push(&world.registry, &format!("attack{n}:1"));
            // Refused or kept inside: both are fine, reaching out is not.
            let _ = world.ctl.run(["images", "pull", "--plain-http", &reference]);
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched", "attack {n}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "attack {n}");
        }
        // A refused unpack may leave its image record, as with containerd.
        world.remove_images();
    });
}

#[test]
fn root_bad_names_and_labels_are_refused() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        let reference = world.busybox();
        let long = format!("k={}", "v".repeat(4096));
        let failure = ctl.fail(["images", "label", &reference, &long]);
        assert!(failure.contains("label"), "{failure}");
        let failure = ctl.fail(["images", "ls", "name=="]);
        assert!(!failure.is_empty());
        for id in ["a b", "-x-", "..", "é"] {
            ctl.fail(["run", "--rm", "--null-io", &reference, id, "true"]);
        }
        assert_eq!(ctl.ok(["containers", "ls", "-q"]), "");
        assert_eq!(ctl.ok(["images", "ls", "-q", "no.such.field==x"]), "");
    });
}

#[test]
fn root_schema1_is_refused_by_name() {
    with_each_client(|world: &mut World| {
        let stub = StubRegistry::start();
        let body = json!({"schemaVersion": 1, "fsLayers": [], "history": []}).to_string();
        let reply = Reply::ok(media_types::DOCKER_SCHEMA1, body);
        let digest = Digest::of(&reply.body);
        stub.reply("/v2/old/manifests/1", reply.clone());
        stub.reply(&format!("/v2/old/manifests/{digest}"), reply);
        refused(world, &format!("{}/old:1", stub.host()));
    });
}
