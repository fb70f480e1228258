//! Snapshots.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Class, Error, Result};
use gantry_metadata::{Db, Options};
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Info, Kind, Snapshotter, Usage, testsuite};

use crate::support::{SN, World, ctx, fails, list, map, resource};

#[tokio::test]
async fn conforms_to_the_suite() {
    let w = World::new();
    let sn = w.db.snapshotter(SN).unwrap().bind(ctx("default"));
    testsuite::records(sn.as_ref()).await;
}

#[tokio::test]
async fn namespaces_have_their_own_keys() {
    let w = World::new();
    let sn = w.db.snapshotter(SN).unwrap();
    for ns in ["a", "b"] {
        w.layer(&ctx(ns), "base", None).await;
        sn.prepare(&ctx(ns), "web", Some("base"), map(&[("n", ns)])).await.unwrap();
    }
    let info = sn.stat(&ctx("a"), "web").await.unwrap();
    assert_eq!((info.kind, info.parent.as_deref()), (Kind::Active, Some("base")));
    assert_eq!(info.labels["n"], "a");
    fails(sn.stat(&ctx("c"), "web").await, Class::NotFound);
    fails(sn.prepare(&ctx("c"), "web", Some("base"), map(&[])).await, Class::NotFound);
    let err = fails(sn.mounts(&ctx("a"), "base").await, Class::FailedPrecondition);
    assert!(err.message().contains("\"base\""), "{err}");
    let err = w.db.snapshotter("zfs").unwrap_err();
    assert!(err.is_invalid_argument() && err.message().starts_with("snapshotter not loaded"));
    fails(sn.cleanup(&ctx("a")).await, Class::Unimplemented);
}

#[tokio::test]
async fn events_leases_and_the_disk() {
    let w = World::new();
    let (plain, sn) = (ctx("default"), w.db.snapshotter(SN).unwrap());
    w.db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let leased = plain.clone().with_lease("l");
    let members = || async { w.db.leases().resources(&plain, "l").await.unwrap() };
    let kind = "snapshots/native";
    sn.prepare(&leased, "k", None, map(&[])).await.unwrap();
    assert_eq!(members().await, [resource(kind, "k")]);
    sn.commit(&leased, "base", "k", CommitOptions::default()).await.unwrap();
    assert_eq!(members().await, [resource(kind, "base")]);
    sn.view(&leased, "v", Some("base"), map(&[])).await.unwrap();
    fails(sn.commit(&plain, "x", "v", CommitOptions::default()).await, Class::FailedPrecondition);
    fails(sn.prepare(&plain, "v", None, map(&[])).await, Class::AlreadyExists);
    fails(sn.prepare(&plain, "w", Some("v"), map(&[])).await, Class::InvalidArgument);
    fails(sn.remove(&leased, "base").await, Class::FailedPrecondition);
    sn.remove(&leased, "v").await.unwrap();
    fails(sn.remove(&leased, "v").await, Class::NotFound);
    assert_eq!(members().await, [resource(kind, "base")]);
    assert_eq!(w.native_count().await, 2);
    w.collect().await;
    assert_eq!(w.native_count().await, 1);
    assert_eq!(
        w.topics(),
        ["default /snapshot/prepare", "default /snapshot/commit", "default /snapshot/remove"]
    );
    let unknown = plain.with_lease("nope");
    fails(sn.prepare(&unknown, "z", None, map(&[])).await, Class::NotFound);
    assert_eq!(w.native_count().await, 1);
}

