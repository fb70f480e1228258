//! Mounts that the daemon makes and keeps by name.

use std::path::Path;
use std::time::Duration;

use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::services::mounts::v1 as wire;
use gantry_api::containerd::services::mounts::v1::mounts_client::MountsClient;
use gantry_api::containerd::types::Mount;
use gantry_mount::{UnmountFlags, is_mount_point, mount_all, unmount_all};
use tonic::Code;

use crate::harness::{Harness, in_ns, leased, ns, refused};

fn bind(dir: &Path, name: &str) -> Mount {
    let source = dir.join(name);
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join(name), name).unwrap();
    Mount {
        r#type: "bind".into(),
        source: source.to_str().unwrap().into(),
        target: String::new(),
        options: vec!["bind".into(), "ro".into()],
    }
}

/// Two layers and an overlay over wherever they are.
fn stack(dir: &Path) -> Vec<Mount> {
    let overlay = Mount {
        r#type: "format/overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec!["ro".into(), "lowerdir={{ overlay 1 0 }}".into()],
    };
    vec![bind(dir, "low"), bind(dir, "high"), overlay]
}

fn activate(name: &str, mounts: Vec<Mount>) -> wire::ActivateRequest {
    wire::ActivateRequest { name: name.into(), mounts, ..Default::default() }
}

fn info(name: &str) -> wire::InfoRequest {
    wire::InfoRequest { name: name.into() }
}

