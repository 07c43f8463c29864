//! AddPartitionsToTxn, EndTxn and markers, by both protocols.

use yuxi_coordinator::transactions::{Producer, TransactionState, TransactionVersion};
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode};

use crate::support::*;

fn open(broker: &mut Runtime) -> Producer {
    let producer = broker.init("a").unwrap();
    broker.add("a", producer, &[("t", 0), ("t", 1)]).unwrap();
    producer
}

#[test]
fn a_transaction_is_complete_when_every_partition_has_its_marker() {
    for (commit, ends, complete) in [
        (
            true,
            TransactionState::PrepareCommit,
            TransactionState::CompleteCommit,
        ),
        (
            false,
            TransactionState::PrepareAbort,
            TransactionState::CompleteAbort,
        ),
    ] {
        let mut broker = Runtime::new();
        let own = open(&mut broker);
        assert_eq!(broker.end("a", own, commit, OLD), Ok(own));
        assert_eq!(broker.state("a"), ends);
        assert_eq!(broker.orders[0].commit, commit);
        assert_eq!(broker.orders[0].producer, own);
        broker.write_marker(0);
        assert_eq!(broker.state("a"), ends);
        assert_eq!(
            broker.describe("a").unwrap().partitions,
            partitions(&[("t", 1)]),
            "what is still to be marked"
        );
        broker.write_marker(0);
        assert_eq!(broker.state("a"), complete);
        assert!(broker.last("a").partitions.is_empty());
    }
}

#[test]
fn an_old_client_may_end_again_what_it_has_ended_and_not_otherwise() {
    let mut broker = Runtime::new();
    let own = open(&mut broker);
    assert_eq!(broker.end("a", own, true, OLD), Ok(own));
    assert_eq!(
        broker.end("a", own, true, OLD),
        Err(ErrorCode::ConcurrentTransactions)
    );
    assert_eq!(
        broker.end("a", own, false, OLD),
        Err(ErrorCode::InvalidTxnState)
    );
    broker.write_markers();
    assert_eq!(broker.end("a", own, true, OLD), Ok(own));
    assert_eq!(
        broker.end("a", own, false, OLD),
        Err(ErrorCode::InvalidTxnState)
    );
    assert_eq!(broker.orders.len(), 0, "nothing is marked twice");
}

#[test]
fn what_was_not_begun_is_ended_by_a_new_client_only_and_only_aborted() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    for commit in [true, false] {
        assert_eq!(
            broker.end("a", own, commit, OLD),
            Err(ErrorCode::InvalidTxnState)
        );
    }
    assert_eq!(
        broker.end("a", own, true, NEW),
        Err(ErrorCode::InvalidTxnState)
    );
    let next = broker.end("a", own, false, NEW).unwrap();
    assert_eq!(next, producer(1_000, 1));
    assert_eq!(broker.state("a"), TransactionState::CompleteAbort);
    assert!(broker.orders.is_empty(), "nobody has to be told");
    assert_eq!(
        broker.end("a", own, false, NEW),
        Ok(next),
        "asked again: the same epoch"
    );
    assert_eq!(broker.end("a", next, false, NEW), Ok(producer(1_000, 2)));
}

#[test]
fn a_new_client_gets_its_next_epoch_with_the_end_of_each_transaction() {
    let mut broker = Runtime::new();
    let own = open(&mut broker);
    let next = broker.end("a", own, true, NEW).unwrap();
    assert_eq!(next, producer(1_000, 1));
    assert_eq!(broker.orders[0].producer, next, "as its markers say");
    assert_eq!(broker.orders[0].version, NEW);
    assert_eq!(
        broker.add("a", next, &[("t", 0)]),
        Err(ErrorCode::ConcurrentTransactions),
        "it has to wait for the markers"
    );
    assert_eq!(
        broker.add("a", own, &[("t", 0)]),
        Err(ErrorCode::ProducerFenced)
    );
    broker.write_markers();
    assert_eq!(broker.add("a", next, &[("t", 0)]), Ok(()));
    assert_eq!(
        broker.end("a", own, true, NEW),
        Err(ErrorCode::ProducerFenced),
        "a late copy of the first request ends nothing"
    );
    assert_eq!(broker.state("a"), TransactionState::Ongoing);
    assert_eq!(broker.end("a", next, false, NEW), Ok(producer(1_000, 2)));
}

#[test]
fn a_new_client_whose_answer_was_lost_asks_again_even_of_another_coordinator() {
    for reload in [false, true] {
        let mut broker = Runtime::new();
        let own = open(&mut broker);
        let next = broker.end("a", own, true, NEW).unwrap();
        if reload {
            broker.reload();
        }
        assert_eq!(
            broker.end("a", own, true, NEW),
            Err(ErrorCode::ConcurrentTransactions)
        );
        assert_eq!(
            broker.end("a", own, false, NEW),
            Err(ErrorCode::InvalidTxnState)
        );
        broker.write_markers();
        if reload {
            broker.reload();
        }
        assert_eq!(broker.end("a", own, true, NEW), Ok(next));
        assert_eq!(
            broker.end("a", own, false, NEW),
            Err(ErrorCode::InvalidTxnState)
        );
        assert_eq!(broker.state("a"), TransactionState::CompleteCommit);
    }
}

