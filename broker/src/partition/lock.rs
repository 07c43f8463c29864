//! The partition's lock, and who is woken when it is released.
//!
//! Whoever is woken looks at the partition next. On another thread that looks at once, and
//! would find the lock held by the one who woke it: two threads that put each other to sleep
//! for every batch. So under the lock it is only noted who is to be woken.

use super::{
    State,
    news::FollowerNews,
    waiters::{AckSender, FetchWaiter},
};
use std::{
    cell::RefCell,
    mem,
    ops::{Deref, DerefMut},
    sync::{Arc, MutexGuard},
};
use yuxi_protocol::error_code::ErrorCode;

/// The state of a partition under its lock.
pub(super) struct Locked<'a> {
    // The fields are dropped in this order: the lock is released, then all are woken.
    state: MutexGuard<'a, State>,
    wakes: Wakes,
}

impl<'a> Locked<'a> {
    pub(super) fn new(state: MutexGuard<'a, State>) -> Self {
        Self {
            state,
            wakes: Wakes::default(),
        }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.wakes = mem::take(&mut self.state.wakes);
    }
}

/// Those who are to be woken, which happens when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Wakes(Vec<Wake>);

#[derive(Debug)]
enum Wake {
    /// A produce, with what has become of it.
    Ack(AckSender, Result<(), ErrorCode>),
    Consumer(Arc<FetchWaiter>),
    Follower(Arc<FollowerNews>),
}

impl Wakes {
    pub(super) fn answer(&mut self, produce: AckSender, outcome: Result<(), ErrorCode>) {
        self.0.push(Wake::Ack(produce, outcome));
    }

    pub(super) fn wake_consumer(&mut self, fetch: Arc<FetchWaiter>) {
        self.0.push(Wake::Consumer(fetch));
    }

    pub(super) fn wake_follower(&mut self, news: &Arc<FollowerNews>) {
        self.0.push(Wake::Follower(Arc::clone(news)));
    }
}

thread_local! {
    /// Who is woken when the [`wake_after`] ends that this thread is in.
    static LATER: RefCell<Option<Wakes>> = const { RefCell::new(None) };
}

/// Does `work`, and wakes only then whoever its partitions wake: followers that are woken by
/// the first of several appends would fetch that one alone, and the others after it. No
/// partition's lock may be held.
pub(crate) fn wake_after<T>(work: impl FnOnce() -> T) -> T {
    /// Also when `work` panics.
    struct End(Option<Wakes>);
    impl Drop for End {
        fn drop(&mut self) {
            // In a `wake_after` around this one they are woken at its end.
            drop(LATER.replace(self.0.take()));
        }
    }
    let _end = End(LATER.replace(Some(Wakes::default())));
    work()
}

impl Drop for Wakes {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        let mut wakes = mem::take(&mut self.0);
        LATER.with_borrow_mut(|later| {
            if let Some(later) = later {
                later.0.append(&mut wakes);
            }
        });
        for wake in wakes {
            match wake {
                // A producer that went away needs no answer.
                Wake::Ack(produce, outcome) => drop(produce.send(outcome)),
                Wake::Consumer(fetch) => fetch.wake(),
                Wake::Follower(news) => news.wake(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{self, AssertUnwindSafe};
    use tokio::sync::oneshot::{self, Receiver};

    fn wakes() -> (Wakes, Receiver<Result<(), ErrorCode>>) {
        let (sender, receiver) = oneshot::channel();
        let mut wakes = Wakes::default();
        wakes.answer(sender, Ok(()));
        (wakes, receiver)
    }

    #[test]
    fn who_is_noted_is_woken_when_the_notes_are_dropped() {
        let (wakes, mut receiver) = wakes();
        assert!(receiver.try_recv().is_err());
        drop(wakes);
        assert_eq!(receiver.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn within_wake_after_nobody_is_woken_before_its_end() {
        let mut receivers = wake_after(|| {
            let inner = wake_after(|| {
                let (wakes, mut receiver) = wakes();
                drop(wakes);
                assert!(receiver.try_recv().is_err());
                receiver
            });
            let (wakes, receiver) = wakes();
            drop(wakes);
            let mut receivers = [inner, receiver];
            assert!(receivers.iter_mut().all(|one| one.try_recv().is_err()));
            receivers
        });
        assert!(receivers.iter_mut().all(|one| one.try_recv().is_ok()));
    }

    #[test]
    fn work_that_panics_leaves_nobody_waiting() {
        let (wakes, mut receiver) = wakes();
        let work = AssertUnwindSafe(|| {
            wake_after(|| {
                drop(wakes);
                panic!("on purpose");
            })
        });
        panic::catch_unwind(work).expect_err("it panicked");
        assert_eq!(receiver.try_recv(), Ok(Ok(())));
        let (wakes, mut receiver) = self::wakes();
        drop(wakes);
        assert!(receiver.try_recv().is_ok(), "as before");
    }
}
