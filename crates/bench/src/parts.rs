//! Parts of a bench that can be run alone: arguments such as `records-list`.

/// A bench that has parts.
pub(crate) struct Parts {
    /// Its own name, which stands for all of them.
    pub(crate) bench: &'static str,
    pub(crate) names: &'static [&'static str],
}

impl Parts {
    /// Whether an argument names the bench or one of its parts.
    pub(crate) fn has(&self, wanted: &str) -> bool {
        wanted == self.bench || self.names.iter().any(|part| self.is(wanted, part))
    }

    /// The parts that the arguments name; all of them when there are none or one names the bench.
    pub(crate) fn chosen(&self, wanted: &[String]) -> Vec<&'static str> {
        let all = wanted.is_empty() || wanted.iter().any(|w| w == self.bench);
        let is_wanted = |part: &&str| all || wanted.iter().any(|w| self.is(w, part));
        self.names.iter().copied().filter(is_wanted).collect()
    }

    fn is(&self, wanted: &str, part: &str) -> bool {
        let rest = wanted.strip_prefix(self.bench).and_then(|rest| rest.strip_prefix('-'));
        rest == Some(part)
    }
}
