//! Archives that are cut, flipped or noise: a typed error or a tree, never a panic or a hang.

use std::io::Write;

use gantry_archive::{Compression, Compressor, apply};
use gantry_errdefs::Class;
use proptest::prelude::*;

use crate::support::{Header, Tar};

fn sample() -> Vec<u8> {
    Tar::new()
        .dir("d")
        .pax(&[("mtime", b"1500000000.25"), ("SCHILY.xattr.user.x", b"v"), ("path", b"d/pax")])
        .file("d/f", vec![3; 1500])
        .header(&Header { size: 6, ..Header::new("././@LongLink", b'L') })
        .data(b"d/gnu\0")
        .file("x", "y")
        .hardlink("d/h", "d/gnu")
        .symlink("d/s", "gnu")
        .file("d/.wh.f", "")
        .pax(&[("GNU.sparse.map", b"10,1,20,1"), ("GNU.sparse.size", b"40")])
        .file("sparse", "ab")
        .finish()
}

fn packed(compression: Compression) -> Vec<u8> {
    let mut out = Compressor::new(Vec::new(), compression).unwrap();
    out.write_all(&sample()).unwrap();
    out.finish().unwrap()
}

/// Applies and checks that what comes is a tree or an InvalidArgument.
fn survive(bytes: &[u8]) -> Result<bool, TestCaseError> {
    let temp = tempfile::tempdir().unwrap();
    match apply(bytes, temp.path(), &Default::default()) {
        Ok(_) => Ok(true),
        Err(err) => {
            prop_assert_eq!(err.class(), Class::InvalidArgument, "{}", err);
            Ok(false)
        }
    }
}

/// Repairs the header checksums so that damage reaches past them.
fn fix_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn root_flipped_bytes(flips in prop::collection::vec((0usize..12_000, any::<u8>()), 1..6)) {
        let mut bytes = sample();
        let len = bytes.len();
        for (at, to) in flips {
            bytes[at % len] = to;
        }
        survive(&bytes)?;
        fix_checksums(&mut bytes);
        survive(&bytes)?;
    }

    #[test]
    fn root_cut_archives(cut in 0usize..12_000, kind in 0..3) {
        let compression = [Compression::None, Compression::Gzip, Compression::Zstd][kind as usize];
        let bytes = packed(compression);
        let cut = cut % bytes.len();
        let applied = survive(&bytes[..cut])?;
        if compression != Compression::None && cut > 4 {
            prop_assert!(!applied, "a cut {} stream was taken for whole", compression.as_str());
        }
    }

    #[test]
    fn root_flipped_compressed_bytes(at in 0usize..12_000, to in any::<u8>(), zstd in any::<bool>()) {
        let mut bytes = packed(if zstd { Compression::Zstd } else { Compression::Gzip });
        let at = at % bytes.len();
        bytes[at] = to;
        survive(&bytes)?;
    }

    #[test]
    fn root_noise(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        survive(&bytes)?;
    }
}

#[test]
fn root_pieces_of_the_archive_in_any_order() {
    let bytes = sample();
    let blocks: Vec<&[u8]> = bytes.chunks(512).collect();
    for seed in 0..200 {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        let mut state = seed as usize + 1;
        for i in (1..order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            order.swap(i, (state >> 33) % (i + 1));
        }
        let shuffled: Vec<u8> = order.iter().flat_map(|i| blocks[*i]).copied().collect();
        survive(&shuffled).unwrap();
    }
}

/// A source that fails is not the archive's fault.
#[test]
fn root_errors_of_the_source_keep_their_class() {
    struct Failing(usize);
    impl std::io::Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.0 -= 1;
            buf[0] = b'x';
            Ok(1)
        }
    }
    for at in [0, 3, 600] {
        let temp = tempfile::tempdir().unwrap();
        let err = apply(Failing(at), temp.path(), &Default::default()).unwrap_err();
        assert!(matches!(err.class(), Class::DeadlineExceeded | Class::InvalidArgument), "{err}");
    }
}
