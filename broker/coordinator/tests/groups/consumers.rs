//! Consumer groups (KIP-848) as their members meet them: joining, moving partitions, being
//! fenced, coming back, and writes that fail.

use yuxi_coordinator::groups::{
    ConsumerGroupConfig, GroupConfig, GroupOverrides,
    consumer::{ConsumerRecord, Current, MemberState, Partitions},
    records::{self, GroupRecord},
};
use yuxi_protocol::{error_code::ErrorCode, ids::TopicId};

use crate::{consumer_support::*, support::*};

#[test]
fn a_first_member_gets_everything_at_once() {
    let (mut rt, _) = world(3);
    let joined = rt.beat(&Beat::joining("g", "m", &["t"]));
    assert_eq!(error_of(&joined), ErrorCode::None);
    assert_eq!(
        (joined.member_epoch, joined.heartbeat_interval_ms),
        (1, 5_000)
    );
    assert_eq!(given(&joined), Some(vec![0, 1, 2]));
    let written = rt.log.len();
    let beat = rt.beat(&Beat::of("g", "m", 1));
    assert_eq!((given(&beat), beat.member_epoch), (None, 1));
    assert_eq!(
        rt.log.len(),
        written,
        "a heartbeat that changes nothing writes nothing"
    );
    let described = rt.describe_consumers("g");
    assert_eq!(described.group_state.as_str(), "Stable");
    assert_eq!((described.group_epoch, described.assignment_epoch), (1, 1));
    assert_eq!(described.assignor_name.as_str(), "uniform");
    rt.reload();
    assert_eq!(rt.describe_consumers("g"), described);
}

#[test]
fn a_partition_moves_only_once_its_owner_has_given_it_up() {
    let (mut rt, topic) = world(2);
    rt.beat(&Beat::joining("g", "a", &["t"]));
    let joined = rt.beat(&Beat::joining("g", "b", &["t"]));
    // b is to have one, and must wait for it.
    assert_eq!((joined.member_epoch, given(&joined)), (2, Some(vec![])));
    assert_eq!(
        rt.describe_consumers("g").group_state.as_str(),
        "Reconciling"
    );
    let told = rt.beat(&Beat::of("g", "a", 1));
    assert_eq!((told.member_epoch, given(&told)), (1, Some(vec![0])));
    for _ in 0..3 {
        // While a still reads it, b does not get it, over a reload neither.
        let waits = rt.beat(&Beat::of("g", "b", 2));
        assert_eq!(given(&waits), None);
        let both = owned(topic, &[0, 1]);
        let reads = rt.beat(&Beat {
            owned: Some(&both),
            ..Beat::of("g", "a", 1)
        });
        assert_eq!((reads.member_epoch, given(&reads)), (1, None));
        rt.reload();
    }
    let one = owned(topic, &[0]);
    let gave_up = rt.beat(&Beat {
        owned: Some(&one),
        ..Beat::of("g", "a", 1)
    });
    assert_eq!(gave_up.member_epoch, 2);
    let free = rt.beat(&Beat::of("g", "b", 2));
    assert_eq!(given(&free), Some(vec![1]));
    assert_eq!(rt.describe_consumers("g").group_state.as_str(), "Stable");
}

#[test]
fn a_hundred_and_first_member_takes_what_it_must_and_nobody_else_stops_reading() {
    let (mut rt, topic) = world(1_000);
    let members: Vec<String> = (0..100).map(|number| format!("m{number:03}")).collect();
    for member in &members {
        rt.beat(&Beat::joining("g", member, &["t"]));
    }
    let mut reads = settle(&mut rt, topic, &members);
    assert!(reads.values().all(|partitions| partitions.len() == 10));
    let mut all = members.clone();
    all.push("new".to_owned());
    rt.beat(&Beat::joining("g", "new", &["t"]));
    let before = reads.clone();
    // From here on each member is asked for what it gives up, and reads on with the rest.
    reads = settle(&mut rt, topic, &all);
    assert_eq!(reads["new"].len(), 9);
    let mut disturbed = 0;
    for member in &members {
        let lost = before[member]
            .iter()
            .filter(|at| !reads[member].contains(at));
        let lost = lost.count();
        assert!(reads[member].iter().all(|at| before[member].contains(at)));
        disturbed += lost;
    }
    assert_eq!(
        disturbed, 9,
        "only what the new member has was taken from others"
    );
}

