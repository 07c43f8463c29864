//! Deadlines of a shard: one per key, found in order of time.
//!
//! Owned by the shard. Scheduling a key anew replaces its deadline, so a heartbeat
//! costs two look-ups and leaves nothing behind; a tick costs what is due, not what
//! is there.

use std::collections::{BTreeMap, HashMap};

use yuxi_protocol::codec::StrBytes;

use super::consumer::ConsumerTimer;
use crate::time::Monotonic;

/// What a deadline belongs to; each key has at most one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TimerKey {
    /// The periodic search for expired offsets and groups.
    CleanUp,
    /// A member's session, or the grace of a member id that was given out.
    Member { group: StrBytes, member: StrBytes },
    /// The join phase of a rebalance.
    Join { group: StrBytes },
    /// The sync phase of a rebalance.
    Sync { group: StrBytes },
    /// What a member of a consumer group has a time for.
    Consumer {
        group: StrBytes,
        member: StrBytes,
        timer: ConsumerTimer,
    },
}

/// What to do when the deadline comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    CleanUp,
    ExpireMember,
    /// End the first join phase of an empty group, unless members are still coming in
    /// and there is time left.
    InitialJoin {
        delay_ms: i64,
        remaining_ms: i64,
    },
    CompleteJoin,
    ExpireSync {
        generation: i32,
    },
    /// Take a member out of its consumer group; if an epoch is named, only if the member is
    /// still at that.
    FenceMember {
        epoch: Option<i32>,
    },
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    /// The number keeps timers of one deadline apart, in the order they were armed.
    queue: BTreeMap<(Monotonic, u64), (TimerKey, Task)>,
    armed: HashMap<TimerKey, (Monotonic, u64)>,
    sequence: u64,
}

impl Timers {
    pub(super) fn schedule(&mut self, key: TimerKey, deadline: Monotonic, task: Task) {
        self.sequence += 1;
        let at = (deadline, self.sequence);
        if let Some(previous) = self.armed.insert(key.clone(), at) {
            self.queue.remove(&previous);
        }
        self.queue.insert(at, (key, task));
    }

    pub(super) fn cancel(&mut self, key: &TimerKey) {
        if let Some(at) = self.armed.remove(key) {
            self.queue.remove(&at);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.queue
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    /// What the earliest timer that is due at `now` belongs to.
    pub(super) fn peek_due(&self, now: Monotonic) -> Option<&TimerKey> {
        let ((deadline, _), (key, _)) = self.queue.first_key_value()?;
        (*deadline <= now).then_some(key)
    }

    /// Takes out the earliest timer that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Monotonic) -> Option<(TimerKey, Task)> {
        let entry = self.queue.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let (key, task) = entry.remove();
        self.armed.remove(&key);
        Some((key, task))
    }

    pub(super) fn deadline(&self, key: &TimerKey) -> Option<Monotonic> {
        self.armed.get(key).map(|(deadline, _)| *deadline)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.queue.len(), self.armed.len());
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: i64) -> Monotonic {
        Monotonic::new(ms)
    }

    fn join(group: &str) -> TimerKey {
        TimerKey::Join {
            group: group.into(),
        }
    }

    #[test]
    fn timers_come_out_in_order_of_their_deadlines_and_only_when_due() {
        let mut timers = Timers::default();
        timers.schedule(join("b"), at(20), Task::CompleteJoin);
        timers.schedule(join("a"), at(10), Task::CompleteJoin);
        timers.schedule(join("c"), at(20), Task::CompleteJoin);
        assert_eq!(timers.next_deadline(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        let order: Vec<_> = std::iter::from_fn(|| timers.pop_due(at(20)))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(order, [join("a"), join("b"), join("c")]);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_timer_that_is_scheduled_again_or_cancelled_leaves_nothing_behind() {
        let mut timers = Timers::default();
        for deadline in 0..1_000 {
            timers.schedule(join("a"), at(deadline), Task::CompleteJoin);
        }
        assert_eq!((timers.len(), timers.next_deadline()), (1, Some(at(999))));
        timers.schedule(join("a"), at(5), Task::CompleteJoin);
        assert_eq!(
            (timers.len(), timers.deadline(&join("a"))),
            (1, Some(at(5)))
        );
        timers.cancel(&join("a"));
        timers.cancel(&join("a"));
        assert_eq!((timers.len(), timers.pop_due(Monotonic::NEVER)), (0, None));
    }
}
