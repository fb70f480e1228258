//! Image references.
//!
//! Two grammars meet here. The daemon's own ([`Reference::parse`]) is loose: a host, a path and
//! an object after `:` or `@`. What people type on docker-like command lines is stricter and has
//! defaults; [`normalize_docker`] turns it into a full name of the first kind.

use std::fmt;
use std::str::FromStr;

use gantry_errdefs::{Error, Result};

use crate::Digest;

/// The registry that a name without a host means.
pub const DEFAULT_HOST: &str = "docker.io";

/// The tag that a name without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// Where names of one part live on the default registry.
const OFFICIAL_PREFIX: &str = "library/";

/// Longest repository name with its host, in bytes (the distribution spec's bound).
const NAME_LEN_MAX: usize = 255;

/// Longest tag, in bytes (the distribution spec's bound).
const TAG_LEN_MAX: usize = 128;

/// Longest reference this parser looks at, in bytes: name, tag and digest with room to spare.
const REFERENCE_LEN_MAX: usize = 4096;

/// A full image reference: `host[:port]/path[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a full reference. There are no defaults: the host must be there, and a reference
    /// with neither tag nor digest has no object (see [`Reference::object`]).
    ///
    /// # Errors
    /// InvalidArgument naming the reference and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid_argument(format!("reference {text:?}: {why}"));
        if text.len() > REFERENCE_LEN_MAX {
            return Err(bad("it is too long"));
        }
        if text.contains("://") {
            return Err(bad("it must not have a scheme"));
        }
        let (host, rest) = text.split_once('/').ok_or_else(|| bad("it needs a host and a path"))?;
        if !is_host(host) {
            return Err(bad("hostname required"));
        }
        let (name_and_tag, digest) = match rest.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse::<Digest>().map_err(|e| bad(e.message()))?))
            }
            None => (rest, None),
        };
        let (path, tag) = match name_and_tag.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name_and_tag, None),
        };
        if !is_path(path) {
            return Err(bad("the path must be segments of [A-Za-z0-9._-] joined by /"));
        }
        if host.len() + 1 + path.len() > NAME_LEN_MAX {
            return Err(bad("repository name must not be more than 255 characters"));
        }
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(bad("a tag is [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"));
        }
        Ok(Self {
            host: host.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry as it stands in the name, with its port: `docker.io`, `127.0.0.1:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository on the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and repository: `docker.io/library/busybox`.
    pub fn locator(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The tag, if the name has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What follows the locator: `tag`, `tag@digest` or `@digest`; empty when there is neither.
    pub fn object(&self) -> String {
        let tag = self.tag.as_deref().unwrap_or_default();
        match &self.digest {
            Some(digest) => format!("{tag}@{digest}"),
            None => tag.to_owned(),
        }
    }

    /// The same repository at `digest`, without a tag.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::parse(s)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Completes a name as docker-like command lines take it: `busybox` is
/// `docker.io/library/busybox:latest`, `index.docker.io` is `docker.io`, and the stricter
/// repository grammar (lower case, no doubled separators) is enforced.
///
/// # Errors
/// InvalidArgument naming the text and what is wrong with it.
pub fn normalize_docker(text: &str) -> Result<Reference> {
    let bad = |why: &str| Error::invalid_argument(format!("reference {text:?}: {why}"));
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(bad("cannot be 64 hexadecimal characters, which is an image id"));
    }
    let (host, rest) = split_docker_host(text);
    let rest = if host == DEFAULT_HOST && !rest.contains('/') {
        format!("{OFFICIAL_PREFIX}{rest}")
    } else {
        rest.to_owned()
    };
    let mut reference = Reference::parse(&format!("{host}/{rest}"))?;
    if reference.path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(bad("repository name must be lowercase"));
    }
    if !reference.path.split('/').all(is_docker_component) {
        return Err(bad("invalid reference format"));
    }
    if reference.tag.is_none() && reference.digest.is_none() {
        reference.tag = Some(DEFAULT_TAG.to_owned());
    }
    Ok(reference)
}

/// Splits a host off: the part before the first `/` is one only if it looks like one.
fn split_docker_host(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_HOST, rest),
        Some((host, rest))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (host, rest)
        }
        _ => (DEFAULT_HOST, text),
    }
}

/// A DNS name, IPv4 address or bracketed IPv6 address, with an optional port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((v6, rest)) => {
            if v6.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest {
                "" => return true,
                rest => ("v6", rest.strip_prefix(':')),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        },
    };
    let name_ok = !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    name_ok && port.is_some_and(|p| p.parse::<u16>().is_ok())
}

fn is_path(path: &str) -> bool {
    path.split('/').all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Lower-case groups joined by `.`, `_`, `__` or any number of `-`.
fn is_docker_component(component: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_ok = bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum);
    ends_ok
        && component.split(|c: char| c.is_ascii_alphanumeric()).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn splits_full_references() {
        let with_both = format!("gcr.io:8443/a/b_c:v1@sha256:{HEX}");
        let r = Reference::parse(&with_both).unwrap();
        assert_eq!((r.host(), r.path(), r.tag()), ("gcr.io:8443", "a/b_c", Some("v1")));
        assert_eq!(r.digest().unwrap().hex(), HEX);
        assert_eq!(r.object(), format!("v1@sha256:{HEX}"));
        assert_eq!(r.to_string(), with_both);
        let pinned = r.at_digest(Digest::of(b""));
        assert_eq!(pinned.object(), format!("@sha256:{HEX}"));
        let bare = Reference::parse("localhost/x").unwrap();
        assert_eq!((bare.object(), bare.locator()), (String::new(), "localhost/x".to_owned()));
        assert!(Reference::parse("[::1]:5000/x:1").is_ok());
        assert!(Reference::parse("[2001:db8::1]/x").is_ok());
    }

    #[test]
    fn refuses_what_is_no_reference() {
        let long = format!("h/{}", "a".repeat(300));
        for bad in [
            "",
            "busybox",
            "/x",
            "h/",
            "h//x",
            "h/../x",
            "h/./x",
            "http://h/x",
            "h/x:",
            "h/x@",
            "h/x@sha256:00",
            "h/x:-a",
            "h/x y",
            "h:port/x",
            "a..b/x",
            "h/x:t:u",
            "[::zz]/x",
            "[::1]5000/x",
            "h/x\n",
            long.as_str(),
        ] {
            assert!(Reference::parse(bad).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }

    #[test]
    fn completes_docker_names() {
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("library/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("a/b", "docker.io/a/b:latest"),
            ("localhost/b", "localhost/b:latest"),
            ("localhost:5000/b", "localhost:5000/b:latest"),
            ("quay.io/a/b__c.d--e:x", "quay.io/a/b__c.d--e:x"),
        ] {
            assert_eq!(normalize_docker(text).unwrap().to_string(), want, "{text}");
        }
        let pinned = format!("busybox@sha256:{HEX}");
        let want = format!("docker.io/library/{pinned}");
        assert_eq!(normalize_docker(&pinned).unwrap().to_string(), want);
        for bad in ["", "BusyBox", "a/B", "a___b", "-a", "a-", "a..b", HEX, "a b", "a:", "x/"] {
            assert!(normalize_docker(bad).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = Reference::parse(&text);
            let _ = normalize_docker(&text);
        }

        #[test]
        fn text_round_trips(
            text in "[a-z]{1,8}(\\.[a-z]{1,3})?(:[0-9]{1,4})?/[a-z]{1,5}(/[a-z0-9]{1,5}){0,2}(:[A-Za-z0-9_]{1,9})?"
        ) {
            prop_assert_eq!(Reference::parse(&text).unwrap().to_string(), text);
        }

        #[test]
        fn completed_names_are_full_and_stable(text in "[a-z./:-]{1,24}") {
            if let Ok(full) = normalize_docker(&text) {
                let again = normalize_docker(&full.to_string()).unwrap();
                prop_assert_eq!(again, full);
            }
        }
    }
}
