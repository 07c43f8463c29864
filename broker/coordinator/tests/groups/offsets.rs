//! Offsets: who may commit, what is read, when offsets go.

use std::collections::BTreeSet;

use yuxi_coordinator::groups::{GroupConfig, GroupRequest, GroupResponse};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{
        OffsetDeleteRequest, OffsetFetchRequest,
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_fetch_request::{
            OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
        },
    },
};

use crate::support::*;

const RETENTION_MS: i64 = 7 * 24 * 60 * 60 * 1_000;
const CHECK_MS: i64 = 600_000;

fn delete_request(group: &str, topic: &str, partitions: &[i32]) -> OffsetDeleteRequest {
    let mut deleted = OffsetDeleteRequestTopic::default();
    deleted.name = topic.into();
    for &index in partitions {
        let mut partition = OffsetDeleteRequestPartition::default();
        partition.partition_index = index;
        deleted.partitions.push(partition);
    }
    let mut request = OffsetDeleteRequest::default();
    request.group_id = group.into();
    request.topics = vec![deleted];
    request
}

#[test]
fn a_committed_offset_is_read_back_and_survives_a_load() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.commit(&Commit::new("g", 42));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.fetch("g", "t", 0), 42);
    rt.commit(&Commit {
        partition: 7,
        topic: "u",
        ..Commit::new("g", 5)
    });
    rt.commit(&Commit::new("g", 43));
    let all = rt.fetch_all("g");
    assert_eq!(
        all.into_iter().collect::<Vec<_>>(),
        [(("t".to_owned(), 0), 43), (("u".to_owned(), 7), 5),]
    );
    rt.reload();
    assert_eq!((rt.fetch("g", "t", 0), rt.fetch("g", "u", 7)), (43, 5));
    assert_eq!((rt.fetch("g", "t", 1), rt.fetch("other", "t", 0)), (-1, -1));
}

#[test]
fn a_fetch_gives_offset_epoch_and_metadata_in_the_form_of_each_version() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit {
        metadata: Some("note"),
        ..Commit::new("g", 42)
    });
    for version in 1..=10 {
        let mut request = OffsetFetchRequest::default();
        if version < 8 {
            let mut topic = OffsetFetchRequestTopic::default();
            topic.name = "t".into();
            topic.partition_indexes = vec![0, 9];
            request.group_id = "g".into();
            request.topics = Some(vec![topic]);
        } else {
            let mut topic = OffsetFetchRequestTopics::default();
            topic.name = "t".into();
            topic.partition_indexes = vec![0, 9];
            let mut group = OffsetFetchRequestGroup::default();
            group.group_id = "g".into();
            group.topics = Some(vec![topic]);
            request.groups = vec![group.clone(), group];
        }
        let ticket = rt.send(version, GroupRequest::OffsetFetch(request));
        let GroupResponse::OffsetFetch(response) = rt.answer(ticket) else {
            panic!("an OffsetFetch is answered by one");
        };
        let partitions: Vec<_> = if version < 8 {
            response.topics[0]
                .partitions
                .iter()
                .map(|p| {
                    (
                        p.committed_offset,
                        p.committed_leader_epoch,
                        p.metadata.clone(),
                    )
                })
                .collect()
        } else {
            assert_eq!(response.groups.len(), 2);
            response.groups[1].topics[0]
                .partitions
                .iter()
                .map(|p| {
                    (
                        p.committed_offset,
                        p.committed_leader_epoch,
                        p.metadata.clone(),
                    )
                })
                .collect()
        };
        let text = |text: &str| Some(StrBytes::from(text));
        assert_eq!(
            partitions,
            [(42, 3, text("note")), (-1, -1, text(""))],
            "version {version}"
        );
    }
}

