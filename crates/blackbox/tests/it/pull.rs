//! Pulling from a real registry: compressions, layer counts, whiteouts, platforms.

use gantry_testkit::{Compression, Image, Layer};

use crate::rig::Rig;

scenarios!(
    gzip_and_zstd_layers,
    many_layers,
    whiteouts_hide_files,
    an_index_gives_the_host_platform,
    pulling_twice_is_quick_and_right,
);

fn gzip_and_zstd_layers(rig: &mut Rig) {
    for (n, compression) in
        [Compression::Gzip, Compression::Zstd, Compression::None].into_iter().enumerate()
    {
        let layer = Layer::new().file("which", 0o644, format!("{compression:?}\n"));
        let image = Image::builder().layer(layer).compression(compression).build();
        let reference = rig.pull(&image, &format!("compression:{n}"));
        let id = format!("c{n}");
        let out = rig.client.ok(["run", "--rm", &reference, &id, "cat", "/which"]);
        assert_eq!(out, format!("{compression:?}\n"));
    }
    rig.daemon.assert_clean();
}

fn many_layers(rig: &mut Rig) {
    let image = Image::builder().layers(40).build();
    let reference = rig.pull(&image, "many:40");
    let out = rig.client.ok(["run", "--rm", &reference, "c1", "cat", "/layers/1", "/layers/39"]);
    assert_eq!(out, "layer 1\nlayer 39\n");
    let list = rig.client.ok(["images", "check"]);
    let line = list.lines().find(|l| l.starts_with(&reference)).expect("the image is listed");
    assert!(line.contains("complete (41/41)") && line.contains("true"), "{line}");
}

fn whiteouts_hide_files(rig: &mut Rig) {
    let below = Layer::new()
        .dir("d", 0o755)
        .file("d/kept", 0o644, "below")
        .file("d/gone", 0o644, "below")
        .dir("opaque", 0o755)
        .file("opaque/old", 0o644, "below");
    let above = Layer::new().whiteout("d/gone").opaque("opaque").file("opaque/new", 0o600, "above");
    let image = Image::builder().layer(below).layer(above).build();
    let reference = rig.pull(&image, "whiteouts:1");
    let out = rig.client.ok(["run", "--rm", &reference, "c1", "ls", "/d", "/opaque"]);
    assert_eq!(out, "/d:\nkept\n\n/opaque:\nnew\n");
}

fn an_index_gives_the_host_platform(rig: &mut Rig) {
    let foreign = Image::builder().platform("linux", "s390x", "").build();
    let image = Image::index([foreign, Image::busybox()]);
    let reference = rig.pull(&image, "index:1");
    assert_eq!(rig.client.ok(["run", "--rm", &reference, "c1", "echo", "hi"]), "hi\n");
}

fn pulling_twice_is_quick_and_right(rig: &mut Rig) {
    let image = Image::builder().layers(3).build();
    let reference = rig.pull(&image, "twice:1");
    let again = rig.pull(&image, "twice:1");
    assert_eq!(reference, again);
    let refs = rig.client.ok(["images", "ls", "-q"]);
    assert_eq!(refs.lines().filter(|l| **l == reference).count(), 1, "{refs}");
}
