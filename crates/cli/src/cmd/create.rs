//! Making containers: the flags of `run` and `containers create`, and what they mean.

use std::path::{Path, PathBuf};

use clap::Args;
use gantry_api::containerd::runc::v1 as runc;
use gantry_client::core::{Any, Labels, Platform};
use gantry_client::oci::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, LinuxSeccomp, Mount,
    PosixRlimitBuilder, PosixRlimitType,
};
use gantry_client::oci::{Spec, SpecBuilder};
use gantry_client::{Client, Container, ResolvedImage, UnpackOptions, rootfs};
use gantry_errdefs::{Error, Result};

use crate::cmd::resources::ResourceFlags;
use crate::cmd::transfer::parse_platform;
use crate::labels;
use crate::session::Session;
use crate::snapshotter_flag::SnapshotterFlag;

/// Default runtime.
const RUNTIME: &str = "io.containerd.runc.v2";

#[derive(Debug, Args)]
pub(crate) struct ContainerFlags {
    #[command(flatten)]
    snapshotter: SnapshotterFlag,
    /// Labels of the container's snapshot, key=value
    #[arg(long = "snapshotter-label", value_name = "LABEL")]
    snapshot_labels: Vec<String>,
    /// The container is removed when it has ended, and what it wrote with it.
    #[arg(skip)]
    pub(crate) thrown_away: bool,
    /// Spec from this file; the only argument is then the container's id
    #[arg(long, short = 'c', value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Environment variables, NAME=value
    #[arg(long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Files of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Labels, key=value
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Annotations of the spec, key=value
    #[arg(long = "annotation", value_name = "ANNOTATION")]
    annotations: Vec<String>,
    /// Mounts, type=bind,src=/a,dst=/b,options=rbind:ro
    #[arg(long = "mount", value_name = "MOUNT", value_parser = parse_mount)]
    mounts: Vec<Mount>,
    /// Share the host's network
    #[arg(long)]
    net_host: bool,
    /// Give the container everything this program may do
    #[arg(long)]
    privileged: bool,
    /// Make the root filesystem read-only
    #[arg(long)]
    read_only: bool,
    /// Runtime: a name, or the path of a shim
    #[arg(long, value_name = "NAME", default_value = RUNTIME)]
    runtime: String,
    /// Program that makes containers, instead of runc
    #[arg(long, value_name = "PROGRAM")]
    runc_binary: Option<String>,
    /// State directory of that program
    #[arg(long, value_name = "DIR")]
    runc_root: Option<String>,
    /// Let systemd manage cgroups
    #[arg(long)]
    runc_systemd_cgroup: bool,
    /// Do not pivot the root
    #[arg(long)]
    no_pivot: bool,
    /// Give the process a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Join namespaces, type:path
    #[arg(long = "with-ns", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespaces: Vec<(LinuxNamespaceType, PathBuf)>,
    /// Write the task's pid to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Let the process gain privileges
    #[arg(long)]
    allow_new_privs: bool,
    #[command(flatten)]
    resources: ResourceFlags,
    /// Devices of the host
    #[arg(long = "device", value_name = "PATH")]
    devices: Vec<PathBuf>,
    /// Capabilities to add
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Capabilities to take away
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Filter system calls by the default profile
    #[arg(long)]
    seccomp: bool,
    /// Filter system calls by the profile in this file, with --seccomp
    #[arg(long, value_name = "FILE", requires = "seccomp")]
    seccomp_profile: Option<PathBuf>,
    /// AppArmor profile
    #[arg(long, value_name = "NAME")]
    apparmor_profile: Option<String>,
    /// Limit of open files
    #[arg(long, value_name = "COUNT")]
    rlimit_nofile: Option<u64>,
    /// Map user ids in a user namespace, container:host:length
    #[arg(long, value_name = "MAPPING", value_parser = parse_id_mapping, requires = "gidmap")]
    uidmap: Vec<LinuxIdMapping>,
    /// Map group ids in a user namespace, container:host:length
    #[arg(long, value_name = "MAPPING", value_parser = parse_id_mapping, requires = "uidmap")]
    gidmap: Vec<LinuxIdMapping>,
    /// User, name or number, with or without :group
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Cgroup, relative to the hierarchy's root; empty for none
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Platform of the image
    #[arg(long, value_name = "PLATFORM", value_parser = parse_platform)]
    platform: Option<Platform>,
    /// The image argument is a directory with a root filesystem
    #[arg(long)]
    rootfs: bool,
    /// Image (directory with --rootfs, id with --config)
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Id of the container
    id: Option<String>,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl ContainerFlags {
    /// The container's id.
    pub(crate) fn id(&self) -> Result<&str> {
        match (&self.config, &self.id) {
            (Some(_), None) => Ok(&self.image),
            (Some(_), Some(_)) => {
                let why = "with a spec from a file, only the container's id is given";
                Err(Error::invalid_argument(why))
            }
            (None, Some(id)) => Ok(id),
            (None, None) => Err(Error::invalid_argument("container id must be provided")),
        }
    }

    /// Makes the container. Until its record holds them, its parts are under a lease.
    pub(crate) async fn create(&self, session: &Session) -> Result<Container> {
        let guard = session.client.leases().guard().await?;
        let made = self.create_leased(guard.client()).await;
        let released = guard.release().await;
        let container = made?;
        released?;
        // The same container without the lease that is gone.
        session.client.container(container.id()).await
    }

    async fn create_leased(&self, client: &Client) -> Result<Container> {
        let id = self.id()?.to_owned();
        let mut builder =
            client.container_builder(&id).runtime(&self.runtime, self.runtime_options());
        for (key, value) in labels::parse_strict("label", &self.labels)? {
            builder = builder.label(key, value);
        }
        if let Some(file) = &self.config {
            let json = read(file)?;
            // Checked here, passed on as it is.
            gantry_client::oci::from_json::<Spec>(&json).map_err(|e| e.context(file.display()))?;
            let type_url = gantry_client::oci::SPEC_TYPE_URL.to_owned();
            return builder.raw_spec(Any { type_url, value: json }).create().await;
        }
        let base = SpecBuilder::new(client.namespace(), &id);
        if self.rootfs {
            let root = Path::new(&self.image);
            let root = std::fs::canonicalize(root)
                .map_err(|e| Error::io(format!("root filesystem {}", root.display()), e))?;
            let users = gantry_client::oci::UserDatabase::from_rootfs(&root)?;
            let base = base.root_path(root).users(users).args(&self.args);
            let spec = self.options(base)?.build()?;
            return builder.spec(&spec)?.create().await;
        }
        let image = self.unpacked(client).await?;
        let snapshots = client.snapshots(&self.snapshotter.name);
        let parent = image.chain_id().to_string();
        let snapshot_labels = self.snapshot_labels()?;
        let mounts = snapshots
            .prepare(&id, &parent, snapshot_labels)
            .await
            .map_err(|e| e.context(format!("snapshot {id:?}")))?;
        let made = async {
            let users = rootfs::users(&mounts).await?;
            let base = base.users(users).image_config(&image.config.config).args(&self.args);
            let spec = self.options(base)?.build()?;
            let mut builder = builder.image(&image.name).snapshot(&self.snapshotter.name, &id);
            // The image's labels say what the container is, except those that are reserved.
            for (key, value) in &image.config.config.labels {
                let reserved =
                    key.starts_with("containerd.io/") || key.starts_with("io.cri-containerd");
                if !reserved && gantry_core::labels::validate(key, value).is_ok() {
                    builder = builder.label(key, value);
                }
            }
            for (key, value) in labels::parse_strict("label", &self.labels)? {
                builder = builder.label(key, value);
            }
            builder.spec(&spec)?.create().await
        };
        match made.await {
            Ok(container) => Ok(container),
            Err(e) => {
                let _ = snapshots.remove(&id).await;
                Err(e)
            }
        }
    }

    async fn unpacked(&self, client: &Client) -> Result<ResolvedImage> {
        let image = client.resolve_image(&self.image, self.platform.as_ref()).await?;
        if !client.is_unpacked(&image, &self.snapshotter.name).await? {
            let options = UnpackOptions::with_snapshotter(&self.snapshotter.name);
            client.unpack(&image, &options).await?;
        }
        Ok(image)
    }

    /// Labels of the snapshot; with id mappings, those by which the snapshotter shifts ids.
    fn snapshot_labels(&self) -> Result<Labels> {
        let mut all = labels::parse_strict("snapshotter label", &self.snapshot_labels)?;
        if self.thrown_away {
            // Nobody waits for the disk for what is removed next.
            all.entry(gantry_client::VOLATILE_LABEL.to_owned()).or_insert("true".to_owned());
        }
        for (name, maps) in [("uid", &self.uidmap), ("gid", &self.gidmap)] {
            if !maps.is_empty() {
                let text: Vec<_> = maps
                    .iter()
                    .map(|m| format!("{}:{}:{}", m.container_id(), m.host_id(), m.size()))
                    .collect();
                all.insert(format!("containerd.io/snapshot/{name}mapping"), text.join(","));
            }
        }
        Ok(all)
    }

    /// Applies the flags to a spec.
    fn options(&self, mut spec: SpecBuilder) -> Result<SpecBuilder> {
        for file in &self.env_file {
            let text = String::from_utf8_lossy(&read(file)?).into_owned();
            let lines = text.lines().map(str::trim);
            spec = spec.envs(lines.filter(|l| !l.is_empty() && !l.starts_with('#')));
        }
        spec = spec.envs(&self.env);
        if self.tty {
            spec = spec.terminal();
        }
        if let Some(user) = &self.user {
            spec = spec.user(user);
        }
        if let Some(directory) = &self.cwd {
            spec = spec.cwd(directory);
        }
        if let Some(name) = &self.hostname {
            spec = spec.hostname(name);
        }
        if self.privileged {
            spec = spec.privileged();
        }
        if self.net_host {
            spec = spec.host_network();
            if let Ok(name) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
                spec = spec.env(format!("HOSTNAME={}", name.trim()));
            }
        }
        spec = self.mounts.iter().cloned().fold(spec, SpecBuilder::mount);
        for (kind, path) in &self.namespaces {
            spec = spec.join_namespace(*kind, path);
        }
        if !self.uidmap.is_empty() {
            spec = spec.user_namespace(self.uidmap.clone(), self.gidmap.clone());
        }
        for (key, value) in labels::parse_strict("annotation", &self.annotations)? {
            spec = spec.annotation(key, value);
        }
        self.limits(self.security(spec)?)
    }

