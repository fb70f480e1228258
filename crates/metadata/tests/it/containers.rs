//! Containers.

use gantry_core::Any;
use gantry_errdefs::Class;
use gantry_metadata::{Container, Event};

use crate::support::{World, container, ctx, fails, list, map};

fn any(value: &str) -> Any {
    Any { type_url: "t".to_owned(), value: value.as_bytes().to_vec() }
}

#[tokio::test]
async fn a_container_comes_back_as_it_was_made() {
    let w = World::new();
    let mut c = container("c1");
    c.labels = map(&[("a", "1"), ("gone", "")]);
    c.image = "img".into();
    c.spec = Some(any("{\"x\": 1 }"));
    c.runtime.options = Some(any("options"));
    c.snapshotter = "native".into();
    c.snapshot_key = "c1".into();
    c.sandbox_id = "pod".into();
    c.extensions.insert("e".into(), any("ext"));
    let made = w.db.containers().create(&ctx("default"), c.clone()).await.unwrap();
    assert_eq!(made.created_at, made.updated_at);
    (c.created_at, c.updated_at) = (made.created_at, made.updated_at);
    c.labels.remove("gone");
    assert_eq!(made, c);
    assert_eq!(w.db.containers().get(&ctx("default"), "c1").await.unwrap(), c);
    let event = Event::ContainerCreate {
        id: "c1".into(),
        image: "img".into(),
        runtime_name: c.runtime.name,
        runtime_options: Some(any("options")),
    };
    assert_eq!(w.events(), [("default".to_owned(), event)]);
}

#[tokio::test]
async fn create_refuses_what_is_wrong() {
    let w = World::new();
    let (ctx, containers) = (ctx("default"), w.db.containers());
    containers.create(&ctx, container("c1")).await.unwrap();
    fails(containers.create(&ctx, container("c1")).await, Class::AlreadyExists);
    fails(containers.create(&ctx, container("a/b")).await, Class::InvalidArgument);
    let mut c = container("c2");
    c.runtime.name.clear();
    fails(containers.create(&ctx, c).await, Class::InvalidArgument);
    let mut c = container("c2");
    c.snapshot_key = "k".into();
    fails(containers.create(&ctx, c).await, Class::InvalidArgument);
    let mut c = container("c2");
    c.labels = map(&[("k", &"v".repeat(4096))]);
    fails(containers.create(&ctx, c).await, Class::InvalidArgument);
    let mut c = container("c2");
    c.extensions.insert(String::new(), any(""));
    fails(containers.create(&ctx, c).await, Class::InvalidArgument);
    let err = fails(containers.get(&ctx, "c2").await, Class::NotFound);
    assert!(err.text().ends_with(": not found"), "{err}");
}

#[tokio::test]
async fn namespaces_are_apart() {
    let w = World::new();
    w.db.containers().create(&ctx("a"), container("c1")).await.unwrap();
    w.db.containers().create(&ctx("b"), container("c1")).await.unwrap();
    w.db.containers().delete(&ctx("a"), "c1").await.unwrap();
    fails(w.db.containers().get(&ctx("a"), "c1").await, Class::NotFound);
    w.db.containers().get(&ctx("b"), "c1").await.unwrap();
    assert_eq!(
        w.topics(),
        ["a /containers/create", "b /containers/create", "a /containers/delete"]
    );
}

#[tokio::test]
async fn masks_change_what_they_name() {
    let w = World::new();
    let (ctx, containers) = (ctx("default"), w.db.containers());
    let mut c = container("c1");
    c.labels = map(&[("a", "1"), ("b.c/d", "2")]);
    c.extensions.insert("e".into(), any("1"));
    c.extensions.insert("f".into(), any("1"));
    containers.create(&ctx, c).await.unwrap();
    let mut update = container("c1");
    update.labels = map(&[("a", "9"), ("b.c/d", "")]);
    update.image = "new".into();
    update.spec = Some(any("spec"));
    update.snapshotter = "native".into();
    update.snapshot_key = "key".into();
    update.extensions.insert("e".into(), any("2"));
    let apply = async |update: &Container, paths: &[&str]| {
        containers.update(&ctx, update.clone(), &list(paths)).await
    };

    let c = apply(&update, &["labels.b.c/d"]).await.unwrap();
    assert_eq!(c.labels, map(&[("a", "1")]));
    let c = apply(&update, &["extensions.e", "extensions.f", "image"]).await.unwrap();
    assert_eq!(c.extensions.len(), 1);
    assert_eq!((c.extensions["e"].clone(), c.image.as_str()), (any("2"), "new"));
    assert_eq!(c.spec, None);
    for bad in ["snapshot_key", "runtime", "id", "labels."] {
        fails(apply(&update, &[bad]).await, Class::InvalidArgument);
    }
    // A key without a snapshotter is no state a container may be in.
    fails(apply(&update, &["snapshotkey"]).await, Class::InvalidArgument);
    fails(apply(&update, &[]).await, Class::InvalidArgument);
    update.snapshotter.clear();
    update.snapshot_key.clear();
    let c = containers.update(&ctx, update.clone(), &[]).await.unwrap();
    assert_eq!((c.labels, c.spec), (map(&[("a", "9")]), Some(any("spec"))));
    update.runtime.name = "other".into();
    let err = containers.update(&ctx, update.clone(), &[]).await;
    assert!(fails(err, Class::InvalidArgument).message().contains("runtime.name"));
    update.id = "c2".into();
    fails(containers.update(&ctx, update, &list(&["image"])).await, Class::NotFound);
}

#[tokio::test]
async fn lists_filter() {
    let w = World::new();
    let (ctx, containers) = (ctx("default"), w.db.containers());
    for (id, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut c = container(id);
        c.labels = map(&[("nerdctl/name", label)]);
        containers.create(&ctx, c).await.unwrap();
    }
    for (filters, want) in [
        (vec![], "a b c"),
        (vec![r#"labels."nerdctl/name"==x"#], "a c"),
        (vec!["id==b"], "b"),
        (vec!["id==b,labels.nope"], ""),
        (vec!["id==zz"], ""),
        (vec!["id==b", "id~=^a$"], "a b"),
        (vec!["runtime.name==io.containerd.runc.v2,id!=a"], "b c"),
        (vec!["nosuchfield==1"], ""),
    ] {
        let found = containers.list(&ctx, &list(&filters)).await.unwrap();
        let ids: Vec<_> = found.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids.join(" "), want, "{filters:?}");
    }
    fails(containers.list(&ctx, &list(&["id=="])).await, Class::InvalidArgument);
}
