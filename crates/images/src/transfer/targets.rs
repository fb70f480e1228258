//! Which of the snapshotters that a client asks for are unpacked to.

use gantry_core::platforms::Matcher;
use gantry_errdefs::{Error, Result};

use super::UnpackTarget;

/// Platforms and the snapshotters that serve them; without one, every snapshotter serves all.
#[derive(Clone, Debug, Default)]
pub struct ServedPlatforms(Option<Vec<UnpackTarget>>);

impl ServedPlatforms {
    /// Those of `targets`, and nothing else.
    pub fn only(targets: Vec<UnpackTarget>) -> Self {
        Self(Some(targets))
    }

    /// What of `asked` is served. What is not is passed by: its content is fetched all the same,
    /// as of a platform that nobody asked to unpack.
    ///
    /// # Errors
    /// InvalidArgument when something was asked for and nothing of it is served.
    pub(crate) fn of(&self, asked: Vec<UnpackTarget>) -> Result<Vec<UnpackTarget>> {
        let Some(served) = &self.0 else { return Ok(asked) };
        if asked.is_empty() {
            return Ok(asked);
        }
        let text = asked.iter().map(|a| format!("{} for {}", a.snapshotter, a.matcher));
        let text = text.collect::<Vec<_>>().join("; ");
        let kept: Vec<UnpackTarget> =
            asked.into_iter().filter(|a| served.iter().any(|s| serves(s, a))).collect();
        if kept.is_empty() {
            return Err(Error::invalid_argument(format!(
                "no unpack platforms defined: unpack_config of the transfer service has none of \
                 {text}, and check_platform_supported is set"
            )));
        }
        Ok(kept)
    }
}

/// Whether `served` takes what `asked` names: the same snapshotter, and the platform asked for is
/// one that it runs.
fn serves(served: &UnpackTarget, asked: &UnpackTarget) -> bool {
    let platform = asked.matcher.best();
    served.snapshotter == asked.snapshotter
        && platform.map_or(served.matcher.is_all(), |p| served.matcher.matches(p))
}

impl UnpackTarget {
    /// The platforms that `platform` runs, unpacked to `snapshotter`.
    pub fn new(platform: &gantry_core::Platform, snapshotter: impl Into<String>) -> Self {
        Self { matcher: Matcher::only(platform), snapshotter: snapshotter.into() }
    }
}

#[cfg(test)]
mod tests {
    use gantry_core::platforms;

    use super::*;

    fn target(platform: &str, snapshotter: &str) -> UnpackTarget {
        UnpackTarget::new(&platforms::parse(platform).unwrap(), snapshotter)
    }

    #[test]
    fn a_target_is_served_by_its_snapshotter_on_its_platform() {
        let served = ServedPlatforms::only(vec![
            target("linux/amd64", "overlayfs"),
            target("linux/arm64", "native"),
        ]);
        let kept = |asked: &[(&str, &str)]| {
            let asked = asked.iter().map(|(p, s)| target(p, s)).collect();
            let kept = served.of(asked)?;
            Ok::<_, Error>(kept.into_iter().map(|k| k.snapshotter).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(kept(&[("linux/amd64", "overlayfs")]).unwrap(), "overlayfs");
        // What the processor runs as well.
        assert_eq!(kept(&[("linux/386", "overlayfs")]).unwrap(), "overlayfs");
        let some = [("linux/amd64/v3", "overlayfs"), ("linux/arm/v7", "native")];
        assert_eq!(kept(&some).unwrap(), "native");
        assert_eq!(kept(&[]).unwrap(), "");
        for refused in [("linux/amd64", "native"), ("linux/s390x", "overlayfs")] {
            let err = kept(&[refused]).unwrap_err();
            assert!(err.is_invalid_argument(), "{err}");
            assert!(err.message().contains(refused.1), "{err}");
        }
        let asked = vec![target("plan9/arm", "anything")];
        assert_eq!(ServedPlatforms::default().of(asked.clone()).unwrap(), asked);
    }
}