    fn security(&self, mut spec: SpecBuilder) -> Result<SpecBuilder> {
        spec = self.cap_add.iter().fold(spec, |s, c| s.add_capability(c));
        spec = self.cap_drop.iter().fold(spec, |s, c| s.drop_capability(c));
        if self.allow_new_privs {
            spec = spec.no_new_privileges(false);
        }
        if self.read_only {
            spec = spec.read_only();
        }
        if let Some(profile) = self.apparmor_profile.clone() {
            spec = spec.with(|s| {
                if let Some(process) = s.process_mut() {
                    process.set_apparmor_profile(Some(profile));
                }
                Ok(())
            });
        }
        match (&self.seccomp_profile, self.seccomp) {
            (Some(file), _) => {
                let profile: LinuxSeccomp = gantry_client::oci::from_json(&read(file)?)
                    .map_err(|e| e.context(file.display()))?;
                Ok(spec.seccomp(profile))
            }
            (None, true) => Ok(spec.default_seccomp()),
            (None, false) => Ok(spec),
        }
    }

    fn limits(&self, mut spec: SpecBuilder) -> Result<SpecBuilder> {
        spec = self.devices.iter().fold(spec, |s, d| s.device(d));
        spec = self.resources.apply(spec)?;
        if let Some(count) = self.rlimit_nofile {
            let limit = PosixRlimitBuilder::default()
                .typ(PosixRlimitType::RlimitNofile)
                .hard(count)
                .soft(count)
                .build()
                .map_err(|e| Error::invalid_argument(format!("rlimit: {e}")))?;
            spec = spec.rlimit(limit);
        }
        if let Some(path) = &self.cgroup {
            spec = spec.cgroup(path);
        }
        Ok(spec)
    }

