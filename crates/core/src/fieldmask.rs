//! Field masks: which fields of an object an update changes.
//!
//! A path is a field's name, or for map fields `field.key` where the key is the rest verbatim,
//! dots included (`labels.io.x/y` names the label `io.x/y`).

use gantry_errdefs::{Error, Result};

use crate::Labels;

/// One path of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path<'a> {
    /// A whole field.
    Field(&'a str),
    /// One key of a map field.
    Key {
        /// The map field's name.
        field: &'a str,
        /// The key, verbatim.
        key: &'a str,
    },
}

/// Checks the paths of a mask on `what` (named in errors): `fields` may be replaced whole, `maps`
/// may also be changed by key. An empty mask gives an empty list; what that means is for the
/// caller, commonly "everything mutable".
///
/// # Errors
/// InvalidArgument naming the first path that is not allowed.
pub fn parse<'a, S: AsRef<str>>(
    what: &str,
    paths: &'a [S],
    fields: &[&str],
    maps: &[&str],
) -> Result<Vec<Path<'a>>> {
    paths.iter().map(|path| parse_one(what, path.as_ref(), fields, maps)).collect()
}

fn parse_one<'a>(what: &str, path: &'a str, fields: &[&str], maps: &[&str]) -> Result<Path<'a>> {
    if fields.contains(&path) || maps.contains(&path) {
        return Ok(Path::Field(path));
    }
    match path.split_once('.') {
        Some((field, key)) if !key.is_empty() && maps.contains(&field) => {
            Ok(Path::Key { field, key })
        }
        _ => Err(Error::invalid_argument(format!("cannot update {path:?} field on {what}"))),
    }
}

/// Takes one key of a map over from an update: a value that is empty or missing deletes the key.
pub fn merge_key(current: &mut Labels, key: &str, update: &Labels) {
    match update.get(key).filter(|value| !value.is_empty()) {
        Some(value) => drop(current.insert(key.to_owned(), value.clone())),
        None => drop(current.remove(key)),
    }
}

/// Replaces a whole map: keys with empty values are left out.
pub fn replace(current: &mut Labels, update: &Labels) {
    *current =
        update.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.clone(), v.clone())).collect();
}

/// Applies a mask to a map field named `field`: the whole map, single keys, or nothing when the
/// mask does not name it.
pub fn merge_map(current: &mut Labels, field: &str, mask: &[Path<'_>], update: &Labels) {
    for path in mask {
        match path {
            Path::Field(name) if *name == field => replace(current, update),
            Path::Key { field: name, key } if *name == field => merge_key(current, key, update),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> Labels {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn keys_are_verbatim() {
        let paths = ["labels.io.x/a.b", "labels", "target"];
        let mask = parse("image \"x\"", &paths, &["target"], &["labels"]).unwrap();
        assert_eq!(
            mask,
            [
                Path::Key { field: "labels", key: "io.x/a.b" },
                Path::Field("labels"),
                Path::Field("target")
            ]
        );
    }

    #[test]
    fn refuses_other_paths() {
        for bad in ["name", "labels.", "target.digest", "", "."] {
            let err = parse("image \"x\"", &[bad], &["target"], &["labels"]).unwrap_err();
            assert!(err.is_invalid_argument(), "{bad}");
            assert!(err.message().contains("image \"x\""), "{err}");
        }
    }

    #[test]
    fn merges_by_key_and_whole() {
        let update = map(&[("a", "1"), ("b", ""), ("d", "4")]);
        let mut current = map(&[("a", "0"), ("b", "2"), ("c", "3")]);
        let mask = [
            Path::Key { field: "labels", key: "a" },
            Path::Key { field: "labels", key: "b" },
            Path::Key { field: "labels", key: "zz" },
            Path::Key { field: "annotations", key: "c" },
        ];
        merge_map(&mut current, "labels", &mask, &update);
        assert_eq!(current, map(&[("a", "1"), ("c", "3")]));
        merge_map(&mut current, "labels", &[Path::Field("labels")], &update);
        assert_eq!(current, map(&[("a", "1"), ("d", "4")]));
    }
}
