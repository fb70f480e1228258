//! What can be checked without mounting.

use std::collections::BTreeMap;

use gantry_core::Labels;
use gantry_errdefs::{Class, Error};

use super::{fails, layer, ok, remove_all};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage};

/// Checks names, kinds, parents, labels and errors.
pub async fn records(sn: &dyn Snapshotter) {
    life_of_a_snapshot(sn).await;
    names_are_taken_once(sn).await;
    parents_must_be_committed(sn).await;
    only_active_ones_commit(sn).await;
    children_hold_their_parent(sn).await;
    missing_things_are_not_found(sn).await;
    labels_are_updated(sn).await;
    labels_of_a_commit_replace(sn).await;
    names_are_opaque(sn).await;
    walk_sees_everything_once(sn).await;
    commit_on_the_same_parent(sn).await;
    views_use_nothing(sn).await;
}

async fn life_of_a_snapshot(sn: &dyn Snapshotter) {
    let mounts = ok(sn.prepare("suite-a", None, Labels::new()).await);
    assert!(!mounts.is_empty());
    let active = ok(sn.stat("suite-a").await);
    assert_eq!((active.kind, active.parent), (Kind::Active, None));
    assert_eq!(active.name, "suite-a");
    assert_eq!(ok(sn.mounts("suite-a").await), mounts);
    ok(sn.commit("suite-base", "suite-a", CommitOptions::default()).await);
    fails(sn.stat("suite-a").await, Class::NotFound);
    let base = ok(sn.stat("suite-base").await);
    assert_eq!((base.kind, base.parent), (Kind::Committed, None));
    fails(sn.mounts("suite-base").await, Class::FailedPrecondition);

    let mounts = ok(sn.view("suite-v", Some("suite-base"), Labels::new()).await);
    assert!(mounts.iter().all(|m| !m.is_writable()), "{mounts:?}");
    assert_eq!(ok(sn.mounts("suite-v").await), mounts);
    let view = ok(sn.stat("suite-v").await);
    assert_eq!((view.kind, view.parent.as_deref()), (Kind::View, Some("suite-base")));
    ok(sn.prepare("suite-a", Some("suite-base"), Labels::new()).await);
    assert_eq!(ok(sn.stat("suite-a").await).parent.as_deref(), Some("suite-base"));
    remove_all(sn, &["suite-v", "suite-a", "suite-base"]).await;
    fails(sn.stat("suite-base").await, Class::NotFound);
}

async fn names_are_taken_once(sn: &dyn Snapshotter) {
    ok(layer(sn, "suite-base", None).await);
    ok(sn.prepare("suite-a", None, Labels::new()).await);
    ok(sn.view("suite-v", None, Labels::new()).await);
    for taken in ["suite-base", "suite-a", "suite-v"] {
        fails(sn.prepare(taken, None, Labels::new()).await, Class::AlreadyExists);
        fails(sn.view(taken, Some("suite-base"), Labels::new()).await, Class::AlreadyExists);
        let commit = sn.commit(taken, "suite-a", CommitOptions::default()).await;
        fails(commit, Class::AlreadyExists);
    }
    assert_eq!(ok(sn.stat("suite-a").await).kind, Kind::Active);
    remove_all(sn, &["suite-v", "suite-a", "suite-base"]).await;
    // A name that was removed is free again.
    ok(layer(sn, "suite-base", None).await);
    remove_all(sn, &["suite-base"]).await;
}

async fn parents_must_be_committed(sn: &dyn Snapshotter) {
    ok(sn.prepare("suite-a", None, Labels::new()).await);
    ok(sn.view("suite-v", None, Labels::new()).await);
    for parent in ["suite-a", "suite-v"] {
        let refused = sn.prepare("suite-b", Some(parent), Labels::new()).await;
        fails(refused, Class::InvalidArgument);
        fails(sn.view("suite-b", Some(parent), Labels::new()).await, Class::InvalidArgument);
    }
    fails(sn.prepare("suite-b", Some("suite-none"), Labels::new()).await, Class::NotFound);
    fails(sn.view("suite-b", Some("suite-none"), Labels::new()).await, Class::NotFound);
    fails(sn.stat("suite-b").await, Class::NotFound);
    remove_all(sn, &["suite-v", "suite-a"]).await;
}

