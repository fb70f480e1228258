//! Layers of many files, which two threads make.

use std::collections::BTreeMap;

use gantry_mount::{Mount, TempRoot};
use proptest::prelude::*;

use crate::support::{Tar, snapshot};

/// Larger than what is handed to the other thread.
const LARGE: usize = 100_000;

/// What to do, in which directory, to which name, and which of some things to take for it.
type Step = (u8, u8, u8, u8);

/// Few names in few directories, so that they meet: a name is taken by file after file, by links
/// to others, by directories and what is in them.
fn layer(steps: &[Step]) -> Tar {
    let mut tar = Tar::new();
    // What is at each path: whether it is a directory.
    let mut there: BTreeMap<String, bool> = BTreeMap::new();
    for (n, (what, dir, name, which)) in steps.iter().enumerate() {
        let path = format!("d{dir}/n{name}");
        let data = format!("{n} ").repeat(usize::from(*which));
        let is_dir = there.get(&path).copied() == Some(true);
        let mut put = |path: &str, dir: bool| {
            if !dir {
                there.retain(|p, _| !p.starts_with(&format!("{path}/")));
            }
            there.insert(path.to_owned(), dir);
        };
        tar = match what {
            0..4 if is_dir => {
                let inner = format!("{path}/inner{}", which % 3);
                put(&inner, false);
                tar.file(inner, data)
            }
            0..7 => {
                put(&path, false);
                tar.file(path, data)
            }
            7 => {
                put(&path, false);
                tar.file(path, vec![*which; LARGE])
            }
            8 => {
                put(&path, true);
                tar.dir(path)
            }
            9 => {
                put(&path, false);
                tar.symlink(path, "nowhere")
            }
            10 if !is_dir => {
                let files = there.iter().filter(|(p, dir)| !**dir && **p != path);
                let files: Vec<String> = files.map(|(p, _)| p.clone()).collect();
                let Some(to) = files.get(usize::from(*which) % files.len().max(1)) else {
                    continue;
                };
                there.insert(path.clone(), false);
                tar.hardlink(path, to)
            }
            _ => tar.dir(format!("d{dir}")),
        };
    }
    tar
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..12_u8, 0..5_u8, 0..30_u8, 0..200_u8), 500..2000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Where something is there before, one thread makes all of it, entry by entry.
    #[test]
    fn root_two_threads_make_what_one_makes(steps in steps()) {
        let (two, one) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join("before"), "").unwrap();
        let by_two = layer(&steps).apply(two.path()).unwrap();
        prop_assert_eq!(by_two, layer(&steps).apply(one.path()).unwrap());
        let mut expected = snapshot(one.path());
        expected.remove("before");
        prop_assert_eq!(snapshot(two.path()), expected);
    }
}

#[test]
fn root_a_file_that_finds_no_room_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let temp = TempRoot::open(dir.path().join("mounts")).unwrap();
    let small = temp.mount(&[Mount::new("tmpfs", "tmpfs", ["size=1m"])]).unwrap();
    let files = (0..200).fold(Tar::new(), |tar, n| tar.file(format!("file{n}"), [1; 20_000]));
    let err = files.apply(small.path()).unwrap_err();
    assert!(err.is_resource_exhausted(), "{err}");
    assert!(err.message().starts_with("layer entry \"file"), "{err}");
    small.unmount().unwrap();
}
