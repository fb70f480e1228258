//! Topic names.

use gantry_core::identifiers;
use gantry_errdefs::{Error, Result, ResultExt};

/// Checks that `topic` is a path of identifiers, such as `/tasks/exit`.
///
/// # Errors
/// InvalidArgument naming the topic and the rule that is broken.
pub fn validate_topic(topic: &str) -> Result<()> {
    if topic.is_empty() {
        return Err(Error::invalid_argument("topic must not be empty"));
    }
    let Some(parts) = topic.strip_prefix('/') else {
        return Err(Error::invalid_argument(format!("topic {topic:?} must start with '/'")));
    };
    if parts.is_empty() {
        return Err(Error::invalid_argument(format!("topic {topic:?} must have a component")));
    }
    parts
        .split('/')
        .try_for_each(|part| identifiers::validate("component", part))
        .context(|| format!("topic {topic:?}"))
}
