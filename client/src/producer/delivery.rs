//! What becomes of a record: the future that `send` hands out.
//!
//! One [`Completion`] is shared by all records of a batch, so that finishing a
//! batch of ten thousand records is one lock and as many wake-ups as there are
//! tasks that really wait. A batch that the broker finds too large is split, so
//! a completion is resolved in parts, each a run of records.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::error::Error;
use crate::sync::lock;

/// Where a record came to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset; `None` if the broker did not say (acks=0, or a duplicate whose
    /// first write is too long ago).
    pub offset: Option<i64>,
    /// The record's timestamp, in milliseconds since the epoch: the broker's, if the
    /// topic has `message.timestamp.type=LogAppendTime`.
    pub timestamp_ms: i64,
}

/// The outcome of one record that was accepted for sending. Dropping it does not
/// take the record back.
#[derive(Debug)]
pub struct Delivery {
    completion: Arc<Completion>,
    index: u32,
    timestamp_ms: i64,
    /// Where this future's waker stands in the completion's list.
    waker_at: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Completion {
    topic: Arc<str>,
    partition: i32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    parts: Vec<Part>,
    wakers: Vec<Waker>,
}

/// The outcome of `count` records from `first` on.
#[derive(Debug)]
struct Part {
    first: u32,
    count: u32,
    outcome: Result<Written, Error>,
}

/// Where a run of records came to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Offset of the first, if known.
    pub(crate) base_offset: Option<i64>,
    /// The broker's timestamp, if it stamps records itself.
    pub(crate) append_time_ms: Option<i64>,
}

impl Completion {
    pub(crate) fn new(topic: Arc<str>, partition: i32) -> Arc<Self> {
        Arc::new(Self {
            topic,
            partition,
            state: Mutex::default(),
        })
    }

    /// The future of the record at `index` of the batch.
    pub(crate) fn delivery(self: &Arc<Self>, index: u32, timestamp_ms: i64) -> Delivery {
        Delivery {
            completion: self.clone(),
            index,
            timestamp_ms,
            waker_at: None,
        }
    }

    /// Tells `count` records from `first` on what became of them.
    pub(crate) fn resolve(&self, first: u32, count: u32, outcome: Result<Written, Error>) {
        let wakers = {
            let mut state = self.state();
            state.parts.push(Part {
                first,
                count,
                outcome,
            });
            std::mem::take(&mut state.wakers)
        };
        for waker in wakers {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let completion = self.completion.clone();
        let mut state = completion.state();
        let part = state
            .parts
            .iter()
            .find(|part| (part.first..part.first + part.count).contains(&self.index));
        if let Some(part) = part {
            return Poll::Ready(match &part.outcome {
                Ok(written) => Ok(RecordMetadata {
                    topic: completion.topic.clone(),
                    partition: completion.partition,
                    offset: written
                        .base_offset
                        .map(|base| base + i64::from(self.index - part.first)),
                    timestamp_ms: written.append_time_ms.unwrap_or(self.timestamp_ms),
                }),
                Err(error) => Err(error.clone()),
            });
        }
        // Another part's resolution may have emptied the list since the last poll.
        match self.waker_at.and_then(|at| state.wakers.get_mut(at)) {
            Some(waker) if waker.will_wake(context.waker()) => {}
            _ => {
                state.wakers.push(context.waker().clone());
                self.waker_at = Some(state.wakers.len() - 1);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_record_of_a_split_batch_learns_its_own_offset() {
        let completion = Completion::new("t".into(), 3);
        let early = tokio::spawn(completion.delivery(1, 7));
        let late = completion.delivery(2, 7);
        completion.resolve(
            2,
            2,
            Ok(Written {
                base_offset: Some(90),
                append_time_ms: Some(5),
            }),
        );
        completion.resolve(
            0,
            2,
            Ok(Written {
                base_offset: Some(40),
                append_time_ms: None,
            }),
        );
        let early = early.await.expect("not cancelled").expect("delivered");
        assert_eq!((early.offset, early.timestamp_ms), (Some(41), 7));
        let late = late.await.expect("delivered");
        assert_eq!((late.offset, late.timestamp_ms), (Some(90), 5));
    }
}
