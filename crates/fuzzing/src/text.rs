//! Texts that clients, registries and operators write.

use std::path::Path;

use gantry_config::{Flavour, load};
use gantry_core::filters::{self as filter, FromFn};
use gantry_core::image::{Document, ImageConfig, Index, Manifest};
use gantry_core::{Descriptor, Digest, Labels, Reference, media_types, reference};

/// Filters: what parses can be matched, and says the same twice.
pub fn filters(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let object = FromFn(|path: &[&str]| match path {
        ["name"] => Some("busybox".to_owned()),
        ["labels", rest @ ..] if !rest.is_empty() => Some(rest.join(".")),
        _ => None,
    });
    if let Ok(parsed) = filter::parse(&text) {
        assert_eq!(parsed.matches(&object), parsed.matches(&object));
        // One among several matches whatever it matches alone.
        let lines = [text.as_ref(), "name==nobody"];
        let both = filter::parse_all(&lines).expect("each of them parses");
        assert!(both.matches(&object) || !parsed.matches(&object));
    }
    let lines: Vec<&str> = text.lines().collect();
    let _ = filter::parse_all(&lines);
}

/// References: what parses is written as it was read.
pub fn references(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(parsed) = Reference::parse(&text) {
        let again = Reference::parse(&parsed.to_string()).expect("our own words");
        assert_eq!(parsed, again);
        assert!(!parsed.host().is_empty());
    }
    if let Ok(full) = reference::normalize_docker(&text) {
        assert_eq!(Reference::parse(&full.to_string()).expect("a full name"), full);
    }
}

/// Manifests, indexes and configs.
pub fn manifests(data: &[u8]) {
    let digest = Digest::of(data);
    let _ = Manifest::parse(&digest, data);
    let _ = Index::parse(&digest, data);
    let _ = ImageConfig::parse(&digest, data);
    for media_type in [media_types::OCI_MANIFEST, media_types::OCI_INDEX, ""] {
        let size = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let target = Descriptor::new(media_type, digest.clone(), size);
        if let Ok(document) = Document::parse(&target, data) {
            for (label, child) in document.children() {
                assert!(!label.is_empty() && !child.digest.as_str().is_empty());
            }
        }
    }
}

/// The daemon's configuration: what is accepted can be written out and is accepted again.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for flavour in [Flavour::Gantry, Flavour::Containerd] {
        let Ok(loaded) = load::parse(&text, flavour) else { continue };
        let _ = loaded.config.validate();
        if let Ok(written) = loaded.config.to_toml() {
            load::parse(&written, flavour).expect("our own words");
        }
    }
}

/// `hosts.toml`.
pub fn hosts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for registry in ["docker.io", "localhost:5000"] {
        let dir = Path::new("/etc/gantry/certs.d");
        if let Ok(hosts) = gantry_registry::parse_hosts_toml(&text, dir, registry, None) {
            assert!(!hosts.is_empty(), "the registry itself at least");
            hosts.iter().for_each(|host| drop(host.origin()));
        }
    }
}

/// Labels of the collector: a line each, name and value apart by `=`.
pub fn gc_labels(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let labels: Labels = text
        .lines()
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    // A label names one object at most, or says one thing of its own.
    let named = gantry_metadata::fuzz::gc_labels(&labels);
    assert!(named <= labels.len(), "{named} of {} labels", labels.len());
}
