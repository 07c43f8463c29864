//! This life of the broker, and which lives its log directory knows of (I8).
//!
//! The directory names a life before the cluster hears of it. It learns only afterwards that
//! the cluster let that life in, so a broker that dies in between leaves more than one that
//! may have been the last.

use std::path::{Path, PathBuf};

use yuxi_log::Incarnations;

use crate::StartError;

/// How many lives a directory names at most. That many died one after the other before they
/// knew that they were let in.
const MAX_NAMED: usize = 100;

/// One life of a broker, from its start to its end, however often it is fenced and let in
/// again.
pub(crate) struct Life {
    incarnation: String,
    former: Vec<String>,
    path: PathBuf,
    directory: Incarnations,
}

impl Life {
    /// Begins one on the log directory at `path`, and names it there.
    pub(crate) fn begin(path: &Path) -> Result<Self, StartError> {
        let directory = Incarnations::new(path);
        let former = directory.read().unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "who used the log directory last is not known: the replicas here start behind"
            );
            Vec::new()
        });
        let life = Self {
            incarnation: uuid::Uuid::new_v4().to_string(),
            former,
            path: path.join(Incarnations::FILE_NAME),
            directory,
        };
        let mut named = life.former.clone();
        if named.len() >= MAX_NAMED {
            // The first is known to have been let in; of the rest the last most likely was.
            named.drain(1..=named.len() - (MAX_NAMED - 1));
        }
        named.push(life.incarnation.clone());
        life.name(&named)?;
        Ok(life)
    }

    /// What tells this life from all others.
    pub(crate) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Those that may have used the directory last before this one.
    pub(crate) fn former(&self) -> &[String] {
        &self.former
    }

    /// The cluster counts on this life, and on no former one any more.
    pub(crate) fn was_let_in(&self) -> Result<(), StartError> {
        self.name(std::slice::from_ref(&self.incarnation))
    }

    fn name(&self, incarnations: &[String]) -> Result<(), StartError> {
        self.directory
            .write(incarnations)
            .map_err(|error| StartError::File {
                path: self.path.clone(),
                error,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_have_been_let_in_is_named_until_the_next_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let begin = || Life::begin(directory.path()).unwrap();
        let first = begin();
        assert!(first.former().is_empty());
        let second = begin();
        assert_eq!(second.former(), [first.incarnation()]);
        let third = begin();
        assert_eq!(
            third.former(),
            [first.incarnation(), second.incarnation()],
            "either was the last that was let in"
        );
        third.was_let_in().unwrap();
        assert_eq!(begin().former(), [third.incarnation()]);
    }

    #[test]
    fn of_too_many_the_one_that_was_let_in_and_the_last_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let begin = || Life::begin(directory.path()).unwrap();
        let first = begin();
        first.was_let_in().unwrap();
        let lives: Vec<Life> = (0..2 * MAX_NAMED).map(|_| begin()).collect();
        let named = begin().former().to_vec();
        assert_eq!(named.len(), MAX_NAMED);
        assert_eq!(named[0], first.incarnation());
        let last = lives.iter().skip(lives.len() - (MAX_NAMED - 1));
        assert!(last.map(Life::incarnation).eq(named[1..].iter()));
    }

    #[test]
    fn a_damaged_list_names_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let begin = || Life::begin(directory.path()).unwrap();
        begin();
        std::fs::write(directory.path().join(Incarnations::FILE_NAME), "x").unwrap();
        assert!(begin().former().is_empty());
    }
}
