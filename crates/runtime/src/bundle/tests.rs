//! Bundles on a real disk.

use std::os::unix::fs::MetadataExt;

use super::*;

struct Fixture {
    _dir: tempfile::TempDir,
    bundles: Bundles,
    namespace: Namespace,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("dir");
    let bundles = Bundles::new(dir.path().join("root"), dir.path().join("state"));
    let namespace = Namespace::new("default").expect("a name");
    Fixture { _dir: dir, bundles, namespace }
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("exists").mode() & 0o777
}

#[test]
fn a_bundle_has_its_parts_and_modes() {
    let f = fixture();
    let bundle = f.bundles.create(&f.namespace, "c1", b"{\"a\":1}", "").expect("made");
    assert_eq!(mode(&bundle.path), 0o700);
    assert_eq!(mode(bundle.path.parent().expect("a parent")), 0o711);
    assert_eq!(mode(&bundle.rootfs()), 0o711);
    assert_eq!(std::fs::read(bundle.path.join("config.json")).expect("read"), b"{\"a\":1}");
    assert_eq!(std::fs::read_link(bundle.path.join("work")).expect("a link"), bundle.work);
    assert!(bundle.work.is_dir());
    assert_eq!(bundle.sandbox(), "");
    assert_eq!(bundle.shim_program(), None);
    bundle.set_shim_program(Path::new("/usr/bin/shim")).expect("written");
    assert_eq!(bundle.shim_program(), Some(PathBuf::from("/usr/bin/shim")));
}

#[test]
fn a_remapped_root_may_enter() {
    let f = fixture();
    let spec = br#"{"linux":{"gidMappings":[{"containerID":0,"hostID":4242,"size":10}]}}"#;
    assert_eq!(remapped_root(spec), Some(4242));
    assert_eq!(remapped_root(b"{}"), None);
    assert_eq!(remapped_root(b"nonsense"), None);
    let bundle = f.bundles.create(&f.namespace, "c1", b"{}", "pod").expect("made");
    assert_eq!(bundle.sandbox(), "pod");
}

#[test]
fn root_a_remapped_group_owns_the_bundle() {
    let f = fixture();
    let spec = br#"{"linux":{"gidMappings":[{"containerID":0,"hostID":4242,"size":10}]}}"#;
    let bundle = f.bundles.create(&f.namespace, "c1", spec, "").expect("made");
    assert_eq!(mode(&bundle.path), 0o710);
    assert_eq!(bundle.path.metadata().expect("exists").gid(), 4242);
}

#[test]
fn an_id_is_taken_once_and_free_again_after_delete() {
    let f = fixture();
    let bundle = f.bundles.create(&f.namespace, "c1", b"{}", "").expect("made");
    let err = f.bundles.create(&f.namespace, "c1", b"{}", "").expect_err("taken");
    assert!(err.is_already_exists());
    assert!(bundle.path.join("config.json").exists(), "the first one is untouched");
    bundle.delete().expect("deleted");
    bundle.delete().expect("twice is fine");
    assert!(!bundle.path.exists() && !bundle.work.exists());
    f.bundles.create(&f.namespace, "c1", b"{}", "").expect("free again");
}

#[test]
fn scanning_finds_bundles_and_removes_leftovers() {
    let f = fixture();
    let kept = f.bundles.create(&f.namespace, "kept", b"{}", "").expect("made");
    let half = f.bundles.create(&f.namespace, "half", b"{}", "").expect("made");
    std::fs::rename(&half.path, half.path.with_file_name(".half")).expect("hidden");
    let stale = f.bundles.bundle(&f.namespace, "stale");
    std::fs::create_dir(&stale.work).expect("made");
    let found = f.bundles.scan();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id.as_str(), &found[0].bundle), ("kept", &kept));
    assert!(!half.path.with_file_name(".half").exists());
    assert!(!half.work.exists() && !stale.work.exists());
    assert!(kept.work.exists());
}

#[test]
fn root_a_mounted_root_is_unmounted_and_not_deleted_through() {
    let f = fixture();
    let bundle = f.bundles.create(&f.namespace, "c1", b"{}", "").expect("made");
    let precious = tempfile::tempdir().expect("dir");
    std::fs::write(precious.path().join("file"), "x").expect("written");
    let bind =
        gantry_mount::Mount::new("bind", precious.path().display().to_string(), ["rbind", "rw"]);
    gantry_mount::mount(&bind, &bundle.rootfs()).expect("mounted");
    bundle.delete().expect("deleted");
    assert!(precious.path().join("file").exists());
    assert!(!bundle.path.exists());
}