/// Has all members send heartbeats as real ones do, until everybody has its target. Checks
/// on the way that nobody is ever told to give up a partition that it is to keep.
fn settle(
    rt: &mut Runtime,
    topic: TopicId,
    members: &[String],
) -> std::collections::BTreeMap<String, Vec<i32>> {
    let mut reads = std::collections::BTreeMap::new();
    for round in 0..20 {
        let described = rt.describe_consumers("g");
        for member in &described.members {
            let has = partitions_of(&member.assignment);
            reads.insert(member.member_id.to_string(), has);
        }
        if described.group_state.as_str() == "Stable" {
            return reads;
        }
        for member in &described.members {
            let id = member.member_id.to_string();
            assert!(members.contains(&id));
            let told = rt.beat(&Beat::of("g", &id, member.member_epoch));
            assert_eq!(error_of(&told), ErrorCode::None, "round {round}");
            if let Some(has) = given(&told) {
                let target = partitions_of(&member.target_assignment);
                let before = &reads[&id];
                let keeps = before.iter().filter(|at| target.contains(at));
                assert!(keeps.into_iter().all(|at| has.contains(at)));
                let owned = owned(topic, &has);
                rt.beat(&Beat {
                    owned: Some(&owned),
                    ..Beat::of("g", &id, told.member_epoch)
                });
            }
        }
    }
    panic!("the group does not settle");
}

fn partitions_of(
    assignment: &yuxi_protocol::messages::consumer_group_describe_response::Assignment,
) -> Vec<i32> {
    let topics = assignment.topic_partitions.iter();
    topics.flat_map(|topic| topic.partitions.clone()).collect()
}

#[test]
fn epochs_that_are_wrong_are_fenced_and_a_lost_answer_is_not() {
    let (mut rt, topic) = world(1);
    rt.beat(&Beat::joining("g", "m", &["t"]));
    rt.beat(&Beat::joining("g", "n", &["t"]));
    rt.beat(&Beat::of("g", "m", 1));
    // m is at 2; its answer was lost, so it names 1 again, with what it had.
    let has = owned(topic, &[0]);
    let again = rt.beat(&Beat {
        owned: Some(&has),
        ..Beat::of("g", "m", 1)
    });
    assert_eq!((error_of(&again), again.member_epoch), (ErrorCode::None, 2));
    let mut check = |beat: Beat<'_>, expected| {
        let answer = rt.beat(&beat);
        assert_eq!(error_of(&answer), expected, "{:?}", answer.error_message);
    };
    let too_much = owned(topic, &[0, 7]);
    check(
        Beat {
            owned: Some(&too_much),
            ..Beat::of("g", "m", 1)
        },
        ErrorCode::FencedMemberEpoch,
    );
    check(Beat::of("g", "m", 1), ErrorCode::FencedMemberEpoch);
    check(Beat::of("g", "m", 3), ErrorCode::FencedMemberEpoch);
    check(Beat::of("g", "m", i32::MAX), ErrorCode::FencedMemberEpoch);
    check(Beat::of("g", "nobody", 1), ErrorCode::UnknownMemberId);
    check(Beat::of("g", "m", -3), ErrorCode::InvalidRequest);
    check(Beat::of("unknown", "m", 1), ErrorCode::GroupIdNotFound);
    check(Beat::of("unknown", "m", -1), ErrorCode::GroupIdNotFound);
    check(Beat::of("g", "nobody", -1), ErrorCode::UnknownMemberId);
    check(Beat::joining("g", "m", &["t"]), ErrorCode::None);
}

#[test]
fn requests_that_lack_what_they_need_are_refused() {
    let (mut rt, topic) = world(1);
    let join = Beat::joining("g", "m", &["t"]);
    let some = owned(topic, &[0]);
    let long = "x".repeat(40_000);
    for (beat, expected) in [
        (
            Beat {
                group: " ",
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                member_id: "",
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                instance_id: Some(""),
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                rack_id: Some(""),
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                rebalance_ms: -1,
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                owned: None,
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                owned: Some(&some),
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                topics: None,
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                member_id: &long,
                ..join.clone()
            },
            ErrorCode::InvalidRequest,
        ),
        (
            Beat {
                assignor: Some("best"),
                ..join.clone()
            },
            ErrorCode::UnsupportedAssignor,
        ),
        (
            Beat {
                epoch: -2,
                ..Beat::of("g", "m", -2)
            },
            ErrorCode::InvalidRequest,
        ),
    ] {
        let answer = rt.beat(&beat);
        assert_eq!(error_of(&answer), expected, "{:?}", answer.error_message);
        assert!(answer.error_message.is_some());
    }
    assert!(rt.log.is_empty());
    // Version 0 leaves it to the coordinator to make an id.
    let joined = rt.beat(&Beat {
        version: 0,
        member_id: "",
        ..join
    });
    assert_eq!(error_of(&joined), ErrorCode::None);
    assert_eq!(joined.member_id.expect("an id").len(), 22);
}

