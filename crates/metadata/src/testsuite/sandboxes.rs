//! Sandboxes.

use gantry_errdefs::Class;

use super::{Release, Subject, any, ctx, fails, list, map, ok};
use crate::Sandbox;

pub(super) async fn run(s: &dyn Subject, release: Release) {
    let ctx = ctx("suite-sandboxes");
    let mut pod = Sandbox::new("pod");
    pod.runtime.name = "runc".into();
    pod.labels = map(&[("a", "1")]);
    pod.sandboxer = "shim".into();
    pod.extensions.insert("e".into(), any("x"));
    let made = ok(s.create_sandbox(&ctx, pod.clone()).await);
    assert_eq!(made.created_at, made.updated_at);
    assert!(made.created_at > std::time::SystemTime::UNIX_EPOCH, "set by the server");
    assert_eq!(ok(s.sandbox(&ctx, "pod").await), made);
    fails(s.create_sandbox(&ctx, pod.clone()).await, Class::AlreadyExists);
    fails(s.create_sandbox(&ctx, Sandbox::new("a/b")).await, Class::InvalidArgument);
    fails(s.sandbox(&super::ctx("suite-sandboxes-other"), "pod").await, Class::NotFound);

    let mut update = pod.clone();
    update.labels = map(&[("a", ""), ("b", "2")]);
    update.spec = Some(any("spec"));
    update.extensions.clear();
    let paths = list(&["labels.a", "labels.b", "spec", "extensions.e"]);
    let changed = ok(s.update_sandbox(&ctx, update.clone(), &paths).await);
    assert_eq!(changed.labels, map(&[("b", "2")]));
    assert!(changed.spec.is_some());
    if release == Release::Current {
        // containerd keeps an empty one.
        assert!(changed.extensions.is_empty());
    }
    assert_eq!(changed.created_at, made.created_at);
    update.runtime.name = "other".into();
    if release == Release::Current {
        // As the newest release has it; 2.1 changes the name.
        let refused = s.update_sandbox(&ctx, update.clone(), &list(&["runtime"])).await;
        fails(refused, Class::InvalidArgument);
    }
    let refused = s.update_sandbox(&ctx, update.clone(), &list(&["created_at"])).await;
    fails(refused, Class::InvalidArgument);
    update.id = "none".into();
    fails(s.update_sandbox(&ctx, update, &list(&["labels.b"])).await, Class::NotFound);

    for (filter, want) in [("labels.b==2", 1), ("id==pod", 1), ("id==x", 0), ("labels.a", 0)] {
        assert_eq!(ok(s.sandboxes(&ctx, &list(&[filter])).await).len(), want, "{filter}");
    }
    fails(s.sandboxes(&ctx, &list(&["id=="])).await, Class::InvalidArgument);
    ok(s.delete_sandbox(&ctx, "pod").await);
    fails(s.delete_sandbox(&ctx, "pod").await, Class::NotFound);
    fails(s.sandbox(&ctx, "pod").await, Class::NotFound);
}
