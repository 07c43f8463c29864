//! What can be wrong with settings, in words that name the key and its remedy.

use std::fmt;

/// One thing that is wrong with the settings that were given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The value is not of the setting's type or lies outside its range.
    #[error("Invalid value {value} for configuration {key}: expected {expected}")]
    Value {
        /// The setting's name.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is accepted, in words.
        expected: String,
    },
    /// A setting that must have a value has none.
    #[error("{key} has no value: expected {expected}")]
    Missing {
        /// The setting's name.
        key: &'static str,
        /// What is accepted, in words.
        expected: String,
    },
    /// Neither Yuxi nor Kafka has a setting of this name.
    #[error("Unknown {what} config name: {key}{}", advice(.suggestion.as_deref()))]
    Unknown {
        /// `topic` or `broker`.
        what: &'static str,
        /// The name that was given.
        key: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// Kafka has the setting and Yuxi has not, so that it would have no effect.
    #[error("{key} is a Kafka setting that Yuxi does not have: {remedy}")]
    NotHere {
        /// The name that was given.
        key: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Each value is valid alone, but they contradict one another.
    #[error("{0}")]
    Conflict(String),
    /// The setting is read once, when the broker starts.
    #[error(
        "Cannot update these configs dynamically: {key} (set it in the broker's properties file \
         and restart the broker)"
    )]
    ReadOnly {
        /// The setting's name.
        key: &'static str,
    },
    /// The properties file is not in the format.
    #[error("line {line}: {what}")]
    Syntax {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// An `--override` that is not `KEY=VALUE`.
    #[error("'{0}' is not of the form KEY=VALUE")]
    Override(String),
}

fn advice(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

/// Everything that is wrong with the settings that were given, not only the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    problems: Vec<Problem>,
}

impl SettingsError {
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "an error says what is wrong");
        Self { problems }
    }

    /// The problems in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Problem> for SettingsError {
    fn from(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
        }
    }
}

impl std::error::Error for SettingsError {}

/// One problem is one line; more are counted and listed, a line each.
impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.problems.as_slice() {
            return only.fmt(f);
        }
        write!(f, "{} settings are wrong:", self.problems.len())?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}
