//! Regular expressions that choose topics by their whole names (KIP-848): one meaning of
//! them for the broker, which matches them for members of the consumer protocol, and for
//! the client, which does for those of the classic one.
//!
//! A regex is matched in linear time, and the more topic names there are, the smaller the
//! automaton may be that it becomes: its work is bounded by `MAX_MATCHING_WORK` whatever
//! is asked for.

use std::borrow::Cow;

use regex::bytes::{Regex, RegexBuilder};

/// States of an automaton times bytes of topic names: what one look at all topics may take
/// in the worst case, a few seconds of one core.
const MAX_MATCHING_WORK: usize = 500_000_000;

/// About how many bytes a state of an automaton takes.
const STATE_BYTES: usize = 32;

/// Room for what people write, whatever the number of topics.
const SMALLEST_AUTOMATON_BYTES: usize = 32 * 1024;
const LARGEST_AUTOMATON_BYTES: usize = 1024 * 1024;

/// How deep groups may be nested in each other.
const MAX_NESTING: u32 = 50;

/// A regex, ready to be matched.
#[derive(Clone, Debug)]
pub struct TopicRegex(Regex);

/// What is wrong with a text that should be a regex, or why it is too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{regex}` is not a valid regular expression: {reason}")]
pub struct InvalidTopicRegex {
    regex: String,
    reason: String,
}

impl TopicRegex {
    /// Compiles `text` for names that are `name_bytes` long all together.
    ///
    /// The text is checked by itself first: what closes a group that it did not open must
    /// not become right by what stands around it.
    pub fn compile(text: &str, name_bytes: usize) -> Result<Self, InvalidTopicRegex> {
        let bytes = (MAX_MATCHING_WORK / name_bytes.max(1))
            .saturating_mul(STATE_BYTES)
            .clamp(SMALLEST_AUTOMATON_BYTES, LARGEST_AUTOMATON_BYTES);
        let build = |pattern: &str| {
            // Topic names are ASCII, and classes of that are small.
            let ascii = builder(pattern, bytes).unicode(false).build();
            ascii.or_else(|_| builder(pattern, bytes).build())
        };
        let pattern = unquoted(text);
        let compiled = build(&pattern).and_then(|_| build(&format!(r"\A(?:{pattern})\z")));
        compiled.map(Self).map_err(|error| InvalidTopicRegex {
            regex: text.to_owned(),
            // Of its several lines the last one says what is wrong.
            reason: error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim()
                .to_owned(),
        })
    }

    /// Whether the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name.as_bytes())
    }
}

/// The regex without `\Q…\E`, whose text is meant as it stands. Kafka's (RE2) has that, and
/// Java's `Pattern.quote` makes it.
fn unquoted(text: &str) -> Cow<'_, str> {
    if !text.contains(r"\Q") {
        return Cow::Borrowed(text);
    }
    let mut pattern = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        pattern.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(quoted) = rest.strip_prefix(r"\Q") {
            let (literal, after) = quoted.split_once(r"\E").unwrap_or((quoted, ""));
            pattern.push_str(&regex::escape(literal));
            rest = after;
        } else {
            // A backslash and what it escapes, which may be a backslash.
            let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
            pattern.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    pattern.push_str(rest);
    Cow::Owned(pattern)
}

fn builder(pattern: &str, bytes: usize) -> RegexBuilder {
    let mut builder = RegexBuilder::new(pattern);
    builder.size_limit(bytes).nest_limit(MAX_NESTING);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_name_must_match() {
        let regex = TopicRegex::compile("orders-.|x", 0).expect("right");
        for (name, expected) in [
            ("orders-1", true),
            ("x", true),
            ("old-orders-1", false),
            ("xx", false),
        ] {
            assert_eq!(regex.matches(name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_quoted_is_meant_as_it_stands() {
        for (text, name, expected) in [
            (r"\Qa.b\E", "a.b", true),
            (r"\Qa.b\E", "axb", false),
            (r"\Qa.b\E.*|c", "a.b-1", true),
            (r"\Qa.b\E.*|c", "c", true),
            (r"x\Qa.b", "xa.b", true),
            (r"(\Q(\E|\Q)\E)a\.\Q\E", "(a.", true),
            (r"\\Q", r"\Q", true),
            (r"\Qa\E\\E\Qb\E", r"a\Eb", true),
        ] {
            let regex = TopicRegex::compile(text, 0).expect(text);
            assert_eq!(regex.matches(name), expected, "{text} {name}");
        }
        TopicRegex::compile(r"\Qa\E\", 0).expect_err("nothing is escaped");
        TopicRegex::compile(r"\Qa\E\E", 0).expect_err("nothing is quoted");
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line() {
        for wrong in ["(", "a)(b", "[z-a]", "*", r"(?=a)b", "a{1000}{1000}{1000}"] {
            let told = TopicRegex::compile(wrong, 0).expect_err(wrong).to_string();
            assert!(told.contains(wrong) && told.lines().count() == 1, "{told}");
        }
    }

    #[test]
    fn the_more_names_there_are_the_less_a_regex_may_be() {
        let text = "(a{40}){40}";
        TopicRegex::compile(text, 1_000).expect("small enough for a few topics");
        TopicRegex::compile(text, 100_000_000).expect_err("too much for so many");
    }
}
