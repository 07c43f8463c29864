//! InitProducerId: who a producer is, and who is no longer.

use yuxi_coordinator::transactions::{TransactionConfig, TransactionState};
use yuxi_protocol::error_code::ErrorCode;

use crate::support::*;

#[test]
fn each_new_producer_of_an_id_fences_the_one_before() {
    let mut broker = Runtime::new();
    let first = broker.init("a").unwrap();
    assert_eq!(first, producer(1_000, 0));
    let second = broker.init("a").unwrap();
    assert_eq!(second, producer(1_000, 1));
    assert_eq!(
        broker.add("a", first, &[("t", 0)]),
        Err(ErrorCode::ProducerFenced)
    );
    assert_eq!(broker.add("a", second, &[("t", 0)]), Ok(()));
    assert_eq!(
        broker.init("b").unwrap(),
        producer(1_001, 0),
        "another id is another producer"
    );
}

#[test]
fn a_request_that_cannot_be_is_refused() {
    let mut broker = Runtime::new();
    assert_eq!(broker.init(""), Err(ErrorCode::InvalidRequest));
    let long = "x".repeat(i16::MAX as usize + 1);
    assert_eq!(broker.init(&long), Err(ErrorCode::InvalidRequest));
    for timeout_ms in [i32::MIN, -1, 0, broker.config.max_timeout_ms + 1] {
        assert_eq!(
            broker.init_within("a", None, timeout_ms),
            Err(ErrorCode::InvalidTransactionTimeout),
            "{timeout_ms}"
        );
    }
    let most = broker.config.max_timeout_ms;
    assert!(broker.init_within("a", None, most).is_ok());
    assert_eq!(broker.log.len(), 1, "what is refused is not written");
}

#[test]
fn a_producer_goes_on_after_an_error_and_may_ask_again_when_the_answer_is_lost() {
    let mut broker = Runtime::new();
    let first = broker.init("a").unwrap();
    let next = broker.init_as("a", Some(first)).unwrap();
    assert_eq!(next, producer(1_000, 1));
    assert_eq!(
        broker.init_as("a", Some(first)),
        Ok(next),
        "the answer was lost: the same again"
    );
    let other = broker.init("a").unwrap();
    for fenced in [first, next] {
        assert_eq!(
            broker.init_as("a", Some(fenced)),
            Err(ErrorCode::ProducerFenced)
        );
    }
    assert_eq!(broker.init_as("a", Some(other)), Ok(producer(1_000, 3)));
}

#[test]
fn epochs_from_the_future_and_foreign_producers_are_fenced() {
    let mut broker = Runtime::new();
    let known = broker.init("a").unwrap();
    for current in [producer(1_000, 7), producer(5, 0), producer(5, i16::MAX)] {
        assert_eq!(
            broker.init_as("a", Some(current)),
            Err(ErrorCode::ProducerFenced),
            "{current:?}"
        );
    }
    assert_eq!(
        broker.add("a", producer(1_000, 7), &[("t", 0)]),
        Err(ErrorCode::ProducerFenced)
    );
    assert_eq!(
        broker.add("a", producer(5, 0), &[("t", 0)]),
        Err(ErrorCode::InvalidProducerIdMapping)
    );
    assert_eq!(
        broker.add("never seen", known, &[("t", 0)]),
        Err(ErrorCode::InvalidProducerIdMapping)
    );
    assert_eq!(
        broker.init_as("never seen", Some(producer(5, 3))),
        Ok(producer(1_001, 0)),
        "of whom nothing is known begins anew"
    );
}

