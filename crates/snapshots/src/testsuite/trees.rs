//! What can be seen in the mounted trees.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use gantry_core::Labels;
use gantry_mount::{Mount, UnmountFlags, mount_all, unmount_all};

use super::{layer, ok, remove_all};
use crate::{CommitOptions, Snapshotter, Usage};

/// How many layers the deepest image of the suite has; with usual path lengths their options do
/// not fit a page.
const LAYERS: usize = 64;

/// What a snapshotter counts as the use of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// The files of the layer.
    Files,
    /// The files of the layer and those of its parents, of which it holds a copy.
    FilesOfAll,
    /// A file that holds a filesystem, in what blocks it has.
    Image,
    /// The files of the layer while it is active, then the image made of them.
    ImageOnceCommitted,
}

/// Checks the trees that mounts show. `dir` is an empty directory to mount at.
pub async fn trees(sn: &dyn Snapshotter, dir: &Path, counts: Counts) {
    layers_stack(sn, dir).await;
    active_ones_do_not_see_each_other(sn, dir).await;
    views_cannot_be_written(sn, dir).await;
    directories_can_be_replaced(sn, dir).await;
    properties_are_kept(sn, dir).await;
    root_directory_is_the_parents(sn, dir).await;
    usage_is_the_layers_own(sn, dir, counts).await;
    many_layers(sn, dir).await;
    active_content_is_kept_between_mounts(sn, dir).await;
}

/// Checks that a layer made on nothing can be committed on a parent.
pub async fn rebase(sn: &dyn Snapshotter, dir: &Path) {
    ok(commit(sn, dir, "suite-base", None, |root| fs::write(root.join("base"), "")).await);
    ok(prepare(sn, dir, "suite-a", None, |root| fs::write(root.join("top"), "")).await);
    let on_base = CommitOptions { parent: Some("suite-base".into()), ..CommitOptions::default() };
    ok(sn.commit("suite-top", "suite-a", on_base).await);
    assert_eq!(ok(sn.stat("suite-top").await).parent.as_deref(), Some("suite-base"));
    let seen =
        look(sn, dir, "suite-top", |root| (root.join("base").exists(), root.join("top").exists()));
    assert_eq!(seen.await, (true, true));
    assert!(sn.remove("suite-base").await.is_err_and(|e| e.is_failed_precondition()));
    remove_all(sn, &["suite-top", "suite-base"]).await;
}

/// Mounts `mounts` at `dir` for as long as `work` takes.
fn mounted<T>(mounts: &[Mount], dir: &Path, work: impl FnOnce(&Path) -> T) -> T {
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            if let Err(e) = unmount_all(self.0, UnmountFlags::default()) {
                tracing::error!(%e, "the suite leaves a mount");
            }
        }
    }
    ok(mount_all(mounts, dir));
    let _unmount = Unmount(dir);
    work(dir)
}

async fn prepare(
    sn: &dyn Snapshotter,
    dir: &Path,
    key: &str,
    parent: Option<&str>,
    work: impl FnOnce(&Path) -> io::Result<()>,
) -> gantry_errdefs::Result<()> {
    let mounts = sn.prepare(key, parent, Labels::new()).await?;
    mounted(&mounts, dir, work).expect("the suite can write to an active snapshot");
    Ok(())
}

async fn commit(
    sn: &dyn Snapshotter,
    dir: &Path,
    name: &str,
    parent: Option<&str>,
    work: impl FnOnce(&Path) -> io::Result<()>,
) -> gantry_errdefs::Result<()> {
    let key = format!("{name}-key");
    prepare(sn, dir, &key, parent, work).await?;
    sn.commit(name, &key, CommitOptions::default()).await
}

/// Looks at a view of `name`.
async fn look<T>(sn: &dyn Snapshotter, dir: &Path, name: &str, see: impl FnOnce(&Path) -> T) -> T {
    let mounts = ok(sn.view("suite-look", Some(name), Labels::new()).await);
    let seen = mounted(&mounts, dir, see);
    ok(sn.remove("suite-look").await);
    seen
}

/// Every path below `root` with what files hold, sorted.
fn listing(root: &Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("the tree can be read") {
            let path = entry.expect("the tree can be read").path();
            let name = path.strip_prefix(root).expect("it is below").display().to_string();
            if path.is_dir() && !path.is_symlink() {
                all.push((name, "<dir>".into()));
                todo.push(path);
            } else {
                all.push((name, fs::read_to_string(&path).unwrap_or_default()));
            }
        }
    }
    all.sort();
    all
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

