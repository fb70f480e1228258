//! Specs compared as JSON, users as tables, root filesystems that attack.

use std::os::unix::fs::symlink;

use gantry_core::image::RunConfig;
use serde_json::{Value, json};

use crate::runtime::LinuxNamespaceType;
use crate::{SpecBuilder, User, UserDatabase, default_spec};

fn builder() -> SpecBuilder {
    SpecBuilder::new("ns", "c1").args(["true"])
}

fn built(builder: SpecBuilder) -> Value {
    serde_json::to_value(builder.build().unwrap()).unwrap()
}

fn database() -> UserDatabase {
    UserDatabase::new(
        "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/:/bin/sh\n7:x:70:71::/:\n",
        "root:x:0:\nwheel:x:10:root,app\nstaff:x:50:app\nmany:x:bad:app\n",
    )
}

#[test]
fn the_default_is_what_clients_make() {
    let spec = serde_json::to_value(default_spec("ns", "c1")).unwrap();
    assert_eq!(spec["linux"]["cgroupsPath"], "/ns/c1");
    assert_eq!(spec["process"]["cwd"], "/");
    assert_eq!(spec["process"]["rlimits"][0]["hard"], 1024);
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    assert_eq!(spec["process"]["capabilities"].get("ambient"), None);
    assert_eq!(spec["mounts"].as_array().unwrap().len(), 7);
    assert_eq!(spec["linux"]["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
    assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 5);
    assert_eq!(spec["process"]["user"], json!({"uid": 0, "gid": 0}));
}

#[test]
fn image_config_gives_what_options_leave_open() {
    let config = RunConfig {
        entrypoint: vec!["/init".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/image".into(), "A=1".into()],
        working_dir: "/srv".into(),
        user: "app".into(),
        ..RunConfig::default()
    };
    let spec = built(SpecBuilder::new("ns", "c1").image_config(&config).users(database()));
    assert_eq!(spec["process"]["args"], json!(["/init", "serve"]));
    assert_eq!(spec["process"]["env"], json!(["PATH=/image", "A=1"]));
    assert_eq!(spec["process"]["cwd"], "/srv");
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [1001, 10, 50]});
    assert_eq!(spec["process"]["user"], user);

    let spec = built(
        SpecBuilder::new("ns", "c1")
            .image_config(&config)
            .args(["other"])
            .env("A=2")
            .env("PATH")
            .user("5:6")
            .terminal(),
    );
    assert_eq!(spec["process"]["args"], json!(["/init", "other"]));
    assert_eq!(spec["process"]["env"], json!(["A=2", "TERM=xterm"]));
    assert_eq!(spec["process"]["user"]["uid"], 5);
    assert_eq!(spec["process"]["terminal"], true);
}

#[test]
fn nothing_to_run_is_an_error() {
    let failure = SpecBuilder::new("ns", "c1").build().unwrap_err();
    assert_eq!(failure.text(), "no arguments specified: invalid argument");
}

#[test]
fn the_first_error_wins() {
    let failure = builder().cwd("here").add_capability("FLY").build().unwrap_err();
    assert!(failure.text().contains("working directory here"), "{failure}");
    for bad in [
        builder().drop_capability("CAP_"),
        builder().cpus(-1.0),
        builder().cpus(f64::NAN),
        builder().memory_limit(u64::MAX),
        builder().device("/etc/passwd".as_ref()),
    ] {
        assert!(bad.build().unwrap_err().is_invalid_argument());
    }
    assert!(builder().device("/dev/no-such".as_ref()).build().unwrap_err().is_not_found());
}

#[test]
fn limits_land_in_resources() {
    let spec = built(builder().memory_limit(1 << 20).cpus(1.5).cpu_shares(512).pids_limit(9));
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 1 << 20}));
    assert_eq!(resources["cpu"], json!({"shares": 512, "quota": 150_000, "period": 100_000}));
    assert_eq!(resources["pids"], json!({"limit": 9}));
}