#[tokio::test]
async fn labels_of_the_family_go_to_the_backend() {
    let w = World::new();
    let (ctx, sn) = (ctx("default"), w.db.snapshotter(SN).unwrap());
    let labels = map(&[("mine", "1"), ("containerd.io/snapshot/x", "1")]);
    sn.prepare(&ctx, "k", None, labels.clone()).await.unwrap();
    let backend = || async {
        let mut found = Vec::new();
        let visit = &mut |info: Info| {
            found.push(info.labels);
            Ok(())
        };
        w.native.walk(visit).await.unwrap();
        found.remove(0)
    };
    assert_eq!(backend().await, map(&[("containerd.io/snapshot/x", "1")]));
    assert_eq!(sn.stat(&ctx, "k").await.unwrap().labels, labels);
    let update = map(&[("containerd.io/snapshot/x", "2"), ("mine", "2")]);
    let paths = list(&["labels.containerd.io/snapshot/x"]);
    let info = sn.update(&ctx, "k", update.clone(), &paths).await.unwrap();
    assert_eq!(info.labels, map(&[("mine", "1"), ("containerd.io/snapshot/x", "2")]));
    assert_eq!(backend().await, map(&[("containerd.io/snapshot/x", "2")]));
    let info = sn.update(&ctx, "k", map(&[("mine", "3")]), &[]).await.unwrap();
    assert_eq!(info.labels, map(&[("mine", "3")]));
    assert_eq!(backend().await, map(&[]));
    fails(sn.update(&ctx, "k", map(&[]), &list(&["parent"])).await, Class::InvalidArgument);
    fails(sn.update(&ctx, "no", map(&[]), &[]).await, Class::NotFound);
}

#[tokio::test]
async fn lists_filter() {
    let w = World::new();
    let (ctx, sn) = (ctx("default"), w.db.snapshotter(SN).unwrap());
    w.layer(&ctx, "base", None).await;
    sn.prepare(&ctx, "web", Some("base"), map(&[("app", "web")])).await.unwrap();
    sn.view(&ctx, "look", Some("base"), map(&[])).await.unwrap();
    for (filter, want) in [
        ("kind==committed", "base"),
        ("parent==base", "look web"),
        ("labels.app==web", "web"),
        ("name~=^l", "look"),
        ("kind==view,parent==base", "look"),
    ] {
        let found = sn.list(&ctx, &list(&[filter])).await.unwrap();
        let names: Vec<_> = found.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names.join(" "), want, "{filter}");
    }
    assert_eq!(sn.list(&ctx, &[]).await.unwrap().len(), 3);
    fails(sn.list(&ctx, &list(&["=="])).await, Class::InvalidArgument);
}

