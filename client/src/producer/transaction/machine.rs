//! How far a producer's transaction has come, and what a coordinator is to be asked next.
//!
//! Pure: wishes and answers in, the next request out. The sender task performs requests,
//! one at a time. Always holds:
//!
//! - records leave only while a transaction is open or about to be committed, and by the
//!   older protocol only to a partition that the coordinator was told of (KIP-98);
//! - the end of a transaction is asked for once every batch has its outcome, and a commit
//!   only if all of them were written;
//! - whatever fails in a transaction dooms it: from then on it can only be aborted;
//! - sequence numbers of which nobody knows whether the broker has them are never
//!   continued: the next transaction has another epoch, from the answer to EndTxn
//!   (KIP-890) or from InitProducerId (KIP-360).

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::TopicPartition;

use super::super::batch::Identity;
use super::{Ending, TransactionError};
use crate::backoff::Backoff;
use crate::consumer::{CommittedOffset, GroupMetadata};
use crate::error::Error;

/// The first pause while the coordinator still ends the transaction before.
const PAUSE_WHILE_ENDING: Duration = Duration::from_millis(5);

pub(crate) type Offsets = BTreeMap<TopicPartition, CommittedOffset>;

/// The two ways in which a transaction grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// The coordinator is told of each partition and group before anything goes there (KIP-98).
    Announced,
    /// Whoever gets a write tells the coordinator, and each transaction has an epoch of
    /// its own (KIP-890).
    Implied,
}

impl Protocol {
    /// What the finalised feature `transaction.version` stands for; without it, the older.
    pub(crate) fn of(transaction_version: Option<i16>) -> Self {
        match transaction_version {
            Some(2..) => Self::Implied,
            Some(_) | None => Self::Announced,
        }
    }
}

/// What a coordinator is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// InitProducerId; with the identity so far, where that is to be continued.
    Initialize {
        resumed: Option<Identity>,
    },
    AddPartitions {
        identity: Identity,
        partitions: Vec<TopicPartition>,
    },
    AddGroup {
        identity: Identity,
        group: String,
    },
    /// Goes to the group's coordinator.
    CommitOffsets {
        identity: Identity,
        protocol: Protocol,
        group: GroupMetadata,
        offsets: Offsets,
    },
    End {
        identity: Identity,
        protocol: Protocol,
        commit: bool,
    },
}

/// What it answered, unless that was an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// From now on the producer is this one.
    Identity(Identity),
}

/// What the sender is to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Nothing,
    Ask(Request),
    WaitUntil(Instant),
}

#[derive(Clone, Debug)]
enum Phase {
    /// Getting an identity, or the next epoch of the one at hand.
    Initializing,
    Ready,
    Open,
    /// `asked`: the coordinator may have heard of it.
    Ending {
        commit: bool,
        asked: bool,
    },
    Failed(TransactionError),
}

/// Whether the coordinator has a transaction to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    No,
    /// It was told, or is being told by others, and has not confirmed it.
    Perhaps,
    Yes,
}

/// What InitProducerId is needed for once the transaction is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    None,
    NextEpoch,
    /// The coordinator has forgotten the producer id.
    NewIdentity,
}

#[derive(Debug)]
pub(crate) struct Machine {
    transactional_id: Arc<str>,
    phase: Phase,
    protocol: Protocol,
    /// What the cluster speaks, as far as was last heard.
    offered: Protocol,
    identity: Option<Identity>,
    partitions: HashSet<TopicPartition>,
    unannounced: BTreeSet<TopicPartition>,
    groups: HashSet<String>,
    offsets: VecDeque<(u64, GroupMetadata, Offsets)>,
    next_offsets_id: u64,
    known: Known,
    doomed: Option<Error>,
    renewal: Renewal,
    /// A request is on its way.
    asking: bool,
    attempts: u32,
    not_before: Option<Instant>,
    retry_backoff: Duration,
    retry_backoff_max: Duration,
    last: Option<Ending>,
}

impl Machine {
    pub(crate) fn new(
        transactional_id: Arc<str>,
        retry_backoff: Duration,
        retry_backoff_max: Duration,
    ) -> Self {
        Self {
            transactional_id,
            phase: Phase::Initializing,
            protocol: Protocol::Announced,
            offered: Protocol::Announced,
            identity: None,
            partitions: HashSet::new(),
            unannounced: BTreeSet::new(),
            groups: HashSet::new(),
            offsets: VecDeque::new(),
            next_offsets_id: 0,
            known: Known::No,
            doomed: None,
            renewal: Renewal::NewIdentity,
            asking: false,
            attempts: 0,
            not_before: None,
            retry_backoff,
            retry_backoff_max,
            last: None,
        }
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// How the last transaction ended.
    pub(crate) fn last(&self) -> Option<Ending> {
        self.last
    }

    /// Whether nothing has to be waited for before a transaction can begin or be refused.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Failed(_))
    }

    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    /// Whether the coordinator may have been asked to commit.
    pub(crate) fn is_commit_asked(&self) -> bool {
        matches!(
            self.phase,
            Phase::Ending {
                commit: true,
                asked: true
            }
        )
    }

