//! Who has a say in images: verifiers, and programs that layers go through.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gantry_testkit::{Daemon, Image};

use crate::rig::{Client, Rig, rows};

/// Writes a program of the shell.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// A daemon with a verifier that refuses names with `bad` in them, and notes all.
fn verified(dir: &Path, client: Client) -> (Rig, PathBuf) {
    let (bin, log) = (dir.join("bin"), dir.join("log"));
    fs::create_dir(&bin).unwrap();
    let text = format!(
        "echo \"$@\" >>{}\ncase \"$2\" in *bad*) echo unsigned; exit 1;; esac",
        log.display()
    );
    script(&bin.join("by-name"), &text);
    let config = format!(
        "[plugins.\"io.containerd.image-verifier.v1.bindir\"]\n  bin_dir = \"{}\"",
        bin.display()
    );
    (Rig::with(Daemon::gantryd().config(&config).start(), client), log)
}

/// However the image comes: by the transfer service, by a client that writes content, snapshots
/// and the record by itself, out of an archive, by another name.
fn what_is_refused_is_not_there(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, log) = verified(dir.path(), client);
    let good = rig.pull(&Image::busybox(), "good:1");
    let bad = Image::builder().layers(2).build().push(rig.registry(), "bad:1");
    let said = rig.client.fail(["images", "pull", "--plain-http", &bad]);
    assert!(said.contains("by-name") && said.contains("unsigned"), "{said}");
    let said = rig.client.fail(["images", "tag", &good, "example.com/bad:1"]);
    assert!(said.contains("unsigned"), "{said}");
    let archive = rig.scratch("bad.tar");
    Image::busybox().write_oci_tar(&archive, "example.com/bad:2");
    rig.client.fail(["images", "import", archive.to_str().unwrap()]);
    assert_eq!(rig.client.ok(["images", "ls", "-q"]).trim(), good);
    // One layer, of the good image: nothing was unpacked of what was refused.
    assert_eq!(rows(&rig.client.ok(["snapshots", "ls"])).len(), 1);
    let asked = fs::read_to_string(log).unwrap();
    let digest = &Image::busybox().top().digest.to_string();
    assert!(asked.contains(&format!("-name {good} -digest {digest} -stdin-media-type")), "{asked}");
}

#[test]
fn root_refused_to_ctr() {
    what_is_refused_is_not_there(Client::Ctr);
}

#[test]
fn root_refused_to_ctr2() {
    what_is_refused_is_not_there(Client::Ctr2);
}

#[test]
fn root_refused_to_gantry() {
    what_is_refused_is_not_there(Client::Gantry);
}

/// The configuration of a program that inflates gzip layers and notes that it did.
pub(crate) fn inflater(dir: &Path, end: &str) -> (String, PathBuf) {
    let (program, log) = (dir.join("inflate"), dir.join("inflated"));
    let text = format!("echo \"$STREAM_PROCESSOR_MEDIATYPE $1 $WORD\" >>{}\n{end}", log.display());
    script(&program, &text);
    let config = format!(
        "[stream_processors.\"test.inflate\"]\n  \
         accepts = [\"application/vnd.oci.image.layer.v1.tar+gzip\"]\n  \
         returns = \"application/vnd.oci.image.layer.v1.tar\"\n  path = \"{}\"\n  \
         args = [\"arg\"]\n  env = [\"WORD=env\"]",
        program.display()
    );
    (config, log)
}

fn layers_go_through_programs(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let (config, log) = inflater(dir.path(), "exec gzip -dc");
    let mut rig = Rig::with(Daemon::gantryd().config(&config).start(), client);
    let image = Image::builder().layers(3).build();
    let reference = rig.pull(&image, "through:1");
    let out = rig.client.ok(["run", "--rm", &reference, "c1", "cat", "/layers/2"]);
    assert_eq!(out, "layer 2\n");
    let noted = fs::read_to_string(log).unwrap();
    let want = "application/vnd.oci.image.layer.v1.tar+gzip arg env";
    assert_eq!(noted.lines().collect::<Vec<_>>(), [want; 3]);
    rig.daemon.assert_clean();
}

#[test]
fn root_layers_of_ctr_go_through_programs() {
    layers_go_through_programs(Client::Ctr);
}

#[test]
fn root_layers_of_gantry_go_through_programs() {
    layers_go_through_programs(Client::Gantry);
}

#[test]
fn root_a_program_that_fails_fails_the_pull() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = inflater(dir.path(), "gzip -dc; echo no key >&2; exit 5");
    let mut rig = Rig::with(Daemon::gantryd().config(&config).start(), Client::Gantry);
    let reference = Image::busybox().push(rig.registry(), "through:1");
    let said = rig.client.fail(["images", "pull", "--plain-http", &reference]);
    assert!(said.contains("test.inflate") && said.contains("no key"), "{said}");
    assert_eq!(rig.client.ok(["images", "ls", "-q"]), "");
    assert_eq!(rows(&rig.client.ok(["snapshots", "ls"])).len(), 0);
}
