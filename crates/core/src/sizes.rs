//! Sizes as people write them.

/// A number of bytes with or without a unit, `512M`, `10gb` or `3MiB`; units are powers of 1024.
/// None for anything else.
pub fn parse(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    bytes(number, unit)
}

/// As [`parse`], with blanks around it and before the unit.
pub fn parse_spaced(text: &str) -> Option<u64> {
    let (number, unit) = split(text.trim());
    bytes(number, unit.trim_start())
}

/// The digits that `text` begins with, and the rest.
fn split(text: &str) -> (&str, &str) {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    text.split_at(digits)
}

fn bytes(number: &str, unit: &str) -> Option<u64> {
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_taken_where_they_are_asked_for() {
        assert_eq!((parse("2GiB"), parse_spaced(" 2 GiB ")), (Some(2 << 30), Some(2 << 30)));
        assert_eq!((parse("2 GiB"), parse(" 2GiB"), parse_spaced("1 0")), (None, None, None));
        assert_eq!((parse(""), parse_spaced(" "), parse("99999999999T")), (None, None, None));
    }
}
