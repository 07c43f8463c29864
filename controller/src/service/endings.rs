//! The sessions of processes that are gone, or fenced: this process ends them, since they
//! would only expire much later.

use std::collections::VecDeque;

use crate::store::SessionId;

/// See the module.
#[derive(Default)]
pub(super) struct Endings {
    due: VecDeque<SessionId>,
    /// The last one that [`Endings::add_once`] added.
    last: Option<SessionId>,
}

impl Endings {
    /// Has sessions ended.
    pub(super) fn add(&mut self, sessions: impl IntoIterator<Item = SessionId>) {
        self.due.extend(sessions);
    }

    /// Has a session ended that is found again and again until the image no longer has it;
    /// whether this is the first time.
    pub(super) fn add_once(&mut self, session: SessionId) -> bool {
        let is_new = self.last != Some(session);
        if is_new {
            self.last = Some(session);
            self.due.push_back(session);
        }
        is_new
    }

    /// The next to be ended.
    pub(super) fn take_next(&mut self) -> Option<SessionId> {
        self.due.pop_front()
    }

    /// The store could not end one. It ends by itself later, unless it is found again.
    pub(super) fn failed(&mut self) {
        self.last = None;
    }
}
