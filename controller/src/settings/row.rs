//! What one row of a settings table says, and how a text is checked against it.
//!
//! The rows stand in `server.rs` (a daemon's own settings) and `topic.rs` (what
//! a topic can override); the macros there turn each row into one of these and
//! into one typed field, so that a name, its type and its default are written
//! once.

use std::fmt;

use super::{error::Problem, value::SettingValue};

/// One setting of a daemon, of a topic or of a group.
#[derive(Debug)]
pub struct Setting {
    /// Kafka's name where Kafka has the setting, else ours.
    pub name: &'static str,
    /// The type that DescribeConfigs reports.
    pub kind: Kind,
    /// The only texts that are accepted; empty if the type allows more.
    pub allowed: &'static [&'static str],
    /// The text that holds when none is given; `None` leaves the setting unset.
    pub default: Option<&'static str>,
    /// Which of the type's values are accepted.
    pub range: Range,
    /// Whether the value can be changed while the daemon runs.
    pub update: Update,
    type_expected: &'static str,
    doc: &'static str,
}

/// A setting's type, by the number that DescribeConfigs gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum Kind {
    /// `true` or `false`.
    Boolean = 1,
    /// Text.
    String = 2,
    /// A 32-bit number.
    Int = 3,
    /// A 16-bit number.
    Short = 4,
    /// A 64-bit number.
    Long = 5,
    /// A number that need not be whole.
    Double = 6,
    /// Texts with commas between them; IncrementalAlterConfigs may append to it.
    List = 7,
    /// A text that DescribeConfigs does not show.
    Password = 9,
}

/// Which values of its type a setting accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Every value.
    Any,
    /// This number and all above it.
    AtLeast(i64),
    /// Both ends belong to it.
    Between(i64, i64),
    /// -1, which the row explains, or this number and all above it.
    MinusOneOrAtLeast(i64),
    /// -1, which the row explains, or the two ends and all between.
    MinusOneOrBetween(i64, i64),
    /// From 0 to 1, both included.
    Fraction,
    /// Any number above 0.
    AboveZero,
}

/// Whether and how a setting can be changed while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Read once, when the daemon starts.
    AtStart,
    /// For one broker or for all of them, with `kafka-configs` or `yuxi config`.
    Running,
    /// For one topic, when it is created and at any time after.
    PerTopic,
    /// For one consumer group, at any time, whether it is there or not.
    PerGroup,
}

impl Setting {
    pub(super) const fn new<T: SettingValue>(
        name: &'static str,
        default: Option<&'static str>,
        range: Range,
        update: Update,
        doc: &'static str,
    ) -> Self {
        Self {
            name,
            kind: T::KIND,
            allowed: T::ALLOWED,
            default,
            range,
            update,
            type_expected: T::EXPECTED,
            doc,
        }
    }

    /// What the setting does, in one paragraph.
    pub fn documentation(&self) -> &'static str {
        self.doc.trim_start()
    }

    /// Reads `text` as this setting's value.
    pub(super) fn parse<T: SettingValue>(&self, text: &str) -> Result<T, Problem> {
        let value = T::parse(text.trim());
        self.check(text, value.is_some())?;
        value.ok_or_else(|| self.refuse(text))
    }

    /// Checks `text`, of which it is known whether it is of the setting's type.
    pub(super) fn check(&self, text: &str, parses: bool) -> Result<(), Problem> {
        if parses && self.range.contains(text.trim()) {
            Ok(())
        } else {
            Err(self.refuse(text))
        }
    }

    pub(super) fn refuse(&self, text: &str) -> Problem {
        Problem::Value {
            key: self.name,
            value: text.trim().to_owned(),
            expected: self.expected(),
        }
    }

    /// What the setting accepts, in words: `a whole number, 1 or more`.
    pub fn expected(&self) -> String {
        match self.range {
            Range::Any if !self.allowed.is_empty() => {
                format!("one of {}", self.allowed.join(", "))
            }
            Range::Any => self.type_expected.to_owned(),
            range => format!("{}, {range}", self.type_expected),
        }
    }
}

impl Range {
    /// Whether `text`, which has parsed as the setting's type, lies in the range.
    fn contains(self, text: &str) -> bool {
        let number = || text.parse::<i64>();
        let double = || text.parse::<f64>();
        match self {
            Self::Any => true,
            Self::AtLeast(low) => number().is_ok_and(|n| n >= low),
            Self::Between(low, high) => number().is_ok_and(|n| (low..=high).contains(&n)),
            Self::MinusOneOrAtLeast(low) => number().is_ok_and(|n| n == -1 || n >= low),
            Self::MinusOneOrBetween(low, high) => {
                number().is_ok_and(|n| n == -1 || (low..=high).contains(&n))
            }
            Self::Fraction => double().is_ok_and(|n| (0.0..=1.0).contains(&n)),
            Self::AboveZero => double().is_ok_and(|n| n > 0.0),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::AtLeast(low) => write!(f, "{low} or more"),
            Self::Between(low, high) => write!(f, "{low} to {high}"),
            Self::MinusOneOrAtLeast(low) => write!(f, "-1, or {low} or more"),
            Self::MinusOneOrBetween(low, high) => write!(f, "-1, or {low} to {high}"),
            Self::Fraction => f.write_str("0 to 1"),
            Self::AboveZero => f.write_str("more than 0"),
        }
    }
}
