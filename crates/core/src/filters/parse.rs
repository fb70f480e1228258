//! The parser of filter text.

use gantry_errdefs::{Error, Result};

use super::{FILTER_LEN_MAX, Selector, Test};

/// Parses a conjunction of selectors; empty for empty text.
pub(super) fn selectors(text: &str) -> Result<Vec<Selector>> {
    if text.len() > FILTER_LEN_MAX {
        return Err(Error::invalid_argument(format!(
            "filter of {} bytes is longer than {FILTER_LEN_MAX} bytes",
            text.len()
        )));
    }
    let mut parser = Parser { text, at: 0 };
    let mut selectors = Vec::new();
    if parser.peek().is_none() {
        return Ok(selectors);
    }
    loop {
        selectors.push(parser.selector()?);
        match parser.peek() {
            None => return Ok(selectors),
            Some(',') => parser.bump(),
            Some(_) => return Err(parser.error("expected `,` or the end")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Byte position of the next character.
    at: usize,
}

impl Parser<'_> {
    fn error(&self, why: &str) -> Error {
        Error::invalid_argument(format!("filter {:?}: at byte {}: {why}", self.text, self.at))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn bump(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.bump();
        }
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &str {
        let start = self.at;
        while self.peek().is_some_and(&keep) {
            self.bump();
        }
        &self.text[start..self.at]
    }

    fn selector(&mut self) -> Result<Selector> {
        let path = self.path()?;
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_space();
        let operator = self.take_while(|c| matches!(c, '=' | '!' | '~')).to_owned();
        let test = match operator.as_str() {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => Test::matches_regex(&self.value(true)?),
            "" => return Err(self.error("expected an operator, `==`, `!=` or `~=`")),
            other => return Err(self.error(&format!("unsupported operator {other:?}"))),
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>> {
        let mut path = vec![self.field()?];
        loop {
            if self.peek() != Some('.') {
                return Ok(path);
            }
            self.bump();
            path.push(self.field()?);
        }
    }

    fn field(&mut self) -> Result<String> {
        self.skip_space();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let field = self.take_while(|c| c == '_' || c.is_ascii_alphanumeric()).to_owned();
        if field.is_empty() { Err(self.error("expected a field or quoted")) } else { Ok(field) }
    }

    /// A value; `any_quote` allows `/` and `|` as quotes as well.
    fn value(&mut self, any_quote: bool) -> Result<String> {
        self.skip_space();
        match self.peek() {
            Some('"') => return self.quoted('"'),
            Some(quote @ ('/' | '|')) if any_quote => return self.quoted(quote),
            Some('/' | '|') => return Err(self.error("this quote is for `~=` only; use `\"`")),
            Some('.' | '=' | '!' | '~') => return Err(self.error("expected a value or quoted")),
            _ => {}
        }
        let value =
            self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control()).to_owned();
        if value.is_empty() { Err(self.error("expected a value or quoted")) } else { Ok(value) }
    }

    /// Text between two `quote` characters, with Go's escapes. Between `/` or `|` an escape that
    /// Go does not know stays as it is, for it belongs to the regular expression.
    fn quoted(&mut self, quote: char) -> Result<String> {
        self.bump();
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return Err(self.error(&format!("the quote {quote} is not closed")));
            };
            self.bump();
            match c {
                '\n' => return Err(self.error("a quoted text must be on one line")),
                c if c == quote => return Ok(out),
                '\\' => self.escape(quote, &mut out)?,
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, quote: char, out: &mut String) -> Result<()> {
        let Some(c) = self.peek() else {
            return Err(self.error("an escape at the end"));
        };
        self.bump();
        let plain = match c {
            c if c == quote => c,
            '\\' => '\\',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => self.code_point(2, 16)?,
            'u' => self.code_point(4, 16)?,
            'U' => self.code_point(8, 16)?,
            '0'..='7' => {
                self.at -= 1;
                self.code_point(3, 8)?
            }
            other if quote != '"' => {
                out.push('\\');
                other
            }
            other => return Err(self.error(&format!("unknown escape `\\{other}`"))),
        };
        out.push(plain);
        Ok(())
    }

    fn code_point(&mut self, digits: usize, radix: u32) -> Result<char> {
        let value = self
            .text
            .get(self.at..self.at + digits)
            .filter(|d| d.chars().all(|c| c.is_digit(radix)))
            .and_then(|d| u32::from_str_radix(d, radix).ok())
            .and_then(char::from_u32)
            .ok_or_else(|| self.error(&format!("expected {digits} digits of a character")))?;
        self.at += digits;
        Ok(value)
    }
}
