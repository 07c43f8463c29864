//! Transactions: who produces under a transactional id, where that one's transaction
//! stands, and who must be told of its end (KIP-98, 360, 447, 890).
//!
//! A [`TransactionShard`] owns the transactional ids of one partition of
//! `__transaction_state`. It is pure, and is held as a shard of groups is:
//!
//! 1. *Load.* `new`, then `replay` for each record of the partition in order, then
//!    `loaded` once, which hands out the markers that an earlier coordinator may not have
//!    written all of.
//! 2. *Serve.* `handle` a request, tell of `markers_written`, or `tick` when
//!    [`TransactionShard::next_deadline`] has come; look at the deadline again after every
//!    call. A request that [`Handled::NeedsProducerId`] comes again with one.
//! 3. *Write.* Effects with records are appended at once, as one batch, and before any
//!    other call the shard is told the outcome: `written`, or `write_failed`.
//! 4. *Send.* Replies and markers go out once everything that the shard has had written
//!    up to then is below the high watermark. What is not committed must not be told: the
//!    next coordinator may not know it.
//! 5. *Unload.* On losing the partition the shard is dropped; replies not yet sent are
//!    refused, and markers not yet written are the next coordinator's.
//!
//! Invariants: nothing takes effect that is not written; an id's state is what its last
//! record says; those of [`Transaction`]. Every ticket is answered exactly once, by the
//! call that was given it or by the outcome of its write. No buffer of a request is kept.

mod api;
mod config;
mod fuzz;
mod partitions;
pub mod records;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
};

use bytes::Bytes;
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode, ids::ProducerId};

pub use crate::groups::{Ticket, partition_for};
pub use api::{
    Description, Effects, Handled, ListFilter, Listed, MarkerOrder, MarkerWritten, Producer,
    Released, Reply, TransactionRequest, TransactionResponse, TransactionVersion,
};
pub use config::TransactionConfig;
pub use fuzz::fuzz_record;
pub use partitions::Partitions;
pub use records::{TransactionRecord, TransactionRecordError};
pub use transaction::{Transaction, TransactionState};

use crate::{
    phase::Phase,
    records::MAX_STRING_BYTES,
    time::{Monotonic, Now},
};
use transaction::{Ending, Step};

/// How long what could not be written waits until it is tried again.
const RETRY_MS: i64 = 100;

/// The most that one look for expired ids has written.
const MAX_HOUSEKEEPING_BYTES: usize = 16 * 1024;

/// The transactional ids of one partition of `__transaction_state`.
pub struct TransactionShard {
    config: TransactionConfig,
    ids: BTreeMap<StrBytes, Entry>,
    /// When there is something to do about an id.
    due: BTreeSet<(Monotonic, StrBytes)>,
    next_expiry: Monotonic,
    /// The looks for open transactions are at whole intervals from here.
    loaded: Monotonic,
    next_order: u64,
    phase: Phase,
}

struct Entry {
    transaction: Transaction,
    /// Since when the transaction is open.
    opened: Option<Monotonic>,
    /// While the transaction ends: what is still without a marker.
    unmarked: Option<Unmarked>,
    /// Its place in `due`.
    due: Option<Monotonic>,
}

struct Unmarked {
    order: u64,
    partitions: Partitions,
}

impl TransactionShard {
    /// A shard that knows nothing yet and waits for its records.
    pub fn new(config: TransactionConfig) -> Self {
        Self {
            config,
            ids: BTreeMap::new(),
            due: BTreeSet::new(),
            next_expiry: Monotonic::NEVER,
            loaded: Monotonic::LONG_AGO,
            next_order: 0,
            phase: Phase::Loading,
        }
    }

    /// Takes over changed settings; deadlines already set stay as they are.
    pub fn set_config(&mut self, config: TransactionConfig) {
        self.config = config;
    }

    /// Takes in one record of the partition while the shard loads.
    ///
    /// A malformed record is an error and changes nothing; it is for the caller to go on
    /// with the next.
    pub fn replay(
        &mut self,
        key: &Bytes,
        value: Option<&Bytes>,
    ) -> Result<(), TransactionRecordError> {
        self.phase.assert_loading();
        if let TransactionRecord::Transaction {
            transactional_id,
            value,
        } = records::decode(key, value)?
        {
            match value {
                Some(transaction) => {
                    let entry = Entry {
                        transaction,
                        opened: None,
                        unmarked: None,
                        due: None,
                    };
                    self.ids.insert(copied(&transactional_id), entry);
                }
                None => drop(self.ids.remove(&transactional_id)),
            }
        }
        Ok(())
    }

