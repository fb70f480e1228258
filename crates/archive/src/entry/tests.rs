use super::*;
use crate::entry::pax;

#[test]
fn pax_times() {
    let time = |s: &str| pax::time(s.as_bytes()).map(|t| (t.tv_sec, t.tv_nsec));
    assert_eq!(time("5"), Some((5, 0)));
    assert_eq!(time("5.25"), Some((5, 250_000_000)));
    assert_eq!(time("5.1234567891"), Some((5, 123_456_789)));
    assert_eq!(time("-1.5"), Some((-2, 500_000_000)));
    assert_eq!(time("-0.5"), Some((-1, 500_000_000)));
    assert_eq!(time("-3"), Some((-3, 0)));
    for bad in ["", "x", "1.x", "1.-5", "99999999999999999999", "1e3", " 1"] {
        assert_eq!(time(bad), None, "{bad:?}");
    }
}

#[test]
fn pax_records_are_read_by_their_length() {
    let found = pax::read(b"22 SCHILY.xattr.a=1\n2\n9 size=7\n").unwrap();
    assert_eq!(found.xattrs, [(b"a".to_vec(), b"1\n2".to_vec())]);
    assert_eq!(found.size, Some(7));
    assert!(pax::read(b"9 mtime=\n").unwrap().mtime.is_none());
    for bad in [
        "9 size=7",
        "8 size=7\n",
        "12 size=7\n",
        "0 a=b\n",
        "x a=b\n",
        "7 size\n",
        "4 a=b\n",
        "18446744073709551615 a=b\n",
        "9 size=x\n",
        "18 SCHILY.xattr.=\n",
        "11 mtime=x\n",
    ] {
        assert!(pax::read(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn sparse_maps_must_fit() {
    let sparse = |map: &[(u64, u64)], size, content| {
        checked_sparse(Sparse { map: map.to_vec(), size }, content).is_ok()
    };
    assert!(sparse(&[(0, 2), (4, 2), (8, 0)], 8, 4));
    assert!(!sparse(&[(0, 2), (1, 2)], 8, 4));
    assert!(!sparse(&[(0, 9)], 8, 9));
    assert!(!sparse(&[(0, 2)], 8, 3));
    assert!(!sparse(&[(u64::MAX, 2)], u64::MAX, 2));
}

/// A tar of one file, cut after `len` bytes.
fn cut_tar(content: &[u8], len: usize) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "last", content).unwrap();
    let mut bytes = tar.into_inner().unwrap();
    bytes.truncate(len);
    bytes
}

#[test]
fn only_the_padding_of_the_last_entry_may_be_missing() {
    let read_to_end = |bytes: &[u8]| -> Result<usize> {
        let mut archive = Archive::new(bytes, Limits::default());
        let mut count = 0;
        while let Some(entry) = archive.next()? {
            archive.content(entry.size, |_| Ok(()))?;
            count += 1;
        }
        Ok(count)
    };
    let whole = 512 + 700;
    for len in [whole, whole + 1, 512 + 1024, 512 + 1024 + 512, 512 + 1024 + 1024] {
        assert_eq!(read_to_end(&cut_tar(&[7; 700], len)).unwrap(), 1, "{len} bytes");
    }
    for len in [512, 513, whole - 1] {
        let error = read_to_end(&cut_tar(&[7; 700], len)).unwrap_err();
        assert!(error.is_invalid_argument() && error.message().contains("last"), "{error}");
    }
}
