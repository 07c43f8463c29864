//! What goes on failing is tried again several times a second, and may be away for hours:
//! when it is to be said.

use std::time::Duration;

use tokio::time::Instant;

/// How often to say that something goes on failing in one way, and how often in ever other
/// ways, as when several endpoints are away and tried in turns.
const COMPLAINT: Duration = Duration::from_secs(10);
const OTHER_COMPLAINT: Duration = Duration::from_secs(1);

/// What was last said to be wrong with one thing, and when.
#[derive(Debug)]
pub(crate) struct Complaints<E> {
    last: Option<(Instant, E)>,
}

impl<E> Default for Complaints<E> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<E: Clone + PartialEq> Complaints<E> {
    /// Whether `error` is to be said now, when it begins and at intervals. Whoever is told
    /// so says it.
    pub(crate) fn is_worth_saying(&mut self, error: &E, now: Instant) -> bool {
        let is_due = self.last.as_ref().is_none_or(|(at, said)| {
            let rest = if error == said {
                COMPLAINT
            } else {
                OTHER_COMPLAINT
            };
            now >= *at + rest
        });
        if is_due {
            self.last = Some((now, error.clone()));
        }
        is_due
    }

    /// Nothing is wrong any more: whether that is to be said, because the trouble was.
    pub(crate) fn is_over(&mut self) -> bool {
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_said_when_it_begins_then_now_and_then_and_when_it_is_over() {
        let mut complaints = Complaints::default();
        let now = Instant::now();
        let often = Duration::from_millis(100);
        assert!(!complaints.is_over(), "there was none");
        assert!(complaints.is_worth_saying(&"one", now));
        assert!(!complaints.is_worth_saying(&"one", now + often));
        assert!(!complaints.is_worth_saying(&"one", now + OTHER_COMPLAINT));
        assert!(!complaints.is_worth_saying(&"another", now + often));
        assert!(complaints.is_worth_saying(&"another", now + OTHER_COMPLAINT));
        let later = now + OTHER_COMPLAINT;
        assert!(!complaints.is_worth_saying(&"another", later + often));
        assert!(complaints.is_worth_saying(&"another", later + COMPLAINT));
        assert!(complaints.is_over());
        assert!(!complaints.is_over(), "it was said to be");
        assert!(
            complaints.is_worth_saying(&"another", later + COMPLAINT),
            "it begins anew"
        );
    }
}
