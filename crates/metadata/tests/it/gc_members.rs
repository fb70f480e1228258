//! What lives outside the database and goes with what holds it.

use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use gantry_core::{Context, Descriptor, Labels};
use gantry_errdefs::{Error, Result};
use gantry_metadata::{Image, Member, MemberKind, Members};

use crate::support::{MANIFEST, World, container, ctx, map};

/// Mounts or streams that are nothing but names.
#[derive(Default)]
struct Names {
    there: Mutex<Vec<Member>>,
    /// Refuse to go.
    busy: Mutex<bool>,
}

impl Names {
    fn of(w: &World, kind: MemberKind) -> Arc<Self> {
        let names = Arc::new(Self::default());
        let weak: Weak<dyn Members> = Arc::<Self>::downgrade(&names);
        w.db.gc().look_after(kind, weak);
        names
    }

    fn add(&self, ctx: &Context, name: &str, labels: Labels) {
        let mut there = self.there.lock().unwrap();
        let number = there.len() as u64;
        there.push(Member {
            namespace: ctx.namespace.clone(),
            name: name.to_owned(),
            number,
            lease: ctx.lease.clone(),
            labels,
        });
    }

    fn names(&self) -> Vec<String> {
        self.there.lock().unwrap().iter().map(|member| member.name.clone()).collect()
    }
}

#[async_trait]
impl Members for Names {
    fn list(&self) -> Vec<Member> {
        self.there.lock().unwrap().clone()
    }

    async fn remove(&self, member: &Member) -> Result<()> {
        if *self.busy.lock().unwrap() {
            return Err(Error::unavailable("busy"));
        }
        self.there.lock().unwrap().retain(|other| other != member);
        Ok(())
    }
}

#[tokio::test]
async fn members_go_with_their_lease_unless_something_refers_to_them() {
    let w = World::new();
    let ctx = ctx("default");
    let (mounts, streams) = (Names::of(&w, MemberKind::Mount), Names::of(&w, MemberKind::Stream));
    w.db.leases().create(&ctx, "l", map(&[])).await.unwrap();
    let leased = ctx.clone().with_lease("l");
    for names in [&mounts, &streams] {
        names.add(&ctx, "nobody's", map(&[]));
        names.add(&leased, "leased", map(&[]));
        names.add(&leased, "of image", map(&[]));
        names.add(&leased, "of blob", map(&[]));
    }
    // An image keeps the one of a kind, what it names keeps the other.
    let blob = w.blob(&ctx, "blob", &[("containerd.io/gc.ref.mount.a", "of blob")]).await;
    let mut image = Image::new("img", Descriptor::new(MANIFEST, blob, 4));
    image.labels = map(&[("containerd.io/gc.ref.stream", "of image")]);
    w.db.images().create(&ctx, image, None).await.unwrap();
    w.collect().await;
    assert_eq!((mounts.names().len(), streams.names().len()), (4, 4), "the lease holds them");

    w.db.leases().delete(&ctx, "l", false).await.unwrap();
    assert_eq!(w.collect().await.deleted, 4);
    assert_eq!(mounts.names(), ["nobody's", "of blob"]);
    assert_eq!(streams.names(), ["nobody's", "of image"]);
    w.remove_image(&ctx, "img").await;
    assert_eq!(mounts.names(), ["nobody's"]);
    assert_eq!(streams.names(), ["nobody's"]);
}

#[tokio::test]
async fn members_live_with_what_their_labels_name() {
    let w = World::new();
    let ctx = ctx("default");
    let mounts = Names::of(&w, MemberKind::Mount);
    w.db.containers().create(&ctx, container("c")).await.unwrap();
    let blob = w.blob(&ctx, "blob", &[("containerd.io/gc.root", "yes")]).await;
    w.image(&ctx, "img", &blob).await;
    w.layer(&ctx, "snap", None).await;
    let kept = map(&[("containerd.io/gc.root", "yes")]);
    w.db.snapshotter("native").unwrap().update(&ctx, "snap", kept, &[]).await.unwrap();
    let of = |label: &str, value: &str| map(&[(&format!("containerd.io/gc.bref.{label}"), value)]);
    mounts.add(&ctx, "container", of("container", "c"));
    mounts.add(&ctx, "content", of("content/x", blob.as_str()));
    mounts.add(&ctx, "image", of("image.y", "img"));
    mounts.add(&ctx, "snapshot", of("snapshot.native", "snap"));
    mounts.add(&ctx, "gone", of("container", "none"));
    let elsewhere = self::ctx("elsewhere");
    mounts.add(&elsewhere, "elsewhere", of("container", "c"));
    // Two holders: either is enough.
    let mut two = of("container.a", "none");
    two.extend(of("container.b", "c"));
    mounts.add(&ctx, "two", two);
    w.collect().await;
    assert_eq!(mounts.names(), ["container", "content", "image", "snapshot", "two"]);
    w.db.containers().delete(&ctx, "c").await.unwrap();
    w.collect().await;
    assert_eq!(mounts.names(), ["content", "image", "snapshot"]);
}

#[tokio::test]
async fn what_refuses_to_go_is_tried_again() {
    let w = World::new();
    let ctx = ctx("default");
    let mounts = Names::of(&w, MemberKind::Mount);
    mounts.add(&ctx, "m", map(&[("containerd.io/gc.bref.container", "none")]));
    *mounts.busy.lock().unwrap() = true;
    assert_eq!(w.collect().await.deleted, 0);
    *mounts.busy.lock().unwrap() = false;
    assert_eq!(w.collect().await.deleted, 1);
    assert_eq!(mounts.names(), Vec::<String>::new());
    // Nobody has members any more: the collector goes on.
    mounts.add(&ctx, "m", map(&[]));
    drop(mounts);
    w.collect().await;
}
