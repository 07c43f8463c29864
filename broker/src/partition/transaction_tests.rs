//! Transactions in a partition over a real log, without a network.

use super::{
    admission::admit,
    tests::{replica, state},
    *,
};
use crate::time::Monotonic;
use yuxi_protocol::{
    ids::{BrokerEpoch, ProducerEpoch, ProducerId},
    record::{RecordBatchBuilder, batch::NO_SEQUENCE},
};

const ME: BrokerId = BrokerId::new(1);
const OTHER: BrokerId = BrokerId::new(2);
const NOW: i64 = 1_700_000_000_000;
const ID: ProducerId = ProducerId::new(7);

fn led(directory: &std::path::Path) -> Partition {
    let partition = replica(&directory.join("1"), ME, &[]);
    partition.become_leader(&state(0, ME), Monotonic::new(NOW));
    partition
}

fn batch(partition: &Partition, epoch: i16, sequence: i32, transactional: bool) -> Admitted {
    let mut builder = RecordBatchBuilder::new().producer(ID, ProducerEpoch::new(epoch), sequence);
    if transactional {
        builder = builder.transactional();
    }
    builder
        .append(NOW, None, Some(b"value"), &[])
        .expect("a record");
    let bytes = builder.build().expect("a batch");
    admit(&bytes, &partition.settings(), NOW).expect("admitted")
}

/// As Produce does it, with a coordinator that always agrees.
fn produce(partition: &Partition, epoch: i16, sequence: i32) -> Result<Appended, ErrorCode> {
    let mut batch = batch(partition, epoch, sequence, true);
    let epoch = ProducerEpoch::new(epoch);
    if let Some(guard) = partition.needs_verification(ID, epoch, sequence) {
        batch = batch.verified(guard);
    }
    append(partition, &batch)
}

fn append(partition: &Partition, batch: &Admitted) -> Result<Appended, ErrorCode> {
    let appended = partition.append(batch, RequiredAcks::All, NOW);
    appended.map_err(|error| error.code())
}

fn marker(epoch: i16, commit: bool) -> TxnMarker {
    TxnMarker {
        producer_id: ID,
        producer_epoch: ProducerEpoch::new(epoch),
        coordinator_epoch: 3,
        commit,
        transaction_version: 0,
    }
}

fn end(partition: &Partition, marker: &TxnMarker) -> Result<i64, ErrorCode> {
    let appended = partition.append_marker(marker, NOW);
    appended
        .map(|appended| appended.base_offset.value())
        .map_err(|error| error.code())
}

fn committed(partition: &Partition, from: i64) -> ReadAnswer {
    let read = Read {
        from: Offset::new(from),
        max_bytes: 1 << 20,
        at_least_one_batch: true,
        isolation: Isolation::Committed,
        leader_epoch: LeaderEpoch::NONE,
        last_fetched_epoch: LeaderEpoch::NONE,
        leader_only: false,
    };
    partition.read(read).expect("an answer")
}

#[test]
fn a_transaction_begins_only_with_a_guard_that_no_marker_has_made_worthless() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    let epoch = ProducerEpoch::new(0);
    let refused = Err(ErrorCode::InvalidTxnState);
    let first = batch(&partition, 0, 0, true);
    assert_eq!(append(&partition, &first).map(|_| ()), refused, "I13");
    let guard = partition.needs_verification(ID, epoch, 0).expect("a guard");
    // The transaction is aborted while its coordinator is asked.
    end(&partition, &marker(0, false)).expect("appended");
    let late = first.verified(guard);
    let again = Err(ErrorCode::NotEnoughReplicas);
    assert_eq!(append(&partition, &late).map(|_| ()), again, "I13");
    assert_eq!(partition.offsets().last_stable, Offset::new(1));
    produce(&partition, 0, 0).expect("appended");
    assert_eq!(
        partition.needs_verification(ID, epoch, 1),
        None,
        "it is open"
    );
    let next = batch(&partition, 0, 1, true);
    append(&partition, &next).expect("appended");
    let other_epoch = ProducerEpoch::new(1);
    assert!(partition.needs_verification(ID, other_epoch, 0).is_some());
    // Another leader may have written a marker in between.
    let guard = partition.needs_verification(ProducerId::new(8), epoch, 0);
    partition.become_follower(&state(1, OTHER));
    partition.become_leader(&state(2, ME), Monotonic::new(NOW));
    let again = partition.needs_verification(ProducerId::new(8), epoch, 0);
    assert_ne!(guard, again);
}

