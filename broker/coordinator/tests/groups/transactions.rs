//! Offsets committed in transactions: read by nobody before the marker, lost by nothing
//! after it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use yuxi_coordinator::groups::{GroupConfig, GroupRequest};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{
        DeleteGroupsRequest, OffsetDeleteRequest,
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
    },
};

use crate::support::*;

const GROUPS: [&str; 2] = ["g", "h"];
const RETENTION_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

#[test]
fn an_offset_in_a_transaction_is_read_once_the_transaction_is_committed() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    let ticket = rt.txn_commit(&TxnCommit::new("g", 9, 5));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let partition = ("t".to_owned(), 0);
    for reloaded in [false, true] {
        if reloaded {
            rt.reload();
        }
        assert_eq!(rt.fetch("g", "t", 0), 1, "reloaded: {reloaded}");
        assert_eq!(
            rt.fetch_with("g", true)[&partition],
            (ErrorCode::UnstableOffsetCommit, -1),
            "reloaded: {reloaded}"
        );
    }
    rt.end_transaction(9, true);
    assert_eq!(rt.fetch_with("g", true)[&partition], (ErrorCode::None, 5));
    rt.reload();
    assert_eq!(rt.fetch("g", "t", 0), 5);
}

#[test]
fn an_aborted_transaction_leaves_the_offset_of_before() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    rt.txn_commit(&TxnCommit::new("g", 9, 5));
    rt.end_transaction(9, false);
    assert_eq!(
        rt.fetch_with("g", true)[&("t".to_owned(), 0)],
        (ErrorCode::None, 1)
    );
    rt.reload();
    assert_eq!(rt.fetch("g", "t", 0), 1);
    // What the producer writes next is another transaction.
    rt.txn_commit(&TxnCommit::new("g", 9, 6));
    rt.end_transaction(9, true);
    assert_eq!(rt.fetch("g", "t", 0), 6);
}

#[test]
fn a_commit_after_a_transactional_one_outlives_its_marker() {
    let mut rt = Runtime::undelayed();
    rt.txn_commit(&TxnCommit::new("g", 9, 5));
    rt.commit(&Commit::new("g", 7));
    rt.end_transaction(9, true);
    assert_eq!(rt.fetch("g", "t", 0), 7);
    rt.reload();
    assert_eq!(rt.fetch("g", "t", 0), 7);
}

#[test]
fn transactions_of_different_producers_end_each_by_itself() {
    let mut rt = Runtime::undelayed();
    rt.txn_commit(&TxnCommit::new("g", 1, 10));
    rt.txn_commit(&TxnCommit {
        partition: 1,
        ..TxnCommit::new("g", 2, 20)
    });
    rt.end_transaction(2, true);
    assert_eq!((rt.fetch("g", "t", 0), rt.fetch("g", "t", 1)), (-1, 20));
    rt.end_transaction(1, false);
    assert_eq!((rt.fetch("g", "t", 0), rt.fetch("g", "t", 1)), (-1, 20));
    assert_eq!(rt.shard.counts().pending_offsets, 0);
}

