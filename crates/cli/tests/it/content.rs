//! Blobs: edited, let go of, and moved to and from registries one at a time.

use gantry_core::{Digest, media_types};
use gantry_testkit::{Daemon, Image, Reply, StubRegistry};

use crate::support::{World, with_client};

/// Runs a scenario with gantry; Debian's ctr does not know all of these commands.
fn with_gantry(scenario: impl Fn(&mut World)) {
    with_client("gantry", Daemon::gantryd().start(), scenario);
}

/// The config and the first layer of a one-platform image.
fn config_and_layer(image: &Image) -> (Digest, Digest) {
    let manifest = image.manifest();
    let digest = |value: &serde_json::Value| value.as_str().unwrap().parse().unwrap();
    (digest(&manifest["config"]["digest"]), digest(&manifest["layers"][0]["digest"]))
}

#[test]
fn root_content_is_edited() {
    with_gantry(|world: &mut World| {
        let reference = world.busybox();
        let manifest = Image::busybox();
        let text = String::from_utf8(manifest.blob(&manifest.top().digest).to_vec()).unwrap();
        let edited = text.replacen('{', "{ ", 1);
        let want = Digest::of(edited.as_bytes()).to_string();
        let scratch = tempfile::tempdir().unwrap();
        let ctl = world.ctl.with_env("XDG_RUNTIME_DIR", scratch.path().to_str().unwrap());
        let edit = ["content", "edit", "--validate", "--editor", "sed -i '1s/{/{ /'"];
        // Nothing keeps an edited blob: let the collection that the pull started be over.
        let lease = ctl.ok(["leases", "create"]);
        ctl.ok(["leases", "rm", "--sync", lease.trim()]);
        // By the name of the image and by digest; the second finds the blob there already.
        for object in [&reference, manifest.top().digest.as_str()] {
            assert_eq!(ctl.ok(edit.iter().copied().chain([object])).trim(), want);
        }
        assert_eq!(ctl.ok(["content", "get", &want]), edited);
        let mine = ctl.with_env("EDITOR", "true");
        let same = mine.ok(["content", "edit", &reference]);
        assert_eq!(same.trim(), manifest.top().digest.as_str(), "nothing changed");
        let failure = ctl.fail([
            "content",
            "edit",
            "--validate=json",
            "--editor",
            "echo no json >",
            &reference,
        ]);
        assert!(failure.contains("no JSON"), "{failure}");
        let failure = ctl.fail(["content", "edit", "--editor", "false", &reference]);
        assert!(failure.contains("false"), "{failure}");
        let failure = ctl.with_env("EDITOR", "").fail(["content", "edit", &reference]);
        assert!(failure.contains("editor is required"), "{failure}");
        ctl.fail(["content", "edit", "--editor", "true", "example.com/none:1"]);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "files are left");
    });
}

#[test]
fn root_layers_are_let_go_of() {
    with_gantry(|world: &mut World| {
        let reference = world.busybox();
        let image = Image::busybox();
        let (config, layer) = config_and_layer(&image);
        let ctl = &world.ctl;
        let dry = ctl.ok(["content", "prune", "references", "--dry"]);
        let want = format!("{} containerd.io/gc.ref.content.l.0\n", image.top().digest);
        assert_eq!(dry, want);
        let listed = ctl.ok(["content", "ls", "-q"]);
        assert!(listed.contains(layer.as_str()), "a dry run changes nothing: {listed}");
        ctl.ok(["content", "prune", "references"]);
        let listed = ctl.ok(["content", "ls", "-q"]);
        assert!(!listed.contains(layer.as_str()), "{listed}");
        for kept in [config.as_str(), image.top().digest.as_str()] {
            assert!(listed.contains(kept), "{kept} in {listed}");
        }
        assert_eq!(ctl.ok(["content", "prune", "references", "--dry"]), "");
        ctl.ok(["content", "prune", "references", "--async"]);
        assert_eq!(ctl.ok(["leases", "ls", "-q"]), "");
        // What was unpacked lives on.
        assert_eq!(ctl.ok(["run", "--rm", &reference, "c1", "echo", "hi"]), "hi\n");
    });
}

