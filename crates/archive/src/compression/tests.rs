use std::io::{Read, Write};

use super::*;

fn pack(data: &[u8], compression: Compression) -> Vec<u8> {
    let mut out = Compressor::new(Vec::new(), compression).unwrap();
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

fn unpack(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Decompressor::detect(data)?.read_to_end(&mut out)?;
    Ok(out)
}

#[test]
fn what_is_packed_unpacks() {
    let data = b"layer".repeat(100_000);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let packed = pack(&data, compression);
        assert_eq!(Decompressor::detect(packed.as_slice()).unwrap().compression(), compression);
        assert_eq!(unpack(&packed).unwrap(), data);
        assert_eq!(packed, pack(&data, compression), "not the same bytes twice");
    }
    assert_eq!(unpack(b"").unwrap(), b"");
    assert_eq!(unpack(b"ab").unwrap(), b"ab");
}

#[test]
fn zstd_streams_may_hold_other_frames_and_several() {
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    let one = pack(b"one", Compression::Zstd);
    let two = pack(b"two", Compression::Zstd);
    let all = [&skippable[..], &one, &skippable, &two].concat();
    assert_eq!(unpack(&all).unwrap(), b"onetwo");
}

#[test]
fn damage_and_early_ends_are_told_apart_from_the_source() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = pack(&b"layer".repeat(1000), compression);
        let cut = unpack(&packed[..packed.len() - 3]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof, "{compression:?}");
        let mut bad = packed.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0xff;
        let kind = unpack(&bad).unwrap_err().kind();
        assert!(
            matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
            "{compression:?} {kind:?}"
        );
    }
}

#[test]
fn media_types_promise_a_compression() {
    use gantry_core::media_types as m;
    for (media_type, compression) in [
        (m::OCI_LAYER, Some(Compression::None)),
        (m::OCI_LAYER_GZIP, Some(Compression::Gzip)),
        (m::OCI_LAYER_ZSTD, Some(Compression::Zstd)),
        (m::DOCKER_LAYER, Some(Compression::None)),
        (m::DOCKER_LAYER_GZIP, Some(Compression::Gzip)),
        (m::DOCKER_LAYER_ZSTD, Some(Compression::Zstd)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
        (m::OCI_CONFIG, None),
    ] {
        assert_eq!(Compression::of_media_type(media_type), compression, "{media_type}");
    }
    assert!("lz4".parse::<Compression>().unwrap_err().is_invalid_argument());
}

#[test]
fn layers_keep_their_kind() {
    use gantry_core::media_types as m;
    for (old, compression, oci, new) in [
        (m::DOCKER_LAYER_GZIP, Compression::None, false, m::DOCKER_LAYER),
        (m::DOCKER_LAYER_GZIP, Compression::Zstd, false, m::DOCKER_LAYER_ZSTD),
        (m::DOCKER_LAYER_GZIP, Compression::Gzip, true, m::OCI_LAYER_GZIP),
        (m::OCI_LAYER_GZIP, Compression::None, false, m::OCI_LAYER),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            Compression::Gzip,
            true,
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ),
    ] {
        assert_eq!(compression.layer_type_like(old, oci), new, "{old}");
    }
}
