//! DescribeTransactions and ListTransactions.

use yuxi_coordinator::transactions::{ListFilter, TransactionState};
use yuxi_protocol::{error_code::ErrorCode, ids::ProducerId};

use crate::support::*;

fn ids(broker: &mut Runtime, filter: ListFilter) -> Vec<String> {
    let listed = broker.list(filter);
    listed
        .iter()
        .map(|one| one.transactional_id.as_str().to_owned())
        .collect()
}

#[test]
fn a_list_has_what_passes_every_filter() {
    let mut broker = Runtime::new();
    let open = broker.init("open").unwrap();
    broker.add("open", open, &[("t", 0)]).unwrap();
    broker.wait(5_000);
    broker.init("idle").unwrap();
    let late = broker.init("late").unwrap();
    broker.add("late", late, &[("t", 0)]).unwrap();
    let all = ["idle", "late", "open"];
    assert_eq!(ids(&mut broker, ListFilter::default()), all);
    let by_state = |states: &[TransactionState]| ListFilter {
        states: Some(states.to_vec()),
        ..ListFilter::default()
    };
    assert_eq!(
        ids(&mut broker, by_state(&[TransactionState::Ongoing])),
        ["late", "open"]
    );
    assert!(ids(&mut broker, by_state(&[])).is_empty());
    let of = ListFilter {
        producer_ids: Some(vec![open.id, ProducerId::new(7)]),
        ..ListFilter::default()
    };
    assert_eq!(ids(&mut broker, of), ["open"]);
    let mut longer = by_state(&[TransactionState::Ongoing]);
    longer.longer_than_ms = Some(4_999);
    assert_eq!(ids(&mut broker, longer.clone()), ["open"]);
    longer.longer_than_ms = Some(5_000);
    assert!(ids(&mut broker, longer).is_empty());
}

#[test]
fn a_description_tells_what_the_log_says() {
    let mut broker = Runtime::new();
    assert_eq!(broker.describe(""), Err(ErrorCode::InvalidRequest));
    assert_eq!(
        broker.describe("a"),
        Err(ErrorCode::TransactionalIdNotFound)
    );
    let own = broker.init("a").unwrap();
    assert_eq!(broker.describe("a").unwrap().start_ms, -1);
    broker.wait(7);
    broker.add("a", own, &[("t", 3)]).unwrap();
    let told = broker.describe("a").unwrap();
    assert_eq!(told.state, TransactionState::Ongoing);
    assert_eq!(told.start_ms, START_MS + 7);
    assert_eq!(told.timeout_ms, TIMEOUT_MS);
    assert_eq!(told.producer, own);
    assert_eq!(told.partitions, partitions(&[("t", 3)]));
    broker.reload();
    assert_eq!(broker.describe("a").unwrap(), told);
}