    /// Why the transaction cannot be committed, or nothing more can be done at all.
    pub(crate) fn trouble(&self) -> Option<TransactionError> {
        match (&self.phase, &self.doomed) {
            (Phase::Failed(error), _) => Some(error.clone()),
            (_, Some(error)) => Some(TransactionError::Abortable(error.clone())),
            (_, None) => None,
        }
    }

    /// Begins a transaction, if it is settled how the one before ended; false where the
    /// producer must first be brought to the newer protocol.
    pub(crate) fn begin(&mut self) -> Result<bool, TransactionError> {
        match &self.phase {
            Phase::Failed(error) => Err(error.clone()),
            Phase::Ready if self.protocol == self.offered => {
                self.phase = Phase::Open;
                Ok(true)
            }
            Phase::Ready => {
                // The epochs of both protocols must not meet in one log (KIP-890).
                if self.offered == Protocol::Implied {
                    self.renewal = Renewal::NextEpoch;
                    self.phase = Phase::Initializing;
                }
                self.protocol = self.offered;
                Ok(false)
            }
            Phase::Initializing | Phase::Open | Phase::Ending { .. } => Ok(false),
        }
    }

    /// Whether records may go to the partition now. If it is because the coordinator
    /// does not know of it yet, it will be told.
    pub(crate) fn admits(&mut self, topic: &Arc<str>, partition: i32) -> bool {
        let sending = matches!(self.phase, Phase::Open | Phase::Ending { commit: true, .. });
        if !sending || self.doomed.is_some() {
            return false;
        }
        let partition = TopicPartition::new(topic.clone(), partition);
        if self.partitions.contains(&partition) {
            return true;
        }
        match self.protocol {
            Protocol::Announced => {
                self.unannounced.insert(partition);
                false
            }
            Protocol::Implied => {
                self.partitions.insert(partition);
                self.known = Known::Perhaps;
                true
            }
        }
    }

    /// Takes offsets into the transaction; the number by which to ask after them.
    pub(crate) fn add_offsets(&mut self, group: GroupMetadata, offsets: Offsets) -> u64 {
        let id = self.next_offsets_id;
        self.next_offsets_id += 1;
        self.offsets.push_back((id, group, offsets));
        id
    }

    /// Whether these are still to be told. Nobody is told any of a transaction that can't be
    /// committed, whether they were taken before that was known or after.
    pub(crate) fn has_offsets(&self, id: u64) -> bool {
        let is_lost = self.doomed.is_some() || matches!(self.phase, Phase::Failed(_));
        !is_lost && self.offsets.iter().any(|(waiting, ..)| *waiting == id)
    }

    /// Something of the transaction failed for good.
    pub(crate) fn doom(&mut self, error: Error) {
        match error.code() {
            Some(
                code @ (ErrorCode::ProducerFenced | ErrorCode::TransactionalIdAuthorizationFailed),
            ) => {
                self.fail(code, error);
                return;
            }
            Some(ErrorCode::InvalidProducerIdMapping) => self.renewal = Renewal::NewIdentity,
            Some(_) | None => {}
        }
        if let Phase::Ending { commit: true, .. } = self.phase {
            self.phase = Phase::Open;
        }
        if matches!(self.phase, Phase::Open) {
            self.doomed.get_or_insert(error);
            self.offsets.clear();
            self.unannounced.clear();
        }
    }

    /// Ends the transaction as soon as its batches have their outcome.
    pub(crate) fn commit(&mut self) -> Result<(), TransactionError> {
        match self.trouble() {
            Some(trouble) => Err(trouble),
            None => {
                if matches!(self.phase, Phase::Open) {
                    self.phase = Phase::Ending {
                        commit: true,
                        asked: false,
                    };
                }
                Ok(())
            }
        }
    }

    /// Gives the transaction up, unless its commit may have been asked for already.
    pub(crate) fn abort(&mut self) {
        if matches!(
            self.phase,
            Phase::Open
                | Phase::Ending {
                    commit: true,
                    asked: false
                }
        ) {
            self.phase = Phase::Ending {
                commit: false,
                asked: false,
            };
            self.offsets.clear();
            self.unannounced.clear();
        }
    }

