//! Privileged containers.

use oci_spec::runtime::Mount;

use crate::builder::SpecBuilder;
use crate::capabilities;

impl SpecBuilder {
    /// Gives the container all this process may do: every capability of its own, every device,
    /// writable `/sys`, nothing masked, no seccomp filter.
    #[must_use]
    pub fn privileged(mut self) -> Self {
        let wanted = capabilities::current_capabilities()
            .and_then(|names| names.into_iter().map(capabilities::parse).collect::<Result<_, _>>());
        let wanted: Vec<_> = match wanted {
            Ok(wanted) => wanted,
            Err(failure) => {
                self.keep_failure(failure);
                return self;
            }
        };
        self.process().set_capabilities(Some(capabilities::sets_of(wanted)));
        self.process().set_apparmor_profile(None).set_selinux_label(None);
        self.linux().set_masked_paths(None).set_readonly_paths(None).set_seccomp(None);
        for mount in self.spec.mounts_mut().iter_mut().flatten() {
            if matches!(mount.typ().as_deref(), Some("sysfs" | "cgroup" | "cgroup2")) {
                make_writable(mount);
            }
        }
        self.no_new_privileges(false).all_devices_allowed().host_devices()
    }
}

fn make_writable(mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|o| o != "ro");
    options.push("rw".to_owned());
    mount.set_options(Some(options));
}
