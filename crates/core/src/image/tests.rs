use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn target(media_type: &str) -> Descriptor {
    Descriptor::new(media_type, digest("doc"), 1)
}

fn manifest_json() -> String {
    let (c, l) = (digest("config"), digest("layer"));
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"m","digest":"{c}","size":3}},
            "layers":[{{"mediaType":"l","digest":"{l}","size":5,"new":1}}],"unknown":{{}}}}"#
    )
}

#[test]
fn reads_a_manifest_and_names_its_children() {
    let doc = Document::parse(&target(media_types::OCI_MANIFEST), manifest_json().as_bytes());
    let doc = doc.unwrap();
    let names: Vec<String> = doc.children().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["config", "l.0"]);
}

#[test]
fn refuses_documents_that_are_not_what_they_say() {
    let d = digest("x");
    let both = format!(
        r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{d}","size":1}},"layers":[]}}"#
    );
    let negative = manifest_json().replace("\"size\":3", "\"size\":-3");
    let cases = [
        (media_types::OCI_MANIFEST, both.as_str(), "both"),
        (media_types::OCI_INDEX, both.as_str(), "both"),
        (media_types::OCI_MANIFEST, negative.as_str(), "negative"),
        (media_types::OCI_MANIFEST, "{", "not valid"),
        (media_types::OCI_MANIFEST, "", "not valid"),
        (media_types::OCI_MANIFEST, "[]", "not valid"),
        (media_types::OCI_MANIFEST, r#"{"schemaVersion":2}"#, "config"),
        (media_types::OCI_INDEX, r#"{"schemaVersion":1}"#, "schema version 1"),
        (media_types::OCI_INDEX, r#"{"schemaVersion":2,"mediaType":"x/y"}"#, "its descriptor"),
        (media_types::DOCKER_SCHEMA1, "{}", "schema 1"),
        (media_types::DOCKER_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
        ("text/html", "{}", "unsupported media type"),
    ];
    for (media_type, json, why) in cases {
        let err = Document::parse(&target(media_type), json.as_bytes()).unwrap_err();
        assert!(err.is_invalid_argument(), "{json}: {err}");
        assert!(err.message().contains(why), "{json}: {err}");
        assert!(err.message().contains(digest("doc").as_str()), "{json}: {err}");
    }
}

#[test]
fn reads_configs_with_nulls_and_strangers() {
    let d = digest("diff");
    let json = format!(
        r#"{{"architecture":"arm64","os":"linux","variant":"v8","config":{{"Env":["A=b"],
            "Entrypoint":null,"Cmd":["sh"],"Volumes":{{"/data":{{}}}},"WorkingDir":"/w","X":1}},
            "rootfs":{{"type":"layers","diff_ids":["{d}"]}},"history":[{{"created_by":"x"}}],
            "container_config":null}}"#
    );
    let config = ImageConfig::parse(&d, json.as_bytes()).unwrap();
    assert_eq!(config.rootfs.diff_ids, std::slice::from_ref(&d));
    assert_eq!(config.config.env, ["A=b"]);
    assert_eq!(config.config.volumes, ["/data"]);
    assert!(config.config.entrypoint.is_empty());
    assert_eq!(Platform::from(config.platform).variant, "v8");
    let bare = ImageConfig::parse(&d, b"{\"config\":null}").unwrap();
    assert_eq!(bare, ImageConfig::default());
}

#[test]
fn chain_ids_follow_the_image_spec() {
    let diffs = [digest("a"), digest("b"), digest("c")];
    let two = Digest::of(format!("{} {}", diffs[0], diffs[1]).as_bytes());
    let three = Digest::of(format!("{two} {}", diffs[2]).as_bytes());
    assert_eq!(chain_id(&[]), None);
    assert_eq!(chain_id(&diffs), Some(three.clone()));
    assert_eq!(chain_ids(&diffs), [diffs[0].clone(), two, three]);
}

#[test]
fn entries_of_an_index_are_ranked() {
    let entry = |name: &str, kind: &str, platform: Option<&str>| Descriptor {
        platform: platform.map(|p| crate::platforms::parse(p).unwrap()),
        ..Descriptor::new(kind, digest(name), 1)
    };
    let manifests = vec![
        entry("any", media_types::OCI_MANIFEST, None),
        entry("v7", media_types::OCI_MANIFEST, Some("linux/arm/v7")),
        entry("other", media_types::OCI_MANIFEST, Some("linux/s390x")),
        entry("criu", "application/x-memory", Some("linux/arm64")),
        entry("v8", media_types::DOCKER_LIST, Some("linux/arm64")),
        entry("again", media_types::OCI_INDEX, Some("linux/arm64/v8")),
    ];
    let index = Index {
        schema_version: 2,
        media_type: String::new(),
        manifests,
        annotations: BTreeMap::new(),
    };
    let names = |found: Vec<&Descriptor>| -> Vec<Digest> {
        found.into_iter().map(|d| d.digest.clone()).collect()
    };
    let of = |names: &[&str]| names.iter().map(|n| digest(n)).collect::<Vec<_>>();
    let arm = Matcher::only(&crate::platforms::parse("linux/arm64").unwrap());
    let ranked = index.ranked(&arm);
    assert_eq!(ranked[0].0, ranked[1].0);
    assert_eq!(
        names(ranked.into_iter().map(|(_, d)| d).collect()),
        of(&["v8", "again", "v7", "any"])
    );
    assert_eq!(names(index.parts().collect()), of(&["criu"]));
    assert_eq!(index.ranked(&Matcher::all()).len(), 5);
}
