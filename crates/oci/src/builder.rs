//! The builder: a spec and the options that change it.

use std::path::PathBuf;

use gantry_core::image::RunConfig;
use gantry_errdefs::{Error, Result};
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Mount, PosixRlimit, Process, Root,
    Spec,
};

use crate::users::{User, UserDatabase};
use crate::{capabilities, defaults};

/// Builds a runtime spec. See the crate's head for how options work.
#[derive(Debug)]
pub struct SpecBuilder {
    pub(crate) spec: Spec,
    users: UserDatabase,
    user: Option<String>,
    entrypoint: Vec<String>,
    failure: Option<Error>,
}

impl SpecBuilder {
    /// Starts from the default spec of container `id` in `namespace`.
    pub fn new(namespace: &str, id: &str) -> Self {
        Self::from_spec(defaults::default_spec(namespace, id))
    }

    /// Starts from a given spec.
    pub fn from_spec(spec: Spec) -> Self {
        Self {
            spec,
            users: UserDatabase::default(),
            user: None,
            entrypoint: Vec::new(),
            failure: None,
        }
    }

    /// Takes entrypoint, command, environment, directory and user of an image. Options called
    /// later win; arguments replace the command and keep the entrypoint.
    #[must_use]
    pub fn image_config(mut self, config: &RunConfig) -> Self {
        let args: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
        self.process().set_args((!args.is_empty()).then_some(args));
        self.entrypoint.clone_from(&config.entrypoint);
        let directory =
            if config.working_dir.is_empty() { "/" } else { config.working_dir.as_str() };
        self.process().set_cwd(PathBuf::from(directory));
        self.user = Some(config.user.clone());
        self.envs(&config.env)
    }

    /// Where names of users and groups are looked up.
    #[must_use]
    pub fn users(mut self, users: UserDatabase) -> Self {
        self.users = users;
        self
    }

    /// The arguments. After [`Self::image_config`] they follow the image's entrypoint. No
    /// arguments leave what there is.
    #[must_use]
    pub fn args<I>(mut self, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let mut all = self.entrypoint.clone();
        let given = all.len();
        all.extend(args.into_iter().map(Into::into));
        if all.len() > given {
            self.process().set_args(Some(all));
        }
        self
    }

    /// Sets a variable, `NAME=value`; `NAME` alone removes it.
    #[must_use]
    pub fn env(mut self, variable: impl Into<String>) -> Self {
        let variable = variable.into();
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        let env = self.process().env_mut().get_or_insert_default();
        let same = |v: &String| v.split('=').next() == Some(name.as_str());
        let position = env.iter().position(same);
        match (position, variable.contains('=')) {
            (Some(at), true) => env[at] = variable,
            (Some(at), false) => drop(env.remove(at)),
            (None, true) => env.push(variable),
            (None, false) => {}
        }
        self
    }

    /// Sets several variables, in order.
    #[must_use]
    pub fn envs<I>(self, variables: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        variables.into_iter().fold(self, |b, v| b.env(v.as_ref()))
    }