    /// Options of runc's shim; none for other runtimes, whose options we don't know.
    fn runtime_options(&self) -> Option<Any> {
        let options = runc::Options {
            binary_name: self.runc_binary.clone().unwrap_or_default(),
            root: self.runc_root.clone().unwrap_or_default(),
            systemd_cgroup: self.runc_systemd_cgroup,
            no_pivot_root: self.no_pivot,
            ..runc::Options::default()
        };
        let is_runc = self.runtime == RUNTIME || self.runtime.starts_with('/');
        if !is_runc && options == runc::Options::default() {
            return None;
        }
        let packed = gantry_client::pack_any(&options);
        Some(packed)
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|e| Error::io(file.display(), e))
}

/// `type=bind,src=/a,dst=/b,options=rbind:ro`
fn parse_mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount::default();
    let mut destination = None;
    mount.set_typ(None).set_source(None).set_options(None);
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or(format!("{pair:?}: want key=value"))?;
        match key.trim() {
            "type" => drop(mount.set_typ(Some(value.to_owned()))),
            "source" | "src" => drop(mount.set_source(Some(value.into()))),
            "destination" | "dst" | "target" => destination = Some(PathBuf::from(value)),
            "options" => {
                let options = value.split(':').map(str::to_owned).collect();
                mount.set_options(Some(options));
            }
            other => return Err(format!("mount option {other:?} not supported")),
        }
    }
    let destination = destination.ok_or("a mount needs dst")?;
    if !destination.is_absolute() {
        return Err(format!("destination {}: not an absolute path", destination.display()));
    }
    mount.set_destination(destination);
    Ok(mount)
}

