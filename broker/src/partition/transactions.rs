//! The part that a partition has in transactions: which batches may begin one here, the
//! markers that end them, and who is in the middle of one.

use super::{
    Appended, Partition, PartitionError, RequiredAcks, State, VerificationGuard,
    admission::Admitted, verification::Unverified,
};
use yuxi_log::{AppendError, ProducerEntry};
use yuxi_protocol::{
    ids::{ProducerEpoch, ProducerId},
    record::{BatchHeader, EndMarker},
};

/// From this version of the protocol on a marker carries an epoch that is newer than that
/// of the records it ends (KIP-890).
const NEW_EPOCH_FROM: i8 = 2;

/// The end of a transaction, as its coordinator has decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TxnMarker {
    pub(crate) producer_id: ProducerId,
    pub(crate) producer_epoch: ProducerEpoch,
    pub(crate) coordinator_epoch: i32,
    pub(crate) commit: bool,
    /// The version of the protocol that the transaction was spoken in.
    pub(crate) transaction_version: i8,
}

/// One producer as DescribeProducers tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActiveProducer {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) last_sequence: i32,
    pub(crate) last_timestamp: i64,
    pub(crate) coordinator_epoch: i32,
    pub(crate) transaction_first_offset: Option<yuxi_protocol::ids::Offset>,
}

impl Partition {
    /// The guard with which the coordinator must be asked before a batch of a client's
    /// transaction is appended ([`Admitted::verified`]); `None` if this transaction is open
    /// here already, under this very epoch.
    pub(crate) fn needs_verification(
        &self,
        producer_id: ProducerId,
        producer_epoch: ProducerEpoch,
        base_sequence: i32,
    ) -> Option<VerificationGuard> {
        let mut state = self.state();
        if state.is_transaction_open(producer_id, producer_epoch) {
            return None;
        }
        let verifications = &mut state.verifications;
        Some(verifications.ask(producer_id, producer_epoch, base_sequence))
    }

    /// As [`Partition::needs_verification`], by the protocol in which each transaction has an
    /// epoch of its own: whoever is unknown here has a first batch, and that is not this one
    /// unless its sequence is 0.
    pub(crate) fn needs_verification_from_0(
        &self,
        producer_id: ProducerId,
        producer_epoch: ProducerEpoch,
        base_sequence: i32,
    ) -> Option<VerificationGuard> {
        let is_known = self.state().log.producer(producer_id).is_some();
        let lowest_sequence = if is_known { base_sequence } else { 0 };
        self.needs_verification(producer_id, producer_epoch, lowest_sequence)
    }

    /// Appends the marker that ends a producer's transaction; it is acknowledged once it is
    /// below the high watermark. A marker that is here already is appended once more, since
    /// its first acknowledgement may have been lost.
    pub(crate) fn append_marker(
        &self,
        marker: &TxnMarker,
        now_ms: i64,
    ) -> Result<Appended, PartitionError> {
        let end = EndMarker {
            commit: marker.commit,
            coordinator_epoch: marker.coordinator_epoch,
        };
        let bytes = end.build(marker.producer_id, marker.producer_epoch, now_ms);
        let mut state = self.state();
        if marker.transaction_version >= NEW_EPOCH_FROM
            && state.is_transaction_open(marker.producer_id, marker.producer_epoch)
        {
            // It would end a transaction that was begun after it.
            return Err(PartitionError::Append(AppendError::InvalidProducerEpoch {
                producer_id: marker.producer_id,
                epoch: marker.producer_epoch,
                current_epoch: marker.producer_epoch,
            }));
        }
        state.append(&Admitted::own(bytes, 1), RequiredAcks::All, now_ms)
    }

    /// The producers that are remembered here, in no order.
    pub(crate) fn active_producers(&self) -> Result<Vec<ActiveProducer>, PartitionError> {
        let state = self.state();
        if let Some(error) = state.ended() {
            return Err(error);
        }
        let described = |(id, entry): (ProducerId, &ProducerEntry)| ActiveProducer {
            id,
            epoch: entry.epoch,
            last_sequence: entry.last_sequence(),
            last_timestamp: entry.last_timestamp,
            coordinator_epoch: entry.coordinator_epoch,
            transaction_first_offset: entry.transaction_first_offset,
        };
        Ok(state.log.active_producers().map(described).collect())
    }

    /// Forgets the producers that have been silent for `producer.id.expiration.ms`, and
    /// guards that nobody has used. To be called every few minutes.
    pub(crate) fn forget_silent_producers(&self, now_ms: i64) {
        let mut state = self.state();
        if state.ended().is_none() {
            state.log.remove_expired_producers(now_ms);
            state.verifications.clear_old();
        }
    }
}

impl State {
    fn is_transaction_open(&self, id: ProducerId, epoch: ProducerEpoch) -> bool {
        self.log
            .producer(id)
            .is_some_and(|entry| entry.epoch == epoch && entry.transaction_first_offset.is_some())
    }

    /// Refuses a batch that would begin a transaction of which its coordinator may not know
    /// (I13), be it a client's or offsets that the coordinator of a group writes for one.
    /// Markers only end transactions.
    pub(super) fn check_verified(
        &self,
        batch: &Admitted,
        header: &BatchHeader,
    ) -> Result<(), PartitionError> {
        let producer_id = header.producer_id;
        let begins_one = header.is_transactional() && !header.is_control();
        if !begins_one
            || self.is_transaction_open(producer_id, header.producer_epoch)
            || self.log.is_duplicate(header)
        {
            return Ok(());
        }
        self.verifications
            .check(header, batch.guard())
            .map_err(|unverified| match unverified {
                Unverified::NoGuard if batch.guard().is_some() => {
                    PartitionError::VerifiedTooEarly { producer_id }
                }
                Unverified::NoGuard => PartitionError::NotVerified { producer_id },
                Unverified::Overtakes { lowest_sequence } => PartitionError::Overtakes {
                    producer_id,
                    sequence: header.base_sequence,
                    expected: lowest_sequence,
                },
            })
    }
}
