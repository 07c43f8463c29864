//! Who waits on a partition: produces for an offset, fetches for bytes. Owned by the
//! partition, behind its lock.

use super::lock::Wakes;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, oneshot};
use yuxi_protocol::{error_code::ErrorCode, ids::Offset};

pub(super) type AckSender = oneshot::Sender<Result<(), ErrorCode>>;

/// Resolves when an offset has come far enough. An error, or the sender gone, means that
/// it is not known to.
pub(crate) type AckReceiver = oneshot::Receiver<Result<(), ErrorCode>>;

/// Produces that wait until the log is held or committed up to an offset. Appends come
/// in offset order, so the queue is sorted by itself, but for retried duplicates.
#[derive(Debug, Default)]
pub(super) struct AckWaiters {
    queue: VecDeque<(Offset, AckSender)>,
}

impl AckWaiters {
    pub(super) fn wait_for(&mut self, end_offset: Offset) -> AckReceiver {
        let (sender, receiver) = oneshot::channel();
        let at = self.queue.partition_point(|(end, _)| *end <= end_offset);
        self.queue.insert(at, (end_offset, sender));
        receiver
    }

    /// Everything below `offset` has come far enough.
    pub(super) fn reached(&mut self, offset: Offset, wakes: &mut Wakes) {
        while let Some((end, _)) = self.queue.front()
            && *end <= offset
        {
            if let Some((_, sender)) = self.queue.pop_front() {
                wakes.answer(sender, Ok(()));
            }
        }
    }

    pub(super) fn fail(&mut self, error: ErrorCode, wakes: &mut Wakes) {
        for (_, sender) in self.queue.drain(..) {
            wakes.answer(sender, Err(error));
        }
    }
}

/// How many appends are told apart while a transaction holds readers back.
const MAX_UNREAD: usize = 1024;

/// Appended bytes that readers of committed records may not see yet, in the log's order.
#[derive(Debug, Default)]
pub(super) struct Unread {
    appends: VecDeque<UnreadAppend>,
}

#[derive(Debug)]
struct UnreadAppend {
    begin: Offset,
    end: Offset,
    bytes: u64,
}

/// What has become readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NowReadable {
    Bytes(u64),
    /// It cannot be told how much: whoever waits has to look.
    Some,
}

impl Unread {
    pub(super) fn appended(&mut self, begin: Offset, end: Offset, bytes: u64) {
        let is_full = self.appends.len() == MAX_UNREAD;
        match self.appends.back_mut() {
            Some(last) if is_full => {
                last.end = end;
                last.bytes += bytes;
            }
            Some(_) | None => self.appends.push_back(UnreadAppend { begin, end, bytes }),
        }
    }

    /// Everything below `offset` may be read.
    pub(super) fn readable_below(&mut self, offset: Offset) -> NowReadable {
        let mut bytes = 0;
        while let Some(first) = self.appends.front()
            && first.begin < offset
        {
            if offset < first.end {
                return NowReadable::Some;
            }
            bytes += first.bytes;
            self.appends.pop_front();
        }
        NowReadable::Bytes(bytes)
    }

    /// The log was cut and ends at `end`.
    pub(super) fn cut(&mut self, end: Offset) {
        self.appends.retain(|append| append.end <= end);
    }
}

/// One fetch that waits until enough bytes are readable in all its partitions together.
#[derive(Debug)]
pub(crate) struct FetchWaiter {
    id: u64,
    missing_bytes: AtomicI64,
    /// Whether anything has changed that its answer would tell.
    has_news: AtomicBool,
    wake: Notify,
}

impl FetchWaiter {
    /// Waits for `missing_bytes` more.
    pub(crate) fn new(missing_bytes: i64) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            missing_bytes: AtomicI64::new(missing_bytes),
            has_news: AtomicBool::new(false),
            wake: Notify::new(),
        })
    }

    /// Ends the wait whatever is there.
    pub(crate) fn wake(&self) {
        self.note_news();
        self.wake.notify_one();
    }

    /// Something has changed that is no reason to end the wait.
    fn note_news(&self) {
        self.has_news.store(true, Ordering::Release);
    }

    /// Whether anything has changed since it parked. If not, what was read before the wait
    /// is the answer, however many partitions it is of.
    pub(crate) fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Acquire)
    }

    /// Resolves once the bytes are there or a partition's role has changed.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// The fetches parked on one partition.
