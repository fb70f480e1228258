//! Containers.

use gantry_core::Context;
use gantry_errdefs::Class;

use super::{Release, Subject, any, ctx, fails, just_right, list, map, ok, too_long};
use crate::Container;

pub(super) fn container(id: &str) -> Container {
    let mut container = Container::new(id);
    container.runtime.name = "io.containerd.runc.v2".to_owned();
    // Every release keeps a spec as it is; a missing one they treat differently.
    container.spec = Some(any("{}"));
    container
}

pub(super) async fn run(s: &dyn Subject, release: Release) {
    comes_back_as_it_was_made(s).await;
    create_refuses_what_is_wrong(s).await;
    namespaces_are_apart(s).await;
    masks_change_what_they_name(s).await;
    lists_filter(s).await;
    filters_have_a_grammar(s, release).await;
}

async fn comes_back_as_it_was_made(s: &dyn Subject) {
    let ctx = ctx("suite-containers");
    let mut c = container("c1");
    c.labels = map(&[("a", "1"), ("dotted.key/x", "2")]);
    c.image = "img".into();
    c.spec = Some(any("{\"x\": 1 }"));
    c.runtime.options = Some(any("options"));
    c.snapshotter = "native".into();
    c.snapshot_key = "c1".into();
    c.extensions.insert("e".into(), any("ext"));
    let made = ok(s.create_container(&ctx, c.clone()).await);
    assert_eq!(made.created_at, made.updated_at);
    (c.created_at, c.updated_at) = (made.created_at, made.updated_at);
    assert_eq!(made, c);
    assert_eq!(ok(s.container(&ctx, "c1").await), c);
    let err = fails(s.create_container(&ctx, c).await, Class::AlreadyExists);
    assert!(err.message().contains("c1"), "{err}");
    ok(s.delete_container(&ctx, "c1").await);
    let err = fails(s.delete_container(&ctx, "c1").await, Class::NotFound);
    assert!(err.message().contains("c1"), "{err}");
    fails(s.container(&ctx, "c1").await, Class::NotFound);
}

async fn create_refuses_what_is_wrong(s: &dyn Subject) {
    let ctx = ctx("suite-containers");
    for bad in ["", "a/b", "-a", "a-", "a..b", "é", &"a".repeat(77)] {
        fails(s.create_container(&ctx, container(bad)).await, Class::InvalidArgument);
    }
    let longest = "a".repeat(76);
    ok(s.create_container(&ctx, container(&longest)).await);
    ok(s.delete_container(&ctx, &longest).await);
    let mut c = container("c2");
    c.runtime.name.clear();
    fails(s.create_container(&ctx, c).await, Class::InvalidArgument);
    let mut c = container("c2");
    c.snapshot_key = "k".into();
    fails(s.create_container(&ctx, c).await, Class::InvalidArgument);
    let mut c = container("c2");
    c.labels = too_long();
    fails(s.create_container(&ctx, c.clone()).await, Class::InvalidArgument);
    fails(s.container(&ctx, "c2").await, Class::NotFound);
    c.labels = just_right();
    ok(s.create_container(&ctx, c).await);
    ok(s.delete_container(&ctx, "c2").await);
}

async fn namespaces_are_apart(s: &dyn Subject) {
    let (a, b) = (ctx("suite-containers-a"), ctx("suite-containers-b"));
    ok(s.create_container(&a, container("c1")).await);
    fails(s.container(&b, "c1").await, Class::NotFound);
    ok(s.create_container(&b, container("c1")).await);
    ok(s.delete_container(&a, "c1").await);
    assert_eq!(ok(s.containers(&a, &[]).await), []);
    ok(s.container(&b, "c1").await);
    ok(s.delete_container(&b, "c1").await);
}

async fn masks_change_what_they_name(s: &dyn Subject) {
    let ctx = ctx("suite-containers");
    let mut c = container("c1");
    c.labels = map(&[("a", "1"), ("b.c/d", "2")]);
    c.extensions.insert("e".into(), any("1"));
    c.extensions.insert("f".into(), any("1"));
    let made = ok(s.create_container(&ctx, c).await);
    let mut update = container("c1");
    update.labels = map(&[("a", "9"), ("b.c/d", "")]);
    update.image = "new".into();
    update.spec = Some(any("spec"));
    update.extensions.insert("e".into(), any("2"));
    let apply = async |update: &Container, paths: &[&str]| {
        s.update_container(&ctx, update.clone(), &list(paths)).await
    };

    let c = ok(apply(&update, &["labels.b.c/d"]).await);
    assert_eq!(c.labels, map(&[("a", "1")]));
    assert_eq!(c.created_at, made.created_at);
    assert!(c.updated_at >= made.updated_at);
    let c = ok(apply(&update, &["extensions.e", "image"]).await);
    assert_eq!(c.extensions.len(), 2);
    assert_eq!((c.extensions["e"].clone(), c.image.as_str()), (any("2"), "new"));
    assert_eq!(c.spec, Some(any("{}")));
    for bad in ["snapshot_key", "runtime", "id", "created_at", "nonsense"] {
        let err = fails(apply(&update, &[bad]).await, Class::InvalidArgument);
        assert!(err.message().contains(bad), "{err}");
    }
    // One bad path refuses all of them.
    fails(apply(&update, &["labels.a", "id"]).await, Class::InvalidArgument);
    assert_eq!(ok(s.container(&ctx, "c1").await).labels, map(&[("a", "1")]));

    let c = ok(apply(&update, &[]).await);
    assert_eq!((c.labels, c.spec), (map(&[("a", "9")]), Some(any("spec"))));
    assert_eq!(c.extensions.len(), 1);
    update.runtime.name = "other".into();
    let err = fails(apply(&update, &[]).await, Class::InvalidArgument);
    assert!(err.message().to_lowercase().contains("runtime.name"), "{err}");
    update.runtime.name = "io.containerd.runc.v2".into();
    update.snapshotter = "native".into();
    let err = fails(apply(&update, &[]).await, Class::InvalidArgument);
    assert!(err.message().to_lowercase().contains("snapshotter"), "{err}");
    update.labels = too_long();
    fails(apply(&update, &["labels.k"]).await, Class::InvalidArgument);
    update.id = "c2".into();
    fails(apply(&update, &["image"]).await, Class::NotFound);
    update.id.clear();
    fails(apply(&update, &["image"]).await, Class::InvalidArgument);
    ok(s.delete_container(&ctx, "c1").await);
}

