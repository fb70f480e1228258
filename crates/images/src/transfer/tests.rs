use gantry_core::media_types;

use super::*;

fn target(annotations: &[(&str, &str)]) -> Descriptor {
    let mut target = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"x"), 1);
    target.annotations =
        annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    target
}

fn prefix(name: &str) -> ImageReference {
    ImageReference { name: name.to_owned(), is_prefix: true, ..ImageReference::default() }
}

/// Annotations, the prefix, and the names they give.
type Case<'a> = (&'a [(&'a str, &'a str)], ImageReference, Vec<&'a str>);

#[test]
fn archives_are_named_by_annotation_and_prefix() {
    let digest = format!("r.io/a@{}", Digest::of(b"x"));
    let digests = ImageReference { add_digest: true, ..prefix("r.io/a") };
    let skipping = ImageReference { skip_named_digest: true, ..digests.clone() };
    let overwriting = ImageReference { allow_overwrite: true, ..prefix("r.io/a") };
    let cases: Vec<Case<'_>> = vec![
        (&[(REF_ANNOTATION, "v1")], prefix("r.io/a"), vec!["r.io/a:v1"]),
        (&[(REF_ANNOTATION, "v1")], prefix(""), vec![]),
        (&[(REF_ANNOTATION, "r.io/a:v2")], prefix("r.io/a"), vec!["r.io/a:v2"]),
        (&[(REF_ANNOTATION, "r.io/ab:v2")], prefix("r.io/a"), vec![]),
        (&[(REF_ANNOTATION, "r.io/ab:v2")], overwriting.clone(), vec!["r.io/ab:v2"]),
        (&[(NAME_ANNOTATION, "q.io/x:1"), (REF_ANNOTATION, "1")], prefix("r.io/a"), vec![]),
        (&[(NAME_ANNOTATION, "q.io/x:1"), (REF_ANNOTATION, "1")], overwriting, vec!["q.io/x:1"]),
        (
            &[(NAME_ANNOTATION, "r.io/a:2"), (REF_ANNOTATION, "1")],
            prefix("r.io/a"),
            vec!["r.io/a:2"],
        ),
        (&[(NAME_ANNOTATION, "v1")], digests.clone(), vec![&digest]),
        (&[], prefix("r.io/a"), vec![]),
        (&[], digests.clone(), vec![&digest]),
        (&[], skipping.clone(), vec![&digest]),
        (&[(REF_ANNOTATION, "v1")], digests.clone(), vec!["r.io/a:v1", &digest]),
        (&[(REF_ANNOTATION, "v1")], skipping.clone(), vec!["r.io/a:v1"]),
    ];
    for (annotations, reference, want) in cases {
        let names = archived_names(std::slice::from_ref(&reference), &target(annotations));
        assert_eq!(names, want, "{annotations:?} under {reference:?}");
    }
}

#[test]
fn plain_names_stand_for_themselves() {
    let mut store = StoreOptions::named("a");
    store.extra_references = vec![
        ImageReference { name: "b".into(), ..ImageReference::default() },
        ImageReference { name: "c".into(), add_digest: true, ..ImageReference::default() },
        prefix("d"),
    ];
    let names: Vec<String> = plain_names(&store, &target(&[])).collect();
    assert_eq!(names, ["a".to_owned(), "b".to_owned(), format!("c@{}", Digest::of(b"x"))]);
}
