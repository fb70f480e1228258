//! Names of imported images.

use gantry_core::image::{NAME_ANNOTATION, REF_ANNOTATION};
use gantry_core::{Context, Descriptor, Labels};
use gantry_errdefs::Result;
use gantry_metadata::{Db, Image, ImageUpdate};

use super::Imported;

/// How the images of an archive are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageNames {
    /// Name of the whole index; none is made for it otherwise.
    pub index: Option<String>,
    /// Repository for names that are bare tags: `<prefix>:<tag>`.
    pub prefix: Option<String>,
    /// With a prefix: leave out images whose full name does not begin with it.
    pub only_prefix: bool,
    /// Also name each image by its digest: `<prefix>@<digest>`. Needs a prefix.
    pub digests: bool,
    /// Labels of the image records.
    pub labels: Labels,
}

impl ImageNames {
    /// The names of one entry of the index.
    fn of(&self, target: &Descriptor) -> Vec<String> {
        let mut names = Vec::new();
        if let Some(full) = target.annotations.get(NAME_ANNOTATION) {
            let fits = match &self.prefix {
                Some(prefix) if self.only_prefix => has_prefix(full, prefix),
                _ => true,
            };
            if fits {
                names.push(full.clone());
            }
        } else if let Some(name) = target.annotations.get(REF_ANNOTATION) {
            names.extend(self.complete(name));
        }
        if self.digests
            && let Some(prefix) = &self.prefix
        {
            names.push(format!("{prefix}@{}", target.digest));
        }
        names.retain(|n| !n.is_empty());
        names
    }

    /// A full name for one that may be a bare tag.
    fn complete(&self, name: &str) -> Option<String> {
        let Some(prefix) = &self.prefix else { return Some(name.to_owned()) };
        if !name.contains(['/', ':', '@']) {
            return Some(format!("{prefix}:{name}"));
        }
        if self.only_prefix {
            return has_prefix(name, prefix).then(|| name.to_owned());
        }
        Some(name.to_owned())
    }
}

/// Whether `name` is the repository `prefix`, or a tag or digest of it, or below it.
fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@', '/']))
}

/// Makes image records for what was imported, or points those that are there to it. Returns them
/// in the order of the archive; none when nothing has a name.
///
/// # Errors
/// Those of the image store.
pub async fn store_images(
    db: &Db,
    ctx: &Context,
    imported: &Imported,
    names: &ImageNames,
) -> Result<Vec<Image>> {
    let mut images: Vec<Image> = Vec::new();
    let mut add = |name: String, target: &Descriptor| {
        let mut target = target.clone();
        // How the archive named it is in the name now.
        target.annotations.clear();
        // Of entries of one name the last counts, as when loading one after the other.
        images.retain(|i| i.name != name);
        images.push(Image { labels: names.labels.clone(), ..Image::new(name, target) });
    };
    if let Some(index) = &names.index {
        add(index.clone(), &imported.index);
    }
    for target in &imported.manifests {
        for name in names.of(target) {
            add(name, target);
        }
    }
    let mut stored = Vec::new();
    for image in images {
        stored.push(create_or_update(db, ctx, image).await?);
    }
    Ok(stored)
}

async fn create_or_update(db: &Db, ctx: &Context, image: Image) -> Result<Image> {
    match db.images().create(ctx, image.clone(), None).await {
        Err(err) if err.is_already_exists() => {}
        created => return created,
    }
    let mut paths = vec!["target".to_owned()];
    paths.extend(image.labels.keys().map(|k| format!("labels.{k}")));
    let update = ImageUpdate {
        name: image.name.clone(),
        labels: image.labels.clone(),
        target: Some(image.target.clone()),
    };
    match db.images().update(ctx, update, &paths, None).await {
        // Deleted just now.
        Err(err) if err.is_not_found() => db.images().create(ctx, image, None).await,
        updated => updated,
    }
}

#[cfg(test)]
mod tests {
    use gantry_core::{Digest, media_types};

    use super::*;

    fn target(annotations: &[(&str, &str)]) -> Descriptor {
        let mut target = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"x"), 1);
        target.annotations =
            annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        target
    }

    #[test]
    fn names_come_from_annotations() {
        let plain = ImageNames::default();
        let both = target(&[(NAME_ANNOTATION, "docker.io/library/a:1"), (REF_ANNOTATION, "1")]);
        assert_eq!(plain.of(&both), ["docker.io/library/a:1"]);
        assert_eq!(plain.of(&target(&[(REF_ANNOTATION, "1")])), ["1"]);
        assert!(plain.of(&target(&[])).is_empty());
    }

    #[test]
    fn a_prefix_completes_tags_and_may_filter() {
        let mut names =
            ImageNames { prefix: Some("example.com/a".into()), ..ImageNames::default() };
        assert_eq!(names.of(&target(&[(REF_ANNOTATION, "1")])), ["example.com/a:1"]);
        let other = target(&[(NAME_ANNOTATION, "docker.io/library/b:1")]);
        assert_eq!(names.of(&other), ["docker.io/library/b:1"]);
        names.only_prefix = true;
        assert!(names.of(&other).is_empty());
        assert!(names.of(&target(&[(NAME_ANNOTATION, "example.com/ab:1")])).is_empty());
        assert_eq!(names.of(&target(&[(NAME_ANNOTATION, "example.com/a/b:1")])).len(), 1);
        names.digests = true;
        let digest = Digest::of(b"x");
        assert_eq!(names.of(&other), [format!("example.com/a@{digest}")]);
    }
}
