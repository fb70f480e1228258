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
