//! What only the overlayfs snapshotter does.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use gantry_core::Labels;
use gantry_mount::{UnmountFlags, mount_all, unmount};
use gantry_snapshots::{OverlayfsConfig, Snapshotter, label, testsuite};

use crate::Place;

fn mapped() -> Labels {
    Labels::from([
        (label::UID_MAPPING.to_owned(), "0:100000:65536".to_owned()),
        (label::GID_MAPPING.to_owned(), "0:200000:65536".to_owned()),
    ])
}

#[tokio::test]
async fn mounts_in_containerds_words() {
    let place = Place::new();
    let sn = place.overlay();
    let dir = |n: u32| place.root().join(format!("snapshots/{n}"));
    let path = |n: u32, what: &str| dir(n).join(what).display().to_string();

    let mounts = sn.prepare("a", None, Labels::new()).await.unwrap();
    assert_eq!((mounts[0].kind.as_str(), &mounts[0].source), ("bind", &path(1, "fs")));
    assert_eq!(mounts[0].options, ["rw", "rbind"]);
    sn.commit("one", "a", gantry_snapshots::CommitOptions::default()).await.unwrap();
    testsuite::layer(&sn, "two", Some("one")).await.unwrap();

    let mounts = sn.view("v", Some("one"), Labels::new()).await.unwrap();
    assert_eq!((mounts[0].kind.as_str(), &mounts[0].source), ("bind", &path(1, "fs")));
    assert_eq!(mounts[0].options, ["ro", "rbind"]);

    let mounts = sn.prepare("b", Some("two"), Labels::new()).await.unwrap();
    assert_eq!((mounts[0].kind.as_str(), mounts[0].source.as_str()), ("overlay", "overlay"));
    let want = [
        "index=off".to_owned(),
        format!("workdir={}", path(4, "work")),
        format!("upperdir={}", path(4, "fs")),
        format!("lowerdir={}:{}", path(2, "fs"), path(1, "fs")),
    ];
    assert_eq!(mounts[0].options, want);
    let mounts = sn.view("w", Some("two"), Labels::new()).await.unwrap();
    assert_eq!(mounts[0].options, [want[0].clone(), want[3].clone()]);
    // Views of committed snapshots take no space.
    assert_eq!(place.dirs(), ["1", "2", "4"]);
}

#[tokio::test]
async fn configured_options_come_first() {
    let place = Place::new();
    let config = OverlayfsConfig {
        mount_options: vec!["volatile".into(), "index=on".into()],
        upperdir_label: true,
        ..OverlayfsConfig::default()
    };
    let sn = place.overlay_with(config);
    testsuite::layer(&sn, "one", None).await.unwrap();
    let mounts = sn.prepare("a", Some("one"), Labels::new()).await.unwrap();
    assert_eq!(mounts[0].options[..2], ["volatile", "index=on"]);
    assert!(!mounts[0].options.contains(&"index=off".to_owned()));
    let info = sn.stat("a").await.unwrap();
    let upper = place.root().join("snapshots/2/fs").display().to_string();
    assert_eq!(info.labels.get(label::UPPER_DIR), Some(&upper));
    // It is told, not stored.
    let info = sn.update(info, &["labels.x".to_owned()]).await.unwrap();
    assert!(info.labels.contains_key(label::UPPER_DIR));
    drop(sn);
    assert!(place.overlay().stat("a").await.unwrap().labels.is_empty());
}

#[tokio::test]
async fn root_mapped_snapshot_belongs_to_the_containers_root() {
    let (place, target) = (Place::new(), tempfile::tempdir().unwrap());
    let sn = place.overlay();
    assert!(sn.capabilities().contains(&"remap-ids".to_owned()));
    let mounts = sn.prepare("base-key", None, Labels::new()).await.unwrap();
    fs::write(std::path::Path::new(&mounts[0].source).join("file"), "").unwrap();
    sn.commit("one", "base-key", gantry_snapshots::CommitOptions::default()).await.unwrap();
    testsuite::layer(&sn, "two", Some("one")).await.unwrap();
    for parent in ["one", "two"] {
        let mounts = sn.prepare("c", Some(parent), mapped()).await.unwrap();
        mount_all(&mounts, target.path()).unwrap();
        for name in [".", "file"] {
            let meta = fs::metadata(target.path().join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (100_000, 200_000), "{name} on {parent}");
        }
        unmount(target.path(), UnmountFlags::default()).unwrap();
        sn.remove("c").await.unwrap();
    }
    let bad = Labels::from([(label::UID_MAPPING.to_owned(), "1:100000:65536".to_owned())]);
    assert!(sn.prepare("c", Some("one"), bad).await.unwrap_err().is_invalid_argument());
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1", "2"]);
}

#[tokio::test]
async fn space_is_freed_when_configured() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    sn.remove("one").await.unwrap();
    assert!(!place.dirs().contains(&"1".to_owned()));
    sn.cleanup().await.unwrap();
    assert!(place.dirs().is_empty());
    // And without anyone asking.
    testsuite::layer(&sn, "one", None).await.unwrap();
    sn.remove("one").await.unwrap();
    place.no_dirs_soon().await;
    let sn =
        place.overlay_with(OverlayfsConfig { sync_remove: true, ..OverlayfsConfig::default() });
    testsuite::layer(&sn, "one", None).await.unwrap();
    sn.remove("one").await.unwrap();
    assert!(place.dirs().is_empty());
}

#[tokio::test]
async fn snapshots_inherit_no_access_control_list() {
    let place = Place::new();
    let root = place.root().join("new");
    fs::create_dir(&root).unwrap();
    // Version 2; owner, user 12, group, mask, others.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [(1_u16, u32::MAX), (2, 12), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)] {
        acl.extend([tag.to_le_bytes(), 5_u16.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let (default, access) = ("system.posix_acl_default", "system.posix_acl_access");
    rustix::fs::setxattr(&root, default, &acl, rustix::fs::XattrFlags::empty()).unwrap();
    let store = std::sync::Arc::clone(&place.store);
    let sn = gantry_snapshots::Overlayfs::open(&root, OverlayfsConfig::default(), store).unwrap();
    sn.prepare("one", None, Labels::new()).await.unwrap();
    let dirs: Vec<_> = fs::read_dir(root.join("snapshots")).unwrap().collect();
    assert_eq!(dirs.len(), 1);
    let dir = dirs.into_iter().next().unwrap().unwrap().path();
    for list in [default, access] {
        for tree in [dir.clone(), dir.join("fs")] {
            let got = rustix::fs::getxattr(&tree, list, &mut [0_u8; 64]);
            assert_eq!(got, Err(rustix::io::Errno::NODATA), "{list} of {}", tree.display());
        }
    }
}

#[tokio::test]
async fn nobody_else_may_look_inside() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let root = place.root().join("new/root");
    let store = std::sync::Arc::clone(&place.store);
    gantry_snapshots::Overlayfs::open(&root, OverlayfsConfig::default(), store).unwrap();
    for dir in [root.clone(), root.join("snapshots")] {
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
