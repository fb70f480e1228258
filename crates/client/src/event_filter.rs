//! Filters of events, put together instead of spelled.

use std::fmt;

/// Conditions that an event must all meet. Give several filters to a subscription for events that
/// meet any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    conditions: Vec<String>,
}

impl EventFilter {
    /// A filter that every event passes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only events of a namespace.
    #[must_use]
    pub fn namespace(self, name: &str) -> Self {
        self.field("namespace", name)
    }

    /// Only events of a topic, such as `/tasks/exit`.
    #[must_use]
    pub fn topic(self, topic: &str) -> Self {
        self.field("topic", topic)
    }

    /// Only events whose topic begins with `prefix`, such as `/tasks/`.
    #[must_use]
    pub fn topic_prefix(mut self, prefix: &str) -> Self {
        let mut pattern = "^".to_owned();
        for c in prefix.chars() {
            if !c.is_alphanumeric() && !"/_-".contains(c) {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        self.conditions.push(format!("topic~={}", quoted(&pattern)));
        self
    }

    /// Only events about one container.
    #[must_use]
    pub fn container(self, id: &str) -> Self {
        self.field("event.container_id", id)
    }

    /// Only events with this value in a field: `namespace`, `topic` or `event.<name>`.
    #[must_use]
    pub fn field(mut self, path: &str, value: &str) -> Self {
        self.conditions.push(format!("{path}=={}", quoted(value)));
        self
    }
}

impl fmt::Display for EventFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.conditions.join(","))
    }
}

impl From<EventFilter> for String {
    fn from(filter: EventFilter) -> Self {
        filter.to_string()
    }
}

/// The value between double quotes, as the filter language reads it.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use gantry_core::filters::{self, Adaptor};

    use super::*;

    struct View(&'static str, &'static str);

    impl Adaptor for View {
        fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
            match path {
                ["namespace"] => Some(self.0.into()),
                ["topic"] => Some(self.1.into()),
                _ => None,
            }
        }
    }

    #[test]
    fn filters_mean_what_they_say() {
        let filter = EventFilter::new().namespace("a\"b\\c").topic_prefix("/tasks/");
        let parsed = filters::parse_all(&[filter.to_string()]).unwrap();
        assert!(parsed.matches(&View("a\"b\\c", "/tasks/exit")));
        assert!(!parsed.matches(&View("a\"b\\c", "/images/tasks/")));
        assert!(!parsed.matches(&View("other", "/tasks/exit")));
        let dotted = EventFilter::new().topic_prefix("/a.b");
        let parsed = filters::parse_all(&[String::from(dotted)]).unwrap();
        assert!(parsed.matches(&View("", "/a.bc")) && !parsed.matches(&View("", "/axbc")));
    }
}
