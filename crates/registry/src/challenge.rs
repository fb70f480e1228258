//! `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// One challenge: a scheme and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// The scheme in lower case.
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Reads every challenge of one header value. What cannot be read is skipped: a strange challenge
/// must not hide a usable one.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return out;
        }
        let (word, after) = split_token(rest);
        if word.is_empty() {
            // Not a token: skip a character and look again.
            let mut chars = rest.chars();
            chars.next();
            rest = chars.as_str();
            continue;
        }
        let value_at = after.trim_start_matches([' ', '\t']);
        match value_at.strip_prefix('=') {
            Some(value) if !out.is_empty() => {
                let (value, after) = split_value(value.trim_start_matches([' ', '\t']));
                if let Some(last) = out.last_mut() {
                    last.parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            Some(value) => rest = split_value(value).1,
            None => {
                out.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c);
    text.split_at(text.find(|c: char| !is_token(c)).unwrap_or(text.len()))
}

/// A token or quoted text, and what follows it.
fn split_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, after) = split_token(text);
        return (token.to_owned(), after);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_registries_send() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push", error=invalid_token"#;
        let [bearer] = parse(header).try_into().unwrap();
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(bearer.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(bearer.get("error"), Some("invalid_token"));
        let two = parse(r#"Negotiate, Basic realm="a \"b\""  , charset=UTF-8"#);
        assert_eq!(two.len(), 2);
        assert_eq!(two[1].get("realm"), Some("a \"b\""));
        assert_eq!(two[1].get("charset"), Some("UTF-8"));
    }

    #[test]
    fn survives_garbage() {
        for text in ["", ",,,", "=", "\"", "Bearer realm=\"open", "é=ü, Basic", "a=b=c", "()"] {
            let _ = parse(text);
        }
        assert_eq!(parse("@ Basic realm=x").len(), 1);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn quoted_values_are_verbatim(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = parse(&format!("Bearer realm=\"{quoted}\",service=x"));
            prop_assert_eq!(parsed.len(), 1);
            prop_assert_eq!(parsed[0].get("realm"), Some(value.as_str()));
            prop_assert_eq!(parsed[0].get("service"), Some("x"));
        }
    }
}
