//! Layers.

use std::fs;

use gantry_archive::{ApplyOptions, Limits, Lowers, Target};

/// Small bounds: a finding is found in a small layer as well.
fn limits() -> Limits {
    Limits {
        entry_count_max: 1000,
        stream_bytes_max: 4 << 20,
        file_bytes_max: 1 << 20,
        total_bytes_max: 2 << 20,
        device_count_max: 4,
        ..Limits::default()
    }
}

/// A layer in any compression, applied in each way there is: whatever it is, nothing outside its
/// directory changes, and the same layer gives the same tree.
pub fn tar(data: &[u8]) {
    let temp = tempfile::tempdir().expect("a directory");
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("file"), "untouched").expect("a file");
    let ways = [
        (Target::Tree, Lowers::default()),
        (Target::OverlayUpper { userxattr: false }, Lowers::Known(vec![outside.clone()])),
        (Target::OverlayUpper { userxattr: false }, Lowers::Unknown),
    ];
    for (n, (target, lowers)) in ways.into_iter().enumerate() {
        let options = ApplyOptions { target, lowers, limits: limits(), sync: false };
        let apply = |name: String| {
            let root = temp.path().join(name);
            fs::create_dir(&root).expect("a directory");
            gantry_archive::apply(data, &root, &options).map_err(|e| e.class())
        };
        let (first, second) = (apply(format!("first-{n}")), apply(format!("second-{n}")));
        match (first, second) {
            (Ok(first), Ok(second)) => assert_eq!(first, second),
            (first, second) => assert_eq!(first.err(), second.err()),
        }
    }
    let kept: Vec<_> = fs::read_dir(&outside).expect("still there").flatten().collect();
    assert_eq!(kept.len(), 1, "something was put outside");
    assert_eq!(fs::read(outside.join("file")).expect("still there"), b"untouched");
}