#[test]
fn a_new_client_that_is_out_of_epochs_is_another_producer_after_the_transaction() {
    for reload in [false, true] {
        let mut broker = Runtime::new();
        let mut own = broker.init("a").unwrap();
        while own.epoch.value() < i16::MAX - 1 {
            own = broker.end("a", own, false, NEW).unwrap();
        }
        broker.add("a", own, &[("t", 0)]).unwrap();
        let next = broker.end("a", own, true, NEW).unwrap();
        assert_eq!(next, producer(1_001, 0));
        assert_eq!(broker.orders[0].producer, producer(1_000, i16::MAX));
        if reload {
            broker.reload();
        }
        assert_eq!(
            broker.add("a", next, &[("t", 0)]),
            Err(ErrorCode::ConcurrentTransactions)
        );
        assert_eq!(
            broker.end("a", own, true, NEW),
            Err(ErrorCode::ConcurrentTransactions)
        );
        broker.write_markers();
        if reload {
            broker.reload();
        }
        assert_eq!(broker.end("a", own, true, NEW), Ok(next), "asked again");
        assert_eq!(broker.add("a", next, &[("t", 0)]), Ok(()));
    }
}

#[test]
fn a_next_producer_id_is_not_lost_in_a_cluster_with_old_records() {
    let mut broker = Runtime::new();
    broker.config.version = TransactionVersion::V0;
    broker.shard.set_config(broker.config.clone());
    let mut own = broker.init("a").unwrap();
    while own.epoch.value() < i16::MAX - 1 {
        own = broker.end("a", own, false, NEW).unwrap();
    }
    broker.add("a", own, &[("t", 0)]).unwrap();
    let next = broker.end("a", own, true, NEW).unwrap();
    broker.reload();
    broker.write_markers();
    assert_eq!(broker.add("a", next, &[("t", 0)]), Ok(()));
}

#[test]
fn adding_what_is_there_already_writes_nothing() {
    let mut broker = Runtime::new();
    let own = open(&mut broker);
    let written = broker.log.len();
    broker.add("a", own, &[("t", 1)]).unwrap();
    assert_eq!(broker.log.len(), written);
    broker.add("a", own, &[("t", 1), ("u", 0)]).unwrap();
    assert_eq!(
        broker.last("a").partitions,
        partitions(&[("t", 0), ("t", 1), ("u", 0)])
    );
}

#[test]
fn verifying_says_what_is_not_in_the_transaction() {
    let mut broker = Runtime::new();
    let own = open(&mut broker);
    let wanted = [("t", 0), ("t", 7), ("u", 0)];
    assert_eq!(
        broker.missing("a", own, &wanted),
        Ok(partitions(&[("t", 7), ("u", 0)]))
    );
    assert_eq!(
        broker.missing("a", producer(1_000, 9), &wanted),
        Err(ErrorCode::ProducerFenced)
    );
    broker.end("a", own, true, OLD).unwrap();
    assert_eq!(
        broker.missing("a", own, &wanted),
        Err(ErrorCode::ConcurrentTransactions)
    );
    broker.write_markers();
    assert_eq!(
        broker.missing("a", own, &[("t", 0)]),
        Ok(partitions(&[("t", 0)])),
        "that transaction is over"
    );
}

#[test]
fn a_new_coordinator_writes_the_markers_again_that_the_old_one_may_not_have_written() {
    let mut broker = Runtime::new();
    let own = open(&mut broker);
    broker.end("a", own, true, OLD).unwrap();
    broker.write_marker(0);
    let stale = broker.orders.clone();
    broker.reload();
    assert_eq!(broker.orders.len(), 1);
    assert_eq!(
        broker.orders[0].partitions,
        partitions(&[("t", 0), ("t", 1)]),
        "all of them: the log does not say which are done"
    );
    assert!(broker.orders[0].commit);
    assert_eq!(stale.len(), 1);
    broker.write_markers();
    assert_eq!(broker.state("a"), TransactionState::CompleteCommit);
}

#[test]
fn a_marker_of_an_earlier_order_says_nothing_about_this_one() {
    let mut broker = Runtime::new();
    let own = open(&mut broker);
    broker.end("a", own, true, OLD).unwrap();
    let mut earlier = broker.orders.clone();
    broker.write_markers();
    broker.add("a", own, &[("t", 0), ("t", 1)]).unwrap();
    broker.end("a", own, false, OLD).unwrap();
    std::mem::swap(&mut broker.orders, &mut earlier);
    broker.write_markers();
    assert_eq!(broker.state("a"), TransactionState::PrepareAbort);
    broker.orders = earlier;
    broker.write_markers();
    assert_eq!(broker.state("a"), TransactionState::CompleteAbort);
}

#[test]
fn names_are_kept_apart_from_the_requests_they_came_in() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    let long = StrBytes::from("t".repeat(200));
    broker.add("a", own, &[(&long, 0)]).unwrap();
    broker.end("a", own, true, OLD).unwrap();
    assert!(broker.orders[0].partitions.contains(&long, 0));
}