#[test]
fn members_and_generations_are_checked_where_they_are_given() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let member = members[0].as_str();
    let member = TxnCommit {
        member_id: member,
        generation,
        ..TxnCommit::new("g", 9, 1)
    };
    let mut check = |commit: TxnCommit<'_>, expected| {
        let ticket = rt.txn_commit(&commit);
        assert_eq!(rt.error(ticket), expected);
    };
    check(member.clone(), ErrorCode::None);
    check(
        TxnCommit {
            generation: generation - 1,
            ..member.clone()
        },
        ErrorCode::IllegalGeneration,
    );
    check(
        TxnCommit {
            member_id: "zombie",
            ..member.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    check(
        TxnCommit {
            instance_id: Some("i"),
            ..member.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    // Producers before KIP-447 say nothing of the group, not even that it has members.
    check(TxnCommit::new("g", 9, 1), ErrorCode::None);
    check(
        TxnCommit {
            generation: 4,
            ..TxnCommit::new("unknown", 9, 1)
        },
        ErrorCode::IllegalGeneration,
    );
    check(TxnCommit::new("", 9, 1), ErrorCode::InvalidGroupId);
    let long = "x".repeat(40_000);
    check(TxnCommit::new(&long, 9, 1), ErrorCode::InvalidGroupId);
    check(
        TxnCommit {
            metadata: Some(&long),
            ..TxnCommit::new("g", 9, 1)
        },
        ErrorCode::OffsetMetadataTooLarge,
    );
}

#[test]
fn a_member_commits_its_transaction_while_the_group_rebalances() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    rt.join_new(&Join::new("g"));
    assert_eq!(rt.state("g"), "PreparingRebalance");
    let ticket = rt.txn_commit(&TxnCommit {
        member_id: &members[0],
        generation,
        ..TxnCommit::new("g", 9, 1)
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
}

#[test]
fn a_transaction_that_is_not_written_leaves_nothing() {
    let mut rt = Runtime::undelayed();
    rt.fail_next = Some(ErrorCode::InvalidProducerEpoch);
    let ticket = rt.txn_commit(&TxnCommit::new("g", 9, 5));
    assert_eq!(rt.error(ticket), ErrorCode::InvalidProducerEpoch);
    rt.end_transaction(9, true);
    assert_eq!(rt.fetch("g", "t", 0), -1);
    assert_eq!(rt.state("g"), "Dead");
}

#[test]
fn neither_an_offset_nor_a_group_expires_under_an_open_transaction() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    rt.txn_commit(&TxnCommit::new("g", 9, 5));
    rt.txn_commit(&TxnCommit::new("h", 9, 6));
    rt.advance(3 * RETENTION_MS);
    assert_eq!(rt.fetch("g", "t", 0), 1);
    assert_eq!(rt.state("h"), "Empty");
    rt.end_transaction(9, false);
    rt.advance(RETENTION_MS);
    assert_eq!(
        (rt.state("g"), rt.state("h")),
        ("Dead".into(), "Dead".into())
    );
}

#[test]
fn deleting_a_group_its_offsets_or_their_topic_takes_pending_offsets_too() {
    let topics = BTreeSet::from([StrBytes::from("t")]);
    let ways: [&dyn Fn(&mut Runtime); 3] = [
        &|rt| delete_group(rt, "g"),
        &|rt| delete_offset(rt, "g", 0),
        &|rt| {
            let effects = rt.shard.topics_deleted(&topics);
            rt.settle(effects);
        },
    ];
    for (number, delete) in ways.iter().enumerate() {
        let mut rt = Runtime::undelayed();
        rt.txn_commit(&TxnCommit::new("g", 9, 5));
        delete(&mut rt);
        rt.reload();
        rt.end_transaction(9, true);
        assert_eq!(rt.fetch("g", "t", 0), -1, "way {number}");
    }
}

fn delete_group(rt: &mut Runtime, group: &str) {
    let mut request = DeleteGroupsRequest::default();
    request.groups_names = vec![group.into()];
    rt.send(2, GroupRequest::DeleteGroups(request));
}

fn delete_offset(rt: &mut Runtime, group: &str, partition: i32) {
    let mut deleted = OffsetDeleteRequestPartition::default();
    deleted.partition_index = partition;
    let mut topic = OffsetDeleteRequestTopic::default();
    topic.name = "t".into();
    topic.partitions = vec![deleted];
    let mut request = OffsetDeleteRequest::default();
    request.group_id = group.into();
    request.topics = vec![topic];
    rt.send(0, GroupRequest::OffsetDelete(request));
}

#[derive(Clone, Debug)]
enum Step {
    Commit {
        group: usize,
        partition: i32,
    },
    TxnCommit {
        producer: i64,
        group: usize,
        partition: i32,
    },
    End {
        producer: i64,
        commit: bool,
    },
    DeleteOffset {
        group: usize,
        partition: i32,
    },
    DeleteGroup {
        group: usize,
    },
    FailNext,
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let group = || 0..GROUPS.len();
    let step = prop_oneof![
        3 => (group(), 0..3_i32).prop_map(|(group, partition)| Step::Commit { group, partition }),
        6 => (1..4_i64, group(), 0..3_i32).prop_map(|(producer, group, partition)| {
            Step::TxnCommit { producer, group, partition }
        }),
        4 => (1..4_i64, any::<bool>()).prop_map(|(producer, commit)| Step::End { producer, commit }),
        1 => (group(), 0..3_i32)
            .prop_map(|(group, partition)| Step::DeleteOffset { group, partition }),
        1 => group().prop_map(|group| Step::DeleteGroup { group }),
        1 => Just(Step::FailNext),
        2 => Just(Step::Reload),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What should be read, told in the plainest way: who wrote what when.
#[derive(Default)]
struct Model {
    committed: BTreeMap<(usize, i32), i64>,
    pending: BTreeMap<(i64, usize, i32), i64>,
}

impl Model {
    fn end(&mut self, producer: i64, commit: bool) {
        let (ended, rest) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|((of, ..), _)| *of == producer);
        self.pending = rest;
        let ended: BTreeMap<(i64, usize, i32), i64> = ended;
        for ((_, group, partition), offset) in ended.into_iter().filter(|_| commit) {
            // Offsets are handed out in order, so that the larger is the later.
            let current = self.committed.entry((group, partition)).or_insert(offset);
            *current = offset.max(*current);
        }
    }

    fn delete(&mut self, group: usize, partition: Option<i32>) {
        let goes = |of: usize, at: i32| of == group && partition.is_none_or(|one| one == at);
        self.committed.retain(|(of, at), _| !goes(*of, *at));
        self.pending.retain(|(_, of, at), _| !goes(*of, *at));
    }

    fn is_pending(&self, group: usize, partition: i32) -> bool {
        self.pending
            .keys()
            .any(|(_, of, at)| (*of, *at) == (group, partition))
    }
}

proptest! {
    #[test]
    fn pending_offsets_are_never_read_before_their_marker_and_never_lost_after_it(
        steps in steps(),
    ) {
        let mut rt = Runtime::new(GroupConfig::default());
        let mut model = Model::default();
        for (at, step) in steps.iter().enumerate() {
            let offset = at as i64;
            let fails = rt.fail_next.is_some();
            match *step {
                Step::Commit { group, partition } => {
                    rt.commit(&Commit { partition, ..Commit::new(GROUPS[group], offset) });
                    if !fails {
                        model.committed.insert((group, partition), offset);
                    }
                }
                Step::TxnCommit { producer, group, partition } => {
                    let commit = TxnCommit::new(GROUPS[group], producer, offset);
                    rt.txn_commit(&TxnCommit { partition, ..commit });
                    if !fails {
                        model.pending.insert((producer, group, partition), offset);
                    }
                }
                Step::End { producer, commit } => {
                    rt.end_transaction(producer, commit);
                    model.end(producer, commit);
                }
                Step::DeleteOffset { group, partition } => {
                    rt.fail_next = None;
                    delete_offset(&mut rt, GROUPS[group], partition);
                    model.delete(group, Some(partition));
                }
                Step::DeleteGroup { group } => {
                    rt.fail_next = None;
                    delete_group(&mut rt, GROUPS[group]);
                    model.delete(group, None);
                }
                Step::FailNext => rt.fail_next = Some(ErrorCode::NotEnoughReplicas),
                Step::Reload => rt.reload(),
            }
            for (group, name) in GROUPS.iter().enumerate() {
                let read = rt.fetch_with(name, false);
                let stable = rt.fetch_with(name, true);
                for partition in 0..3 {
                    let key = ("t".to_owned(), partition);
                    let expected = model.committed.get(&(group, partition)).copied();
                    prop_assert_eq!(read.get(&key).map(|read| read.1), expected);
                    let told = stable.get(&key).copied();
                    let is_pending = model.is_pending(group, partition);
                    let expected = expected.map(|offset| if is_pending {
                        (ErrorCode::UnstableOffsetCommit, -1)
                    } else {
                        (ErrorCode::None, offset)
                    });
                    prop_assert_eq!(told, expected);
                }
            }
            prop_assert_eq!(rt.shard.counts().pending_offsets, model.pending.len());
        }
    }
}
