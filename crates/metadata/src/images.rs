//! Images: names for content.

use std::ops::ControlFlow;
use std::time::SystemTime;

use gantry_core::fieldmask::{self, Path};
use gantry_core::{Context, Labels, filters, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::KvRead;

use crate::db::{Db, Tx, encode, now};
use crate::event::Event;
use crate::gc::{LABEL_EXPIRE, Node};
use crate::keys::{self, Kind};
use crate::records::{ImageRecord, decode};
use crate::types::{Image, ImageDelete, ImageUpdate};

/// The images of the store.
#[derive(Clone, Debug)]
pub struct Images {
    db: Db,
}

impl Images {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The image of exactly this name.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, ctx: &Context, name: &str) -> Result<Image> {
        read(&self.db.view()?, ctx, name)
    }

    /// The images that match any of `filters` (fields name, target.digest, target.mediatype,
    /// labels, annotations), by name.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Image>> {
        let filter = filters::parse_all(filters)?;
        let images = keys::within(Kind::Image, &ctx.namespace);
        self.db
            .read(move |view| {
                let mut found = Vec::new();
                view.scan(&images, &mut |key, value| {
                    let [_, name] = keys::parts(key)?;
                    let image = parse(value, name)?;
                    if filter.matches(&image) {
                        found.push(image);
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                Ok(found)
            })
            .await
    }

    /// Creates an image, whether its target is there or not. Times are `at` (a source date epoch)
    /// or now. With the label `containerd.io/gc.expire` it joins the context's lease. Publishes
    /// `/images/create`.
    ///
    /// # Errors
    /// InvalidArgument for an empty name, a bad label or an incomplete target; AlreadyExists;
    /// NotFound for a missing lease.
    pub async fn create(
        &self,
        ctx: &Context,
        mut image: Image,
        at: Option<SystemTime>,
    ) -> Result<Image> {
        validate(&image)?;
        image.labels.retain(|_, value| !value.is_empty());
        let ctx = ctx.clone();
        self.db
            .write(move |tx| {
                tx.check_lease(&ctx)?;
                let key = keys::object(Kind::Image, &ctx.namespace, &image.name);
                if tx.txn.has(&key)? {
                    return Err(Error::already_exists(format!("image {:?}", image.name)));
                }
                image.created_at = at.unwrap_or_else(now);
                image.updated_at = image.created_at;
                tx.ensure_namespace(&ctx.namespace)?;
                put(tx, &ctx, &image)?;
                let (name, labels) = (image.name.clone(), image.labels.clone());
                tx.emit(&ctx.namespace, Event::ImageCreate { name, labels });
                Ok(image)
            })
            .await
    }

    /// Changes the image `update.name`. `fieldpaths` are `labels`, `labels.<key>`, `target`,
    /// `annotations` and `annotations.<key>`; none replaces labels and target. The time is `at`
    /// (a source date epoch) or now. Publishes `/images/update`.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for another field path, a bad label or an incomplete target.
    pub async fn update(
        &self,
        ctx: &Context,
        update: ImageUpdate,
        fieldpaths: &[String],
        at: Option<SystemTime>,
    ) -> Result<Image> {
        if update.name.is_empty() {
            return Err(Error::invalid_argument("image name must not be empty"));
        }
        let (ctx, fieldpaths) = (ctx.clone(), fieldpaths.to_vec());
        self.db
            .write(move |tx| {
                tx.check_lease(&ctx)?;
                let mut image = read(tx.txn, &ctx, &update.name)?;
                let old = image.target.digest.clone();
                apply(&mut image, update, &fieldpaths)?;
                validate(&image)?;
                image.updated_at = at.unwrap_or_else(now);
                put(tx, &ctx, &image)?;
                if old != image.target.digest {
                    tx.dirty();
                }
                let (name, labels) = (image.name.clone(), image.labels.clone());
                tx.emit(&ctx.namespace, Event::ImageUpdate { name, labels });
                Ok(image)
            })
            .await
    }

    /// Deletes an image. Publishes `/images/delete`.
    ///
    /// # Errors
    /// NotFound, also when the image no longer names `options.target`.
    pub async fn delete(&self, ctx: &Context, name: &str, options: ImageDelete) -> Result<()> {
        let (ctx, name) = (ctx.clone(), name.to_owned());
        let synchronous = options.synchronous;
        self.db
            .write(move |tx| {
                let image = read(tx.txn, &ctx, &name)?;
                if let Some(target) = options.target
                    && target != image.target.digest
                {
                    let text =
                        format!("image {name:?} has target {}, not {target}", image.target.digest);
                    return Err(Error::not_found(text));
                }
                remove(tx, &ctx, name);
                Ok(())
            })
            .await?;
        if synchronous {
            self.db.gc().run().await?;
        }
        Ok(())
    }
}

/// Takes an image out, as a delete or its expiry does.
pub(crate) fn remove(tx: &mut Tx<'_, '_>, ctx: &Context, name: String) {
    tx.txn.delete(&keys::object(Kind::Image, &ctx.namespace, &name));
    tx.lease_drop(ctx, "images", &name);
    tx.emit(&ctx.namespace, Event::ImageDelete { name });
    tx.dirty();
}

fn put(tx: &mut Tx<'_, '_>, ctx: &Context, image: &Image) -> Result<()> {
    let key = keys::object(Kind::Image, &ctx.namespace, &image.name);
    tx.txn.put(&key, encode(&ImageRecord::from(image.clone())));
    tx.touch(|| Node::image(&ctx.namespace, &image.name));
    if image.labels.contains_key(LABEL_EXPIRE) {
        tx.lease_add(ctx, "images", &image.name)?;
        tx.expires(&image.labels);
    }
    Ok(())
}

fn parse(value: &[u8], name: String) -> Result<Image> {
    let record: ImageRecord = decode(value, &format!("image {name:?}"))?;
    record.into_image(name)
}

fn read(read: &impl KvRead, ctx: &Context, name: &str) -> Result<Image> {
    match read.get(&keys::object(Kind::Image, &ctx.namespace, name))? {
        Some(value) => parse(&value, name.to_owned()),
        None => Err(Error::not_found(format!("image {name:?}"))),
    }
}

/// The labels of an image; None when it is gone.
pub(crate) fn labels(read: &impl KvRead, ctx: &Context, name: &str) -> Result<Option<Labels>> {
    read.get(&keys::object(Kind::Image, &ctx.namespace, name))?
        .map(|value| Ok(parse(&value, name.to_owned())?.labels))
        .transpose()
}

fn validate(image: &Image) -> Result<()> {
    if image.name.is_empty() {
        return Err(Error::invalid_argument("image name must not be empty"));
    }
    labels::validate_all(&image.labels)?;
    let bad = |why: &str| Error::invalid_argument(format!("image {:?}: {why}", image.name));
    if image.target.size <= 0 {
        return Err(bad("target size must be greater than zero"));
    }
    if image.target.media_type.is_empty() {
        return Err(bad("target media type must be set"));
    }
    Ok(())
}

fn apply(image: &mut Image, update: ImageUpdate, fieldpaths: &[String]) -> Result<()> {
    let what = format!("image {:?}", image.name);
    let mask = if fieldpaths.is_empty() {
        vec![Path::Field("labels"), Path::Field("target")]
    } else {
        fieldmask::parse(&what, fieldpaths, &["target"], &["labels", "annotations"])?
    };
    fieldmask::merge_map(&mut image.labels, "labels", &mask, &update.labels);
    if mask.contains(&Path::Field("target")) {
        let target = update.target.clone();
        image.target =
            target.ok_or_else(|| Error::invalid_argument(format!("{what}: target must be set")))?;
    }
    let annotations = update.target.map(|t| t.annotations).unwrap_or_default();
    fieldmask::merge_map(&mut image.target.annotations, "annotations", &mask, &annotations);
    Ok(())
}