    /// The working directory, an absolute path.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        if directory.is_absolute() {
            self.process().set_cwd(directory);
            return self;
        }
        self.fail(format!("working directory {}: not an absolute path", directory.display()))
    }

    /// The user, `user[:group]` by name or number; looked up when the spec is built.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Whether building will look something up in the user database: a name, or what belongs to
    /// a number.
    pub fn needs_users(&self) -> bool {
        self.user.as_ref().is_some_and(|user| !user.is_empty())
    }

    /// Applies an option that is a function, such as one shared by several programs.
    #[must_use]
    pub fn apply(self, option: impl FnOnce(Self) -> Self) -> Self {
        option(self)
    }

    /// Gives the process a terminal.
    #[must_use]
    pub fn terminal(mut self) -> Self {
        self.process().set_terminal(Some(true));
        let has_term = |env: &Vec<String>| env.iter().any(|v| v.starts_with("TERM="));
        if self.process().env().as_ref().is_some_and(has_term) {
            return self;
        }
        self.env("TERM=xterm")
    }

    /// The host name inside the container.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.spec.set_hostname(Some(name.into()));
        self
    }

    /// The root filesystem's path, when it is not the bundle's `rootfs`.
    #[must_use]
    pub fn root_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.root().set_path(path.into());
        self
    }

    /// Makes the root filesystem read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.root().set_readonly(Some(true));
        self
    }

    /// Adds a mount after those there are.
    #[must_use]
    pub fn mount(mut self, mount: Mount) -> Self {
        self.spec.mounts_mut().get_or_insert_default().push(mount);
        self
    }

    /// Adds a bind mount of `source`; `options` such as `rbind`, `ro`.
    #[must_use]
    pub fn bind(self, source: &str, destination: &str, options: &[&str]) -> Self {
        let mut mount = Mount::default();
        mount
            .set_destination(PathBuf::from(destination))
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(PathBuf::from(source)))
            .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
        self.mount(mount)
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let annotations = self.spec.annotations_mut().get_or_insert_default();
        annotations.insert(key.into(), value.into());
        self
    }

    /// Adds a capability to every set; `CAP_` is optional.
    #[must_use]
    pub fn add_capability(self, name: &str) -> Self {
        self.change_capabilities(name, |set, c| {
            set.insert(c);
        })
    }

    /// Takes a capability out of every set; `CAP_` is optional.
    #[must_use]
    pub fn drop_capability(self, name: &str) -> Self {
        self.change_capabilities(name, |set, c| {
            set.remove(&c);
        })
    }

    /// Whether the process may gain privileges by setuid programs. Default: it may not.
    #[must_use]
    pub fn no_new_privileges(mut self, forbidden: bool) -> Self {
        self.process().set_no_new_privileges(Some(forbidden));
        self
    }

    /// Replaces one resource limit of the process, such as `RLIMIT_NOFILE`.
    #[must_use]
    pub fn rlimit(mut self, limit: PosixRlimit) -> Self {
        let mut limits = self.process().rlimits().clone().unwrap_or_default();
        limits.retain(|l| l.typ() != limit.typ());
        limits.push(limit);
        self.process().set_rlimits(Some(limits));
        self
    }

    /// Joins the namespace at `path` instead of making one; the kinds are those of the spec
    /// (`network`, `pid`, `ipc`, ...).
    #[must_use]
    pub fn join_namespace(mut self, kind: LinuxNamespaceType, path: impl Into<PathBuf>) -> Self {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(Some(path.into()));
        self.replace_namespace(kind, Some(namespace));
        self
    }

    /// Shares a namespace with the host.
    #[must_use]
    pub fn host_namespace(mut self, kind: LinuxNamespaceType) -> Self {
        self.replace_namespace(kind, None);
        self
    }

    /// Shares the host's network and its name resolution files.
    #[must_use]
    pub fn host_network(self) -> Self {
        self.host_namespace(LinuxNamespaceType::Network)
            .bind("/etc/hosts", "/etc/hosts", &["rbind", "ro"])
            .bind("/etc/resolv.conf", "/etc/resolv.conf", &["rbind", "ro"])
    }

    /// Runs in a new user namespace with these mappings.
    #[must_use]
    pub fn user_namespace(mut self, uids: Vec<LinuxIdMapping>, gids: Vec<LinuxIdMapping>) -> Self {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(LinuxNamespaceType::User);
        self.replace_namespace(LinuxNamespaceType::User, Some(namespace));
        self.linux().set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
        self
    }

    /// The cgroup, relative to the hierarchy's root; empty for none of its own.
    #[must_use]
    pub fn cgroup(mut self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let path = (!path.as_os_str().is_empty()).then_some(path);
        self.linux().set_cgroups_path(path);
        self
    }

    /// Applies a change that has no method here.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Spec) -> Result<()>) -> Self {
        if self.failure.is_none() {
            self.failure = change(&mut self.spec).err();
        }
        self
    }

    /// The finished spec.
    ///
    /// # Errors
    /// The first error of an option; NotFound for an unknown user or group; InvalidArgument when
    /// there is nothing to run.
    pub fn build(mut self) -> Result<Spec> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if let Some(user) = self.user.take() {
            let User { uid, gid, groups } = self.users.resolve(&user)?;
            let mut ids = oci_spec::runtime::User::default();
            ids.set_uid(uid).set_gid(gid).set_additional_gids(Some(groups));
            self.process().set_user(ids);
        }
        if self.process().args().as_ref().is_none_or(Vec::is_empty) {
            return Err(Error::invalid_argument("no arguments specified"));
        }
        Ok(self.spec)
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.spec.process_mut().get_or_insert_default()
    }

    pub(crate) fn linux(&mut self) -> &mut Linux {
        self.spec.linux_mut().get_or_insert_default()
    }

    pub(crate) fn fail(mut self, why: impl Into<String>) -> Self {
        self.failure.get_or_insert_with(|| Error::invalid_argument(why));
        self
    }

    pub(crate) fn keep_failure(&mut self, failure: Error) {
        self.failure.get_or_insert(failure);
    }

    fn root(&mut self) -> &mut Root {
        self.spec.root_mut().get_or_insert_default()
    }

    fn change_capabilities(
        mut self,
        name: &str,
        change: impl FnOnce(&mut oci_spec::runtime::Capabilities, oci_spec::runtime::Capability),
    ) -> Self {
        let capability = match capabilities::parse(name) {
            Ok(capability) => capability,
            Err(failure) => {
                self.keep_failure(failure);
                return self;
            }
        };
        let sets = self.process().capabilities().clone().unwrap_or_default();
        let mut bounding = sets.bounding().clone().unwrap_or_default();
        change(&mut bounding, capability);
        self.process().set_capabilities(Some(capabilities::sets_of(bounding)));
        self
    }

    fn replace_namespace(&mut self, kind: LinuxNamespaceType, with: Option<LinuxNamespace>) {
        let mut namespaces = self.linux().namespaces().clone().unwrap_or_default();
        namespaces.retain(|n| n.typ() != kind);
        namespaces.extend(with);
        self.linux().set_namespaces(Some(namespaces));
    }
}