    /// All records are in. What was being ended is ended: its markers are handed out again,
    /// to be written once all of the log is below the high watermark.
    pub fn loaded(&mut self, now: Now) -> Vec<MarkerOrder> {
        self.phase.loaded();
        self.loaded = now.monotonic;
        self.schedule_expiry(now);
        let ids: Vec<StrBytes> = self.ids.keys().cloned().collect();
        ids.iter().filter_map(|id| self.arrange(id, now)).collect()
    }

    /// Handles a request, which is answered under `ticket`. A producer id given as `spare`
    /// may be used or not; it must be nobody's.
    pub fn handle(
        &mut self,
        request: TransactionRequest,
        ticket: Ticket,
        spare: Option<ProducerId>,
        now: Now,
    ) -> Handled {
        self.phase.assert_ready();
        let mut effects = Effects::default();
        let answer = match &request {
            TransactionRequest::Init {
                transactional_id,
                timeout_ms,
                current,
            } => self
                .init(transactional_id, *timeout_ms, *current, spare, now)
                .map(|step| step.map(TransactionResponse::Init)),
            TransactionRequest::Add {
                transactional_id,
                producer,
                partitions,
            } => self
                .known(transactional_id)
                .and_then(|entry| entry.transaction.add(*producer, partitions, now.wall_ms))
                .map(|step| step.map(TransactionResponse::Add)),
            TransactionRequest::Verify {
                transactional_id,
                producer,
                partitions,
            } => self
                .known(transactional_id)
                .and_then(|entry| entry.transaction.missing(*producer, partitions))
                .map(|missing| Step::Answer(TransactionResponse::Verify(Ok(missing)))),
            TransactionRequest::End {
                transactional_id,
                producer,
                commit,
                client,
            } => self
                .known(transactional_id)
                .and_then(|entry| {
                    let ending = Ending {
                        producer: *producer,
                        commit: *commit,
                        client: *client,
                    };
                    entry.transaction.end(ending, spare, now.wall_ms)
                })
                .map(|step| step.map(TransactionResponse::End)),
            TransactionRequest::Describe { transactional_id } => self
                .describe(transactional_id)
                .map(|found| Step::Answer(TransactionResponse::Describe(Ok(found)))),
            TransactionRequest::List(filter) => Ok(Step::Answer(TransactionResponse::List(Ok(
                self.list(filter, now.wall_ms),
            )))),
        };
        match answer {
            Err(error) => effects.replies.push((ticket, request.refused(error))),
            Ok(Step::Answer(response)) => effects.replies.push((ticket, response)),
            Ok(Step::NeedsProducerId) => {
                assert!(spare.is_none(), "one producer id is enough");
                return Handled::NeedsProducerId(request);
            }
            Ok(Step::Write(next, response)) => {
                let id = request
                    .transactional_id()
                    .expect("only a request about one id changes anything");
                self.change(&mut effects, copied(id), *next);
                effects.replies.push((ticket, response));
            }
        }
        Handled::Done(self.hand_out(effects))
    }

    /// Markers of orders are written. Those of an order that is no more are of no concern.
    pub fn markers_written(&mut self, markers: &[MarkerWritten], now: Now) -> Effects {
        self.phase.assert_ready();
        let mut effects = Effects::default();
        for marker in markers {
            let Some(entry) = self.ids.get_mut(&marker.transactional_id) else {
                continue;
            };
            let Some(unmarked) = &mut entry.unmarked else {
                continue;
            };
            if unmarked.order == marker.order
                && unmarked.partitions.remove(&marker.topic, marker.partition)
                && unmarked.partitions.is_empty()
            {
                let next = entry.transaction.completed(now.wall_ms);
                self.change(&mut effects, marker.transactional_id.clone(), next);
            }
        }
        self.hand_out(effects)
    }

    /// Does something that is due at `now`. If there is more, it is left for the next
    /// call and [`TransactionShard::next_deadline`] stays in the past.
    pub fn tick(&mut self, now: Now) -> Effects {
        self.phase.assert_ready();
        let mut effects = Effects::default();
        if let Some((due, _)) = self.due.first()
            && *due <= now.monotonic
            && let Some((_, id)) = self.due.pop_first()
        {
            let entry = self
                .ids
                .get_mut(&id)
                .expect("what is due is about an id that is known");
            entry.due = None;
            let transaction = &entry.transaction;
            let next = if transaction.state == TransactionState::Ongoing {
                tracing::info!(
                    transactional_id = logged(&id),
                    producer_id = %transaction.producer.id,
                    epoch = %transaction.producer.epoch,
                    timeout_ms = transaction.timeout_ms,
                    "a transaction was open for too long and is aborted"
                );
                // Nobody else has the id: as in Kafka the producer may go on.
                transaction.fenced(self.config.version, now.wall_ms)
            } else {
                transaction.completed(now.wall_ms)
            };
            self.change(&mut effects, id, next);
        } else if self.next_expiry <= now.monotonic {
            self.expire(&mut effects, now);
        }
        self.hand_out(effects)
    }

