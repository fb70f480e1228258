//! What moves, unpacks and verifies images, as the configuration describes it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_core::platforms;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_images::{
    Budget, BudgetOptions, Differ, Differs, ErofsDiffer, LayerDiffer, Processor, Processors,
    ServedPlatforms, Transfer, TransferOptions, UnpackTarget, Unpacker, VerifierOptions, Verifiers,
};
use gantry_metadata::Db;
use gantry_mount::TempRoot;
use gantry_registry::{Hosts, HostsOptions, Resolver, ResolverOptions};
use gantry_snapshots::Overlayfs;

use crate::config::{self, Config};
use crate::plugins;
use crate::proxies::Proxies;

/// The parts, ready to be served.
pub(crate) struct Imaging {
    /// Applies and makes layers in this process.
    pub(crate) differ: Differ,
    /// The differs of the diff service.
    pub(crate) differs: Differs,
    /// Unpacks images.
    pub(crate) unpacker: Unpacker,
    /// Moves images.
    pub(crate) transfer: Transfer,
    /// Decide which images may be used.
    pub(crate) verifiers: Verifiers,
}

impl Imaging {
    /// The parts over `db`.
    ///
    /// # Errors
    /// FailedPrecondition for a differ that is not loaded, InvalidArgument for a platform in
    /// `unpack_config` that is none.
    pub(crate) fn new(config: &Config, db: &Db, temp: TempRoot, proxies: &Proxies) -> Result<Self> {
        let differ = Differ::new(db.clone(), temp).with_processors(processors(config));
        let differs = differs(config, &differ, proxies)?;
        let unpacker = Unpacker::new(db.clone(), differ.clone());
        let unpacker = unpacker.with_appliers(appliers(config, &differ, proxies)?);
        let verifiers = verifiers(config);
        let transfer = transfer(config, db, unpacker.clone(), verifiers.clone())?;
        Ok(Self { differ, differs, unpacker, transfer, verifiers })
    }
}

/// The differs of the diff service, in the order configured.
fn differs(config: &Config, walking: &Differ, proxies: &Proxies) -> Result<Differs> {
    let mut chain: Vec<Arc<dyn LayerDiffer>> = Vec::new();
    for name in &config.plugins.diff.default {
        chain.push(named(name, walking, proxies).ok_or_else(|| not_loaded("diff service", name))?);
    }
    Ok(Differs::new(chain))
}

/// The differ of this name: that of another process, or ours.
fn named(name: &str, walking: &Differ, proxies: &Proxies) -> Option<Arc<dyn LayerDiffer>> {
    match proxies.differs.get(name) {
        Some(differ) => Some(Arc::clone(differ)),
        None if name == plugins::WALKING => Some(Arc::new(walking.clone())),
        None if name == plugins::EROFS => Some(Arc::new(ErofsDiffer::new(walking.clone()))),
        None => None,
    }
}

/// The differs by which the transfer service unpacks into a snapshotter, where they are not ours.
fn appliers(
    config: &Config,
    walking: &Differ,
    proxies: &Proxies,
) -> Result<BTreeMap<String, Arc<dyn LayerDiffer>>> {
    let mut appliers = BTreeMap::new();
    for unpack in &config.plugins.transfer.unpack_config {
        let name = unpack.differ.as_str();
        if name.is_empty() || name == plugins::WALKING {
            continue;
        }
        let differ = named(name, walking, proxies);
        let differ = differ.ok_or_else(|| not_loaded("transfer service", name))?;
        appliers.insert(unpack.snapshotter.clone(), differ);
    }
    Ok(appliers)
}

fn not_loaded(whose: &str, name: &str) -> Error {
    Error::failed_precondition(format!("{whose}: differ {name:?} is not loaded"))
}

/// The programs for layers of other types.
fn processors(config: &Config) -> Processors {
    let each = config.stream_processors.iter().map(|(id, processor)| Processor {
        id: id.clone(),
        accepts: processor.accepts.clone(),
        returns: processor.returns.clone(),
        path: processor.path.clone().into(),
        args: processor.args.clone(),
        env: processor.env.clone(),
    });
    Processors::new(each.collect::<Vec<_>>())
}

/// The programs that verify images; none when the plugin is switched off.
fn verifiers(config: &Config) -> Verifiers {
    let (kind, id) = plugins::VERIFIER;
    let settings = &config.plugins.verifier;
    if settings.bin_dir.is_empty() || config.is_disabled(kind, id) {
        return Verifiers::default();
    }
    Verifiers::new(VerifierOptions {
        bin_dir: PathBuf::from(&settings.bin_dir),
        verifiers_max: usize::try_from(settings.max_verifiers).ok(),
        timeout: settings.per_verifier_timeout.duration(),
    })
}

/// What moves images, with the way to registries.
fn transfer(
    config: &Config,
    db: &Db,
    unpacker: Unpacker,
    verifiers: Verifiers,
) -> Result<Transfer> {
    let settings = &config.plugins.transfer;
    let dirs = settings.config_path.split(':').filter(|dir| !dir.is_empty());
    let hosts = Hosts::new(HostsOptions {
        config_dirs: dirs.map(Into::into).collect(),
        ..HostsOptions::default()
    });
    let resolver = Resolver::new(ResolverOptions { hosts, ..ResolverOptions::default() });
    let options = TransferOptions {
        downloads_max: settings.max_concurrent_downloads.max(1),
        uploads_max: settings.max_concurrent_uploaded_layers.max(1),
        budget: Budget::new(BudgetOptions {
            downloads_max: settings.max_concurrent_downloads_total,
            rate_max: settings.max_download_rate,
            disk_free_min: settings.min_free_space,
            disk: config.root.clone(),
        }),
        verifiers,
        served: served(settings)?,
    };
    Ok(Transfer::new(db.clone(), unpacker, resolver, options))
}

/// What images may be unpacked to: anything, unless the platforms are to be checked.
fn served(settings: &config::Transfer) -> Result<ServedPlatforms> {
    if !settings.check_platform_supported {
        return Ok(ServedPlatforms::default());
    }
    let configured = settings.unpack_config.iter().map(|unpack| {
        let platform = platforms::parse(&unpack.platform)
            .context(|| "unpack_config of the transfer service".to_owned())?;
        Ok(UnpackTarget::new(&platform, &unpack.snapshotter))
    });
    let mut targets = configured.collect::<Result<Vec<_>>>()?;
    if targets.is_empty() {
        targets.push(UnpackTarget::new(&platforms::default(), Overlayfs::NAME));
    }
    Ok(ServedPlatforms::only(targets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Transfer as Settings, TransferUnpack};

    #[test]
    fn platforms_are_checked_when_asked_for_only() {
        let bad = TransferUnpack { platform: "a/b/c/d".into(), ..TransferUnpack::default() };
        let mut settings = Settings { unpack_config: vec![bad], ..Settings::default() };
        assert!(served(&settings).is_ok());
        settings.check_platform_supported = true;
        let err = served(&settings).unwrap_err();
        assert!(err.is_invalid_argument() && err.message().contains("a/b/c/d"), "{err}");
        settings.unpack_config.clear();
        assert!(format!("{:?}", served(&settings).unwrap()).contains(Overlayfs::NAME));
    }
}