#[test]
fn all_offsets_are_read_when_no_topics_are_named() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 42));
    for version in [2, 7] {
        let mut request = OffsetFetchRequest::default();
        request.group_id = "g".into();
        request.topics = None;
        let ticket = rt.send(version, GroupRequest::OffsetFetch(request));
        let GroupResponse::OffsetFetch(response) = rt.answer(ticket) else {
            panic!("an OffsetFetch is answered by one");
        };
        assert_eq!(response.topics[0].partitions[0].committed_offset, 42);
    }
}

#[test]
fn a_commit_is_refused_for_each_reason_that_there_is() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    let leader = members[0].clone();
    let check = |rt: &mut Runtime, commit: Commit<'_>, expected| {
        let records = rt.log.len();
        let ticket = rt.commit(&commit);
        assert_eq!(rt.error(ticket), expected);
        let written = usize::from(expected == ErrorCode::None);
        assert_eq!(rt.log.len(), records + written, "{expected:?}");
    };
    let good = Commit {
        member_id: &leader,
        generation,
        ..Commit::new("g", 1)
    };
    check(&mut rt, good.clone(), ErrorCode::None);
    check(
        &mut rt,
        Commit {
            generation: generation - 1,
            ..good.clone()
        },
        ErrorCode::IllegalGeneration,
    );
    check(
        &mut rt,
        Commit {
            generation: -1,
            ..good.clone()
        },
        ErrorCode::IllegalGeneration,
    );
    check(
        &mut rt,
        Commit {
            member_id: "other",
            ..good.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    check(
        &mut rt,
        Commit {
            member_id: "",
            ..good.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    check(
        &mut rt,
        Commit {
            instance_id: Some("i"),
            ..good.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    check(&mut rt, Commit::new("g", 1), ErrorCode::UnknownMemberId);
    check(
        &mut rt,
        Commit {
            group: "none",
            version: 9,
            ..good.clone()
        },
        ErrorCode::GroupIdNotFound,
    );
    check(
        &mut rt,
        Commit {
            group: "none",
            version: 8,
            ..good.clone()
        },
        ErrorCode::IllegalGeneration,
    );
    // From the generation before, while the group rebalances, a commit still counts.
    rt.join(&Join {
        member_id: &leader,
        ..Join::new("g")
    });
    check(&mut rt, good.clone(), ErrorCode::None);
    rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    check(&mut rt, good.clone(), ErrorCode::IllegalGeneration);
    check(
        &mut rt,
        Commit {
            generation: generation + 1,
            ..good
        },
        ErrorCode::RebalanceInProgress,
    );
}

#[test]
fn anybody_may_commit_to_an_empty_group_without_a_generation() {
    let mut rt = Runtime::undelayed();
    rt.stable_group("g", 1);
    rt.advance(20_000);
    let ticket = rt.commit(&Commit::new("g", 7));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let ticket = rt.commit(&Commit {
        member_id: "anybody",
        ..Commit::new("g", 8)
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let ticket = rt.commit(&Commit {
        generation: 0,
        ..Commit::new("g", 8)
    });
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}

#[test]
fn a_commit_renews_the_members_session() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    for _ in 0..5 {
        rt.advance(9_000);
        rt.commit(&Commit {
            member_id: &members[0],
            generation,
            ..Commit::new("g", 1)
        });
    }
    assert_eq!(rt.state("g"), "Stable");
}

#[test]
fn metadata_may_be_as_long_as_is_allowed_and_no_longer() {
    let mut rt = Runtime::undelayed();
    // Kafka counts UTF-16 units: 2 for each of these.
    let longest = "\u{1f980}".repeat(2_048);
    let too_long = format!("{longest}x");
    let ticket = rt.commit(&Commit {
        metadata: Some(&longest),
        ..Commit::new("g", 1)
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let records = rt.log.len();
    let ticket = rt.commit(&Commit {
        metadata: Some(&too_long),
        ..Commit::new("g", 2)
    });
    assert_eq!(rt.error(ticket), ErrorCode::OffsetMetadataTooLarge);
    assert_eq!((rt.log.len(), rt.fetch("g", "t", 0)), (records, 1));
}

#[test]
fn offsets_of_a_simple_group_expire_by_their_own_age_and_take_the_group_along() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    rt.advance(RETENTION_MS / 2);
    rt.commit(&Commit {
        partition: 1,
        ..Commit::new("g", 1)
    });
    rt.advance(RETENTION_MS / 2 - 1);
    assert_eq!(rt.fetch_all("g").len(), 2);
    rt.advance(CHECK_MS);
    assert_eq!(rt.fetch_all("g").len(), 1);
    rt.advance(RETENTION_MS / 2);
    assert_eq!(rt.state("g"), "Dead");
    rt.reload();
    assert_eq!(rt.shard.counts().offsets, 0);
    assert!(rt.shard.counts().groups.is_empty());
}

#[test]
fn offsets_of_an_empty_group_expire_once_it_has_been_empty_long_enough() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    rt.commit(&Commit {
        member_id: &members[0],
        generation,
        ..Commit::new("g", 1)
    });
    rt.advance(60_000);
    assert_eq!(rt.state("g"), "Empty");
    rt.advance(RETENTION_MS - 60_000);
    assert_eq!(rt.fetch("g", "t", 0), 1);
    rt.reload();
    rt.advance(CHECK_MS);
    assert_eq!(rt.fetch("g", "t", 0), -1);
    assert_eq!(rt.state("g"), "Dead");
}

#[test]
fn offsets_of_a_stable_group_expire_only_for_topics_it_does_not_read() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let commit = Commit {
        member_id: &members[0],
        generation,
        ..Commit::new("g", 1)
    };
    rt.commit(&commit);
    rt.commit(&Commit {
        topic: "no longer read",
        ..commit
    });
    let beats = (RETENTION_MS + CHECK_MS) / 300_000 + 1;
    rt.reload();
    // Heartbeats at a pace that keeps the test short.
    for _ in 0..beats {
        rt.shard.set_config(GroupConfig {
            offsets_retention_ms: 200_000,
            ..GroupConfig::default()
        });
        rt.advance(9_000);
        rt.heartbeat("g", &members[0], generation);
        if rt.now_ms > START_MS + 700_000 {
            break;
        }
    }
    assert_eq!(rt.state("g"), "Stable");
    assert_eq!(
        (rt.fetch("g", "t", 0), rt.fetch("g", "no longer read", 0)),
        (1, -1)
    );
}

#[test]
fn offsets_of_members_whose_metadata_cannot_be_read_do_not_expire() {
    let mut rt = Runtime::undelayed();
    let protocols: &[(&str, &[u8])] = &[("range", b"\xff")];
    let (_, member) = rt.join_new(&Join {
        protocols,
        ..Join::new("g")
    });
    rt.sync("g", &member, 1, &[]);
    rt.commit(&Commit {
        member_id: &member,
        generation: 1,
        ..Commit::new("g", 1)
    });
    rt.shard.set_config(GroupConfig {
        offsets_retention_ms: 1,
        ..GroupConfig::default()
    });
    while rt.now_ms < START_MS + 2 * CHECK_MS {
        rt.advance(9_000);
        rt.heartbeat("g", &member, 1);
    }
    assert_eq!(rt.fetch("g", "t", 0), 1);
}

#[test]
fn an_offset_with_a_retention_of_its_own_expires_by_that() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit {
        version: 4,
        retention_ms: 1_000,
        ..Commit::new("g", 1)
    });
    rt.commit(&Commit {
        version: 4,
        partition: 1,
        ..Commit::new("g", 2)
    });
    rt.reload();
    rt.advance(CHECK_MS);
    assert_eq!((rt.fetch("g", "t", 0), rt.fetch("g", "t", 1)), (-1, 2));
}

#[test]
fn an_empty_group_without_offsets_goes_at_the_next_clean_up() {
    let mut rt = Runtime::undelayed();
    rt.stable_group("g", 1);
    rt.advance(20_000);
    assert_eq!(rt.state("g"), "Empty");
    rt.advance(CHECK_MS);
    assert_eq!(rt.state("g"), "Dead");
}

#[test]
fn a_clean_up_with_a_lot_to_do_writes_it_in_parts() {
    let mut rt = Runtime::undelayed();
    for group in 0..20_000 {
        let group = format!("group-{group}");
        rt.commit(&Commit {
            version: 2,
            retention_ms: 1,
            ..Commit::new(&group, 1)
        });
    }
    rt.now_ms = rt.next_deadline_ms().expect("clean-up is always planned");
    let effects = rt.shard.tick(&rt.cluster, rt.now());
    let bytes: usize = effects.records.iter().map(|record| record.key.len()).sum();
    assert!(
        (256 * 1024..300 * 1024).contains(&bytes),
        "{bytes} bytes at once"
    );
    rt.settle(effects);
    assert!(
        rt.next_deadline_ms() <= Some(rt.now_ms),
        "there is more to do"
    );
    rt.tick();
    assert_eq!(rt.shard.counts().offsets, 0);
    assert!(rt.shard.counts().groups.is_empty());
}

#[test]
fn deleting_offsets_spares_topics_that_are_read() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let commit = Commit {
        member_id: &members[0],
        generation,
        ..Commit::new("g", 1)
    };
    rt.commit(&commit);
    rt.commit(&Commit {
        topic: "u",
        ..commit
    });
    let ticket = rt.send(
        0,
        GroupRequest::OffsetDelete(delete_request("g", "t", &[0, 1])),
    );
    assert_eq!(rt.error(ticket), ErrorCode::GroupSubscribedToTopic);
    let ticket = rt.send(
        0,
        GroupRequest::OffsetDelete(delete_request("g", "u", &[0, 1])),
    );
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!((rt.fetch("g", "t", 0), rt.fetch("g", "u", 0)), (1, -1));
    rt.reload();
    assert_eq!((rt.fetch("g", "t", 0), rt.fetch("g", "u", 0)), (1, -1));
}

#[test]
fn deleting_offsets_is_refused_for_each_reason_that_there_is() {
    let mut rt = Runtime::undelayed();
    let (_, member) = rt.join_new(&Join {
        protocol_type: "connect",
        ..Join::new("g")
    });
    assert!(!member.is_empty());
    for (group, expected) in [
        ("", ErrorCode::InvalidGroupId),
        ("unknown", ErrorCode::GroupIdNotFound),
        ("g", ErrorCode::NonEmptyGroup),
    ] {
        let ticket = rt.send(
            0,
            GroupRequest::OffsetDelete(delete_request(group, "t", &[0])),
        );
        assert_eq!(rt.error(ticket), expected, "{group}");
    }
}

#[test]
fn the_offsets_of_a_deleted_topic_go_in_every_group() {
    let mut rt = Runtime::undelayed();
    for group in ["a", "b", "c"] {
        for topic in ["gone", "stays"] {
            for partition in 0..3 {
                rt.commit(&Commit {
                    topic,
                    partition,
                    ..Commit::new(group, 1)
                });
            }
        }
    }
    let topics = BTreeSet::from([StrBytes::from("gone")]);
    loop {
        let effects = rt.shard.topics_deleted(&topics);
        if effects.records.is_empty() {
            break;
        }
        rt.settle(effects);
    }
    for reloaded in [false, true] {
        for group in ["a", "b", "c"] {
            let all = rt.fetch_all(group);
            assert_eq!(all.len(), 3, "{reloaded}");
            assert!(all.keys().all(|(topic, _)| topic == "stays"));
        }
        rt.reload();
    }
}

#[test]
fn a_clean_up_spares_an_empty_group_that_somebody_is_about_to_join() {
    let mut rt = Runtime::undelayed();
    rt.advance(CHECK_MS - 1);
    let ticket = rt.join(&Join::new("g"));
    let member = rt.joined(ticket).member_id.to_string();
    rt.advance(1);
    let ticket = rt.join(&Join {
        member_id: &member,
        ..Join::new("g")
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
}