    /// When `tick` next has something to do.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let due = self.due.first().map(|(due, _)| *due);
        let expiry = (!self.ids.is_empty()).then_some(self.next_expiry);
        due.into_iter().chain(expiry).min()
    }

    /// The records of `effects` were appended: they take effect, and what rests on them may
    /// go out when they are below the high watermark.
    pub fn written(&mut self, effects: Effects, now: Now) -> Released {
        self.phase.outcome_known();
        let mut released = Released {
            replies: effects.replies,
            markers: Vec::new(),
        };
        for (id, change) in effects.changes {
            let Some(next) = change else {
                self.forget(&id);
                continue;
            };
            if let Some(entry) = self.ids.get_mut(&id) {
                assert!(
                    entry.transaction.may_become(&next),
                    "{:?} can't become {next:?}",
                    entry.transaction
                );
                entry.transaction = next;
            } else {
                let entry = Entry {
                    transaction: next,
                    opened: None,
                    unmarked: None,
                    due: None,
                };
                self.ids.insert(id.clone(), entry);
            }
            released.markers.extend(self.arrange(&id, now));
        }
        released
    }

    /// The records of `effects` could not be appended: nothing of them is in the log.
    /// Whoever waited for them is answered with what `error` means to a client, and what
    /// nobody asked for is tried again.
    #[must_use = "replies must be sent"]
    pub fn write_failed(&mut self, effects: Effects, error: ErrorCode, now: Now) -> Vec<Reply> {
        self.phase.outcome_known();
        let error = api::write_error(error);
        tracing::warn!(error = error.name(), "transactions could not be written");
        for (id, change) in effects.changes {
            if change.is_none() {
                self.schedule_expiry(now);
                continue;
            }
            let again = self.ids.get(&id).is_some_and(|entry| {
                let is_complete = |unmarked: &Unmarked| unmarked.partitions.is_empty();
                entry.due.is_none()
                    && (entry.transaction.state == TransactionState::Ongoing
                        || entry.unmarked.as_ref().is_some_and(is_complete))
            });
            if again {
                self.schedule(&id, Some(now.after(RETRY_MS)));
            }
        }
        let failed = |(ticket, response): Reply| (ticket, response.failed(error));
        effects.replies.into_iter().map(failed).collect()
    }

    /// How many ids are in which state. Takes time in proportion to them.
    pub fn counts(&self) -> BTreeMap<TransactionState, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.ids.values() {
            *counts.entry(entry.transaction.state).or_default() += 1;
        }
        counts
    }

    fn init(
        &self,
        id: &StrBytes,
        timeout_ms: i32,
        current: Option<Producer>,
        spare: Option<ProducerId>,
        now: Now,
    ) -> Result<Step<Result<Producer, ErrorCode>>, ErrorCode> {
        if id.is_empty() || id.len() > MAX_STRING_BYTES {
            return Err(ErrorCode::InvalidRequest);
        }
        if !(1..=self.config.max_timeout_ms).contains(&timeout_ms) {
            return Err(ErrorCode::InvalidTransactionTimeout);
        }
        if let Some(entry) = self.ids.get(id) {
            return entry
                .transaction
                .init(timeout_ms, current, spare, now.wall_ms);
        }
        // Whoever the producer was, it has been forgotten, and so has what it wrote.
        let Some(spare) = spare else {
            return Ok(Step::NeedsProducerId);
        };
        let first = Transaction::first(spare, timeout_ms, now.wall_ms);
        let producer = first.producer;
        Ok(Step::Write(Box::new(first), Ok(producer)))
    }

    fn known(&self, id: &StrBytes) -> Result<&Entry, ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        self.ids.get(id).ok_or(ErrorCode::InvalidProducerIdMapping)
    }

    fn describe(&self, id: &StrBytes) -> Result<Description, ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        let entry = self.ids.get(id).ok_or(ErrorCode::TransactionalIdNotFound)?;
        let transaction = &entry.transaction;
        Ok(Description {
            state: transaction.state,
            timeout_ms: transaction.timeout_ms,
            start_ms: transaction.start_ms,
            producer: transaction.producer,
            partitions: match &entry.unmarked {
                Some(unmarked) => unmarked.partitions.clone(),
                None => transaction.partitions.clone(),
            },
        })
    }

    fn list(&self, filter: &ListFilter, now_ms: i64) -> Vec<Listed> {
        let passes = |transaction: &Transaction| {
            let state = filter.states.as_ref();
            let producers = filter.producer_ids.as_ref();
            state.is_none_or(|states| states.contains(&transaction.state))
                && producers.is_none_or(|ids| ids.contains(&transaction.producer.id))
                && filter
                    .longer_than_ms
                    .is_none_or(|least| now_ms.saturating_sub(transaction.start_ms) > least)
        };
        self.ids
            .iter()
            .filter(|(_, entry)| passes(&entry.transaction))
            .map(|(id, entry)| Listed {
                transactional_id: id.clone(),
                producer_id: entry.transaction.producer.id,
                state: entry.transaction.state,
            })
            .collect()
    }

    /// Has `id` written as it shall be from now on.
    fn change(&self, effects: &mut Effects, id: StrBytes, next: Transaction) {
        effects
            .records
            .push(records::transaction(&id, &next, self.config.version));
        effects.changes.push((id, Some(next)));
    }

    /// Has ids forgotten that nothing was heard of for too long.
    fn expire(&mut self, effects: &mut Effects, now: Now) {
        let oldest = now.wall_ms.saturating_sub(self.config.id_expiration_ms);
        let mut bytes = 0;
        for (id, entry) in &self.ids {
            let transaction = &entry.transaction;
            if !transaction.is_idle() || transaction.last_update_ms > oldest {
                continue;
            }
            if bytes >= MAX_HOUSEKEEPING_BYTES {
                // The rest is for the next call.
                return;
            }
            bytes += id.len();
            effects.records.push(records::tombstone(id));
            effects.changes.push((id.clone(), None));
        }
        self.schedule_expiry(now);
    }

    fn schedule_expiry(&mut self, now: Now) {
        self.next_expiry = now.after(self.config.expiry_interval_ms.max(1));
    }

    /// Sets the deadline of `id` as its state wants it, and says which markers that needs.
    fn arrange(&mut self, id: &StrBytes, now: Now) -> Option<MarkerOrder> {
        let entry = self.ids.get_mut(id)?;
        entry.unmarked = None;
        let transaction = &entry.transaction;
        let opened = transaction.open_since_ms().map(|since_ms| {
            // Whoever has not seen it begin has only the time of day to go by.
            let age_ms = now.wall_ms.saturating_sub(since_ms).max(0);
            entry
                .opened
                .unwrap_or(now.monotonic.plus(age_ms.saturating_neg()))
        });
        entry.opened = opened;
        let mut order = None;
        let due = if let Some(commit) = transaction.outcome() {
            let number = self.next_order;
            self.next_order += 1;
            order = Some(MarkerOrder {
                order: number,
                transactional_id: id.clone(),
                producer: transaction.producer,
                commit,
                version: transaction.client,
                partitions: transaction.partitions.clone(),
            });
            entry.unmarked = Some(Unmarked {
                order: number,
                partitions: transaction.partitions.clone(),
            });
            // Another broker may have written an end without anybody to tell.
            transaction.partitions.is_empty().then_some(now.monotonic)
        } else {
            opened.map(|opened| {
                let at = opened.plus(i64::from(transaction.timeout_ms));
                next_look(self.loaded, self.config.abort_interval_ms, at)
            })
        };
        self.schedule(id, due);
        order.filter(|order| !order.partitions.is_empty())
    }

    fn schedule(&mut self, id: &StrBytes, due: Option<Monotonic>) {
        let Some(entry) = self.ids.get_mut(id) else {
            return;
        };
        if let Some(before) = mem::replace(&mut entry.due, due) {
            self.due.remove(&(before, id.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, id.clone()));
        }
    }

    fn forget(&mut self, id: &StrBytes) {
        self.schedule(id, None);
        self.ids.remove(id);
    }

    fn hand_out(&mut self, effects: Effects) -> Effects {
        self.phase.handed_out(&effects.records);
        effects
    }
}