#[test]
fn a_group_takes_no_more_members_than_it_may() {
    let mut rt = Runtime::new(GroupConfig {
        consumer: ConsumerGroupConfig {
            max_size: 1,
            ..ConsumerGroupConfig::default()
        },
        ..GroupConfig::default()
    });
    rt.cluster.set_topic("t", 2);
    rt.beat(&Beat::joining("g", "m", &["t"]));
    let refused = rt.beat(&Beat::joining("g", "n", &["t"]));
    assert_eq!(error_of(&refused), ErrorCode::GroupMaxSizeReached);
    assert_eq!(error_of(&rt.beat(&Beat::of("g", "m", 1))), ErrorCode::None);
}

#[test]
fn a_silent_member_is_fenced_when_its_session_ends_also_after_a_reload() {
    for reloaded in [false, true] {
        let (mut rt, _) = world(2);
        rt.beat(&Beat::joining("g", "m", &["t"]));
        rt.advance(44_000);
        rt.beat(&Beat::of("g", "m", 1));
        rt.advance(44_000);
        assert_eq!(rt.describe_consumers("g").members.len(), 1);
        if reloaded {
            rt.reload();
            // Its members have had no chance.
            rt.advance(44_000);
            assert_eq!(rt.describe_consumers("g").members.len(), 1);
        }
        rt.advance(2_000);
        assert_eq!(rt.describe_consumers("g").group_state.as_str(), "Empty");
        let late = rt.beat(&Beat::of("g", "m", 1));
        assert_eq!(error_of(&late), ErrorCode::UnknownMemberId);
    }
}

#[test]
fn many_sessions_that_end_at_once_empty_the_group() {
    let (mut rt, _) = world(20);
    for number in 0..20 {
        rt.beat(&Beat::joining("g", &format!("m{number}"), &["t"]));
    }
    rt.advance(46_000);
    let described = rt.describe_consumers("g");
    assert_eq!(described.group_state.as_str(), "Empty");
    assert_eq!(
        described.group_epoch, 40,
        "each that came or went raised it"
    );
    rt.reload();
    assert_eq!(rt.describe_consumers("g"), described);
}

#[test]
fn what_is_set_for_a_group_holds_with_the_next_heartbeat() {
    let (mut rt, _) = world(1);
    rt.cluster.set_overrides(
        "g",
        GroupOverrides {
            session_timeout_ms: Some(50_000),
            heartbeat_interval_ms: Some(7_000),
        },
    );
    let joined = rt.beat(&Beat::joining("g", "m", &["t"]));
    assert_eq!(joined.heartbeat_interval_ms, 7_000);
    rt.advance(49_000);
    assert_eq!(rt.describe_consumers("g").members.len(), 1);
    // Nor does a new coordinator wait longer for those of whom it has not heard.
    rt.reload();
    rt.advance(49_000);
    assert_eq!(rt.describe_consumers("g").members.len(), 1);
    rt.advance(2_000);
    assert_eq!(rt.describe_consumers("g").members.len(), 0);
}

#[test]
fn a_member_that_does_not_give_up_in_time_is_fenced() {
    for reloaded in [false, true] {
        let (mut rt, topic) = world(2);
        rt.beat(&Beat {
            rebalance_ms: 10_000,
            ..Beat::joining("g", "a", &["t"])
        });
        rt.beat(&Beat::joining("g", "b", &["t"]));
        rt.beat(&Beat::of("g", "a", 1));
        if reloaded {
            rt.reload();
        }
        let both = owned(topic, &[0, 1]);
        for _ in 0..3 {
            rt.advance(3_000);
            rt.beat(&Beat {
                owned: Some(&both),
                ..Beat::of("g", "a", 1)
            });
        }
        rt.advance(2_000);
        let late = rt.beat(&Beat::of("g", "a", 1));
        assert_eq!(error_of(&late), ErrorCode::UnknownMemberId);
        assert_eq!(given(&rt.beat(&Beat::of("g", "b", 2))), Some(vec![0, 1]));
    }
}