#[test]
fn a_producer_whose_transaction_is_open_is_aborted_first_and_fenced() {
    let mut broker = Runtime::new();
    let zombie = broker.init("a").unwrap();
    broker.add("a", zombie, &[("t", 0), ("u", 1)]).unwrap();
    assert_eq!(broker.init("a"), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(broker.orders.len(), 1);
    assert!(!broker.orders[0].commit);
    assert_eq!(
        broker.orders[0].producer,
        producer(1_000, 1),
        "the markers fence the zombie's writes"
    );
    assert_eq!(
        broker.init("a"),
        Err(ErrorCode::ConcurrentTransactions),
        "markers are still out"
    );
    assert!(broker.write_marker(0));
    assert_eq!(broker.init("a"), Err(ErrorCode::ConcurrentTransactions));
    broker.write_markers();
    assert_eq!(broker.init("a"), Ok(producer(1_000, 2)));
    for commit in [true, false] {
        for client in [OLD, NEW] {
            assert_eq!(
                broker.end("a", zombie, commit, client),
                Err(ErrorCode::ProducerFenced)
            );
        }
    }
}

#[test]
fn a_zombie_is_not_told_the_epoch_that_fences_it() {
    let mut broker = Runtime::new();
    let zombie = broker.init("a").unwrap();
    broker.add("a", zombie, &[("t", 0)]).unwrap();
    assert!(broker.init("a").is_err());
    for reload in [false, true] {
        if reload {
            broker.reload();
        }
        assert_eq!(
            broker.end("a", zombie, false, NEW),
            Err(ErrorCode::ProducerFenced)
        );
    }
    broker.write_markers();
    assert_eq!(
        broker.end("a", zombie, false, NEW),
        Err(ErrorCode::ProducerFenced)
    );
    assert_eq!(
        broker.init_as("a", Some(zombie)),
        Err(ErrorCode::ProducerFenced)
    );
}

#[test]
fn an_old_life_of_a_producer_does_not_end_the_transaction_of_the_next() {
    let mut broker = Runtime::new();
    let zombie = broker.init("a").unwrap();
    let alive = broker.init("a").unwrap();
    broker.add("a", alive, &[("t", 0)]).unwrap();
    assert_eq!(
        broker.init_as("a", Some(zombie)),
        Err(ErrorCode::ProducerFenced)
    );
    assert_eq!(broker.state("a"), TransactionState::Ongoing);
    assert_eq!(broker.end("a", alive, true, OLD), Ok(alive));
}

#[test]
fn a_producer_that_goes_on_while_its_own_transaction_is_open_gets_the_next_epoch() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.add("a", own, &[("t", 0)]).unwrap();
    assert_eq!(
        broker.init_as("a", Some(own)),
        Err(ErrorCode::ConcurrentTransactions)
    );
    broker.write_markers();
    assert_eq!(broker.init_as("a", Some(own)), Ok(producer(1_000, 1)));
}

#[test]
fn when_its_epochs_run_out_a_producer_gets_another_id() {
    let mut broker = Runtime::new();
    for epoch in 0..i16::MAX {
        assert_eq!(broker.init("a"), Ok(producer(1_000, epoch)));
    }
    let last = producer(1_000, i16::MAX - 1);
    let next = broker.init_as("a", Some(last)).unwrap();
    assert_eq!(next, producer(1_001, 0));
    assert_eq!(broker.init_as("a", Some(last)), Ok(next), "asked again");
    assert_eq!(
        broker.add("a", last, &[("t", 0)]),
        Err(ErrorCode::InvalidProducerIdMapping)
    );
    assert_eq!(broker.init("a"), Ok(producer(1_001, 1)));
}

#[test]
fn the_last_epoch_can_still_be_fenced() {
    let mut broker = Runtime::new();
    let mut last = broker.init("a").unwrap();
    while last.epoch.value() < i16::MAX - 1 {
        last = broker.init("a").unwrap();
    }
    broker.add("a", last, &[("t", 0)]).unwrap();
    assert_eq!(broker.init("a"), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(broker.orders[0].producer, producer(1_000, i16::MAX));
    broker.write_markers();
    assert_eq!(
        broker.end("a", producer(1_000, i16::MAX), false, NEW),
        Err(ErrorCode::ProducerFenced),
        "nobody was given this epoch"
    );
    assert_eq!(broker.init("a"), Ok(producer(1_001, 0)));
}

#[test]
fn a_reloaded_shard_knows_who_is_who() {
    let mut broker = Runtime::with(TransactionConfig::default());
    let first = broker.init("a").unwrap();
    let second = broker.init("a").unwrap();
    broker.reload();
    assert_eq!(
        broker.add("a", first, &[("t", 0)]),
        Err(ErrorCode::ProducerFenced)
    );
    assert_eq!(broker.add("a", second, &[("t", 0)]), Ok(()));
}
