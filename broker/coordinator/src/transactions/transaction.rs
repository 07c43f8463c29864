//! One transactional id: who its producer is and where its transaction stands, and what
//! each request makes of that. Values in, values out; nothing here changes in place.
//!
//! ```text
//!          Init              Add                  End, time-out, Init of another
//!   (none) ----> Empty  ------------>  Ongoing  ---------------> PrepareCommit|Abort
//!                  ^   \                  ^                          | all markers written
//!                  |    \ End (abort)     | Add                      v
//!                  +-----`-- Init ------- +---------------- CompleteCommit|Abort
//! ```
//!
//! Invariants: a producer's epoch never falls; the outcome that a Prepare state names is
//! the one that is completed; the highest epoch is never given to a producer, so that
//! whoever has the one below can still be fenced.

use std::cmp::Ordering;

use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
};

use super::{Partitions, Producer, TransactionVersion};

/// The last epoch that a producer is given under one id.
const LAST_EPOCH: ProducerEpoch = ProducerEpoch::new(i16::MAX - 1);

macro_rules! states {
    ($( $(#[$doc:meta])* $state:ident = $code:literal; )+) => {
        /// Where a transactional id stands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum TransactionState {
            $( $(#[$doc])* $state, )+
        }

        impl TransactionState {
            /// The number that stands in records.
            pub const fn code(self) -> i8 {
                match self { $( Self::$state => $code, )+ }
            }

            /// The state of that number.
            pub const fn from_code(code: i8) -> Option<Self> {
                match code {
                    $( $code => Some(Self::$state), )+
                    _ => None,
                }
            }

            /// The name that operators are told.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$state => stringify!($state), )+ }
            }

            /// The state of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $( stringify!($state) => Some(Self::$state), )+
                    _ => None,
                }
            }
        }
    };
}

states! {
    /// There is a producer; it has begun no transaction.
    Empty = 0;
    /// A transaction is open.
    Ongoing = 1;
    /// It is decided that the transaction is committed; markers are being written.
    PrepareCommit = 2;
    /// It is decided that the transaction is aborted; markers are being written.
    PrepareAbort = 3;
    /// The last transaction was committed, and every partition says so.
    CompleteCommit = 4;
    /// The last transaction was aborted, and every partition says so.
    CompleteAbort = 5;
}

/// What is known of one transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its producer.
    pub producer: Producer,
    /// The producer id that it had before this one, if the epochs of that ran out.
    pub previous_producer_id: ProducerId,
    /// The producer id that it has once the transaction that ends is complete.
    pub next_producer_id: ProducerId,
    /// The epoch that the producer had before, if it is the same producer that goes on.
    /// Not in the log: after a reload a lost answer can't be asked for again.
    pub last_epoch: ProducerEpoch,
    /// How long a transaction may be open.
    pub timeout_ms: i32,
    /// Where it stands.
    pub state: TransactionState,
    /// What is in the transaction.
    pub partitions: Partitions,
    /// When the last transaction began, or -1.
    pub start_ms: i64,
    /// When anything last happened.
    pub last_update_ms: i64,
    /// What the client spoke that ended the last transaction: from version 2 on it may ask
    /// again for its next epoch. Version 0 for a transaction that its successor had aborted:
    /// that epoch is not to be told to it.
    pub client: TransactionVersion,
}

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Step<T> {
    /// Nothing changes.
    Answer(T),
    /// This is to be written, and then that answered.
    Write(Box<Transaction>, T),
    /// A producer id that nobody has is needed.
    NeedsProducerId,
}

/// The outcome and who asks for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) producer: Producer,
    pub(super) commit: bool,
    pub(super) client: TransactionVersion,
}

impl Transaction {
    /// The first producer of a transactional id.
    pub(super) fn first(id: ProducerId, timeout_ms: i32, now_ms: i64) -> Self {
        Self {
            producer: Producer {
                id,
                epoch: ProducerEpoch::new(0),
            },
            previous_producer_id: ProducerId::NONE,
            next_producer_id: ProducerId::NONE,
            last_epoch: ProducerEpoch::NONE,
            timeout_ms,
            state: TransactionState::Empty,
            partitions: Partitions::default(),
            start_ms: -1,
            last_update_ms: now_ms,
            client: TransactionVersion::V0,
        }
    }