#[test]
fn offsets_that_come_just_after_their_transactions_end_begin_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    let epoch = ProducerEpoch::new(0);
    // As the group's coordinator has them written.
    let offsets = || {
        let mut builder = RecordBatchBuilder::new()
            .producer(ID, epoch, NO_SEQUENCE)
            .transactional();
        builder
            .append(NOW, Some(b"key"), Some(b"offset"), &[])
            .expect("a record");
        Admitted::own(builder.build().expect("a batch"), 1)
    };
    let guard = partition.needs_verification(ID, epoch, NO_SEQUENCE);
    let first = offsets().verified(guard.expect("a guard"));
    append(&partition, &first).expect("appended");
    append(&partition, &offsets()).expect("it is open");
    assert_eq!(partition.needs_verification(ID, epoch, NO_SEQUENCE), None);
    // So nobody is asked; and then the marker is faster.
    end(&partition, &marker(0, true)).expect("appended");
    let refused = append(&partition, &offsets()).map(|_| ());
    assert_eq!(refused, Err(ErrorCode::InvalidTxnState), "I13");
    assert_eq!(partition.offsets().last_stable, Offset::new(3));
}

#[test]
fn a_marker_that_comes_twice_does_not_end_the_life_of_the_next_transactions_producer() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    produce(&partition, 0, 0).expect("appended");
    let mut second = marker(1, true);
    second.transaction_version = 2;
    end(&partition, &second).expect("appended");
    let next = ProducerEpoch::new(1);
    let guard = partition.needs_verification(ID, next, 0).expect("a guard");
    end(&partition, &second).expect("appended again");
    let batch = batch(&partition, 1, 0, true).verified(guard);
    let refused = append(&partition, &batch).map(|_| ());
    assert_eq!(
        refused,
        Err(ErrorCode::NotEnoughReplicas),
        "it may be tried again"
    );
    produce(&partition, 1, 0).expect("appended");
}

#[test]
fn a_retried_batch_of_an_ended_transaction_is_known_and_begins_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    produce(&partition, 0, 0).expect("appended");
    end(&partition, &marker(0, true)).expect("appended");
    let again = append(&partition, &batch(&partition, 0, 0, true)).expect("a repetition");
    assert_eq!(again.base_offset, Offset::ZERO);
    assert_eq!(partition.offsets().log_end, Offset::new(2));
}

#[test]
fn what_does_not_belong_into_a_transaction_is_refused_with_kafkas_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    produce(&partition, 5, 0).expect("appended");
    let plain = batch(&partition, 5, 1, false);
    let refused = append(&partition, &plain).map(|_| ());
    assert_eq!(refused, Err(ErrorCode::InvalidTxnState));
    let stale = produce(&partition, 4, 0).map(|_| ());
    assert_eq!(stale, Err(ErrorCode::InvalidProducerEpoch));
    let gap = produce(&partition, 5, 2).map(|_| ());
    assert_eq!(gap, Err(ErrorCode::OutOfOrderSequenceNumber));
    let mut control = RecordBatchBuilder::new()
        .producer(ID, ProducerEpoch::new(5), 1)
        .transactional()
        .control();
    control
        .append(NOW, Some(&[0; 4]), Some(&[0; 6]), &[])
        .expect("a record");
    let admitted = admit(
        &control.build().expect("a batch"),
        &partition.settings(),
        NOW,
    );
    assert_eq!(
        admitted.map(|_| ()).map_err(|refused| refused.code()),
        Err(ErrorCode::InvalidRecord)
    );
    let mut nobodys = RecordBatchBuilder::new().transactional();
    nobodys.append(NOW, None, None, &[]).expect("a record");
    let admitted = admit(
        &nobodys.build().expect("a batch"),
        &partition.settings(),
        NOW,
    );
    assert_eq!(
        admitted.map(|_| ()).map_err(|refused| refused.code()),
        Err(ErrorCode::InvalidRecord)
    );
}

