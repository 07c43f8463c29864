//! Groups that change their protocol while members read: classic to consumer and back, and
//! both kinds of members in one group.

use yuxi_coordinator::groups::{ConsumerGroupConfig, GroupConfig, GroupRequest, MigrationPolicy};
use yuxi_protocol::{
    codec::{ApiVersion, Bytes, BytesMut, DecodeLimits},
    error_code::ErrorCode,
    ids::TopicId,
    messages::{
        ConsumerProtocolAssignment, ConsumerProtocolSubscription, consumer_protocol_assignment,
        consumer_protocol_subscription, decode_consumer_protocol_assignment,
        encode_consumer_protocol_assignment, encode_consumer_protocol_subscription,
    },
};

use crate::{consumer_support::*, support::*};

pub(crate) fn config(migration: MigrationPolicy) -> GroupConfig {
    GroupConfig {
        initial_rebalance_delay_ms: 0,
        consumer: ConsumerGroupConfig {
            migration,
            ..ConsumerGroupConfig::default()
        },
        ..GroupConfig::default()
    }
}

/// The metadata of a cooperative consumer that reads `t` and owns these of its partitions.
pub(crate) fn metadata(owned: &[i32]) -> Bytes {
    let mut subscription = ConsumerProtocolSubscription::default();
    subscription.topics = vec!["t".into()];
    if !owned.is_empty() {
        let mut topic = consumer_protocol_subscription::TopicPartition::default();
        topic.topic = "t".into();
        topic.partitions = owned.to_vec();
        subscription.owned_partitions = vec![topic];
    }
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_subscription(&mut buffer, &subscription, ApiVersion::new(3))
        .expect("a subscription can be encoded");
    buffer.freeze()
}

pub(crate) fn assignment(partitions: &[i32]) -> Bytes {
    let mut topic = consumer_protocol_assignment::TopicPartition::default();
    topic.topic = "t".into();
    topic.partitions = partitions.to_vec();
    let mut assignment = ConsumerProtocolAssignment::default();
    assignment.assigned_partitions = vec![topic];
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_assignment(&mut buffer, &assignment, ApiVersion::new(3))
        .expect("an assignment can be encoded");
    buffer.freeze()
}

pub(crate) fn read_assignment(bytes: &Bytes) -> Vec<i32> {
    let (_, assignment) =
        decode_consumer_protocol_assignment(bytes.clone(), DecodeLimits::default())
            .expect("an assignment");
    let topics = assignment.assigned_partitions.iter();
    topics.flat_map(|topic| topic.partitions.clone()).collect()
}

struct Classic {
    id: String,
    generation: i32,
    reads: Vec<i32>,
}

/// A classic group of one member that reads both partitions of `t`.
fn classic_group(migration: MigrationPolicy) -> (Runtime, TopicId, Classic) {
    let mut rt = Runtime::new(config(migration));
    let topic = rt.cluster.set_topic("t", 2);
    let subscription = metadata(&[]);
    let protocols = [("cooperative-sticky", &subscription[..])];
    let join = Join {
        protocols: &protocols,
        ..Join::new("g")
    };
    let (ticket, id) = rt.join_new(&join);
    let generation = rt.joined(ticket).generation_id;
    let mut request = sync_request("g", &id, generation, &[(&id, "")]);
    request.protocol_name = Some("cooperative-sticky".into());
    request.assignments[0].assignment = assignment(&[0, 1]);
    let ticket = rt.send(5, GroupRequest::Sync(request));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let member = Classic {
        id,
        generation,
        reads: vec![0, 1],
    };
    (rt, topic, member)
}

impl Classic {
    fn heartbeat(&self, rt: &mut Runtime) -> ErrorCode {
        let ticket = rt.heartbeat("g", &self.id, self.generation);
        rt.error(ticket)
    }

    /// Joins again and asks for its assignment, as a consumer does when told to.
    fn rejoin(&mut self, rt: &mut Runtime) {
        let subscription = metadata(&self.reads);
        let protocols = [("cooperative-sticky", &subscription[..])];
        let ticket = rt.join(&Join {
            member_id: &self.id,
            protocols: &protocols,
            ..Join::new("g")
        });
        assert_eq!(rt.error(ticket), ErrorCode::None);
        self.generation = rt.joined(ticket).generation_id;
        let mut request = sync_request("g", &self.id, self.generation, &[]);
        request.protocol_name = Some("cooperative-sticky".into());
        let ticket = rt.send(5, GroupRequest::Sync(request));
        assert_eq!(rt.error(ticket), ErrorCode::None);
        self.reads = read_assignment(&rt.synced(ticket).assignment.clone());
    }
}