    /// A producer begins, or goes on after an error as `current`.
    pub(super) fn init(
        &self,
        timeout_ms: i32,
        current: Option<Producer>,
        spare: Option<ProducerId>,
        now_ms: i64,
    ) -> Result<Step<Result<Producer, ErrorCode>>, ErrorCode> {
        if !current.is_none_or(|current| self.may_be(current)) {
            return Err(ErrorCode::ProducerFenced);
        }
        match self.state {
            TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                return Err(ErrorCode::ConcurrentTransactions);
            }
            TransactionState::Ongoing => {
                let last_epoch = match current {
                    // Only the producer itself may end its transaction by going on.
                    Some(current) if current != self.producer => {
                        return Err(ErrorCode::ProducerFenced);
                    }
                    Some(current) => current.epoch,
                    None => ProducerEpoch::NONE,
                };
                let mut fenced = self.fenced(TransactionVersion::V0, now_ms);
                fenced.last_epoch = last_epoch;
                // Asked again, it gets its epoch once the transaction is gone.
                return Ok(Step::Write(
                    Box::new(fenced),
                    Err(ErrorCode::ConcurrentTransactions),
                ));
            }
            TransactionState::Empty
            | TransactionState::CompleteCommit
            | TransactionState::CompleteAbort => {}
        }
        let mut next = Self {
            timeout_ms,
            state: TransactionState::Empty,
            start_ms: -1,
            last_update_ms: now_ms,
            last_epoch: ProducerEpoch::NONE,
            ..self.clone()
        };
        let epoch = self.producer.epoch;
        let goes_on = |current: Producer| {
            current.epoch == epoch || (epoch > LAST_EPOCH && current.epoch == self.last_epoch)
        };
        if epoch >= LAST_EPOCH && current.is_none_or(goes_on) {
            let Some(id) = spare else {
                return Ok(Step::NeedsProducerId);
            };
            next.last_epoch = current.map_or(ProducerEpoch::NONE, |current| current.epoch);
            next.previous_producer_id = self.producer.id;
            next.producer = Producer {
                id,
                epoch: ProducerEpoch::new(0),
            };
        } else {
            match current.map(|current| current.epoch) {
                None => next.producer.epoch = raised(epoch),
                Some(expected) if expected == epoch => {
                    next.producer.epoch = raised(epoch);
                    next.last_epoch = epoch;
                }
                // The answer to the same request was lost: here it is again.
                Some(expected) if expected == self.last_epoch => next.last_epoch = expected,
                Some(_) => return Err(ErrorCode::ProducerFenced),
            }
        }
        let producer = next.producer;
        Ok(Step::Write(Box::new(next), Ok(producer)))
    }

    /// Whether `current` is this producer, or was it until its epochs ran out.
    fn may_be(&self, current: Producer) -> bool {
        current.id == self.producer.id
            || (current.id == self.previous_producer_id && current.epoch >= LAST_EPOCH)
    }

    /// The transaction writes to `partitions`, too.
    pub(super) fn add(
        &self,
        producer: Producer,
        partitions: &Partitions,
        now_ms: i64,
    ) -> Result<Step<Result<(), ErrorCode>>, ErrorCode> {
        self.check_open(producer)?;
        let is_open = self.state == TransactionState::Ongoing;
        if is_open && self.partitions.contains_all(partitions) {
            return Ok(Step::Answer(Ok(())));
        }
        let mut next = Self {
            state: TransactionState::Ongoing,
            start_ms: if is_open { self.start_ms } else { now_ms },
            last_update_ms: now_ms,
            ..self.clone()
        };
        next.partitions.add_all(partitions);
        Ok(Step::Write(Box::new(next), Ok(())))
    }

    /// Those of `partitions` that the transaction does not write to.
    pub(super) fn missing(
        &self,
        producer: Producer,
        partitions: &Partitions,
    ) -> Result<Partitions, ErrorCode> {
        self.check_open(producer)?;
        let missing = |(topic, partition): &(&_, i32)| !self.partitions.contains(topic, *partition);
        Ok(partitions.iter().filter(missing).collect())
    }

    /// Whether `producer` has a transaction here, or may begin one.
    fn check_open(&self, producer: Producer) -> Result<(), ErrorCode> {
        let ends = matches!(
            self.state,
            TransactionState::PrepareCommit | TransactionState::PrepareAbort
        );
        // It may have been told already who it will be.
        if ends && (producer == self.producer || producer == self.successor()) {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        self.check_producer(producer)
    }

    fn check_producer(&self, producer: Producer) -> Result<(), ErrorCode> {
        if producer.id != self.producer.id {
            Err(ErrorCode::InvalidProducerIdMapping)
        } else if producer.epoch != self.producer.epoch {
            Err(ErrorCode::ProducerFenced)
        } else {
            Ok(())
        }
    }

    /// A client ends its transaction.
    pub(super) fn end(
        &self,
        ending: Ending,
        spare: Option<ProducerId>,
        now_ms: i64,
    ) -> Result<Step<Result<Producer, ErrorCode>>, ErrorCode> {
        let raises = ending.client.raises_epochs();
        let is_retry = raises && self.was_ended_by(ending.producer);
        if !is_retry {
            if raises {
                self.check_open(ending.producer)?;
            } else {
                self.check_producer(ending.producer)?;
            }
        }
        let outcome = match self.state {
            TransactionState::Ongoing => {
                return self.decided(ending, spare, now_ms);
            }
            TransactionState::Empty => None,
            TransactionState::PrepareCommit | TransactionState::CompleteCommit => Some(true),
            TransactionState::PrepareAbort | TransactionState::CompleteAbort => Some(false),
        };
        let is_complete = matches!(
            self.state,
            TransactionState::CompleteCommit | TransactionState::CompleteAbort
        );
        // An old client's second request can't be told from a late copy of its first.
        if outcome == Some(ending.commit) && (is_retry || !raises) {
            return if is_complete {
                Ok(Step::Answer(Ok(self.producer)))
            } else {
                Err(ErrorCode::ConcurrentTransactions)
            };
        }
        // A client that does not know whether its produce added a partition may abort what
        // was never begun.
        if raises && !is_retry && !ending.commit {
            return self.decided(ending, spare, now_ms);
        }
        Err(ErrorCode::InvalidTxnState)
    }

    /// Whether `producer` is who has ended the last transaction here, by the protocol that
    /// then gave it another epoch or id (KIP-890).
    fn was_ended_by(&self, producer: Producer) -> bool {
        if !self.client.raises_epochs() {
            return false;
        }
        match self.state {
            TransactionState::Empty | TransactionState::Ongoing => false,
            TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                self.is_next_epoch_of(producer)
            }
            TransactionState::CompleteCommit | TransactionState::CompleteAbort => {
                self.is_next_epoch_of(producer)
                    || (producer.id == self.previous_producer_id
                        && producer.epoch == LAST_EPOCH
                        && self.producer.epoch == ProducerEpoch::new(0))
            }
        }
    }

    fn is_next_epoch_of(&self, producer: Producer) -> bool {
        producer.id == self.producer.id
            && producer.epoch < self.producer.epoch
            && raised(producer.epoch) == self.producer.epoch
    }

    /// The outcome is settled.
    fn decided(
        &self,
        ending: Ending,
        spare: Option<ProducerId>,
        now_ms: i64,
    ) -> Result<Step<Result<Producer, ErrorCode>>, ErrorCode> {
        let mut next = self.clone();
        if ending.client.raises_epochs() {
            match self.producer.epoch.cmp(&LAST_EPOCH) {
                Ordering::Less => {}
                Ordering::Equal => match spare {
                    Some(id) => next.next_producer_id = id,
                    None => return Ok(Step::NeedsProducerId),
                },
                // Nobody was ever given this epoch.
                Ordering::Greater => return Err(ErrorCode::ProducerFenced),
            }
            next.producer.epoch = raised(self.producer.epoch);
            next.last_epoch = self.producer.epoch;
        }
        next.client = ending.client;
        let next = next.prepared(ending.commit, now_ms);
        let successor = next.successor();
        Ok(Step::Write(Box::new(next), Ok(successor)))
    }

    /// The transaction is aborted though its producer has not asked for that, and goes on,
    /// if it does, in another epoch. By version 2 of the protocol as `told` it gets that
    /// when it asks for an abort, too.
    pub(super) fn fenced(&self, told: TransactionVersion, now_ms: i64) -> Self {
        let mut next = self.clone();
        next.producer.epoch = raised(self.producer.epoch);
        next.last_epoch = ProducerEpoch::NONE;
        next.client = told;
        next.prepared(false, now_ms)
    }

    fn prepared(mut self, commit: bool, now_ms: i64) -> Self {
        if self.state != TransactionState::Ongoing {
            self.start_ms = now_ms;
        }
        self.state = if commit {
            TransactionState::PrepareCommit
        } else {
            TransactionState::PrepareAbort
        };
        self.last_update_ms = now_ms;
        if self.partitions.is_empty() {
            // Nobody has to be told.
            self = self.completed(now_ms);
        }
        self
    }

    /// Every partition of the transaction that ends has its marker.
    pub(super) fn completed(&self, now_ms: i64) -> Self {
        let mut next = self.clone();
        next.state = match self.outcome() {
            Some(true) => TransactionState::CompleteCommit,
            Some(false) => TransactionState::CompleteAbort,
            None => unreachable!("a transaction is complete that was not ended: {self:?}"),
        };
        next.partitions = Partitions::default();
        next.last_update_ms = now_ms;
        if self.next_producer_id != ProducerId::NONE {
            next.previous_producer_id = self.producer.id;
            next.producer = self.successor();
            next.next_producer_id = ProducerId::NONE;
        }
        next
    }

    /// While the transaction ends, whether it is committed.
    pub(super) fn outcome(&self) -> Option<bool> {
        match self.state {
            TransactionState::PrepareCommit => Some(true),
            TransactionState::PrepareAbort => Some(false),
            TransactionState::Empty
            | TransactionState::Ongoing
            | TransactionState::CompleteCommit
            | TransactionState::CompleteAbort => None,
        }
    }

    /// Who the producer is once the transaction that ends is complete.
    fn successor(&self) -> Producer {
        if self.next_producer_id == ProducerId::NONE {
            return self.producer;
        }
        Producer {
            id: self.next_producer_id,
            epoch: ProducerEpoch::new(0),
        }
    }

    /// When the open transaction, if there is one, began.
    pub(super) fn open_since_ms(&self) -> Option<i64> {
        (self.state == TransactionState::Ongoing).then_some(self.start_ms)
    }

    /// Whether it may be forgotten when nothing has happened for long enough.
    pub(super) fn is_idle(&self) -> bool {
        match self.state {
            TransactionState::Empty
            | TransactionState::CompleteCommit
            | TransactionState::CompleteAbort => true,
            TransactionState::Ongoing
            | TransactionState::PrepareCommit
            | TransactionState::PrepareAbort => false,
        }
    }

    /// Whether `next` may take this one's place, whoever asks for it.
    pub(super) fn may_become(&self, next: &Self) -> bool {
        let epoch_stays_or_rises =
            next.producer.id != self.producer.id || next.producer.epoch >= self.producer.epoch;
        let keeps_outcome = match (self.outcome(), next.state) {
            (None, _) => true,
            (Some(commit), TransactionState::CompleteCommit) => commit,
            (Some(commit), TransactionState::CompleteAbort) => !commit,
            (Some(_), _) => false,
        };
        epoch_stays_or_rises && keeps_outcome
    }
}

/// The next epoch. There is one after every epoch that a producer has.
fn raised(epoch: ProducerEpoch) -> ProducerEpoch {
    ProducerEpoch::new(epoch.value().saturating_add(1))
}