/// `network:/proc/1/ns/net`
fn parse_namespace(text: &str) -> Result<(LinuxNamespaceType, PathBuf), String> {
    let (kind, path) = text.split_once(':').ok_or("want type:path")?;
    let kind = LinuxNamespaceType::try_from(kind)
        .map_err(|_| format!("namespace type {kind:?} is unknown"))?;
    Ok((kind, PathBuf::from(path)))
}

/// `container:host:length`
fn parse_id_mapping(text: &str) -> Result<LinuxIdMapping, String> {
    let numbers: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    match numbers.as_deref() {
        Ok([container, host, size]) => LinuxIdMappingBuilder::default()
            .container_id(*container)
            .host_id(*host)
            .size(*size)
            .build()
            .map_err(|e| e.to_string()),
        _ => Err("want container-id:host-id:length".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_parse() {
        let mount = parse_mount("type=bind,src=/a,dst=/b,options=rbind:ro").unwrap();
        assert_eq!(mount.options().as_deref(), Some(&["rbind".to_owned(), "ro".to_owned()][..]));
        for bad in ["", "type=bind", "dst=b", "dst=/b,x=y", "dst"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces_and_mappings_parse() {
        assert_eq!(parse_namespace("pid:/x").unwrap().0, LinuxNamespaceType::Pid);
        assert!(parse_namespace("pid").is_err() && parse_namespace("x:/y").is_err());
        assert_eq!(parse_id_mapping("0:1000:10").unwrap().host_id(), 1000);
        assert!(parse_id_mapping("0:1000").is_err());
    }
}
