//! Images in and out: by the daemon where it can, by this program where it can't.

use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::Client;
use crate::image::Image;
use crate::local;
use crate::transfer::{ExportOptions, ImportOptions, Progress, PullOptions, PushOptions};

/// What the daemon's transfers call an image record that was stored.
const SAVED: &str = "saved";

impl Client {
    /// Pulls an image and, unless told not to, unpacks it. Daemons with the transfer service do
    /// it themselves; for others this program does. When the daemon goes away meanwhile, the pull
    /// goes on where it was as soon as the daemon is back.
    ///
    /// # Errors
    /// NotFound for a reference the registry does not have; the registry's refusals by class.
    pub async fn pull(&self, options: PullOptions) -> Result<Image> {
        self.pull_with(options, |_| {}).await
    }

    /// As [`Self::pull`]; `progress` is called for each step.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub async fn pull_with(
        &self,
        options: PullOptions,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Image> {
        loop {
            match self.pull_once(&options, &mut progress).await {
                Ok(image) => return Ok(image),
                Err(e) => self.before_retry(e).await?,
            }
        }
    }

    async fn pull_once(
        &self,
        options: &PullOptions,
        progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<Image> {
        let pulled = if options.local || options.convert_schema1 || options.metadata_only {
            Err(Error::unimplemented("asked for a pull by this program"))
        } else {
            self.transfer().pull(options.clone(), &mut *progress).await
        };
        match pulled {
            Err(e) if e.is_unimplemented() => local::pull(self, options, progress).await?,
            other => other?,
        }
        let image = self.image(&options.reference).await?;
        Ok(match options.platforms.as_slice() {
            [one] => image.for_platform(one),
            _ => image,
        })
    }

    /// Pulls by this program, whatever the daemon could do, as `options` say otherwise. It is tried
    /// once.
    ///
    /// # Errors
    /// As [`Self::pull`]; Unavailable when the daemon goes away.
    pub async fn pull_local(
        &self,
        options: &PullOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        local::pull(self, options, progress).await
    }

    /// Pushes by this program, whatever the daemon could do. It is tried once.
    ///
    /// # Errors
    /// As [`Self::push`]; Unavailable when the daemon goes away.
    pub async fn push_local(
        &self,
        options: &PushOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        local::push(self, options, progress).await
    }

    /// Pushes an image. Goes on when the daemon goes away and comes back.
    ///
    /// # Errors
    /// NotFound for a missing image or content; the registry's refusals by class.
    pub async fn push(&self, options: PushOptions) -> Result<()> {
        self.push_with(options, |_| {}).await
    }

    /// As [`Self::push`]; `progress` is called for each step.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn push_with(
        &self,
        options: PushOptions,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        loop {
            match self.push_once(&options, &mut progress).await {
                Ok(()) => return Ok(()),
                Err(e) => self.before_retry(e).await?,
            }
        }
    }

    async fn push_once(
        &self,
        options: &PushOptions,
        progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<()> {
        if options.manifest.is_some() {
            return local::push(self, options, progress).await;
        }
        match self.transfer().push(options.clone(), &mut *progress).await {
            Err(e) if e.is_unimplemented() => local::push(self, options, progress).await,
            other => other,
        }
    }

    /// Imports the images of an archive: an OCI layout, or what docker saves. Returns the images
    /// that got names.
    ///
    /// # Errors
    /// InvalidArgument for what is no archive; Unavailable when the daemon goes away.
    pub async fn import(
        &self,
        mut archive: impl AsyncRead + Unpin + Send + 'static,
        options: ImportOptions,
    ) -> Result<Vec<Image>> {
        let mut names = Vec::new();
        let note = |step: Progress| {
            if step.event == SAVED && !names.contains(&step.name) {
                names.push(step.name);
            }
        };
        // Unimplemented is told before anything is read.
        match self.transfer().import(&mut archive, options.clone(), note).await {
            Err(e) if e.is_unimplemented() => local::import(self, archive, &options).await,
            Err(e) => Err(e),
            Ok(()) => {
                let mut images = Vec::new();
                for name in names {
                    match self.image(&name).await {
                        Err(e) if e.is_not_found() => {}
                        other => images.push(other?),
                    }
                }
                Ok(images)
            }
        }
    }

    /// As [`Self::import`], by this program whatever the daemon could do.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub async fn import_local(
        &self,
        archive: impl AsyncRead + Unpin + Send + 'static,
        options: &ImportOptions,
    ) -> Result<Vec<Image>> {
        local::import(self, archive, options).await
    }

    /// Writes images as an archive by this program, whatever the daemon could do: an OCI layout,
    /// never with docker's `manifest.json`. Returns its size.
    ///
    /// # Errors
    /// As [`Self::export`].
    pub async fn export_local(
        &self,
        images: &[String],
        options: &ExportOptions,
        archive: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64> {
        local::export(self, images, options, archive).await
    }

    /// Writes images as an archive, an OCI layout; returns its size.
    ///
    /// # Errors
    /// NotFound for a missing image or content; Unavailable when the daemon goes away.
    pub async fn export(
        &self,
        images: &[String],
        all_platforms: bool,
        archive: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64> {
        let options = ExportOptions { all_platforms, ..ExportOptions::default() };
        match self.transfer().export(images, &options, archive, |_| {}).await {
            Err(e) if e.is_unimplemented() => local::export(self, images, &options, archive).await,
            other => other,
        }
    }
}
