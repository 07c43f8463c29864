//! What is not written has not happened.

use yuxi_coordinator::transactions::TransactionState;
use yuxi_protocol::error_code::ErrorCode;

use crate::support::*;

#[test]
fn a_producer_that_was_not_written_does_not_exist() {
    let mut broker = Runtime::new();
    broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(broker.init("a"), Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(
        broker.describe("a"),
        Err(ErrorCode::TransactionalIdNotFound)
    );
    assert_eq!(broker.init("a"), Ok(producer(1_001, 0)));
    broker.fail_next = Some(ErrorCode::NotLeaderOrFollower);
    assert_eq!(broker.init("a"), Err(ErrorCode::NotCoordinator));
    assert_eq!(broker.init("a"), Ok(producer(1_001, 1)));
}

#[test]
fn an_end_that_was_not_written_may_still_go_the_other_way() {
    for client in [OLD, NEW] {
        let mut broker = Runtime::new();
        let own = broker.init("a").unwrap();
        broker.add("a", own, &[("t", 0)]).unwrap();
        broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
        assert_eq!(
            broker.end("a", own, true, client),
            Err(ErrorCode::CoordinatorNotAvailable)
        );
        assert!(
            broker.orders.is_empty(),
            "no marker for what is not settled"
        );
        assert_eq!(broker.state("a"), TransactionState::Ongoing);
        assert!(broker.end("a", own, false, client).is_ok());
        assert_eq!(broker.state("a"), TransactionState::PrepareAbort);
    }
}

#[test]
fn a_fence_that_was_not_written_leaves_the_producer_as_it_was() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.add("a", own, &[("t", 0)]).unwrap();
    broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
    assert_eq!(broker.init("a"), Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(broker.add("a", own, &[("t", 1)]), Ok(()));
    assert_eq!(broker.end("a", own, true, OLD), Ok(own));
}

#[test]
fn a_completion_that_could_not_be_written_is_written_later() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.add("a", own, &[("t", 0)]).unwrap();
    broker.end("a", own, true, OLD).unwrap();
    broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
    broker.write_markers();
    assert_eq!(broker.state("a"), TransactionState::PrepareCommit);
    broker.fail_next = Some(ErrorCode::NotEnoughReplicas);
    broker.wait(1_000);
    assert_eq!(broker.state("a"), TransactionState::CompleteCommit);
    assert!(broker.orders.is_empty());
}

#[test]
fn a_batch_that_is_too_large_is_the_brokers_fault() {
    let mut broker = Runtime::new();
    let own = broker.init("a").unwrap();
    broker.fail_next = Some(ErrorCode::RecordListTooLarge);
    assert_eq!(
        broker.add("a", own, &[("t", 0)]),
        Err(ErrorCode::UnknownServerError)
    );
}