fn deactivate(name: &str) -> wire::DeactivateRequest {
    wire::DeactivateRequest { name: name.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_activations_are_made_kept_and_taken_away() {
    let mut daemon = Harness::start().await;
    let mut m = MountsClient::new(daemon.channel());
    let dir = daemon.path().to_owned();
    let made = m.activate(ns(activate("a", stack(&dir)))).await.unwrap().into_inner();
    let made = made.info.unwrap();
    assert_eq!((made.name.as_str(), made.active.len(), made.system.len()), ("a", 2, 1));
    let places: Vec<&str> = made.active.iter().map(|a| a.mount_point.as_str()).collect();
    let system = &made.system[0];
    assert_eq!(system.r#type, "overlay");
    assert_eq!(system.options[1], format!("lowerdir={}:{}", places[1], places[0]));
    assert!(places[0].starts_with(dir.join("state").to_str().unwrap()));
    // The caller's part works.
    let target = dir.join("target");
    std::fs::create_dir(&target).unwrap();
    let rest = gantry_mount::Mount {
        kind: system.r#type.clone(),
        source: system.source.clone(),
        target: String::new(),
        options: system.options.clone(),
    };
    mount_all(&[rest], &target).unwrap();
    assert!(target.join("low").exists() && target.join("high").exists());
    unmount_all(&target, UnmountFlags::default()).unwrap();

    refused(m.activate(ns(activate("a", stack(&dir)))).await, Code::AlreadyExists, "\"a\"");
    refused(m.info(in_ns("other", info("a"))).await, Code::NotFound, "");
    // It outlives the daemon.
    daemon.restart().await;
    let mut m = MountsClient::new(daemon.channel());
    let found = m.info(ns(info("a"))).await.unwrap().into_inner().info.unwrap();
    assert_eq!(found, made);
    let mut list = m.list(ns(wire::ListRequest::default())).await.unwrap().into_inner();
    assert_eq!(list.message().await.unwrap().unwrap().info.unwrap(), made);
    assert!(list.message().await.unwrap().is_none());
    m.deactivate(ns(deactivate("a"))).await.unwrap();
    refused(m.deactivate(ns(deactivate("a"))).await, Code::NotFound, "\"a\"");
    assert!(places.iter().all(|place| !Path::new(place).exists()));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_cannot_be_activated_leaves_nothing() {
    let daemon = Harness::start().await;
    let mut m = MountsClient::new(daemon.channel());
    let dir = daemon.path().to_owned();
    refused(
        m.activate(ns(activate("plain", vec![bind(&dir, "low")]))).await,
        Code::Unimplemented,
        "no mount needs activation",
    );
    let mut broken = stack(&dir);
    broken[2].options[1] = "lowerdir={{ mount 7 }}".into();
    refused(m.activate(ns(activate("b", broken))).await, Code::InvalidArgument, "mount 7");
    let mut absent = stack(&dir);
    absent[1].source = "/no/such/directory".into();
    refused(m.activate(ns(activate("c", absent))).await, Code::NotFound, "/no/such/directory");
    let mut made = stack(&dir);
    made[0].r#type = "mkzip/ext4".into();
    refused(m.activate(ns(activate("d", made))).await, Code::Unimplemented, "mkzip");
    let request = leased(ns(activate("e", stack(&dir))), "gone");
    refused(m.activate(request).await, Code::NotFound, "lease does not exist");
    refused(m.update(ns(wire::UpdateRequest::default())).await, Code::Unimplemented, "");
    let targets = dir.join("state/io.containerd.mount-manager.v1.bolt/t");
    assert_eq!(std::fs::read_dir(targets).unwrap().count(), 0);
    // All of them, for a caller that only wants to look.
    let mut all = activate("all", vec![bind(&dir, "low")]);
    all.temporary = true;
    let all = m.activate(ns(all)).await.unwrap().into_inner().info.unwrap();
    assert!(all.system.is_empty());
    assert!(Path::new(&all.active[0].mount_point).join("low").exists());
    m.deactivate(ns(deactivate("all"))).await.unwrap();
    daemon.stop().await;
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    }
}

/// A new filesystem in a file, on a loop device, mounted, with a directory of it bound.
fn disk(image: &Path) -> Vec<Mount> {
    let make = ["X-containerd.mkfs.size=8MiB", "X-containerd.mkfs.fs=ext4"];
    let dir = "X-containerd.mkdir.path={{ mount 1 }}/upper:0755";
    vec![
        mount("mkfs/loop", image.to_str().unwrap(), &make),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount("format/mkdir/bind", "{{ mount 1 }}/upper", &[dir, "rbind", "rw"]),
    ]
}

fn loop_device_of(image: &Path) -> Option<String> {
    let table = std::process::Command::new("losetup").arg("-j").arg(image).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    table.split(':').next().filter(|device| !device.is_empty()).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn root_filesystems_are_made_in_files_and_put_on_loop_devices() {
    let mut daemon = Harness::start().await;
    let mut m = MountsClient::new(daemon.channel());
    let image = daemon.path().join("disk.img");
    let made = m.activate(ns(activate("disk", disk(&image)))).await.unwrap().into_inner();
    let made = made.info.unwrap();
    assert_eq!((made.active.len(), made.system.len()), (2, 1));
    let device = loop_device_of(&image).expect("the file is on a device");
    let place = Path::new(&made.active[0].mount_point);
    assert_eq!(std::fs::read_link(place).unwrap().to_str(), Some(device.as_str()));
    let filesystem = &made.active[1].mount_point;
    assert_eq!(made.system[0].source, format!("{filesystem}/upper"));
    std::fs::write(Path::new(&made.system[0].source).join("file"), "kept").unwrap();
    // Both outlive the daemon.
    daemon.restart().await;
    let mut m = MountsClient::new(daemon.channel());
    let found = m.info(ns(info("disk"))).await.unwrap().into_inner().info.unwrap();
    assert_eq!(found, made);
    m.deactivate(ns(deactivate("disk"))).await.unwrap();
    assert_eq!(loop_device_of(&image), None);
    // The next time it is there, with what was written.
    let again = m.activate(ns(activate("disk", disk(&image)))).await.unwrap().into_inner();
    let source = again.info.unwrap().system[0].source.clone();
    assert_eq!(std::fs::read(Path::new(&source).join("file")).unwrap(), b"kept");
    m.deactivate(ns(deactivate("disk"))).await.unwrap();
    // What fails takes its device back.
    let mut broken = disk(&image);
    broken[1].r#type = "format/xfs".into();
    m.activate(ns(activate("broken", broken))).await.unwrap_err();
    assert_eq!(loop_device_of(&image), None);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_activations_go_with_their_lease() {
    let daemon = Harness::start().await;
    let mut m = MountsClient::new(daemon.channel());
    let mut l = LeasesClient::new(daemon.channel());
    let create = leases::CreateRequest { id: "l1".into(), ..Default::default() };
    l.create(ns(create)).await.unwrap();
    let stack = stack(daemon.path());
    let made = m.activate(leased(ns(activate("a", stack)), "l1")).await.unwrap().into_inner();
    let place = made.info.unwrap().active[0].mount_point.clone();
    assert!(is_mount_point(Path::new(&place)).unwrap());
    let delete = leases::DeleteRequest { id: "l1".into(), ..Default::default() };
    l.delete(ns(delete)).await.unwrap();
    for attempt in 0.. {
        match m.info(ns(info("a"))).await {
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound);
                break;
            }
            Ok(_) => assert!(attempt < 600, "still there"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!Path::new(&place).exists());
    daemon.stop().await;
}