async fn layers_stack(sn: &dyn Snapshotter, dir: &Path) {
    let first = |root: &Path| {
        fs::create_dir(root.join("d"))?;
        fs::write(root.join("d/kept"), "1")?;
        fs::write(root.join("d/gone"), "1")?;
        fs::write(root.join("changed"), "1")
    };
    let second = |root: &Path| {
        fs::remove_file(root.join("d/gone"))?;
        fs::write(root.join("changed"), "2")?;
        fs::write(root.join("new"), "2")
    };
    ok(commit(sn, dir, "suite-1", None, first).await);
    ok(commit(sn, dir, "suite-2", Some("suite-1"), second).await);
    let lower = pairs(&[("changed", "1"), ("d", "<dir>"), ("d/gone", "1"), ("d/kept", "1")]);
    let upper = pairs(&[("changed", "2"), ("d", "<dir>"), ("d/kept", "1"), ("new", "2")]);
    assert_eq!(look(sn, dir, "suite-1", listing).await, lower);
    assert_eq!(look(sn, dir, "suite-2", listing).await, upper);
    remove_all(sn, &["suite-2", "suite-1"]).await;
}

async fn active_ones_do_not_see_each_other(sn: &dyn Snapshotter, dir: &Path) {
    ok(commit(sn, dir, "suite-1", None, |root| fs::write(root.join("f"), "base")).await);
    for key in ["suite-a", "suite-b"] {
        let write = |root: &Path| {
            assert_eq!(fs::read_to_string(root.join("f"))?, "base");
            fs::write(root.join("f"), key)
        };
        ok(prepare(sn, dir, key, Some("suite-1"), write).await);
    }
    assert_eq!(look(sn, dir, "suite-1", listing).await, pairs(&[("f", "base")]));
    remove_all(sn, &["suite-a", "suite-b", "suite-1"]).await;
}

async fn views_cannot_be_written(sn: &dyn Snapshotter, dir: &Path) {
    ok(commit(sn, dir, "suite-1", None, |root| fs::write(root.join("f"), "")).await);
    ok(layer(sn, "suite-2", Some("suite-1")).await);
    for parent in [None, Some("suite-1"), Some("suite-2")] {
        let mounts = ok(sn.view("suite-v", parent, Labels::new()).await);
        let write = mounted(&mounts, dir, |root| fs::write(root.join("new"), ""));
        let refused = write.expect_err("a view refuses writes").kind();
        assert_eq!(refused, io::ErrorKind::ReadOnlyFilesystem, "{parent:?}");
        ok(sn.remove("suite-v").await);
    }
    remove_all(sn, &["suite-2", "suite-1"]).await;
}

async fn directories_can_be_replaced(sn: &dyn Snapshotter, dir: &Path) {
    let first = |root: &Path| {
        fs::create_dir_all(root.join("d/sub"))?;
        fs::write(root.join("d/sub/old"), "")?;
        fs::create_dir(root.join("e"))
    };
    let second = |root: &Path| {
        fs::remove_dir_all(root.join("d"))?;
        fs::create_dir(root.join("d"))?;
        fs::write(root.join("d/new"), "")?;
        fs::remove_dir(root.join("e"))?;
        fs::write(root.join("e"), "file")
    };
    ok(commit(sn, dir, "suite-1", None, first).await);
    ok(commit(sn, dir, "suite-2", Some("suite-1"), second).await);
    ok(layer(sn, "suite-3", Some("suite-2")).await);
    let want = pairs(&[("d", "<dir>"), ("d/new", ""), ("e", "file")]);
    assert_eq!(look(sn, dir, "suite-3", listing).await, want);
    remove_all(sn, &["suite-3", "suite-2", "suite-1"]).await;
}

async fn properties_are_kept(sn: &dyn Snapshotter, dir: &Path) {
    let fill = |root: &Path| {
        let file = root.join("file");
        fs::write(&file, "x")?;
        chown(&file, Some(12), Some(34))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4751))?;
        rustix::fs::setxattr(&file, "user.suite", b"value", rustix::fs::XattrFlags::empty())?;
        fs::hard_link(&file, root.join("link"))?;
        symlink("/nowhere", root.join("symlink"))?;
        let then = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
        fs::File::open(&file)?.set_modified(then)
    };
    ok(commit(sn, dir, "suite-1", None, fill).await);
    ok(layer(sn, "suite-2", Some("suite-1")).await);
    look(sn, dir, "suite-2", |root| {
        let meta = fs::metadata(root.join("file")).expect("it is there");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12, 34, 0o4751));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 5));
        let link = fs::metadata(root.join("link")).expect("it is there");
        assert_eq!(link.ino(), meta.ino(), "a hard link stays one");
        assert_eq!(fs::read_link(root.join("symlink")).expect("a link"), PathBuf::from("/nowhere"));
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(root.join("file"), "user.suite", &mut value)
            .expect("the attribute is there");
        assert_eq!(&value[..len], b"value");
    })
    .await;
    remove_all(sn, &["suite-2", "suite-1"]).await;
}