#[derive(Debug, Default)]
pub(super) struct FetchWaiters {
    parked: BTreeMap<u64, Arc<FetchWaiter>>,
}

impl FetchWaiters {
    pub(super) fn park(&mut self, waiter: &Arc<FetchWaiter>) {
        self.parked.insert(waiter.id, Arc::clone(waiter));
    }

    pub(super) fn unpark(&mut self, waiter: &Arc<FetchWaiter>) {
        self.parked.remove(&waiter.id);
    }

    /// `bytes` more are readable; wakes those that miss no more.
    pub(super) fn readable(&mut self, bytes: u64, wakes: &mut Wakes) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.parked.retain(|_, waiter| {
            waiter.note_news();
            let missing = waiter.missing_bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
            if missing <= 0 {
                wakes.wake_consumer(Arc::clone(waiter));
            }
            missing > 0
        });
    }

    pub(super) fn wake_all(&mut self, wakes: &mut Wakes) {
        for waiter in std::mem::take(&mut self.parked).into_values() {
            waiter.note_news();
            wakes.wake_consumer(waiter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_produce_is_acknowledged_when_its_end_offset_is_reached_and_not_before() {
        let mut waiters = AckWaiters::default();
        let mut late = waiters.wait_for(Offset::new(20));
        let mut early = waiters.wait_for(Offset::new(10));
        waiters.reached(Offset::new(9), &mut Wakes::default());
        assert!(early.try_recv().is_err());
        waiters.reached(Offset::new(10), &mut Wakes::default());
        assert_eq!(early.try_recv(), Ok(Ok(())));
        assert!(late.try_recv().is_err());
        waiters.fail(ErrorCode::NotLeaderOrFollower, &mut Wakes::default());
        assert_eq!(late.try_recv(), Ok(Err(ErrorCode::NotLeaderOrFollower)));
    }

    #[test]
    fn bytes_count_as_readable_once_and_when_all_of_their_append_is() {
        let mut unread = Unread::default();
        for at in 0..3 {
            unread.appended(Offset::new(at * 10), Offset::new(at * 10 + 10), 100);
        }
        let mut below = |offset| unread.readable_below(Offset::new(offset));
        assert_eq!(below(0), NowReadable::Bytes(0));
        assert_eq!(below(20), NowReadable::Bytes(200));
        assert_eq!(below(25), NowReadable::Some);
        assert_eq!(below(30), NowReadable::Bytes(100));
        assert_eq!(below(40), NowReadable::Bytes(0));
    }

    #[test]
    fn a_long_transaction_takes_bounded_memory_and_hides_no_byte() {
        let mut unread = Unread::default();
        let count = 3 * MAX_UNREAD as i64;
        for at in 0..count {
            unread.appended(Offset::new(at), Offset::new(at + 1), 1);
        }
        assert_eq!(unread.appends.len(), MAX_UNREAD);
        assert_eq!(
            unread.readable_below(Offset::new(10)),
            NowReadable::Bytes(10)
        );
        // Somewhere in what was put together.
        assert_eq!(
            unread.readable_below(Offset::new(count - 1)),
            NowReadable::Some
        );
        let rest = NowReadable::Bytes(2 * MAX_UNREAD as u64 + 1);
        assert_eq!(unread.readable_below(Offset::new(count)), rest);
    }

    #[tokio::test]
    async fn a_fetch_is_woken_when_all_its_bytes_are_there() {
        let mut waiters = FetchWaiters::default();
        let waiter = FetchWaiter::new(100);
        waiters.park(&waiter);
        assert!(!waiter.has_news());
        waiters.readable(60, &mut Wakes::default());
        assert!(waiter.has_news(), "though it still waits");
        assert_eq!(waiters.parked.len(), 1, "40 bytes are still missing");
        waiters.readable(60, &mut Wakes::default());
        assert!(waiters.parked.is_empty());
        tokio::time::timeout(std::time::Duration::from_secs(5), waiter.woken())
            .await
            .expect("woken");
    }
}