    /// Why batches that wait are not to be sent any more.
    pub(crate) fn refuses_batches(&self) -> Option<Error> {
        match &self.phase {
            Phase::Ending { commit: false, .. } => Some(Error::TransactionAborted),
            Phase::Failed(error) => Some(error.cause().clone()),
            Phase::Open if self.doomed.is_some() => Some(Error::TransactionAborted),
            Phase::Open | Phase::Ending { .. } | Phase::Initializing | Phase::Ready => None,
        }
    }

    /// The next request. `idle`: every batch has its outcome. `has_gap`: numbers were
    /// given to batches that may not have been written.
    pub(crate) fn next(&mut self, now: Instant, idle: bool, has_gap: bool) -> Next {
        if self.asking {
            return Next::Nothing;
        }
        if let Some(at) = self.not_before {
            if now < at {
                return Next::WaitUntil(at);
            }
            self.not_before = None;
        }
        let request = match self.phase {
            Phase::Initializing => Some(self.initialize()),
            Phase::Open if self.doomed.is_none() => self.announce(),
            Phase::Ending { commit: true, .. } => match self.announce() {
                Some(request) => Some(request),
                None if idle => self.end(true),
                None => None,
            },
            Phase::Ending { commit: false, .. } if idle => {
                if has_gap && self.renewal == Renewal::None && self.protocol == Protocol::Announced
                {
                    self.renewal = Renewal::NextEpoch;
                }
                self.end(false)
            }
            Phase::Open | Phase::Ending { .. } | Phase::Ready | Phase::Failed(_) => None,
        };
        match request {
            Some(request) => {
                self.asking = true;
                Next::Ask(request)
            }
            None => Next::Nothing,
        }
    }

    fn initialize(&self) -> Request {
        Request::Initialize {
            resumed: self.identity.filter(|_| self.renewal == Renewal::NextEpoch),
        }
    }

    /// What a coordinator is to learn of an open transaction.
    fn announce(&mut self) -> Option<Request> {
        let identity = self.identity?;
        if !self.unannounced.is_empty() {
            self.known = self.known.at_least_perhaps();
            return Some(Request::AddPartitions {
                identity,
                partitions: self.unannounced.iter().cloned().collect(),
            });
        }
        let (_, group, offsets) = self.offsets.front()?;
        if self.protocol == Protocol::Announced && !self.groups.contains(&group.group) {
            self.known = self.known.at_least_perhaps();
            return Some(Request::AddGroup {
                identity,
                group: group.group.clone(),
            });
        }
        self.known = self.known.at_least_perhaps();
        Some(Request::CommitOffsets {
            identity,
            protocol: self.protocol,
            group: group.clone(),
            offsets: offsets.clone(),
        })
    }

    /// The request that ends the transaction, or what comes after, if it needs none.
    fn end(&mut self, commit: bool) -> Option<Request> {
        let identity = self.identity?;
        let asks = match (self.known, self.protocol) {
            (Known::No, _) => false,
            (Known::Yes, _) | (Known::Perhaps, Protocol::Implied) => true,
            (Known::Perhaps, Protocol::Announced) => {
                // It would refuse to end what it does not know. InitProducerId ends
                // whatever there may be.
                self.renew(Renewal::NextEpoch);
                false
            }
        };
        // Whoever has forgotten the producer has also ended its transaction.
        if !asks || self.renewal == Renewal::NewIdentity {
            self.finish(commit);
            return matches!(self.phase, Phase::Initializing).then(|| self.initialize());
        }
        self.phase = Phase::Ending {
            commit,
            asked: true,
        };
        Some(Request::End {
            identity,
            protocol: self.protocol,
            commit,
        })
    }

    fn renew(&mut self, renewal: Renewal) {
        if self.renewal == Renewal::None {
            self.renewal = renewal;
        }
    }

    fn finish(&mut self, committed: bool) {
        self.partitions.clear();
        self.unannounced.clear();
        self.groups.clear();
        self.offsets.clear();
        self.known = Known::No;
        self.doomed = None;
        self.last = Some(if committed {
            Ending::Committed
        } else {
            Ending::Aborted
        });
        self.phase = match self.renewal {
            Renewal::None => Phase::Ready,
            Renewal::NextEpoch | Renewal::NewIdentity => Phase::Initializing,
        };
    }

