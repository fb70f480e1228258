//! Sandboxes.

use gantry_core::Any;
use gantry_errdefs::Class;
use gantry_metadata::Sandbox;

use crate::support::{World, ctx, fails, list, map};

#[tokio::test]
async fn a_sandbox_lives() {
    let w = World::new();
    let (ctx, sandboxes) = (ctx("k8s.io"), w.db.sandboxes());
    let mut pod = Sandbox::new("pod");
    pod.runtime.name = "runc".into();
    pod.labels = map(&[("a", "1")]);
    pod.sandboxer = "shim".into();
    let any = Any { type_url: "t".into(), value: vec![1] };
    pod.extensions.insert("e".into(), any.clone());
    let made = sandboxes.create(&ctx, pod.clone()).await.unwrap();
    assert_eq!(sandboxes.get(&ctx, "pod").await.unwrap(), made);
    fails(sandboxes.create(&ctx, pod.clone()).await, Class::AlreadyExists);
    fails(sandboxes.create(&ctx, Sandbox::new("a/b")).await, Class::InvalidArgument);

    let mut update = pod.clone();
    update.labels = map(&[("a", ""), ("b", "2")]);
    update.spec = Some(any);
    update.extensions.clear();
    let paths = list(&["labels.a", "labels.b", "spec", "extensions.e"]);
    let changed = sandboxes.update(&ctx, update.clone(), &paths).await.unwrap();
    assert_eq!(changed.labels, map(&[("b", "2")]));
    assert!(changed.spec.is_some() && changed.extensions.is_empty());
    update.runtime.name = "other".into();
    fails(
        sandboxes.update(&ctx, update.clone(), &list(&["runtime"])).await,
        Class::InvalidArgument,
    );
    fails(sandboxes.update(&ctx, update, &list(&["sandboxer"])).await, Class::InvalidArgument);

    assert_eq!(sandboxes.list(&ctx, &list(&["labels.b==2"])).await.unwrap().len(), 1);
    assert_eq!(sandboxes.list(&ctx, &list(&["id==x"])).await.unwrap().len(), 0);
    sandboxes.delete(&ctx, "pod").await.unwrap();
    fails(sandboxes.delete(&ctx, "pod").await, Class::NotFound);
}
