//! Filters: how list and subscribe calls choose objects.
//!
//! A filter is text of the form `labels."a.b"==x,name~=/^web/`:
//!
//! ```text
//! filter   = selector *( "," selector )            all must hold
//! selector = path [ op value ]                     a bare path asks for presence
//! path     = field *( "." field )
//! field    = quoted | 1*( ASCII letter | digit | "_" )
//! op       = "==" | "!=" | "~="                    "~=" is an unanchored regular expression
//! value    = quoted | 1*( graphic except "," )     "~=" values may also be quoted by / or |
//! ```
//!
//! White space before a token is skipped, but none may come before a comma, before a dot between
//! fields or at the end. A bare value does not begin with a dot or a character of an operator. A list of filters holds when any of them does, and an
//! empty list or an empty filter holds for everything. An absent field counts as empty text, so
//! `!=` holds for it. A regular expression that does not compile never matches.

mod parse;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use gantry_errdefs::Result;
use regex::{Regex, RegexBuilder};

use crate::Labels;

/// Longest filter text, in bytes: far above what clients send, low enough that a hostile list of
/// filters costs nothing.
pub const FILTER_LEN_MAX: usize = 64 * 1024;

/// Largest compiled regular expression, in bytes, so that one filter cannot eat the memory.
const REGEX_SIZE_MAX: usize = 1 << 20;

/// Shows the fields of an object to a filter.
pub trait Adaptor {
    /// The value of the field at `path`, or None when the object has no such field. Fields whose
    /// value is empty text are reported as None by convention, except map entries.
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// Shows a function as an [`Adaptor`]; for objects without a type of their own.
#[derive(Clone, Copy, Debug)]
pub struct FromFn<F>(pub F);

impl<F: Fn(&[&str]) -> Option<String>> Adaptor for FromFn<F> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        (self.0)(path).map(Cow::Owned)
    }
}

/// Looks a map entry up for an adaptor: `rest` is the path after the map's own name, joined by
/// dots to make the key (`labels.a.b` and `labels."a.b"` name the same entry).
pub fn map_field<'a>(map: &'a Labels, rest: &[&str]) -> Option<Cow<'a, str>> {
    map.get(&rest.join(".")).map(|v| Cow::Borrowed(v.as_str()))
}

/// Makes a field of `value`: None when it is empty.
pub fn text_field(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

/// A parsed filter or list of filters.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Alternatives; each is a conjunction. No alternatives at all means everything matches.
    any: Vec<Vec<Selector>>,
}

impl Filter {
    /// The filter that everything matches.
    pub fn always() -> Self {
        Self::default()
    }

    /// Whether everything matches, so that a caller may skip building adaptors.
    pub fn is_always(&self) -> bool {
        self.any.is_empty()
    }

    /// Whether `object` matches.
    pub fn matches(&self, object: &dyn Adaptor) -> bool {
        self.any.is_empty()
            || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(object)))
    }

    /// The value that every match must have in the field at `path`, when the filter is a single
    /// conjunction that says so by `==`. Lets a list call use an index or a direct lookup.
    pub fn required(&self, path: &[&str]) -> Option<&str> {
        let [all] = self.any.as_slice() else { return None };
        all.iter().find_map(|s| match &s.test {
            Test::Equal(value) if s.path == path => Some(value.as_str()),
            _ => None,
        })
    }
}

/// Parses one filter.
///
/// # Errors
/// InvalidArgument naming the filter, the position and what was expected there.
pub fn parse(text: &str) -> Result<Filter> {
    parse_all(&[text])
}

/// Parses a list of filters, of which any may match. An empty list matches everything.
///
/// # Errors
/// InvalidArgument for the first filter that does not parse.
pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Filter> {
    let mut any = Vec::with_capacity(texts.len());
    let mut always = false;
    for text in texts {
        let selectors = parse::selectors(text.as_ref())?;
        always |= selectors.is_empty();
        any.push(selectors);
    }
    Ok(if always { Filter::always() } else { Filter { any } })
}

/// One condition on one field.
#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// None when the expression did not compile: never matches.
    Matches(Option<Regex>),
}

impl Test {
    fn matches_regex(expression: &str) -> Self {
        Self::Matches(RegexBuilder::new(expression).size_limit(REGEX_SIZE_MAX).build().ok())
    }
}

impl Selector {
    fn matches(&self, object: &dyn Adaptor) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = object.field(&path);
        let text = value.as_deref().unwrap_or_default();
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value.is_some() && text == want,
            Test::NotEqual(other) => text != other,
            Test::Matches(regex) => regex.as_ref().is_some_and(|r| r.is_match(text)),
        }
    }
}
