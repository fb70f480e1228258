use super::*;

fn overlay(options: &[&str]) -> Vec<Mount> {
    vec![Mount::new("overlay", "overlay", options.iter().copied())]
}

#[test]
fn places_are_seen_without_mounting() {
    let bind = vec![Mount::new("bind", "/a", ["rbind", "rw"])];
    assert_eq!(place(&bind), Place::Dir("/a".into()));
    assert_eq!(
        place(&overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/l2:/l1", "index=off"])),
        Place::Overlay {
            upper: Some("/u".into()),
            lowers: vec!["/l2".into(), "/l1".into()],
            userxattr: false
        }
    );
    for other in [
        overlay(&["upperdir=/u"]),
        overlay(&["upperdir=/u", "lowerdir=l2:l1"]),
        overlay(&["upperdir=/u", "lowerdir=/a\\:b"]),
        overlay(&["upperdir=/u", "lowerdir=/a", "redirect_dir=on"]),
        vec![Mount::new("ext4", "/dev/x", ["rw"])],
        [bind.clone(), bind].concat(),
    ] {
        assert_eq!(place(&other), Place::Other, "{other:?}");
    }
}

#[test]
fn an_upper_directory_is_the_change_only_over_the_same_lowers() {
    let right = overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"]);
    assert!(overlay_changes(&overlay(&["lowerdir=/b:/a"]), &right).is_some());
    assert!(overlay_changes(&overlay(&["lowerdir=/c:/a"]), &right).is_none());
    assert!(overlay_changes(&[], &right).is_none());
    let right = overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/a"]);
    let left = vec![Mount::new("bind", "/a", ["rbind", "ro"])];
    assert!(overlay_changes(&left, &right).is_some());
}