fn code(response: &yuxi_protocol::messages::ConsumerGroupHeartbeatResponse) -> ErrorCode {
    ErrorCode::from_code(response.error_code).expect("a known code")
}

#[test]
fn a_classic_group_becomes_a_consumer_group_and_its_member_reads_on() {
    let (mut rt, _, mut old) = classic_group(MigrationPolicy::Bidirectional);
    let ticket = rt.commit(&Commit {
        member_id: &old.id,
        generation: old.generation,
        ..Commit::new("g", 42)
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(code(&joined), ErrorCode::None, "{:?}", joined.error_message);
    assert_eq!(rt.state("g"), "Dead", "it is no classic group any more");
    let described = rt.describe_consumers("g");
    let kinds: Vec<i8> = described.members.iter().map(|m| m.member_type).collect();
    assert_eq!(kinds, [0, 1], "one member of each protocol");
    assert_eq!(rt.fetch("g", "t", 0), 42, "offsets stay");
    rt.reload();
    assert_eq!(rt.describe_consumers("g"), described);
    // Its commits count until it joins again.
    let ticket = rt.commit(&Commit {
        member_id: &old.id,
        generation: old.generation,
        ..Commit::new("g", 43)
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::RebalanceInProgress);
    old.rejoin(&mut rt);
    assert_eq!(old.reads, [0], "it must give one up");
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::RebalanceInProgress);
    let waits = rt.beat(&Beat::of("g", "new", joined.member_epoch));
    assert!(waits.assignment.is_none(), "the old one may still read it");
    old.rejoin(&mut rt);
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::None);
    let free = rt.beat(&Beat::of("g", "new", joined.member_epoch));
    let given = &free.assignment.expect("an assignment").topic_partitions;
    assert_eq!(given[0].partitions, [1]);
    assert_eq!(rt.describe_consumers("g").group_state.as_str(), "Stable");
}

#[test]
fn a_classic_member_that_was_given_up_must_let_go_of_what_it_reads_before_it_joins_again() {
    let (mut rt, _, old) = classic_group(MigrationPolicy::Bidirectional);
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    rt.leave("g", &[(&old.id, None)]);
    let all = rt.beat(&Beat::of("g", "new", joined.member_epoch));
    assert_eq!(given(&all), Some(vec![0, 1]));
    for (owned, error) in [
        (&[0, 1][..], ErrorCode::UnknownMemberId),
        (&[], ErrorCode::None),
    ] {
        let subscription = metadata(owned);
        let protocols = [("cooperative-sticky", &subscription[..])];
        let ticket = rt.join(&Join {
            member_id: &old.id,
            protocols: &protocols,
            ..Join::new("g")
        });
        assert_eq!(rt.error(ticket), error, "{owned:?}");
    }
}

#[test]
fn what_is_read_on_in_a_rebalance_that_began_anew_is_given_to_nobody_else() {
    let (mut rt, _, old) = classic_group(MigrationPolicy::Bidirectional);
    let nothing = metadata(&[]);
    let other = Join {
        protocols: &[("cooperative-sticky", &nothing)],
        ..Join::new("g")
    };
    rt.join_new(&other);
    let both = metadata(&[0, 1]);
    let ticket = rt.join(&Join {
        member_id: &old.id,
        protocols: &[("cooperative-sticky", &both)],
        ..Join::new("g")
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.state("g"), "CompletingRebalance");
    // One more takes back all that was assigned, and the old one reads on.
    rt.join_new(&other);
    assert_eq!(rt.state("g"), "PreparingRebalance");
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(code(&joined), ErrorCode::None, "{:?}", joined.error_message);
    let described = rt.describe_consumers("g");
    let mut members = described.members.iter();
    let member = members.find(|member| member.member_id.as_str() == old.id);
    let held = &member.expect("the old one").assignment.topic_partitions;
    assert_eq!(held.first().map(|t| &t.partitions[..]), Some(&[0, 1][..]));
}

#[test]
fn it_becomes_a_classic_group_again_when_the_last_new_member_goes() {
    for leaves in [true, false] {
        let (mut rt, _, mut old) = classic_group(MigrationPolicy::Bidirectional);
        let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
        old.rejoin(&mut rt);
        old.rejoin(&mut rt);
        rt.beat(&Beat::of("g", "new", joined.member_epoch));
        if leaves {
            rt.beat(&Beat::of("g", "new", -1));
        } else {
            for _ in 0..5 {
                rt.advance(9_000);
                let told = old.heartbeat(&mut rt);
                if told == ErrorCode::IllegalGeneration {
                    break;
                }
            }
            rt.advance(1_000);
        }
        assert_eq!(rt.state("g"), "PreparingRebalance", "leaves: {leaves}");
        let gone = rt.describe_consumers("g");
        assert_eq!(gone.error_code, ErrorCode::GroupIdNotFound.code());
        rt.reload();
        assert_eq!(rt.state("g"), "PreparingRebalance", "as the log has it");
        let subscription = metadata(&old.reads);
        let protocols = [("cooperative-sticky", &subscription[..])];
        let ticket = rt.join(&Join {
            member_id: &old.id,
            protocols: &protocols,
            ..Join::new("g")
        });
        assert_eq!(rt.error(ticket), ErrorCode::None);
        assert_eq!(rt.joined(ticket).leader, rt.joined(ticket).member_id);
    }
}

#[test]
fn a_member_that_has_not_given_up_what_it_should_keeps_it_over_a_downgrade_and_an_upgrade() {
    let (mut rt, _, mut old) = classic_group(MigrationPolicy::Bidirectional);
    rt.beat(&Beat::joining("g", "new", &["t"]));
    // It comes and goes while the old one reads both and knows nothing of it.
    rt.beat(&Beat::of("g", "new", -1));
    assert_eq!(rt.state("g"), "PreparingRebalance");
    let joined = rt.beat(&Beat::joining("g", "another", &["t"]));
    assert_eq!(given(&joined), Some(vec![]), "both are read by the old one");
    old.rejoin(&mut rt);
    old.rejoin(&mut rt);
    let free = rt.beat(&Beat::of("g", "another", joined.member_epoch));
    assert_eq!((given(&free), old.reads), (Some(vec![1]), vec![0]));
}

#[test]
fn a_classic_member_that_is_gone_when_its_group_is_converted_is_found_out() {
    let (mut rt, _, _) = classic_group(MigrationPolicy::Bidirectional);
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(given(&joined), Some(vec![]));
    rt.advance(i64::from(SESSION_MS) + 1);
    let members = rt.describe_consumers("g").members;
    assert_eq!(members.len(), 1, "the dead one keeps nothing");
    let free = rt.beat(&Beat::of("g", "new", joined.member_epoch));
    assert_eq!(given(&free), Some(vec![0, 1]));
}

#[test]
fn a_rebalance_that_a_downgrade_begins_is_begun_again_by_whoever_loads_the_group() {
    let (mut rt, _, mut old) = classic_group(MigrationPolicy::Bidirectional);
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    old.rejoin(&mut rt);
    old.rejoin(&mut rt);
    rt.beat(&Beat::of("g", "new", joined.member_epoch));
    rt.beat(&Beat::of("g", "new", -1));
    rt.reload();
    // Else nobody would be told that partition 1 is nobody's.
    assert_eq!(rt.state("g"), "PreparingRebalance");
}

#[test]
fn groups_stay_what_they_are_where_migration_is_off() {
    let (mut rt, _, old) = classic_group(MigrationPolicy::Downgrade);
    let refused = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(code(&refused), ErrorCode::GroupIdNotFound);
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::None);

    let (mut rt, _, mut old) = classic_group(MigrationPolicy::Upgrade);
    rt.beat(&Beat::joining("g", "new", &["t"]));
    rt.beat(&Beat::of("g", "new", -1));
    let described = rt.describe_consumers("g");
    assert_eq!(described.members.len(), 1, "it stays a consumer group");
    old.rejoin(&mut rt);
    old.rejoin(&mut rt);
    assert_eq!(old.reads, [0, 1]);
}

#[test]
fn groups_that_are_not_of_consumers_or_not_readable_are_refused() {
    let mut rt = Runtime::new(config(MigrationPolicy::Bidirectional));
    rt.cluster.set_topic("t", 1);
    rt.join_new(&Join {
        protocol_type: "connect",
        ..Join::new("connect")
    });
    let refused = rt.beat(&Beat::joining("connect", "new", &["t"]));
    assert_eq!(code(&refused), ErrorCode::GroupIdNotFound);
    let (ticket, id) = rt.join_new(&Join {
        protocols: &[("range", b"not a subscription")],
        ..Join::new("g")
    });
    let generation = rt.joined(ticket).generation_id;
    let refused = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(code(&refused), ErrorCode::GroupIdNotFound);
    let ticket = rt.heartbeat("g", &id, generation);
    assert_eq!(rt.error(ticket), ErrorCode::None, "nothing was touched");
}

#[test]
fn members_that_wait_in_a_classic_group_are_told_to_join_again() {
    let (mut rt, _, old) = classic_group(MigrationPolicy::Bidirectional);
    let subscription = metadata(&[]);
    let protocols = [("cooperative-sticky", &subscription[..])];
    let (waiting, second) = rt.join_new(&Join {
        protocols: &protocols,
        ..Join::new("g")
    });
    assert!(rt.is_waiting(waiting));
    rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(rt.error(waiting), ErrorCode::RebalanceInProgress);
    let ticket = rt.join(&Join {
        member_id: &second,
        protocols: &protocols,
        ..Join::new("g")
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.describe_consumers("g").members.len(), 3);
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::RebalanceInProgress);
}

#[test]
fn a_conversion_that_is_not_written_leaves_the_classic_group() {
    let (mut rt, _, old) = classic_group(MigrationPolicy::Bidirectional);
    rt.fail_next = Some(ErrorCode::NotEnoughReplicas);
    let failed = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(code(&failed), ErrorCode::CoordinatorNotAvailable);
    assert_eq!(
        (rt.state("g").as_str(), old.heartbeat(&mut rt)),
        ("Stable", ErrorCode::None)
    );
    rt.beat(&Beat::joining("g", "new", &["t"]));
    rt.fail_next = Some(ErrorCode::NotEnoughReplicas);
    rt.beat(&Beat::of("g", "new", -1));
    assert_eq!(rt.describe_consumers("g").members.len(), 2);
}

#[test]
fn classic_members_of_a_consumer_group_have_their_own_limits() {
    let (mut rt, _, mut old) = classic_group(MigrationPolicy::Bidirectional);
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    // It is told to join again and does not: its rebalance time-out is its limit.
    for _ in 0..8 {
        rt.advance(8_000);
        assert_eq!(old.heartbeat(&mut rt), ErrorCode::RebalanceInProgress);
        rt.beat(&Beat::of("g", "new", joined.member_epoch));
    }
    rt.advance(5_000);
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::UnknownMemberId);
    assert_eq!(rt.describe_consumers("g").members.len(), 1);
    // One whose session ends goes like any other.
    let (mut rt, _, mut other) = classic_group(MigrationPolicy::Bidirectional);
    rt.beat(&Beat::joining("g", "new", &["t"]));
    other.rejoin(&mut rt);
    rt.advance(i64::from(SESSION_MS) + 1);
    assert_eq!(rt.describe_consumers("g").members.len(), 1);
    old.generation += 1;
    assert_eq!(old.heartbeat(&mut rt), ErrorCode::UnknownMemberId);
    // And one leaves with LeaveGroup.
    let (mut rt, _, last) = classic_group(MigrationPolicy::Bidirectional);
    rt.beat(&Beat::joining("g", "new", &["t"]));
    let ticket = rt.leave("g", &[(&last.id, None)]);
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let ticket = rt.leave("g", &[("new", None)]);
    assert_eq!(
        rt.error(ticket),
        ErrorCode::UnknownMemberId,
        "it speaks another protocol"
    );
}

#[test]
fn an_empty_group_is_of_whichever_kind_its_next_member_is() {
    let mut rt = Runtime::new(config(MigrationPolicy::Disabled));
    rt.cluster.set_topic("t", 1);
    rt.commit(&Commit::new("g", 42));
    let joined = rt.beat(&Beat::joining("g", "new", &["t"]));
    assert_eq!(code(&joined), ErrorCode::None);
    assert_eq!(rt.fetch("g", "t", 0), 42);
    rt.beat(&Beat::of("g", "new", -1));
    let (ticket, _) = rt.join_new(&Join::new("g"));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.state("g"), "CompletingRebalance");
    let gone = rt.describe_consumers("g");
    assert_eq!(gone.error_code, ErrorCode::GroupIdNotFound.code());
    assert_eq!(
        rt.fetch("g", "t", 0),
        42,
        "offsets stay with the group's id"
    );
    rt.reload();
    assert_eq!(rt.fetch("g", "t", 0), 42);
}