async fn only_active_ones_commit(sn: &dyn Snapshotter) {
    ok(layer(sn, "suite-base", None).await);
    ok(sn.view("suite-v", Some("suite-base"), Labels::new()).await);
    for key in ["suite-v", "suite-base"] {
        let commit = sn.commit("suite-new", key, CommitOptions::default()).await;
        fails(commit, Class::FailedPrecondition);
    }
    fails(sn.commit("suite-new", "suite-none", CommitOptions::default()).await, Class::NotFound);
    remove_all(sn, &["suite-v", "suite-base"]).await;
}

async fn children_hold_their_parent(sn: &dyn Snapshotter) {
    ok(layer(sn, "suite-1", None).await);
    ok(layer(sn, "suite-2", Some("suite-1")).await);
    ok(sn.prepare("suite-a", Some("suite-2"), Labels::new()).await);
    ok(sn.view("suite-v", Some("suite-2"), Labels::new()).await);
    fails(sn.remove("suite-1").await, Class::FailedPrecondition);
    fails(sn.remove("suite-2").await, Class::FailedPrecondition);
    ok(sn.remove("suite-a").await);
    fails(sn.remove("suite-2").await, Class::FailedPrecondition);
    remove_all(sn, &["suite-v", "suite-2", "suite-1"]).await;
}