#[test]
fn root_objects_are_fetched() {
    with_gantry(|world: &mut World| {
        let ctl = &world.ctl;
        let image = Image::busybox();
        let index = Image::index([Image::busybox()]);
        let (config, _) = config_and_layer(&image);
        let text = |digest: &Digest| String::from_utf8(index.blob(digest).to_vec()).unwrap();
        let reference = index.push(&world.registry, "multi:1");
        let fetch = |args: &[&str]| {
            let all = ["content", args[0], "--plain-http", &reference];
            ctl.ok(all.iter().chain(&args[1..]).copied().map(str::to_owned))
        };
        assert_eq!(fetch(&["fetch-object"]), text(&index.top().digest));
        let manifest = &image.top().digest;
        let both = fetch(&["fetch-blob", config.as_str(), manifest.as_str()]);
        assert_eq!(both, text(&config) + &text(manifest));
        let kind = format!("--media-type={}", media_types::OCI_MANIFEST);
        assert_eq!(fetch(&["fetch-blob", manifest.as_str(), &kind]), text(manifest));
        let absent = Digest::of(b"nobody has this").to_string();
        let failure = ctl.fail(["content", "fetch-blob", "--plain-http", &reference, &absent]);
        assert!(failure.contains(&absent) && failure.contains("not found"), "{failure}");
        ctl.fail(["content", "fetch-blob", "--plain-http", &reference]);
        assert_eq!(ctl.ok(["content", "ls", "-q"]), "", "nothing goes into the daemon");
    });
}

#[test]
fn root_a_registry_that_sends_other_bytes_is_found_out() {
    with_gantry(|world: &mut World| {
        let stub = StubRegistry::start();
        let image = Image::busybox();
        let (config, _) = config_and_layer(&image);
        let reference = stub.serve_image(&image, "liar", "1");
        let other = vec![b'x'; image.blob(&config).len()];
        let reply = Reply::ok(media_types::OCI_CONFIG, other);
        stub.reply(&format!("/v2/liar/blobs/{config}"), reply);
        let args = ["content", "fetch-blob", "--plain-http", &reference, config.as_str()];
        let failure = world.ctl.fail(args);
        assert!(failure.contains(config.as_str()), "{failure}");
    });
}

#[test]
fn root_objects_are_pushed() {
    with_gantry(|world: &mut World| {
        world.busybox();
        let ctl = &world.ctl;
        let image = Image::busybox();
        let copy = format!("{}/pushed:7", world.registry.host());
        let push = |digest: &Digest, media_type: &str| {
            let args = ["content", "push-object", "--plain-http", &copy];
            ctl.run(args.into_iter().chain([digest.as_str(), media_type]))
        };
        // Children first: a registry refuses a manifest whose blobs it does not have.
        let mut all: Vec<_> = image.descriptors().to_vec();
        all.sort_by_key(|d| d.digest == image.top().digest);
        for object in all {
            let pushed = push(&object.digest, &object.media_type);
            assert_eq!(pushed.code, 0, "{}", pushed.stderr);
            assert_eq!(pushed.stdout, format!("Pushed {} {}\n", object.digest, object.media_type));
        }
        assert_eq!(world.registry.status_of("/v2/pushed/manifests/7"), 200);
        let absent = push(&Digest::of(b"nobody has this"), media_types::OCI_LAYER);
        assert_ne!(absent.code, 0);
        assert!(absent.stderr.contains("not found"), "{}", absent.stderr);
        world.remove_images();
        ctl.ok(["images", "pull", "--plain-http", &copy]);
        assert_eq!(ctl.ok(["run", "--rm", &copy, "c1", "echo", "hi"]), "hi\n");
    });
}
