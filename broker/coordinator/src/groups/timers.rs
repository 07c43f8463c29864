//! Deadlines of a shard: one per key, found in order of time.
//!
//! Owned by the shard. Scheduling a key anew replaces its deadline, so a heartbeat
//! costs two look-ups and leaves nothing behind; a tick costs what is due, not what
//! is there.

use std::collections::{BTreeMap, HashMap};

use yuxi_protocol::codec::StrBytes;

use super::consumer::ConsumerTimer;

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
    queue: BTreeMap<(i64, u64), (TimerKey, Task)>,
    armed: HashMap<TimerKey, (i64, u64)>,
    sequence: u64,
}

impl Timers {
    pub(super) fn schedule(&mut self, key: TimerKey, deadline_ms: i64, task: Task) {
        self.sequence += 1;
        let at = (deadline_ms, self.sequence);
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

    pub(super) fn next_deadline(&self) -> Option<i64> {
        self.queue
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    /// What the earliest timer that is due at `now_ms` belongs to.
    pub(super) fn peek_due(&self, now_ms: i64) -> Option<&TimerKey> {
        let ((deadline_ms, _), (key, _)) = self.queue.first_key_value()?;
        (*deadline_ms <= now_ms).then_some(key)
    }

    /// Takes out the earliest timer that is due at `now_ms`.
    pub(super) fn pop_due(&mut self, now_ms: i64) -> Option<(TimerKey, Task)> {
        let entry = self.queue.first_entry()?;
        if entry.key().0 > now_ms {
            return None;
        }
        let (key, task) = entry.remove();
        self.armed.remove(&key);
        Some((key, task))
    }

    pub(super) fn deadline(&self, key: &TimerKey) -> Option<i64> {
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

    fn join(group: &str) -> TimerKey {
        TimerKey::Join {
            group: group.into(),
        }
    }

    #[test]
    fn timers_come_out_in_order_of_their_deadlines_and_only_when_due() {
        let mut timers = Timers::default();
        timers.schedule(join("b"), 20, Task::CompleteJoin);
        timers.schedule(join("a"), 10, Task::CompleteJoin);
        timers.schedule(join("c"), 20, Task::CompleteJoin);
        assert_eq!(timers.next_deadline(), Some(10));
        assert_eq!(timers.pop_due(9), None);
        let order: Vec<_> = std::iter::from_fn(|| timers.pop_due(20))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(order, [join("a"), join("b"), join("c")]);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_timer_that_is_scheduled_again_or_cancelled_leaves_nothing_behind() {
        let mut timers = Timers::default();
        for deadline in 0..1_000 {
            timers.schedule(join("a"), deadline, Task::CompleteJoin);
        }
        assert_eq!((timers.len(), timers.next_deadline()), (1, Some(999)));
        timers.schedule(join("a"), 5, Task::CompleteJoin);
        assert_eq!((timers.len(), timers.deadline(&join("a"))), (1, Some(5)));
        timers.cancel(&join("a"));
        timers.cancel(&join("a"));
        assert_eq!((timers.len(), timers.pop_due(i64::MAX)), (0, None));
    }
}
