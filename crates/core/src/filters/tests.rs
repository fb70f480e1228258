use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An object with two text fields and labels.
struct Object {
    name: &'static str,
    other: &'static str,
    labels: Labels,
}

impl Adaptor for Object {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => text_field(self.name),
            ["other"] => text_field(self.other),
            ["labels", rest @ ..] => map_field(&self.labels, rest),
            _ => None,
        }
    }
}

fn object(name: &'static str, other: &'static str, labels: &[(&str, &str)]) -> Object {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Object { name, other, labels }
}

fn corpus() -> Vec<Object> {
    vec![
        object("foo", "bar", &[("foo", "true"), ("nerdctl/name", "x")]),
        object("bar", "", &[("bar", ""), ("more complex label with \\ and \"", "present")]),
        object("foo", "boo", &[("foo", "present"), ("a.b", "dots")]),
        object("/tasks/exit", "", &[]),
    ]
}

/// The indices of the corpus that match.
fn matching(filters: &[&str]) -> Vec<usize> {
    let filter = parse_all(filters).unwrap();
    let matches = |(i, o): (usize, Object)| filter.matches(&o).then_some(i);
    corpus().into_iter().enumerate().filter_map(matches).collect()
}

#[test]
fn chooses_by_every_operator() {
    let cases: &[(&[&str], &[usize])] = &[
        (&[], &[0, 1, 2, 3]),
        (&[""], &[0, 1, 2, 3]),
        (&["name==foo"], &[0, 2]),
        (&["name==foo,labels.foo==true"], &[0]),
        (&["name==foo, other==boo"], &[2]),
        (&["  name == foo, other == boo"], &[2]),
        (&["labels. \"a.b\"==dots"], &[2]),
        (&["name!=foo"], &[1, 3]),
        (&["other!=bar"], &[1, 2, 3]),
        (&["other"], &[0, 2]),
        (&["labels.bar"], &[1]),
        (&["labels.a.b==dots"], &[2]),
        (&["labels.\"a.b\"==dots"], &[2]),
        (&["labels.\"nerdctl/name\"==x"], &[0]),
        (&["labels.\"more complex label with \\\\ and \\\"\"==present"], &[1]),
        (&["name~=^f"], &[0, 2]),
        (&["name~=|^/tasks/|"], &[3]),
        (&["name~=/^\\/tasks\\//"], &[3]),
        (&["name~=/^\\w+$/"], &[0, 1, 2]),
        (&["name~=\"o+\""], &[0, 2]),
        (&["name~=["], &[]),
        (&["other~=\".*\""], &[0, 1, 2, 3]),
        (&["name==bar", "other==boo"], &[1, 2]),
        (&["name==bar", ""], &[0, 1, 2, 3]),
        (&["nosuch==x"], &[]),
        (&["nosuch!=x"], &[0, 1, 2, 3]),
        (&["nosuch"], &[]),
        (&["name==\"\\x66\\157\\u006f\""], &[0, 2]),
        (&["target.digest~=^sha256:00.*$"], &[]),
    ];
    for (filters, want) in cases {
        assert_eq!(matching(filters), *want, "{filters:?}");
    }
}

#[test]
fn refuses_bad_text_by_position() {
    for bad in [
        ",",
        "name==",
        "name=foo",
        "name===foo",
        "name==foo,",
        "name foo",
        "==foo",
        ".name",
        "name.",
        "name==\"foo",
        "name==/foo/",
        "name==|foo|",
        "name==\"\\q\"",
        "\"name",
        "name==foo bar",
        "na-me==foo",
        " ",
        "name ",
        "name==foo ",
        "name==foo , other==boo",
        "name , other",
        "labels .foo",
        "name==.foo",
        "name==!foo",
        "näme==foo",
        "name==\"\\xzz\"",
        "name==\"\\ud800\"",
        "name~=/foo",
        "name==\"é\\",
    ] {
        let err = parse(bad).unwrap_err();
        assert!(err.is_invalid_argument(), "{bad}");
        assert!(err.message().contains("filter"), "{bad}: {err}");
    }
    assert!(parse(&"a".repeat(FILTER_LEN_MAX + 1)).unwrap_err().is_invalid_argument());
}

#[test]
fn tells_the_value_a_match_must_have() {
    let filter = parse("id==x,kind==y").unwrap();
    assert_eq!(filter.required(&["kind"]), Some("y"));
    assert_eq!(filter.required(&["name"]), None);
    assert_eq!(parse_all(&["id==x", "id==y"]).unwrap().required(&["id"]), None);
}

/// Text in quotes that the parser must read back as it was.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn never_panics_on_near_filters(text in "[a.\"/|=!~,\\\\x0é ]{0,24}") {
        let _ = parse(&text);
    }

    #[test]
    fn quoted_keys_and_values_are_verbatim(key in "\\PC{1,16}", value in "\\PC{0,16}") {
        let labels: Labels = BTreeMap::from([(key.clone(), value.clone())]);
        let object = Object { name: "", other: "", labels };
        let path = format!("labels.{}", quote(&key));
        let equal = parse(&format!("{path}=={}", quote(&value))).unwrap();
        prop_assert!(equal.matches(&object));
        let differs = parse(&format!("{path}!={}", quote(&value))).unwrap();
        prop_assert!(!differs.matches(&object));
        let present = parse(&path).unwrap();
        prop_assert!(present.matches(&object));
    }
}