#[test]
fn markers_of_old_coordinators_and_of_old_producers_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    produce(&partition, 5, 0).expect("appended");
    let old_producer = end(&partition, &marker(4, true));
    assert_eq!(old_producer, Err(ErrorCode::InvalidProducerEpoch));
    let second = |epoch| TxnMarker {
        transaction_version: 2,
        ..marker(epoch, true)
    };
    // By the second protocol the marker's epoch is newer than the records'.
    assert_eq!(
        end(&partition, &second(5)),
        Err(ErrorCode::InvalidProducerEpoch)
    );
    assert_eq!(end(&partition, &second(6)), Ok(1));
    assert_eq!(end(&partition, &second(6)), Ok(2), "its answer was lost");
    let old_coordinator = TxnMarker {
        coordinator_epoch: 2,
        ..second(7)
    };
    assert_eq!(
        end(&partition, &old_coordinator),
        Err(ErrorCode::TransactionCoordinatorFenced)
    );
    // The next transaction has the marker's epoch, and begins with sequence 0.
    let not_first = produce(&partition, 6, 1).map(|_| ());
    assert_eq!(not_first, Err(ErrorCode::OutOfOrderSequenceNumber));
    let stale = produce(&partition, 5, 1).map(|_| ());
    assert_eq!(stale, Err(ErrorCode::InvalidProducerEpoch));
    produce(&partition, 6, 0).expect("appended");
    let producers = partition.active_producers().expect("producers");
    assert_eq!(producers.len(), 1);
    let first = producers[0].transaction_first_offset;
    assert_eq!(
        (first, producers[0].coordinator_epoch),
        (Some(Offset::new(3)), 3)
    );
}

#[tokio::test]
async fn readers_of_committed_records_wait_for_the_marker_and_are_told_what_was_aborted() {
    let directory = tempfile::tempdir().expect("a directory");
    let partition = led(directory.path());
    produce(&partition, 0, 0).expect("appended");
    let answer = committed(&partition, 0);
    assert_eq!(answer.last_stable_offset, Offset::ZERO);
    assert_eq!(answer.high_watermark, Offset::new(1));
    assert!(answer.records.is_none() && answer.aborted.is_empty());

    let waiter = FetchWaiter::new(1);
    let seen = Seen::LastStable(answer.last_stable_offset);
    assert!(partition.park_fetch(&waiter, seen));
    produce(&partition, 0, 1).expect("appended");
    assert!(is_waiting(&waiter), "more of the transaction wakes nobody");
    end(&partition, &marker(0, false)).expect("appended");
    tokio::time::timeout(std::time::Duration::from_secs(5), waiter.woken())
        .await
        .expect("woken by the marker");

    let answer = committed(&partition, 0);
    assert_eq!(answer.last_stable_offset, Offset::new(3));
    let aborted: Vec<_> = answer
        .aborted
        .iter()
        .map(|one| (one.producer_id, one.first_offset.value()))
        .collect();
    assert_eq!(aborted, [(ID, 0)]);
    assert!(answer.records.is_some());
    assert!(!partition.park_fetch(&waiter, seen), "it has moved on");
}

fn is_waiting(waiter: &FetchWaiter) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let woken = std::pin::pin!(waiter.woken());
    woken.poll(&mut context).is_pending()
}

/// Two replicas of which the second fetches from the first.
struct Pair {
    leader: Partition,
    follower: Partition,
}

