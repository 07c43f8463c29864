//! Which numbered batches of a partition still count.

use std::collections::VecDeque;

use crate::config::MAX_IDEMPOTENT_IN_FLIGHT;

/// A partition's numbered batches from the oldest that has no outcome on, oldest first,
/// each by its first sequence number.
///
/// A leader recognises a repeated batch among the last five that its log has of the
/// producer (KIP-98). One that is repeated after a change of leaders may have been
/// replicated, and batches behind it written by the new leader, before it arrives there. So
/// what is written goes on counting while anything before it is open: else a sixth could
/// push the repeated one out of the leader's memory, which then refuses it for ever.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<Numbered>);

#[derive(Debug)]
struct Numbered {
    base_sequence: i32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no answer yet.
    Sent,
    /// It came back, and waits to be sent again.
    Waiting,
    /// The broker has it.
    Written,
}

impl Window {
    /// Whether one more number would be one too many.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MAX_IDEMPOTENT_IN_FLIGHT
    }

    /// Whether nothing numbered is without an answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.0.iter().all(|batch| batch.state != State::Sent)
    }

    /// Whether the batch can be sent without overtaking an older one.
    pub(super) fn is_next(&self, base_sequence: i32) -> bool {
        self.0
            .iter()
            .take_while(|batch| batch.base_sequence != base_sequence)
            .all(|batch| batch.state != State::Sent)
    }

    /// The batch is on its way, for the first time or again.
    pub(super) fn send(&mut self, base_sequence: i32) {
        if !self.mark(base_sequence, State::Sent) {
            self.0.push_back(Numbered {
                base_sequence,
                state: State::Sent,
            });
        }
    }

    /// The batch came back.
    pub(super) fn wait(&mut self, base_sequence: i32) {
        self.mark(base_sequence, State::Waiting);
    }

    /// The batch that came back is two now, of which the second begins at `second`.
    pub(super) fn split(&mut self, base_sequence: i32, second: i32) {
        self.wait(base_sequence);
        if let Some(at) = self.position(base_sequence) {
            let half = Numbered {
                base_sequence: second,
                state: State::Waiting,
            };
            self.0.insert(at + 1, half);
        }
    }

    /// The broker has the batch.
    pub(super) fn written(&mut self, base_sequence: i32) {
        self.mark(base_sequence, State::Written);
        self.forget_written();
    }

    /// The batch is given up.
    pub(super) fn remove(&mut self, base_sequence: i32) {
        self.0.retain(|batch| batch.base_sequence != base_sequence);
        self.forget_written();
    }

    /// Everything that waits loses its number.
    pub(super) fn clear(&mut self) {
        debug_assert!(self.is_quiet());
        self.0.clear();
    }

    fn forget_written(&mut self) {
        while self
            .0
            .pop_front_if(|batch| batch.state == State::Written)
            .is_some()
        {}
    }

    fn mark(&mut self, base_sequence: i32, state: State) -> bool {
        let at = self.position(base_sequence);
        if let Some(at) = at {
            self.0[at].state = state;
        }
        at.is_some()
    }

    fn position(&self, base_sequence: i32) -> Option<usize> {
        self.0
            .iter()
            .position(|batch| batch.base_sequence == base_sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(numbers: std::ops::Range<i32>) -> Window {
        let mut window = Window::default();
        for number in numbers {
            window.send(number);
        }
        window
    }

    #[test]
    fn what_is_written_counts_while_an_older_batch_is_open() {
        let mut window = sent(0..5);
        for number in 1..5 {
            window.written(number);
        }
        assert!(window.is_full());
        window.written(0);
        assert!(!window.is_full());
        assert!(window.0.is_empty());
    }

    #[test]
    fn what_is_written_counts_while_an_older_batch_waits_to_be_repeated() {
        let mut window = sent(0..5);
        window.wait(0);
        for number in 1..5 {
            window.written(number);
        }
        assert!(window.is_full());
        assert!(window.is_quiet());
        window.send(0);
        assert!(window.is_full());
        assert!(!window.is_quiet());
        window.written(0);
        assert!(!window.is_full());
    }

    #[test]
    fn a_batch_that_is_given_up_no_longer_holds_those_behind_it() {
        let mut window = sent(0..3);
        window.wait(0);
        window.written(1);
        window.remove(0);
        assert_eq!(window.position(1), None);
        assert_eq!(window.position(2), Some(0));
    }

    #[test]
    fn nothing_overtakes_what_has_no_answer() {
        let mut window = sent(0..3);
        window.wait(1);
        assert!(!window.is_next(1));
        window.wait(0);
        assert!(window.is_next(0));
        window.send(0);
        assert!(!window.is_next(1));
        window.written(0);
        assert!(window.is_next(1), "the one behind it may overtake none");
    }

    #[test]
    fn the_halves_of_a_batch_go_one_after_the_other() {
        let mut window = sent(0..1);
        window.send(10);
        window.split(0, 5);
        window.send(0);
        assert!(!window.is_next(5));
        window.written(0);
        assert!(window.is_next(5));
        window.send(5);
        window.wait(10);
        assert!(!window.is_next(10));
    }
}
