//! Unpacking in a user namespace: by root of a container, who may not do all that root may.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use gantry_sys::userns::{self, IdRange};

use crate::support::{Header, Tar, snapshot};

/// Set in the process that runs in the namespace.
const INSIDE: &str = "GANTRY_TEST_IN_USERNS";

/// Whether this process is the one in the namespace: overlays are mounted with `userxattr` there.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the ignored test `name` of this program in a user namespace, with mounts of its own.
fn run_inside(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where the program is may be closed to others than root.
    let program = dir.path().join("it");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let range = IdRange { inside: 0, outside: 100_000, length: 65_536 };
    let namespace = userns::create(&[range], &[range]).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let done = Command::new("nsenter")
        .arg(format!("--user={path}"))
        .args(["--setuid=0", "--setgid=0", "unshare", "--mount"])
        .arg(&program)
        .args(["--ignored", "--exact", "--nocapture", name])
        .env(INSIDE, "1")
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let complained = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "the test ran: {said}");
}

#[test]
fn root_stacks_in_a_user_namespace() {
    run_inside("userns::stacks_inside");
}

#[test]
#[ignore = "run in a user namespace by root_stacks_in_a_user_namespace"]
fn stacks_inside() {
    assert!(is_inside(), "only in the namespace");
    crate::stacks::check_random_stacks();
}

#[test]
fn root_attributes_in_a_user_namespace() {
    run_inside("userns::attributes_inside");
}

#[test]
#[ignore = "run in a user namespace by root_attributes_in_a_user_namespace"]
fn attributes_inside() {
    assert!(is_inside(), "only in the namespace");
    let temp = tempfile::tempdir().unwrap();
    let records: [(&str, &[u8]); 2] = [
        ("SCHILY.xattr.user.a", b"1"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    let file = Header { mode: 0o6755, uid: 12, gid: 34, ..Header::new("f", b'0') };
    Tar::new()
        .pax(&records)
        .header(&file)
        .header(&Header { mode: 0o600, device: (1, 3), ..Header::new("null", b'3') })
        .header(&Header::new("pipe", b'6'))
        .apply(temp.path())
        .unwrap();
    let tree = snapshot(temp.path());
    let f = &tree["f"];
    assert_eq!((f.mode, f.owner), (0o6755, (12, 34)));
    let names: Vec<&[u8]> = f.xattrs.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(names, [&b"security.capability"[..], b"user.a"]);
    // Nobody but root of the host makes devices; the layer is whole without.
    assert!(!tree.contains_key("null"));
    assert_eq!(tree["pipe"].kind, "fifo");
    // Who is not in the namespace cannot own anything in it.
    let stranger = Header { uid: 70_000, ..Header::new("g", b'0') };
    let err = Tar::new().header(&stranger).apply(temp.path()).unwrap_err();
    assert!(err.message().contains('g'), "{err}");
}
