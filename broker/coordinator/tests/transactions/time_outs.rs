//! Transactions that are open too long, and ids that nobody uses.

use yuxi_coordinator::transactions::{TransactionConfig, TransactionState};
use yuxi_protocol::error_code::ErrorCode;

use crate::support::*;

#[test]
fn a_transaction_that_is_open_too_long_is_aborted_and_its_producer_fenced() {
    for client in [OLD, NEW] {
        let mut broker = Runtime::new();
        let own = broker.init("a").unwrap();
        broker.add("a", own, &[("t", 0)]).unwrap();
        broker.wait(i64::from(TIMEOUT_MS) - 1);
        broker.add("a", own, &[("t", 1)]).unwrap();
        assert_eq!(
            broker.state("a"),
            TransactionState::Ongoing,
            "the time is not over"
        );
        broker.wait(1 + broker.config.abort_interval_ms);
        assert_eq!(broker.state("a"), TransactionState::PrepareAbort);
        assert_eq!(broker.orders[0].producer, producer(1_000, 1));
        for _ in 0..2 {
            assert_eq!(
                broker.end("a", own, true, client),
                Err(if client == OLD {
                    ErrorCode::ProducerFenced
                } else {
                    ErrorCode::InvalidTxnState
                })
            );
            assert_eq!(
                broker.add("a", own, &[("t", 0)]),
                Err(ErrorCode::ProducerFenced)
            );
            broker.write_markers();
        }
        assert_eq!(broker.state("a"), TransactionState::CompleteAbort);
        assert_eq!(
            broker.init_as("a", Some(own)),
            Err(ErrorCode::ProducerFenced),
            "it has to begin as a new producer"
        );
        assert_eq!(broker.init("a"), Ok(producer(1_000, 2)));
    }
}

#[test]
fn a_producer_that_was_too_slow_goes_on_in_its_next_epoch_if_it_wanted_an_abort() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.add("a", own, &[("t", 0)]).unwrap();
    broker.wait(i64::from(TIMEOUT_MS) + broker.config.abort_interval_ms);
    assert_eq!(
        broker.end("a", own, false, NEW),
        Err(ErrorCode::ConcurrentTransactions)
    );
    broker.write_markers();
    broker.reload();
    let next = broker.end("a", own, false, NEW).unwrap();
    assert_eq!(next, producer(1_000, 1));
    assert_eq!(broker.add("a", next, &[("t", 0)]), Ok(()));
    assert_eq!(
        broker.end("a", own, false, NEW),
        Err(ErrorCode::ProducerFenced)
    );
}

#[test]
fn a_time_out_counts_from_the_first_partition_even_over_a_reload() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.wait(i64::from(TIMEOUT_MS) * 3);
    broker.add("a", own, &[("t", 0)]).unwrap();
    broker.wait(i64::from(TIMEOUT_MS) / 2);
    broker.reload();
    broker.wait(i64::from(TIMEOUT_MS) / 2 - 1);
    assert_eq!(broker.state("a"), TransactionState::Ongoing);
    broker.wait(broker.config.abort_interval_ms + 1);
    assert_eq!(broker.state("a"), TransactionState::PrepareAbort);
}

#[test]
fn a_step_of_the_clock_neither_aborts_a_transaction_nor_keeps_it_open() {
    for step_ms in [600_000, -600_000] {
        let mut broker = Runtime::new();
        let own = broker.init("a").unwrap();
        broker.add("a", own, &[("t", 0)]).unwrap();
        broker.clock_step_ms = step_ms;
        broker.add("a", own, &[("t", 1)]).unwrap();
        broker.wait(i64::from(TIMEOUT_MS) - 1);
        let state = broker.state("a");
        assert_eq!(state, TransactionState::Ongoing, "step {step_ms}");
        broker.wait(1 + broker.config.abort_interval_ms);
        let state = broker.state("a");
        assert_eq!(state, TransactionState::PrepareAbort, "step {step_ms}");
        let told = broker.last("a").last_update_ms;
        assert_eq!(
            told,
            broker.now_ms + step_ms,
            "the record has the time of day"
        );
    }
}

#[test]
fn a_coordinator_whose_clock_is_behind_gives_a_transaction_no_more_than_its_time() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.add("a", own, &[("t", 0)]).unwrap();
    broker.clock_step_ms = -600_000;
    broker.reload();
    broker.wait(i64::from(TIMEOUT_MS) - 1);
    assert_eq!(broker.state("a"), TransactionState::Ongoing);
    broker.wait(1 + broker.config.abort_interval_ms);
    assert_eq!(broker.state("a"), TransactionState::PrepareAbort);
}

#[test]
fn a_time_out_that_could_not_be_written_is_tried_again() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.add("a", own, &[("t", 0)]).unwrap();
    broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
    broker.wait(i64::from(TIMEOUT_MS) + broker.config.abort_interval_ms + 1_000);
    assert_eq!(broker.fail_next, None);
    assert_eq!(broker.state("a"), TransactionState::PrepareAbort);
    assert_eq!(
        broker.orders[0].producer,
        producer(1_000, 1),
        "the epoch rises once"
    );
}

#[test]
fn ids_that_nobody_uses_are_forgotten_and_others_are_not() {
    let config = TransactionConfig {
        id_expiration_ms: 100_000,
        expiry_interval_ms: 1_000,
        ..TransactionConfig::default()
    };
    let mut broker = Runtime::with(config);
    for id in 0..5_000 {
        broker.init(&format!("idle-{id}")).unwrap();
    }
    let open = broker.init_within("open", None, 900_000).unwrap();
    broker.add("open", open, &[("t", 0)]).unwrap();
    broker.wait(90_000);
    broker.init("used").unwrap();
    broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
    broker.wait(15_000);
    assert_eq!(
        broker.by_state().into_iter().collect::<Vec<_>>(),
        [(TransactionState::Empty, 1), (TransactionState::Ongoing, 1)]
    );
    let before = broker.describe("used").unwrap();
    broker.reload();
    assert_eq!(broker.describe("used").unwrap(), before);
    assert_eq!(
        broker.describe("idle-7"),
        Err(ErrorCode::TransactionalIdNotFound)
    );
    broker.wait(1_000_000);
    broker.write_markers();
    broker.wait(1_000_000);
    assert!(broker.by_state().is_empty());
    assert_eq!(broker.shard.next_deadline(), None, "an empty shard sleeps");
}