impl<T> Step<T> {
    fn map<U>(self, into: impl FnOnce(T) -> U) -> Step<U> {
        match self {
            Self::Answer(answer) => Step::Answer(into(answer)),
            Self::Write(next, answer) => Step::Write(next, into(answer)),
            Self::NeedsProducerId => Step::NeedsProducerId,
        }
    }
}

/// A shard's contents are its clients' business; its size is not.
impl fmt::Debug for TransactionShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionShard")
            .field("ids", &self.ids.len())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// The first look after `at`, where looks are `interval_ms` apart from `from` on.
fn next_look(from: Monotonic, interval_ms: i64, at: Monotonic) -> Monotonic {
    let interval_ms = interval_ms.max(1);
    let passed = at.since(from).max(0) / interval_ms;
    from.plus((passed + 1).saturating_mul(interval_ms))
}

/// As much of a client's own words as is worth a log line.
fn logged(text: &StrBytes) -> &str {
    const MOST_BYTES: usize = 255;
    &text[..text.floor_char_boundary(MOST_BYTES)]
}

/// A copy of its own, so that keeping a name does not keep the request it came in.
fn copied(text: &StrBytes) -> StrBytes {
    if text.is_empty() {
        StrBytes::default()
    } else {
        text.as_str().into()
    }
}
