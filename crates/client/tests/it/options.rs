//! Containers with every option.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gantry_client::api::containerd::runc::v1 as runc;
use gantry_client::core::{Any, Labels};
use gantry_client::oci::SpecBuilder;
use gantry_client::{Client, IdMap, typeurl};
use gantry_testkit::Daemon;

use crate::support::{BUSYBOX, busybox, on_both, remove_busybox};

/// An option that a program may share among its containers.
fn in_opt(spec: SpecBuilder) -> SpecBuilder {
    spec.cwd("/opt").env("SHARED=yes")
}

async fn options_story(_: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let runtime = runc::Options { no_new_keyring: true, ..Default::default() };
    let value = Any { type_url: "example.com/own".into(), value: b"\0\xff bytes".to_vec() };
    let made = client
        .container_builder("c1")
        .from_image(&image)
        .new_snapshot("c1-root")
        .label("a", "b")
        .labels(Labels::from([("c".to_owned(), "d".to_owned())]))
        .extension("own", value.clone())
        .runtime("io.containerd.runc.v2", Some(typeurl::pack(&runtime)))
        .spec_option(in_opt)
        .spec_option(|spec| spec.args(["true"]).env("SHARED=no"))
        .create()
        .await
        .unwrap();
    let mut container = client.container("c1").await.unwrap();
    assert_eq!(container.record(), made.record());
    let record = container.record();
    assert_eq!((record.image.as_str(), record.snapshot_key.as_str()), (BUSYBOX, "c1-root"));
    assert_eq!(record.extensions["own"], value);
    assert_eq!(record.runtime.options.as_ref().unwrap(), &typeurl::pack(&runtime));
    assert!(record.created_at > std::time::SystemTime::UNIX_EPOCH);
    let process = container.spec().unwrap().process().clone().unwrap();
    assert_eq!(process.cwd(), Path::new("/opt"));
    assert_eq!(process.args().as_ref().unwrap().last().unwrap(), "true");
    assert!(process.env().as_ref().unwrap().iter().any(|v| v == "SHARED=no"));
    assert_eq!(container.image().await.unwrap().name(), BUSYBOX);

    // Labels are merged, an empty value removes one.
    let new = Labels::from([("a".to_owned(), String::new()), ("e".to_owned(), "f".to_owned())]);
    let labels = container.set_labels(&new).await.unwrap().clone();
    assert_eq!((labels.get("a"), labels["c"].as_str(), labels["e"].as_str()), (None, "d", "f"));
    let other = Any { type_url: "example.com/own".into(), value: vec![1] };
    container.update().label("g", "h").extension("two", other.clone()).apply().await.unwrap();
    assert_eq!(container.labels().await.unwrap()["g"], "h");
    assert_eq!(
        container.extensions().await.unwrap(),
        [("own".to_owned(), value), ("two".to_owned(), other)].into()
    );

    // An id that is taken costs nothing.
    let again = client.container_builder("c1").from_image(&image).new_snapshot("c1-other");
    assert!(again.create().await.unwrap_err().is_already_exists());
    let left = client.snapshots("overlayfs").stat("c1-other").await;
    assert!(left.unwrap_err().is_not_found());
    let lonely = client.container_builder("c2").new_snapshot("x").create().await;
    assert!(lonely.unwrap_err().is_invalid_argument());
    let nameless = client.container_builder("").create().await;
    assert!(nameless.unwrap_err().is_invalid_argument());

    // A view, and a root filesystem with other owners.
    let viewed = client.container_builder("c3").from_image(&image).new_view("c3-root");
    let viewed = viewed.create().await.unwrap();
    let kind = client.snapshots("overlayfs").stat("c3-root").await.unwrap().kind;
    assert_eq!(kind, gantry_client::SnapshotKind::View);
    let maps = [IdMap { inside: 0, outside: 100_000, size: 65_536 }];
    let remapped = client
        .container_builder("c4")
        .from_image(&image)
        .remapped_snapshot("c4-root", &maps, &maps)
        .create()
        .await
        .unwrap();
    let mounts = client.snapshots("overlayfs").mounts("c4-root").await.unwrap();
    let lower = mounts[0].options.iter().find_map(|o| o.strip_prefix("lowerdir=")).unwrap();
    let root = Path::new(lower.split(':').next().unwrap());
    assert_eq!(root.join("bin/busybox").metadata().unwrap().uid(), 100_000);
    let linux = remapped.spec().unwrap().linux().clone().unwrap();
    assert_eq!(linux.uid_mappings().as_ref().unwrap()[0].host_id(), 100_000);

    assert_eq!(client.containers().list(&[]).await.unwrap().len(), 3);
    assert_eq!(client.containers().list(&["id==c3".to_owned()]).await.unwrap().len(), 1);
    let either = ["id==c3".to_owned(), "labels.g==h".to_owned()];
    assert_eq!(client.containers().list(&either).await.unwrap().len(), 2);
    let looking = client
        .container_builder("c5")
        .from_image(&image)
        .remapped_view("c5-root", &maps, &maps)
        .create()
        .await
        .unwrap();
    let info = client.snapshots("overlayfs").stat("c5-root").await.unwrap();
    assert_eq!(info.kind, gantry_client::SnapshotKind::View);
    assert!(info.parent.ends_with("-100000-100000"), "{info:?}");
    // A spec of the caller's is kept byte for byte, with the type that Go gives it.
    let spec = container.record().spec.clone().unwrap();
    assert_eq!(spec.type_url, "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    let spaced = Any { value: [b"  ", spec.value.as_slice(), b"\n"].concat(), ..spec };
    let own = client.container_builder("c6").raw_spec(spaced.clone()).create().await.unwrap();
    assert_eq!(client.container("c6").await.unwrap().record().spec, Some(spaced));
    // A snapshot that is gone does not keep its container.
    client.snapshots("overlayfs").remove("c3-root").await.unwrap();
    for container in [container, viewed, remapped, looking, own] {
        container.delete(true).await.unwrap();
    }
    assert!(client.container("c1").await.unwrap_err().is_not_found());
    remove_busybox(&client).await;
    assert!(client.snapshots("overlayfs").list(&[]).await.unwrap().is_empty());
}

on_both!(options_story, root_options_on_containerd, root_options_on_gantryd);
