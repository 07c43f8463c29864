//! The time of day is set: nothing that lasts for a while ends sooner or later for that,
//! and what is written tells the new time.

use yuxi_coordinator::groups::records::{self, GroupRecord};
use yuxi_protocol::error_code::ErrorCode;

use crate::{consumer_support::*, support::*};

const MINUTES_MS: i64 = 10 * 60_000;

#[test]
fn a_step_of_the_clock_takes_no_member_from_a_classic_group_and_keeps_no_dead_one() {
    for step_ms in [MINUTES_MS, -MINUTES_MS] {
        let mut rt = Runtime::undelayed();
        let (members, generation) = rt.stable_group("g", 2);
        rt.clock_step_ms = step_ms;
        rt.advance(i64::from(SESSION_MS) - 1);
        assert_eq!(rt.describe("g").members.len(), 2, "step {step_ms}");
        let ticket = rt.heartbeat("g", &members[0], generation);
        assert_eq!(rt.error(ticket), ErrorCode::None, "step {step_ms}");
        rt.advance(1);
        assert_eq!(rt.state("g"), "PreparingRebalance", "step {step_ms}");
        // The rebalance, too, is over in its own time.
        rt.clock_step_ms = 0;
        rt.advance(i64::from(REBALANCE_MS));
        assert_eq!(rt.state("g"), "Empty", "step {step_ms}");
    }
}

#[test]
fn a_step_of_the_clock_takes_no_member_from_a_consumer_group_and_keeps_no_dead_one() {
    for step_ms in [MINUTES_MS, -MINUTES_MS] {
        let (mut rt, _) = world(2);
        rt.beat(&Beat::joining("g", "m", &["t"]));
        let session_ms = i64::from(rt.config.consumer.session_timeout_ms);
        rt.clock_step_ms = step_ms;
        rt.advance(session_ms - 1);
        assert_eq!(
            rt.describe_consumers("g").group_state.as_str(),
            "Stable",
            "step {step_ms}"
        );
        rt.advance(1);
        assert_eq!(
            rt.describe_consumers("g").group_state.as_str(),
            "Empty",
            "step {step_ms}"
        );
    }
}

#[test]
fn what_is_committed_has_the_time_of_day() {
    let mut rt = Runtime::undelayed();
    rt.clock_step_ms = MINUTES_MS;
    rt.commit(&Commit::new("g", 1));
    let record = rt.log.last().expect("a commit is written");
    let Ok(GroupRecord::OffsetCommit {
        value: Some(value), ..
    }) = records::decode(&record.key, record.value.as_ref())
    else {
        panic!("the last record is no commit");
    };
    assert_eq!(value.commit_timestamp_ms, START_MS + MINUTES_MS);
}