#[test]
fn namespaces_are_joined_shared_and_made() {
    let spec =
        built(builder().host_network().join_namespace(LinuxNamespaceType::Pid, "/proc/1/ns/pid"));
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert_eq!(namespaces.len(), 4);
    assert!(namespaces.contains(&json!({"type": "pid", "path": "/proc/1/ns/pid"})));
    assert!(!namespaces.iter().any(|n| n["type"] == "network"));
    assert_eq!(spec["mounts"][8]["destination"], "/etc/resolv.conf");
}

#[test]
fn capabilities_come_and_go() {
    let spec = built(builder().add_capability("cap_net_admin").drop_capability("MKNOD"));
    let bounding = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert!(bounding.contains(&json!("CAP_NET_ADMIN")));
    assert!(!bounding.contains(&json!("CAP_MKNOD")));
}

#[test]
fn privileged_lifts_the_masks() {
    let spec = built(builder().default_seccomp().privileged());
    assert_eq!(spec["linux"].get("maskedPaths"), None);
    assert_eq!(spec["linux"].get("seccomp"), None);
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    let sys = &spec["mounts"][5];
    assert!(!sys["options"].as_array().unwrap().contains(&json!("ro")), "{sys}");
    assert_eq!(spec["linux"]["resources"]["devices"][0], json!({"allow": true, "access": "rwm"}));
}

#[test]
fn seccomp_follows_the_capabilities() {
    let names = |spec: &Value| spec["linux"]["seccomp"]["syscalls"].to_string();
    let plain = built(builder().default_seccomp());
    assert!(names(&plain).contains("\"chroot\"") && !names(&plain).contains("\"mount\""));
    let admin = built(builder().add_capability("SYS_ADMIN").default_seccomp());
    assert!(names(&admin).contains("\"mount\""));
}

#[test]
fn users_resolve_by_name_and_number() {
    let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
    for (text, want) in [
        ("", user(0, 0, &[0, 10])),
        ("root", user(0, 0, &[0, 10])),
        ("0", user(0, 0, &[0, 10])),
        ("app", user(1000, 1001, &[1001, 10, 50])),
        ("1000", user(1000, 1001, &[1001, 10, 50])),
        ("app:staff", user(1000, 50, &[50, 10])),
        ("app:7", user(1000, 7, &[7, 10, 50])),
        ("4:5", user(4, 5, &[5])),
        ("4", user(4, 0, &[0])),
        ("7", user(70, 71, &[71])),
    ] {
        assert_eq!(database().resolve(text).unwrap(), want, "{text}");
    }
    assert!(database().resolve("nobody").unwrap_err().is_not_found());
    assert!(database().resolve("app:none").unwrap_err().is_not_found());
    assert!(database().resolve("99999999999").unwrap_err().is_invalid_argument());
    assert_eq!(UserDatabase::default().resolve("").unwrap(), user(0, 0, &[0]));
}

#[test]
fn a_rootfs_can_not_point_outside_itself() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("passwd"), "evil:x:0:0::/:\n").unwrap();
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    symlink(outside.path().join("passwd"), etc.join("passwd")).unwrap();
    std::fs::create_dir(etc.join("group")).unwrap();
    let users = UserDatabase::from_rootfs(root.path()).unwrap();
    assert!(users.resolve("evil").unwrap_err().is_not_found());

    std::fs::remove_file(etc.join("passwd")).unwrap();
    std::fs::write(root.path().join("real"), "app:x:3:4::/:\n").unwrap();
    symlink("/real", etc.join("passwd")).unwrap();
    let users = UserDatabase::from_rootfs(root.path()).unwrap();
    assert_eq!(users.resolve("app").unwrap().uid, 3);
    assert!(UserDatabase::from_rootfs("/no/such".as_ref()).is_err());
}

#[test]
fn json_round_trips() {
    let spec = builder().annotation("a", "b").bind("/a", "/b", &["rbind"]).build().unwrap();
    let json = crate::to_json(&spec).unwrap();
    assert_eq!(crate::from_json::<crate::Spec>(&json).unwrap(), spec);
    assert!(crate::from_json::<crate::Spec>(b"{").unwrap_err().is_invalid_argument());
}
