//! The collector against a naive model: random histories of pulls, prunes, removals and leases,
//! and after each collection exactly what the model says is left.

use std::collections::{BTreeMap, BTreeSet};

use gantry_core::{Descriptor, Digest, Labels};
use gantry_metadata::{Image, ImageDelete, Resource};
use proptest::prelude::*;

use crate::support::{MANIFEST, SN, World, container, ctx, map, resource};

/// Few names, so that histories meet.
const NAMES: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Blob(u8),
    Image(u8),
    Layer(u8),
}

#[derive(Clone, Copy, Debug)]
enum Label {
    Root,
    Ref(Thing),
    BackRef(Thing),
}

#[derive(Clone, Debug)]
enum Step {
    Blob { n: u8, label: Option<Label>, lease: Option<u8> },
    Relabel { n: u8, label: Option<Label> },
    DeleteBlob(u8),
    Image { n: u8, target: u8, expired: bool },
    DeleteImage(u8),
    Layer { n: u8, parent: Option<u8>, lease: Option<u8> },
    RemoveLayer(u8),
    Container { n: u8, layer: u8 },
    DeleteContainer(u8),
    Lease { n: u8, flat: bool, expired: bool },
    DeleteLease(u8),
    Hold { lease: u8, thing: Thing },
    Release { lease: u8, thing: Thing },
    Collect,
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        3 => (0..NAMES).prop_map(Thing::Blob),
        1 => (0..NAMES).prop_map(Thing::Image),
        2 => (0..NAMES).prop_map(Thing::Layer),
    ]
}