async fn lists_filter(s: &dyn Subject) {
    let ctx = ctx("suite-containers-list");
    for (id, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut c = container(id);
        c.labels = map(&[("nerdctl/name", label)]);
        ok(s.create_container(&ctx, c).await);
    }
    let cases: &[(&[&str], &str)] = &[
        (&[], "a b c"),
        (&[""], "a b c"),
        (&[r#"labels."nerdctl/name"==x"#], "a c"),
        (&[r#"labels."nerdctl/name""#], "a b c"),
        (&["labels.nope"], ""),
        (&["labels.nope!=x"], "a b c"),
        (&["id==b"], "b"),
        (&["id==b,labels.nope"], ""),
        (&["id==zz"], ""),
        (&["id==b", "id~=^a$"], "a b"),
        (&["runtime.name==io.containerd.runc.v2,id!=a"], "b c"),
        (&["nosuchfield==1"], ""),
        (&["nosuchfield!=1"], "a b c"),
    ];
    for (filters, want) in cases {
        assert_eq!(ids(s, &ctx, filters).await, *want, "{filters:?}");
    }
    for id in ["a", "b", "c"] {
        ok(s.delete_container(&ctx, id).await);
    }
}

async fn ids(s: &dyn Subject, ctx: &Context, filters: &[&str]) -> String {
    let found = ok(s.containers(ctx, &list(filters)).await);
    let mut ids: Vec<_> = found.into_iter().map(|c| c.id).collect();
    ids.sort_unstable();
    ids.join(" ")
}

async fn filters_have_a_grammar(s: &dyn Subject, release: Release) {
    let ctx = ctx("suite-containers-grammar");
    let mut c = container("web-1");
    c.image = "docker.io/library/a:1".into();
    c.labels = map(&[("k", "a,b c"), ("q", "say \"hi\""), ("é", "ü"), ("pipe", "a|b")]);
    ok(s.create_container(&ctx, c).await);
    ok(s.create_container(&ctx, container("db-1")).await);
    let cases: &[(&str, &str)] = &[
        // Spaces between tokens, and after commas, as clients write them.
        ("id == web-1", "web-1"),
        ("id==web-1, image==docker.io/library/a:1", "web-1"),
        // A value ends at a comma unless it is quoted.
        (r#"labels.k=="a,b c""#, "web-1"),
        (r#"labels.q=="say \"hi\"""#, "web-1"),
        (r#"labels.k=="\x61,b\u0020c""#, "web-1"),
        (r#""labels"."k"~=b"#, "web-1"),
        (r#"labels."é"==ü"#, "web-1"),
        // Regular expressions are not anchored, and have quotes of their own.
        ("id~=eb", "web-1"),
        ("id~=/^w.b-[0-9]$/", "web-1"),
        ("id~=|^w.b-\\\\d$|", "web-1"),
        (r"id~=^w.b-\d$", "web-1"),
        ("image~=|^docker.io/library/|", "web-1"),
        (r"image~=/^docker\\.io\/library\//", "web-1"),
        (r"labels.pipe~=/a\\|b/", "web-1"),
        (r#"id~="^(web|db)-1$""#, "db-1 web-1"),
        // One that does not compile matches nothing.
        ("id~=|(|", ""),
        ("id~=/[/", ""),
    ];
    for (filter, want) in cases {
        assert_eq!(ids(s, &ctx, &[filter]).await, *want, "{filter}");
    }
    if release == Release::Current {
        // containerd's parser refuses escapes that belong to the expression.
        assert_eq!(ids(s, &ctx, &[r"id~=|^w.b-\d$|"]).await, "web-1");
    }
    for bad in [
        "id==",
        "id=web-1",
        "id===web-1",
        "==x",
        "id==a b",
        "id~=|a",
        "id==\"a",
        "id=<x",
        "id==/a/",
        "id..x==1",
        ".id==1",
        "id==|a|",
        "id,",
        ",",
        "id==a,",
        "id!x",
    ] {
        let refused = s.containers(&ctx, &list(&[bad])).await;
        assert!(refused.is_err(), "{bad:?} is taken for a filter");
        fails(refused, Class::InvalidArgument);
    }
    // One bad filter refuses the list, whatever the others say.
    fails(s.containers(&ctx, &list(&["id==web-1", "id=="])).await, Class::InvalidArgument);
    ok(s.delete_container(&ctx, "web-1").await);
    ok(s.delete_container(&ctx, "db-1").await);
}