async fn missing_things_are_not_found(sn: &dyn Snapshotter) {
    fails(sn.stat("suite-none").await, Class::NotFound);
    fails(sn.mounts("suite-none").await, Class::NotFound);
    fails(sn.usage("suite-none").await, Class::NotFound);
    fails(sn.remove("suite-none").await, Class::NotFound);
    let info = info("suite-none", &[]);
    fails(sn.update(info, &[]).await, Class::NotFound);
    fails(sn.prepare("", None, Labels::new()).await, Class::InvalidArgument);
    fails(sn.view("", None, Labels::new()).await, Class::InvalidArgument);
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn info(name: &str, pairs: &[(&str, &str)]) -> Info {
    Info {
        kind: Kind::Active,
        name: name.to_owned(),
        parent: None,
        labels: labels(pairs),
        created: std::time::SystemTime::UNIX_EPOCH,
        updated: std::time::SystemTime::UNIX_EPOCH,
    }
}

async fn labels_are_updated(sn: &dyn Snapshotter) {
    ok(sn.prepare("suite-a", None, labels(&[("a", "1"), ("b.c", "2")])).await);
    let before = ok(sn.stat("suite-a").await);
    assert_eq!(before.labels, labels(&[("a", "1"), ("b.c", "2")]));
    let paths = |p: &[&str]| p.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let change = info("suite-a", &[("b.c", "3"), ("ignored", "x")]);
    let after = ok(sn.update(change, &paths(&["labels.b.c", "labels.new"])).await);
    assert_eq!(after.labels, labels(&[("a", "1"), ("b.c", "3")]));
    assert_eq!((after.kind, after.created), (before.kind, before.created));
    assert!(after.updated >= before.updated);
    let gone = info("suite-a", &[("a", "")]);
    assert_eq!(ok(sn.update(gone, &paths(&["labels.a"])).await).labels, labels(&[("b.c", "3")]));
    for all in [&[][..], &["labels"]] {
        let change = info("suite-a", &[("only", "1"), ("empty", "")]);
        let after = ok(sn.update(change, &paths(all)).await);
        assert_eq!(after.labels, labels(&[("only", "1")]));
    }
    for bad in ["parent", "kind", "name", "created", "labels.", "labelsx"] {
        let refused = sn.update(info("suite-a", &[]), &paths(&[bad])).await;
        fails(refused, Class::InvalidArgument);
    }
    assert_eq!(ok(sn.stat("suite-a").await).labels, labels(&[("only", "1")]));
    let long = "x".repeat(gantry_core::labels::LABEL_LEN_MAX);
    let refused = sn.update(info("suite-a", &[("long", &long)]), &[]).await;
    fails(refused, Class::InvalidArgument);
    let refused = sn.prepare("suite-b", None, labels(&[("long", &long)])).await;
    fails(refused, Class::InvalidArgument);
    remove_all(sn, &["suite-a"]).await;
}

async fn labels_of_a_commit_replace(sn: &dyn Snapshotter) {
    ok(sn.prepare("suite-a", None, labels(&[("active", "1")])).await);
    let options = CommitOptions { labels: labels(&[("committed", "1")]), ..Default::default() };
    ok(sn.commit("suite-base", "suite-a", options).await);
    let base = ok(sn.stat("suite-base").await);
    assert_eq!(base.labels, labels(&[("committed", "1")]));
    // Committed snapshots take labels too.
    let change = info("suite-base", &[("later", "1")]);
    ok(sn.update(change, &["labels.later".to_owned()]).await);
    assert_eq!(ok(sn.stat("suite-base").await).labels.len(), 2);
    remove_all(sn, &["suite-base"]).await;
}

async fn names_are_opaque(sn: &dyn Snapshotter) {
    let names = ["suite-/../../etc", "suite-\0\u{1}", "suite- ä\n", "suite-:,=\\"];
    for name in names {
        ok(layer(sn, name, None).await);
        ok(sn.prepare("suite-child", Some(name), Labels::new()).await);
        assert_eq!(ok(sn.stat("suite-child").await).parent.as_deref(), Some(name));
        fails(sn.remove(name).await, Class::FailedPrecondition);
        remove_all(sn, &["suite-child"]).await;
    }
    // A name that begins like a parent's is no child of it.
    ok(layer(sn, "suite-", None).await);
    ok(sn.remove("suite-").await);
    remove_all(sn, &names).await;
}

async fn walk_sees_everything_once(sn: &dyn Snapshotter) {
    ok(layer(sn, "suite-1", None).await);
    ok(layer(sn, "suite-2", Some("suite-1")).await);
    ok(sn.prepare("suite-a", Some("suite-2"), labels(&[("a", "b")])).await);
    ok(sn.view("suite-v", Some("suite-1"), Labels::new()).await);
    let mut seen = BTreeMap::new();
    ok(sn
        .walk(&mut |info| {
            if info.name.starts_with("suite-") {
                assert!(seen.insert(info.name.clone(), info).is_none(), "seen twice");
            }
            Ok(())
        })
        .await);
    assert_eq!(seen.len(), 4);
    for (name, info) in &seen {
        assert_eq!(ok(sn.stat(name).await), *info);
    }
    fails(sn.walk(&mut |_| Err(Error::aborted("enough"))).await, Class::Aborted);
    remove_all(sn, &["suite-v", "suite-a", "suite-2", "suite-1"]).await;
}

async fn commit_on_the_same_parent(sn: &dyn Snapshotter) {
    ok(layer(sn, "suite-1", None).await);
    ok(layer(sn, "suite-other", None).await);
    ok(sn.prepare("suite-a", Some("suite-1"), Labels::new()).await);
    let on = |parent: &str| CommitOptions { parent: Some(parent.to_owned()), ..Default::default() };
    fails(sn.commit("suite-2", "suite-a", on("suite-none")).await, Class::NotFound);
    fails(sn.commit("suite-2", "suite-a", on("suite-a")).await, Class::InvalidArgument);
    fails(sn.commit("suite-2", "suite-a", on("suite-other")).await, Class::FailedPrecondition);
    ok(sn.commit("suite-2", "suite-a", on("suite-1")).await);
    assert_eq!(ok(sn.stat("suite-2").await).parent.as_deref(), Some("suite-1"));
    remove_all(sn, &["suite-2", "suite-1", "suite-other"]).await;
}

async fn views_use_nothing(sn: &dyn Snapshotter) {
    ok(layer(sn, "suite-1", None).await);
    ok(sn.view("suite-v", Some("suite-1"), Labels::new()).await);
    assert_eq!(ok(sn.usage("suite-v").await), Usage::default());
    remove_all(sn, &["suite-v", "suite-1"]).await;
}
