//! Objects as filters see them.

use std::borrow::Cow;

use gantry_core::filters::{Adaptor, map_field, text_field};

use crate::types::{Container, ContentInfo, Image, Lease, Sandbox};

impl Adaptor for Container {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text_field(&self.id),
            ["image"] => text_field(&self.image),
            ["runtime", "name"] => text_field(&self.runtime.name),
            ["labels", rest @ ..] => map_field(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for Image {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => text_field(&self.name),
            ["target", "digest"] => text_field(self.target.digest.as_str()),
            ["target", "mediatype"] => text_field(&self.target.media_type),
            ["labels", rest @ ..] => map_field(&self.labels, rest),
            ["annotations", rest @ ..] => map_field(&self.target.annotations, rest),
            _ => None,
        }
    }
}

impl Adaptor for Lease {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text_field(&self.id),
            ["labels", rest @ ..] => map_field(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for Sandbox {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text_field(&self.id),
            ["labels", rest @ ..] => map_field(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for ContentInfo {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["digest"] => text_field(self.digest.as_str()),
            ["size"] => Some(Cow::Owned(self.size.to_string())),
            ["labels", rest @ ..] => map_field(&self.labels, rest),
            _ => None,
        }
    }
}

/// A snapshot, as the namespace sees it.
pub(crate) struct SnapshotView<'a>(pub(crate) &'a gantry_snapshots::Info);

impl Adaptor for SnapshotView<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["kind"] => Some(Cow::Borrowed(self.0.kind.as_str())),
            ["name"] => text_field(&self.0.name),
            ["parent"] => self.0.parent.as_deref().and_then(text_field),
            ["labels", rest @ ..] => map_field(&self.0.labels, rest),
            _ => None,
        }
    }
}

/// An ingest, as the namespace sees it.
pub(crate) struct IngestView<'a>(pub(crate) &'a gantry_content::Status);

impl Adaptor for IngestView<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["ref"] => text_field(&self.0.reference),
            _ => None,
        }
    }
}