fn label() -> impl Strategy<Value = Option<Label>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Label::Root)),
        5 => thing().prop_map(|t| Some(Label::Ref(t))),
        2 => thing().prop_map(|t| Some(Label::BackRef(t))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..NAMES;
    let maybe = || prop::option::of(0..NAMES);
    prop_oneof![
        6 => (n(), label(), maybe()).prop_map(|(n, label, lease)| Step::Blob { n, label, lease }),
        2 => (n(), label()).prop_map(|(n, label)| Step::Relabel { n, label }),
        1 => n().prop_map(Step::DeleteBlob),
        3 => (n(), n(), prop::bool::weighted(0.2))
            .prop_map(|(n, target, expired)| Step::Image { n, target, expired }),
        1 => n().prop_map(Step::DeleteImage),
        4 => (n(), maybe(), maybe())
            .prop_map(|(n, parent, lease)| Step::Layer { n, parent, lease }),
        1 => n().prop_map(Step::RemoveLayer),
        2 => (n(), n()).prop_map(|(n, layer)| Step::Container { n, layer }),
        1 => n().prop_map(Step::DeleteContainer),
        3 => (n(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(n, flat, expired)| Step::Lease { n, flat, expired }),
        1 => n().prop_map(Step::DeleteLease),
        3 => (n(), thing()).prop_map(|(lease, thing)| Step::Hold { lease, thing }),
        1 => (n(), thing()).prop_map(|(lease, thing)| Step::Release { lease, thing }),
        3 => Just(Step::Collect),
    ]
}

#[derive(Default)]
struct Model {
    blobs: BTreeMap<u8, Option<Label>>,
    /// Target and whether it has expired.
    images: BTreeMap<u8, (u8, bool)>,
    layers: BTreeMap<u8, Option<u8>>,
    containers: BTreeMap<u8, u8>,
    leases: BTreeMap<u8, Held>,
}

#[derive(Default)]
struct Held {
    flat: bool,
    expired: bool,
    things: BTreeSet<Thing>,
}

impl Model {
    /// Keeps what can be reached, found by going round until nothing is added.
    fn collect(&mut self) {
        let mut deep = BTreeSet::new();
        let mut flat = BTreeSet::new();
        self.leases.retain(|_, held| !held.expired);
        for held in self.leases.values() {
            if held.flat { &mut flat } else { &mut deep }.extend(held.things.iter().copied());
        }
        deep.extend(self.images.iter().filter(|(_, i)| !i.1).map(|(n, _)| Thing::Image(*n)));
        deep.extend(self.containers.values().map(|layer| Thing::Layer(*layer)));
        let roots = self.blobs.iter().filter(|(_, l)| matches!(l, Some(Label::Root)));
        deep.extend(roots.map(|(n, _)| Thing::Blob(*n)));
        loop {
            let before = (deep.len(), flat.len());
            for thing in deep.clone() {
                self.add_edges(thing, &mut deep);
                if let Thing::Blob(n) = thing
                    && let Some(Some(Label::Ref(to))) = self.blobs.get(&n)
                {
                    deep.insert(*to);
                }
                if let Thing::Layer(n) = thing {
                    deep.extend(self.layers.get(&n).copied().flatten().map(Thing::Layer));
                }
            }
            for thing in flat.clone() {
                self.add_edges(thing, &mut deep);
                if let Thing::Layer(n) = thing {
                    flat.extend(self.layers.get(&n).copied().flatten().map(Thing::Layer));
                }
            }
            if before == (deep.len(), flat.len()) {
                break;
            }
        }
        let live = |thing| deep.contains(&thing) || flat.contains(&thing);
        self.blobs.retain(|n, _| live(Thing::Blob(*n)));
        self.layers.retain(|n, _| live(Thing::Layer(*n)));
        self.images.retain(|n, _| live(Thing::Image(*n)));
    }

    /// The edges that a flat lease follows too: an image's target, and back references.
    fn add_edges(&self, thing: Thing, deep: &mut BTreeSet<Thing>) {
        if let Thing::Image(n) = thing
            && let Some((target, _)) = self.images.get(&n)
        {
            deep.insert(Thing::Blob(*target));
        }
        for (n, label) in &self.blobs {
            if let Some(Label::BackRef(parent)) = label
                && *parent == thing
            {
                deep.insert(Thing::Blob(*n));
            }
        }
    }
}

fn data(n: u8) -> String {
    format!("blob {n}")
}

fn digest(n: u8) -> Digest {
    Digest::of(data(n).as_bytes())
}

fn of(thing: Thing) -> Resource {
    match thing {
        Thing::Blob(n) => resource("content", digest(n).as_str()),
        Thing::Image(n) => resource("images", &n.to_string()),
        Thing::Layer(n) => resource("snapshots/native", &n.to_string()),
    }
}

fn labels(label: Option<Label>) -> Labels {
    let kind = |thing| match thing {
        Thing::Blob(_) => "content",
        Thing::Image(_) => "image",
        Thing::Layer(_) => "snapshot.native",
    };
    match label {
        None => map(&[]),
        Some(Label::Root) => map(&[("containerd.io/gc.root", "1")]),
        Some(Label::Ref(thing)) => {
            map(&[(&format!("containerd.io/gc.ref.{}", kind(thing)), &of(thing).id)])
        }
        Some(Label::BackRef(thing)) => {
            map(&[(&format!("containerd.io/gc.bref.{}", kind(thing)), &of(thing).id)])
        }
    }
}

fn expiry(expired: bool) -> Labels {
    let at = if expired { "2020-01-01T00:00:00Z" } else { "2100-01-01T00:00:00Z" };
    map(&[("containerd.io/gc.expire", at)])
}

/// Does a step to the store, and to the model when the store took it.
async fn apply(w: &World, model: &mut Model, step: &Step) {
    let plain = ctx("default");
    let under = |lease: Option<u8>| match lease {
        // Only leases that are there: an unknown one is an error of its own.
        Some(n) if model.leases.contains_key(&n) => plain.clone().with_lease(n.to_string()),
        _ => plain.clone(),
    };
    let held = |lease: Option<u8>| lease.filter(|n| model.leases.contains_key(n));
    match *step {
        Step::Blob { n, label, lease } => {
            let (ctx, lease) = (under(lease), held(lease));
            let own = labels(label);
            let own: Vec<_> = own.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let made = w.try_blob(&ctx, &data(n), &own).await;
            assert_eq!(made.is_ok(), !model.blobs.contains_key(&n), "{made:?}");
            if made.is_ok() {
                model.blobs.insert(n, label);
            }
            if let Some(held) = lease.and_then(|l| model.leases.get_mut(&l)) {
                held.things.insert(Thing::Blob(n));
            }
        }
        Step::Relabel { n, label } => {
            let done = w.db.content().update(&plain, &digest(n), labels(label), &[]).await;
            assert_eq!(done.is_ok(), model.blobs.contains_key(&n), "{done:?}");
            if done.is_ok() {
                model.blobs.insert(n, label);
            }
        }
        Step::DeleteBlob(n) => {
            let done = w.db.content().delete(&plain, &digest(n)).await;
            assert_eq!(done.is_ok(), model.blobs.remove(&n).is_some(), "{done:?}");
        }
        Step::Image { n, target, expired } => {
            let mut image = Image::new(n.to_string(), Descriptor::new(MANIFEST, digest(target), 1));
            image.labels = expiry(expired);
            let made = w.db.images().create(&plain, image, None).await;
            assert_eq!(made.is_ok(), !model.images.contains_key(&n), "{made:?}");
            model.images.entry(n).or_insert((target, expired));
        }
        Step::DeleteImage(n) => {
            let done = w.db.images().delete(&plain, &n.to_string(), ImageDelete::default()).await;
            assert_eq!(done.is_ok(), model.images.remove(&n).is_some(), "{done:?}");
        }
        Step::Layer { n, parent, lease } => {
            let (ctx, lease) = (under(lease), held(lease));
            let parent = parent.filter(|p| model.layers.contains_key(p));
            let is_new = !model.layers.contains_key(&n);
            if is_new {
                let parent_name = parent.map(|p| p.to_string());
                w.layer(&ctx, &n.to_string(), parent_name.as_deref()).await;
                model.layers.insert(n, parent);
                if let Some(held) = lease.and_then(|l| model.leases.get_mut(&l)) {
                    held.things.insert(Thing::Layer(n));
                }
            }
        }
        Step::RemoveLayer(n) => {
            let done = w.db.snapshotter(SN).unwrap().remove(&plain, &n.to_string()).await;
            let has_child = model.layers.values().any(|parent| *parent == Some(n));
            assert_eq!(done.is_ok(), model.layers.contains_key(&n) && !has_child, "{done:?}");
            if done.is_ok() {
                model.layers.remove(&n);
            }
        }
        Step::Container { n, layer } => {
            let mut c = container(&n.to_string());
            (c.snapshotter, c.snapshot_key) = (SN.into(), layer.to_string());
            let made = w.db.containers().create(&plain, c).await;
            assert_eq!(made.is_ok(), !model.containers.contains_key(&n), "{made:?}");
            model.containers.entry(n).or_insert(layer);
        }
        Step::DeleteContainer(n) => {
            let done = w.db.containers().delete(&plain, &n.to_string()).await;
            assert_eq!(done.is_ok(), model.containers.remove(&n).is_some(), "{done:?}");
        }
        _ => apply_to_leases(w, model, step).await,
    }
}

async fn apply_to_leases(w: &World, model: &mut Model, step: &Step) {
    let (ctx, leases) = (ctx("default"), w.db.leases());
    match *step {
        Step::Lease { n, flat, expired } => {
            let mut labels = expiry(expired);
            if flat {
                labels.extend(map(&[("containerd.io/gc.flat", "1")]));
            }
            let made = leases.create(&ctx, &n.to_string(), labels).await;
            assert_eq!(made.is_ok(), !model.leases.contains_key(&n), "{made:?}");
            model.leases.entry(n).or_insert(Held { flat, expired, things: BTreeSet::new() });
        }
        Step::DeleteLease(n) => {
            let done = leases.delete(&ctx, &n.to_string(), false).await;
            assert_eq!(done.is_ok(), model.leases.remove(&n).is_some(), "{done:?}");
        }
        Step::Hold { lease, thing } => {
            let done = leases.add_resource(&ctx, &lease.to_string(), of(thing)).await;
            assert_eq!(done.is_ok(), model.leases.contains_key(&lease), "{done:?}");
            if let Some(held) = model.leases.get_mut(&lease) {
                held.things.insert(thing);
            }
        }
        Step::Release { lease, thing } => {
            let done = leases.delete_resource(&ctx, &lease.to_string(), of(thing)).await;
            assert_eq!(done.is_ok(), model.leases.contains_key(&lease), "{done:?}");
            if let Some(held) = model.leases.get_mut(&lease) {
                held.things.remove(&thing);
            }
        }
        _ => {
            w.collect().await;
            model.collect();
        }
    }
}

async fn compare(w: &World, model: &Model, history: &[Step]) {
    let ctx = ctx("default");
    let blobs = w.db.content().list(&ctx, &[]).await.unwrap();
    let blobs: BTreeSet<_> = blobs.into_iter().map(|b| b.digest).collect();
    let want: BTreeSet<_> = model.blobs.keys().map(|n| digest(*n)).collect();
    assert_eq!(blobs, want, "blobs after {history:#?}");
    let layers = w.db.snapshotter(SN).unwrap().list(&ctx, &[]).await.unwrap();
    let layers: BTreeSet<_> = layers.into_iter().map(|l| l.name).collect();
    let want: BTreeSet<_> = model.layers.keys().map(|n| n.to_string()).collect();
    assert_eq!(layers, want, "snapshots after {history:#?}");
    let images = w.db.images().list(&ctx, &[]).await.unwrap();
    let images: BTreeSet<_> = images.into_iter().map(|i| i.name).collect();
    let want: BTreeSet<_> = model.images.keys().map(|n| n.to_string()).collect();
    assert_eq!(images, want, "images after {history:#?}");
    let leases = w.db.leases().list(&ctx, &[]).await.unwrap().len();
    assert_eq!(leases, model.leases.len(), "leases after {history:#?}");
    // And the same on disk.
    for digest in &blobs {
        assert!(w.stored(digest).await);
    }
    assert_eq!(w.native_count().await, layers.len());
    let mut stored = 0;
    let count_one = &mut |_| {
        stored += 1;
        Ok(())
    };
    w.content.walk(count_one).await.unwrap();
    assert_eq!(stored, blobs.len(), "stored blobs after {history:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, ..Default::default() })]
    #[test]
    fn the_collector_agrees_with_the_model(history in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let w = World::new();
            let mut model = Model::default();
            for (at, step) in history.iter().enumerate() {
                apply(&w, &mut model, step).await;
                if matches!(step, Step::Collect) {
                    compare(&w, &model, &history[..=at]).await;
                }
            }
        });
    }
}
