//! Identifier rules (containerd `pkg/identifiers`): namespaces, containers, sandboxes, tasks,
//! execs and event topic parts.

use gantry_errdefs::{Error, Result};

/// Longest identifier, in bytes. They become file and cgroup names; the bound is containerd's.
pub const IDENTIFIER_LEN_MAX: usize = 76;

/// Checks that `id` is alphanumeric groups joined by single `.`, `_` or `-`.
///
/// # Errors
/// InvalidArgument naming `what` and the rule that is broken.
pub fn validate(what: &str, id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid_argument(format!("{what} identifier must not be empty")));
    }
    if id.len() > IDENTIFIER_LEN_MAX {
        return Err(Error::invalid_argument(format!(
            "{what} identifier {id:?} greater than maximum length ({IDENTIFIER_LEN_MAX} characters)"
        )));
    }
    let groups_ok = id
        .split(['.', '_', '-'])
        .all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_alphanumeric()));
    if groups_ok {
        Ok(())
    } else {
        Err(Error::invalid_argument(format!(
            "{what} identifier {id:?} must match [A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_grammar() {
        for ok in ["a", "A-b_c.d", "0", "k8s.io"] {
            assert!(validate("container", ok).is_ok(), "{ok}");
        }
        let long = "a".repeat(IDENTIFIER_LEN_MAX + 1);
        for bad in ["", "-a", "a-", "a--b", "a/b", "..", "a b", "é", long.as_str()] {
            assert!(validate("container", bad).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }
}
