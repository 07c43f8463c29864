//! Java's `.properties` format, as `java.util.Properties.load` defines it, but
//! in UTF-8.
//!
//! A line is `key = value`, `key: value` or `key value`; `#` and `!` begin a
//! comment; a line that ends in an odd number of backslashes goes on in the next,
//! whose leading white space is dropped; `\t \n \r \f \uXXXX` are escapes and a
//! backslash before anything else stands for that character.

use std::{collections::BTreeMap, iter::Peekable, str::Chars};

use super::error::Problem;

/// Reads `text`. Of a key that is given twice the last value holds.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, Problem> {
    let mut properties = BTreeMap::new();
    for (line, logical) in logical_lines(text) {
        let (key, value) = split(&logical);
        let unescaped = |text| unescape(text).map_err(|what| Problem::Syntax { line, what });
        let key = unescaped(key)?;
        if key.is_empty() {
            return Err(Problem::Syntax {
                line,
                what: "a setting has no name",
            });
        }
        properties.insert(key, unescaped(value)?);
    }
    Ok(properties)
}

/// Reads `KEY=VALUE` as `--override` takes it: no escapes, white space around
/// either is dropped.
pub fn parse_override(text: &str) -> Result<(String, String), Problem> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(Problem::Override(text.to_owned())),
    }
}

const BLANK: [char; 3] = [' ', '\t', '\x0c'];

/// The lines that hold a setting, continued ones joined, each with the number of
/// its first line.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (at, natural) in natural_lines(text).enumerate() {
        let body = natural.trim_start_matches(BLANK);
        let (first, mut joined) = match open.take() {
            Some(started) => started,
            // A comment and an empty line can't be continued.
            None if body.is_empty() || body.starts_with(['#', '!']) => continue,
            None => (at + 1, String::new()),
        };
        let backslashes = body.len() - body.trim_end_matches('\\').len();
        if backslashes % 2 == 1 {
            joined.push_str(&body[..body.len() - 1]);
            open = Some((first, joined));
        } else {
            joined.push_str(body);
            lines.push((first, joined));
        }
    }
    lines.extend(open);
    lines
}

/// Lines end in `\n`, `\r` or `\r\n`.
fn natural_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        line.split('\r')
    })
}

/// Splits at the first `=`, `:` or white space that no backslash precedes.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line.char_indices().find_map(|(at, c)| {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if matches!(c, '=' | ':') || BLANK.contains(&c) {
            return Some(at);
        }
        None
    });
    let Some(end) = end else {
        return (line, "");
    };
    let rest = line[end..].trim_start_matches(BLANK);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (&line[..end], value.trim_start_matches(BLANK))
}

fn unescape(text: &str) -> Result<String, &'static str> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' {
            result.push(c);
            continue;
        }
        match rest.next() {
            Some('t') => result.push('\t'),
            Some('n') => result.push('\n'),
            Some('r') => result.push('\r'),
            Some('f') => result.push('\x0c'),
            Some('u') => result.push(unicode(&mut rest)?),
            Some(other) => result.push(other),
            None => {}
        }
    }
    Ok(result)
}

/// The character of `\uXXXX`; one outside the basic plane is two of them, as in Java.
fn unicode(rest: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    const LONE: &str = "half of a \\u surrogate pair";
    let first = four_digits(rest)?;
    if !(0xd800..0xe000).contains(&first) {
        return char::from_u32(first.into()).ok_or(LONE);
    }
    if rest.next() != Some('\\') || rest.next() != Some('u') {
        return Err(LONE);
    }
    let second = four_digits(rest)?;
    match char::decode_utf16([first, second]).next() {
        Some(Ok(c)) => Ok(c),
        _ => Err(LONE),
    }
}

fn four_digits(rest: &mut Peekable<Chars<'_>>) -> Result<u16, &'static str> {
    let mut value = 0;
    for _ in 0..4 {
        let digit = rest
            .next_if(char::is_ascii_hexdigit)
            .and_then(|c| c.to_digit(16))
            .ok_or("\\u needs four hexadecimal digits")?;
        value = value << 4 | digit as u16;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let expected = expected
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(parse(text), Ok(expected), "{text:?}");
    }

    #[test]
    fn a_key_ends_at_an_equals_sign_a_colon_or_white_space() {
        check("a=1", &[("a", "1")]);
        check("a:1", &[("a", "1")]);
        check("a 1", &[("a", "1")]);
        check("  a\t= 1 2 ", &[("a", "1 2 ")]);
        check("a = = 1", &[("a", "= 1")]);
        check("a", &[("a", "")]);
        check("a=", &[("a", "")]);
        check(
            "listeners=PLAINTEXT://:9092",
            &[("listeners", "PLAINTEXT://:9092")],
        );
    }

    #[test]
    fn comments_and_empty_lines_are_skipped() {
        check(
            "# a=1\n  ! b=2\n\n\t\nc=3 # no comment",
            &[("c", "3 # no comment")],
        );
        check("# not continued \\\na=1", &[("a", "1")]);
    }

    #[test]
    fn an_odd_number_of_backslashes_continues_the_line() {
        check("a=1,\\\n   2,\\\r\n\t3\nb=4", &[("a", "1,2,3"), ("b", "4")]);
        check("a=1\\\\\nb=2", &[("a", "1\\"), ("b", "2")]);
        check("a=1\\\\\\\n2", &[("a", "1\\2")]);
        check("a=\\\n# no comment here", &[("a", "# no comment here")]);
        check("a=1\\", &[("a", "1")]);
    }

    #[test]
    fn escapes_are_javas() {
        check("a\\=b\\:c\\ d=e", &[("a=b:c d", "e")]);
        check("a=\\t\\n\\r\\f\\q\\\\", &[("a", "\t\n\r\x0cq\\")]);
        check("\\u0061=\\u00e9\\ud83d\\ude00", &[("a", "é😀")]);
        check("a=é", &[("a", "é")]);
    }

    #[test]
    fn of_a_key_given_twice_the_last_value_holds() {
        check("a=1\rb=2\r\na=3", &[("a", "3"), ("b", "2")]);
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_line() {
        for (text, at) in [
            ("\\u12", 1),
            ("\na=\\ud83d", 2),
            ("a=\\ud83d\\u0041", 1),
            ("#\n\n=1", 3),
        ] {
            assert!(
                matches!(parse(text), Err(Problem::Syntax { line, .. }) if line == at),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_override_is_a_key_and_a_value() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_override("a=b=c"), pair("a", "b=c"));
        assert_eq!(parse_override(" a = "), pair("a", ""));
        assert!(parse_override("a").is_err());
        assert!(parse_override("=a").is_err());
    }
}