#[tokio::test]
async fn commits_of_one_name_do_not_meet() {
    let w = World::new();
    let (ctx, sn) = (ctx("default"), w.db.snapshotter(SN).unwrap());
    let mut tasks = Vec::new();
    for n in 0..8 {
        let key = format!("k{n}");
        sn.prepare(&ctx, &key, None, map(&[])).await.unwrap();
        let (sn, ctx) = (sn.clone(), ctx.clone());
        tasks.push(tokio::spawn(async move {
            sn.commit(&ctx, "name", &key, CommitOptions::default()).await
        }));
    }
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => won += 1,
            Err(err) => assert!(err.is_already_exists(), "{err}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(sn.list(&ctx, &[]).await.unwrap().len(), 8);
}

#[tokio::test]
async fn commits_to_each_others_names_end() {
    let w = World::new();
    let (ctx, sn) = (ctx("default"), w.db.snapshotter(SN).unwrap());
    for key in ["a", "b"] {
        sn.prepare(&ctx, key, None, map(&[])).await.unwrap();
    }
    let commit = |name, key| sn.commit(&ctx, name, key, CommitOptions::default());
    let (ab, ba) = tokio::join!(commit("a", "b"), commit("b", "a"));
    fails(ab, Class::AlreadyExists);
    fails(ba, Class::AlreadyExists);
}

/// A remote snapshotter: has the layers of target references that end in `-remote` at hand. While
/// it commits, the lease `l` ends in the database it was told of.
struct Remote(Arc<dyn Snapshotter>, OnceLock<Db>);

#[async_trait]
impl Snapshotter for Remote {
    async fn stat(&self, key: &str) -> Result<Info> {
        self.0.stat(key).await
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info> {
        self.0.update(info, fieldpaths).await
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        self.0.usage(key).await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.0.mounts(key).await
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let target = labels.get("containerd.io/snapshot.ref").cloned().unwrap_or_default();
        let mounts = self.0.prepare(key, parent, labels.clone()).await?;
        if !target.ends_with("-remote") {
            return Ok(mounts);
        }
        let options = CommitOptions { labels, ..CommitOptions::default() };
        self.0.commit(&format!("remote/{target}"), key, options).await?;
        Err(Error::already_exists(format!("target snapshot {target:?}")))
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.0.view(key, parent, labels).await
    }

    async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        self.0.commit(name, key, options).await?;
        match self.1.get() {
            Some(db) => db.leases().delete(&ctx("default"), "l", false).await,
            None => Ok(()),
        }
    }

    async fn remove(&self, key: &str) -> Result<()> {
        self.0.remove(key).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        self.0.walk(visit).await
    }

    async fn cleanup(&self) -> Result<()> {
        self.0.cleanup().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

#[tokio::test]
async fn a_remote_snapshot_is_recorded_under_its_target() {
    let w = World::new();
    let mut options = Options::new(Arc::clone(&w.store), Arc::clone(&w.content));
    let remote: Arc<dyn Snapshotter> = Arc::new(Remote(Arc::clone(&w.native), OnceLock::new()));
    options.snapshotters.insert("remote".into(), remote);
    let db = Db::open(options).unwrap();
    let (plain, sn) = (ctx("default"), db.snapshotter("remote").unwrap());
    db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let ctx = plain.with_lease("l");
    let target = |name: &str| map(&[("containerd.io/snapshot.ref", name)]);
    fails(sn.prepare(&ctx, "k1", None, target("a-remote")).await, Class::AlreadyExists);
    let info = sn.stat(&ctx, "a-remote").await.unwrap();
    assert_eq!((info.kind, info.parent), (Kind::Committed, None));
    fails(sn.stat(&ctx, "k1").await, Class::NotFound);
    // Known now, without asking.
    fails(sn.prepare(&ctx, "k2", None, target("a-remote")).await, Class::AlreadyExists);
    fails(sn.prepare(&ctx, "k3", Some("a-remote"), target("b-remote")).await, Class::AlreadyExists);
    assert_eq!(sn.stat(&ctx, "b-remote").await.unwrap().parent.as_deref(), Some("a-remote"));
    sn.prepare(&ctx, "k4", Some("b-remote"), target("local")).await.unwrap();
    db.gc().run().await.unwrap();
    assert_eq!(sn.list(&ctx, &[]).await.unwrap().len(), 3);
}

/// A client that goes away takes its lease along, while a commit of its is done to its end.
#[tokio::test]
async fn a_commit_whose_lease_ends_leaves_nothing() {
    let w = World::new();
    let mut options = Options::new(Arc::clone(&w.store), Arc::clone(&w.content));
    let backend = Arc::new(Remote(Arc::clone(&w.native), OnceLock::new()));
    options.snapshotters.insert("remote".into(), Arc::clone(&backend) as Arc<dyn Snapshotter>);
    let db = Db::open(options).unwrap();
    let (plain, sn) = (ctx("default"), db.snapshotter("remote").unwrap());
    db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let leased = plain.clone().with_lease("l");
    sn.prepare(&leased, "k", None, map(&[])).await.unwrap();
    backend.1.set(db.clone()).unwrap();
    let ended = sn.commit(&leased, "c", "k", CommitOptions::default()).await;
    fails(ended, Class::NotFound);
    db.gc().run().await.unwrap();
    assert!(sn.list(&plain, &[]).await.unwrap().is_empty());
    let mut left = Vec::new();
    let mut visit = |info: Info| {
        left.push(info.name);
        Ok(())
    };
    backend.walk(&mut visit).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}