#[test]
fn a_static_member_that_comes_back_has_what_it_left() {
    let (mut rt, _) = world(4);
    let of_instance = |beat: Beat<'static>| Beat {
        instance_id: Some("i"),
        ..beat
    };
    rt.beat(&of_instance(Beat::joining("g", "a", &["t"])));
    // Another process under the same name does not push the first aside.
    let refused = rt.beat(&of_instance(Beat::joining("g", "b", &["t"])));
    assert_eq!(error_of(&refused), ErrorCode::UnreleasedInstanceId);
    let fenced = rt.beat(&of_instance(Beat::of("g", "b", 1)));
    assert_eq!(error_of(&fenced), ErrorCode::FencedInstanceId);
    let left = rt.beat(&of_instance(Beat::of("g", "a", -2)));
    assert_eq!((error_of(&left), left.member_epoch), (ErrorCode::None, -2));
    let epoch = rt.describe_consumers("g").group_epoch;
    rt.reload();
    let back = rt.beat(&of_instance(Beat::joining("g", "b", &["t"])));
    assert_eq!(
        (back.member_epoch, given(&back)),
        (epoch, Some(vec![0, 1, 2, 3]))
    );
    let described = rt.describe_consumers("g");
    assert_eq!(described.group_epoch, epoch, "nobody has to rebalance");
    assert_eq!(described.members.len(), 1);
    rt.reload();
    assert_eq!(rt.describe_consumers("g"), described);
    let old = rt.beat(&of_instance(Beat::of("g", "a", epoch)));
    assert_eq!(error_of(&old), ErrorCode::FencedInstanceId);
}

#[test]
fn a_static_member_that_stays_away_is_taken_out() {
    let (mut rt, _) = world(1);
    rt.beat(&Beat {
        instance_id: Some("i"),
        ..Beat::joining("g", "a", &["t"])
    });
    rt.beat(&Beat {
        instance_id: Some("i"),
        ..Beat::of("g", "a", -2)
    });
    rt.advance(46_000);
    assert_eq!(rt.describe_consumers("g").group_state.as_str(), "Empty");
}

#[test]
fn what_is_not_written_has_not_happened() {
    let (mut rt, topic) = world(2);
    rt.fail_next = Some(ErrorCode::NotEnoughReplicas);
    let failed = rt.beat(&Beat::joining("g", "m", &["t"]));
    assert_eq!(error_of(&failed), ErrorCode::CoordinatorNotAvailable);
    let unknown = rt.beat(&Beat::of("g", "m", 1));
    assert_eq!(error_of(&unknown), ErrorCode::GroupIdNotFound);
    rt.beat(&Beat::joining("g", "m", &["t"]));
    let described = rt.describe_consumers("g");
    rt.fail_next = Some(ErrorCode::NotEnoughReplicas);
    rt.beat(&Beat::joining("g", "n", &["t"]));
    assert_eq!(rt.describe_consumers("g"), described);
    let has = owned(topic, &[0, 1]);
    let beat = rt.beat(&Beat {
        owned: Some(&has),
        ..Beat::of("g", "m", 1)
    });
    assert_eq!(error_of(&beat), ErrorCode::None);
    rt.fail_next = Some(ErrorCode::NotEnoughReplicas);
    rt.beat(&Beat::of("g", "m", -1));
    assert_eq!(rt.describe_consumers("g"), described);
    // It still has a session that can end.
    rt.advance(46_000);
    assert_eq!(rt.describe_consumers("g").group_state.as_str(), "Empty");
}

#[test]
fn records_are_kafkas_to_the_byte() {
    let record = ConsumerRecord::Current {
        group: "g".into(),
        member: "m".into(),
        value: Some(Current {
            epoch: 5,
            previous_epoch: 4,
            state: MemberState::UnrevokedPartitions,
            assigned: Partitions::from_iter([(TopicId::from_bytes([7; 16]), 2)]),
            revoking: Partitions::default(),
        }),
    };
    let written = yuxi_coordinator::groups::consumer::records::to_record(&record);
    assert_eq!(&written.key[..], b"\0\x08\0\x01g\0\x01m");
    let mut value = b"\0\0\0\0\0\x05\0\0\0\x04\x01\x02".to_vec();
    value.extend([7; 16]);
    value.extend(b"\x02\0\0\0\x02\0\x01\0");
    assert_eq!(written.value.as_deref(), Some(&value[..]));
    let read = records::decode(&written.key, written.value.as_ref());
    assert_eq!(read, Ok(GroupRecord::Consumer(record)));
}