    /// Takes the answer to the request that was on its way. `offered` is the finalised
    /// `transaction.version` of whoever answered.
    pub(crate) fn answered(
        &mut self,
        request: &Request,
        answer: Result<Answer, Error>,
        offered: Option<i16>,
        now: Instant,
    ) {
        self.asking = false;
        match answer {
            Ok(answer) => {
                self.attempts = 0;
                self.offered = Protocol::of(offered);
                self.done(request, answer);
            }
            Err(error) => match judge(request, &error) {
                Judgement::Retry { first } => {
                    tracing::debug!(id = %self.transactional_id, %error, "the coordinator is asked again");
                    let longest = self.retry_backoff_max;
                    let first = first.unwrap_or(self.retry_backoff);
                    self.not_before = Some(now + Backoff::pause(first, longest, self.attempts));
                    self.attempts = self.attempts.saturating_add(1);
                }
                Judgement::Doom => self.doom(error),
                Judgement::Forgotten => {
                    self.renewal = Renewal::NewIdentity;
                    match request {
                        Request::End { commit: false, .. } => self.finish(false),
                        _ => self.doom(error),
                    }
                }
                Judgement::Fail(code) => self.fail(code, error),
                Judgement::FailForGood => {
                    self.phase = Phase::Failed(TransactionError::Fatal(error));
                }
            },
        }
    }

    fn done(&mut self, request: &Request, answer: Answer) {
        if let Answer::Identity(identity) = answer {
            self.identity = Some(identity);
        }
        match request {
            Request::Initialize { .. } => {
                self.renewal = Renewal::None;
                self.protocol = self.offered;
                self.phase = Phase::Ready;
            }
            Request::AddPartitions { partitions, .. } => {
                self.known = Known::Yes;
                for partition in partitions {
                    self.unannounced.remove(partition);
                    self.partitions.insert(partition.clone());
                }
            }
            Request::AddGroup { group, .. } => {
                self.known = Known::Yes;
                self.groups.insert(group.clone());
            }
            Request::CommitOffsets { group, offsets, .. } => {
                self.known = Known::Yes;
                // Those of a transaction given up meanwhile are gone already.
                let same =
                    |(_, g, o): &mut (u64, GroupMetadata, Offsets)| g == group && o == offsets;
                self.offsets.pop_front_if(same);
            }
            Request::End { commit, .. } => self.finish(*commit),
        }
    }

    fn fail(&mut self, code: ErrorCode, source: Error) {
        self.phase = Phase::Failed(match code {
            ErrorCode::ProducerFenced | ErrorCode::InvalidProducerEpoch => {
                TransactionError::Fenced {
                    transactional_id: self.transactional_id.clone(),
                    source,
                }
            }
            _ => TransactionError::Fatal(source),
        });
    }
}

impl Known {
    fn at_least_perhaps(self) -> Self {
        match self {
            Self::No | Self::Perhaps => Self::Perhaps,
            Self::Yes => Self::Yes,
        }
    }
}

/// What an error says about the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// Asked again after a pause that begins with `first`, else with `retry.backoff.ms`.
    Retry { first: Option<Duration> },
    /// The transaction can only be aborted.
    Doom,
    /// The same, and the coordinator has forgotten the producer id.
    Forgotten,
    /// The producer is done for, because of this code.
    Fail(ErrorCode),
    /// The same, without a code.
    FailForGood,
}

fn judge(request: &Request, error: &Error) -> Judgement {
    let Some(code) = error.code() else {
        // An answer that is lost or unreadable says nothing, and each request may be repeated.
        return if error.is_retriable() || matches!(error, Error::Malformed { .. }) {
            Judgement::Retry { first: None }
        } else {
            Judgement::FailForGood
        };
    };
    let may_abort = !matches!(
        request,
        Request::Initialize { .. } | Request::End { commit: false, .. }
    );
    match code {
        ErrorCode::ConcurrentTransactions => Judgement::Retry {
            first: Some(PAUSE_WHILE_ENDING),
        },
        code if code.is_retriable() => Judgement::Retry { first: None },
        ErrorCode::InvalidProducerIdMapping | ErrorCode::UnknownProducerId => match request {
            Request::Initialize { .. } => Judgement::Fail(code),
            _ => Judgement::Forgotten,
        },
        ErrorCode::ProducerFenced
        | ErrorCode::InvalidProducerEpoch
        | ErrorCode::InvalidTxnState
        | ErrorCode::TransactionalIdAuthorizationFailed
        | ErrorCode::UnsupportedVersion
        | ErrorCode::UnsupportedForMessageFormat => Judgement::Fail(code),
        ErrorCode::TransactionAbortable if may_abort => Judgement::Doom,
        _ => match request {
            Request::AddPartitions { .. }
            | Request::AddGroup { .. }
            | Request::CommitOffsets { .. } => Judgement::Doom,
            Request::Initialize { .. } | Request::End { .. } => Judgement::Fail(code),
        },
    }
}

#[cfg(test)]
mod tests;