async fn root_directory_is_the_parents(sn: &dyn Snapshotter, dir: &Path) {
    let fill = |root: &Path| {
        chown(root, Some(56), Some(78))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o711))
    };
    ok(commit(sn, dir, "suite-1", None, fill).await);
    let check = |root: &Path| {
        let meta = fs::metadata(root)?;
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (56, 78, 0o711));
        Ok(())
    };
    ok(commit(sn, dir, "suite-2", Some("suite-1"), check).await);
    look(sn, dir, "suite-2", check).await.expect("the root can be read");
    let mounts = ok(sn.prepare("suite-a", None, Labels::new()).await);
    let mode = mounted(&mounts, dir, |root| fs::metadata(root).map(|m| m.mode() & 0o7777));
    assert_eq!(mode.expect("the root can be read"), 0o755, "of a snapshot without parent");
    remove_all(sn, &["suite-a", "suite-2", "suite-1"]).await;
}

async fn usage_is_the_layers_own(sn: &dyn Snapshotter, dir: &Path, counts: Counts) {
    const MEBIBYTE: u64 = 1 << 20;
    /// What an empty filesystem takes of its file; those of the tests are small.
    const FILESYSTEM: u64 = 16 * MEBIBYTE;
    let fill = |name: &'static str| {
        move |root: &Path| {
            fs::write(root.join(name), vec![1; MEBIBYTE as usize])?;
            fs::File::open(root.join(name))?.sync_all()?;
            rustix::fs::syncfs(fs::File::open(root)?).map_err(io::Error::from)
        }
    };
    ok(prepare(sn, dir, "suite-a", None, fill("big")).await);
    let active: Usage = ok(sn.usage("suite-a").await);
    let overhead = if counts == Counts::Image { FILESYSTEM } else { MEBIBYTE };
    assert!(active.size >= MEBIBYTE && active.size < MEBIBYTE + overhead, "{active:?}");
    assert_eq!(active.inodes, 2, "the root and the file");
    ok(sn.commit("suite-1", "suite-a", CommitOptions::default()).await);
    let committed = ok(sn.usage("suite-1").await);
    match counts {
        Counts::ImageOnceCommitted => {
            assert!(committed.size >= MEBIBYTE && committed.size < 2 * MEBIBYTE, "{committed:?}");
        }
        _ => assert_eq!(committed, active),
    }
    // What is below does not count again, unless it is there again.
    ok(prepare(sn, dir, "suite-b", Some("suite-1"), fill("more")).await);
    let above = ok(sn.usage("suite-b").await);
    match counts {
        Counts::Files | Counts::ImageOnceCommitted => {
            assert_eq!(above.inodes, 2, "the root and the new file");
            assert!(above.size < 2 * MEBIBYTE, "{above:?}");
        }
        Counts::FilesOfAll => assert_eq!(above.inodes, 3, "the root and both files"),
        Counts::Image => assert!(above.size >= 2 * MEBIBYTE, "{above:?}"),
    }
    remove_all(sn, &["suite-b", "suite-1"]).await;
}

async fn many_layers(sn: &dyn Snapshotter, dir: &Path) {
    let mut parent: Option<String> = None;
    for i in 0..LAYERS {
        let name = format!("suite-layer-{i}");
        let fill = |root: &Path| {
            fs::write(root.join("top"), i.to_string())?;
            fs::write(root.join(i.to_string()), "")
        };
        ok(commit(sn, dir, &name, parent.as_deref(), fill).await);
        parent = Some(name);
    }
    let last = format!("suite-layer-{}", LAYERS - 1);
    let all = look(sn, dir, &last, listing).await;
    assert_eq!(all.len(), LAYERS + 1);
    assert!(all.contains(&("top".into(), (LAYERS - 1).to_string())));
    for i in (0..LAYERS).rev() {
        ok(sn.remove(&format!("suite-layer-{i}")).await);
    }
}

async fn active_content_is_kept_between_mounts(sn: &dyn Snapshotter, dir: &Path) {
    ok(layer(sn, "suite-1", None).await);
    ok(prepare(sn, dir, "suite-a", Some("suite-1"), |root| fs::write(root.join("f"), "1")).await);
    let mounts = ok(sn.mounts("suite-a").await);
    assert_eq!(mounted(&mounts, dir, listing), pairs(&[("f", "1")]));
    remove_all(sn, &["suite-a", "suite-1"]).await;
}
