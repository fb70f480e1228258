//! Images in and out, and what they tell.

use gantry_client::core::platforms;
use gantry_client::{Client, ImportOptions, PullOptions, PushOptions};
use gantry_testkit::{Daemon, Image, Registry};

use crate::support::on_both;

async fn images_story(_: &mut Daemon, client: Client) {
    let registry = Registry::start();
    let source = Image::busybox();
    let reference = source.push(&registry, "busybox:1");
    let options = PullOptions::new(&reference).plain_http().label("k", "v");
    let mut steps = 0;
    let image = client.pull_with(options, |_| steps += 1).await.unwrap();
    assert!(steps > 0);
    assert_eq!(image.name(), reference);
    assert_eq!(image.target().digest, source.top().digest);
    assert_eq!(image.labels()["k"], "v");
    assert!(image.is_unpacked("overlayfs").await.unwrap());
    assert_eq!(image.rootfs().await.unwrap(), source.diff_ids());
    assert!(!image.config().await.unwrap().config.env.is_empty());
    let size = image.size().await.unwrap();
    let usage = image.usage("overlayfs").await.unwrap();
    assert_eq!(usage.content, size);
    assert!(usage.snapshots > size, "{usage:?}, {size}");
    assert!(image.content_store().info(&image.target().digest).await.is_ok());
    let other = platforms::parse("linux/s390x").unwrap();
    assert!(image.for_platform(&other).resolve().await.is_ok(), "one manifest is for all");
    assert_eq!(client.list_images(&["labels.k==v".to_owned()]).await.unwrap().len(), 1);
    assert!(client.image("example.com/none:1").await.unwrap_err().is_not_found());
    let missing = PullOptions::new(format!("{}/none:1", registry.host())).plain_http();
    assert!(client.pull(missing).await.unwrap_err().is_not_found());

    // Out to the registry under another name, and out to an archive.
    let copy = format!("{}/copy:2", registry.host());
    client.push(PushOptions::new(&reference, &copy).plain_http()).await.unwrap();
    assert_eq!(registry.status_of("/v2/copy/manifests/2"), 200);
    let mut archive = Vec::new();
    let written =
        client.export(std::slice::from_ref(&reference), true, &mut archive).await.unwrap();
    assert_eq!(written, archive.len() as u64);
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.content().list(&[]).await.unwrap().is_empty());

    // And in again.
    let read = std::io::Cursor::new(archive);
    let unpack = Some("overlayfs".to_owned());
    let options = ImportOptions { unpack, all_platforms: true, ..ImportOptions::default() };
    let imported = client.import(read, options).await.unwrap();
    assert_eq!(imported.len(), 1, "{imported:?}");
    assert_eq!(imported[0].name(), reference);
    assert!(imported[0].is_unpacked("overlayfs").await.unwrap());
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.content().list(&[]).await.unwrap().is_empty());

    // Fetched only, by this program, and unpacked later.
    let options = PullOptions { local: true, ..PullOptions::new(&reference) };
    let image = client.pull(options.plain_http().unpack(None)).await.unwrap();
    assert!(!image.is_unpacked("overlayfs").await.unwrap());
    image.unpack("overlayfs").await.unwrap();
    assert!(image.is_unpacked("overlayfs").await.unwrap());
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.leases().list(&[]).await.unwrap().is_empty());
    let garbage = std::io::Cursor::new(vec![7; 4096]);
    assert!(client.import(garbage, ImportOptions::default()).await.is_err());
}

on_both!(images_story, root_images_on_containerd, root_images_on_gantryd);