impl Pair {
    fn new(directory: &std::path::Path) -> Self {
        let pair = Self {
            leader: replica(&directory.join("1"), ME, &[]),
            follower: replica(&directory.join("2"), OTHER, &[]),
        };
        let both = Self::state(0, ME);
        pair.leader.become_leader(&both, Monotonic::new(NOW));
        pair.follower.become_follower(&both);
        pair
    }

    fn state(epoch: i32, leader: BrokerId) -> yuxi_controller::keys::PartitionState {
        let mut both = state(epoch, leader);
        both.replicas = vec![ME, OTHER];
        both.isr = vec![ME, OTHER];
        both
    }

    fn fetch(&self) {
        let epoch = LeaderEpoch::new(0);
        let position = self.follower.position(epoch).expect("it follows");
        let asking = Follower {
            id: OTHER,
            broker_epoch: BrokerEpoch::new(1),
            is_active: true,
            log_start: position.log_start,
            news: &Arc::default(),
        };
        let read = Read {
            from: position.offset,
            max_bytes: 1 << 20,
            at_least_one_batch: true,
            isolation: Isolation::Uncommitted,
            leader_epoch: position.leader_epoch,
            last_fetched_epoch: position.last_epoch,
            leader_only: false,
        };
        let max = MaxLag {
            now: Monotonic::new(NOW),
            lag_ms: 1000,
        };
        let answer = self
            .leader
            .read_as_leader_of(asking, read, max)
            .expect("an answer");
        let records = answer
            .records
            .as_ref()
            .map_or(&[][..], |slice| slice.as_bytes());
        let taken = self.follower.take(
            FromLeader {
                position,
                high_watermark: answer.high_watermark,
                log_start: answer.log_start_offset,
                records,
            },
            NOW,
        );
        assert!(
            taken
                .expect("taken")
                .is_some_and(|taken| taken.error.is_none())
        );
    }
}

#[test]
fn a_follower_answers_readers_of_committed_records_as_its_leader_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let pair = Pair::new(directory.path());
    produce(&pair.leader, 0, 0).expect("appended");
    end(&pair.leader, &marker(0, false)).expect("appended");
    produce(&pair.leader, 0, 1).expect("appended");
    for (fetches, last_stable, high_watermark) in [(1, 0, 0), (1, 2, 3), (1, 2, 3)] {
        for _ in 0..fetches {
            pair.fetch();
        }
        let offsets = pair.follower.offsets();
        assert_eq!(offsets.last_stable, Offset::new(last_stable));
        assert_eq!(offsets.high_watermark, Offset::new(high_watermark));
    }
    let answer = committed(&pair.follower, 0);
    assert_eq!(answer.aborted, committed(&pair.leader, 0).aborted);
    assert_eq!(answer.aborted.len(), 1);
    let read = yuxi_protocol::record::batches(answer.records.expect("records").as_bytes()).count();
    assert_eq!(read, 2, "the second transaction is open");
}

#[test]
fn the_next_leader_knows_of_open_transactions_and_of_who_wrote_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let pair = Pair::new(directory.path());
    produce(&pair.leader, 3, 0).expect("appended");
    pair.fetch();
    pair.fetch();
    pair.leader.become_follower(&Pair::state(1, OTHER));
    let mut alone = Pair::state(1, OTHER);
    alone.isr = vec![OTHER];
    pair.follower.become_leader(&alone, Monotonic::new(NOW));
    let next = &pair.follower;
    assert_eq!(next.needs_verification(ID, ProducerEpoch::new(3), 1), None);
    produce(next, 3, 1).expect("appended");
    assert_eq!(next.offsets().last_stable, Offset::ZERO);
    let stale = produce(next, 2, 0).map(|_| ());
    assert_eq!(stale, Err(ErrorCode::InvalidProducerEpoch));
    end(next, &marker(3, true)).expect("appended");
    assert_eq!(next.offsets().last_stable, Offset::new(3));
    assert_eq!(committed(next, 0).aborted, []);
}
