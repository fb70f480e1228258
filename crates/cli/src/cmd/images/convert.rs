//! `images convert`.

use clap::Args;
use gantry_archive::Compression;
use gantry_client::ConvertOptions;
use gantry_core::Platform;
use gantry_errdefs::Result;

use crate::cmd::transfer::parse_platform;
use crate::output;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Use OCI's media types instead of Docker's
    #[arg(long)]
    oci: bool,
    /// Unpack compressed layers to plain tars
    #[arg(long, conflicts_with_all = ["zstd", "gzip"])]
    uncompress: bool,
    /// Compress layers with zstd
    #[arg(long, conflicts_with = "gzip")]
    zstd: bool,
    /// Compress layers with gzip
    #[arg(long)]
    gzip: bool,
    /// Make layers into erofs images, for the erofs snapshotter
    #[arg(long, conflicts_with_all = ["uncompress", "zstd", "gzip"])]
    erofs: bool,
    /// Platforms to keep
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = parse_platform)]
    platforms: Vec<Platform>,
    /// Keep every platform
    #[arg(long)]
    all_platforms: bool,
    /// Image
    source: String,
    /// Name of what it becomes
    target: String,
}

impl Flags {
    pub(crate) async fn execute(self, session: &Session) -> Result<()> {
        let chosen = [
            (self.uncompress, Compression::None),
            (self.gzip, Compression::Gzip),
            (self.zstd, Compression::Zstd),
        ];
        let options = ConvertOptions {
            compression: chosen.into_iter().find(|(asked, _)| *asked).map(|(_, c)| c),
            erofs: self.erofs,
            oci: self.oci,
            platforms: self.platforms,
            all_platforms: self.all_platforms,
        };
        let image = session.client.convert_image(&self.source, &self.target, &options).await?;
        // As ctr: the digest of what it became.
        output::line(image.target().digest.as_str());
        Ok(())
    }
}
