//! Whatever members of both protocols do in one group, and whatever fails or is lost: no
//! partition has two readers, the group's epoch never goes back while it has members, all
//! offsets are kept, the log tells the same story, and in the end everything is read.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use yuxi_coordinator::groups::{GroupRequest, MigrationPolicy};
use yuxi_protocol::{
    codec::DecodeLimits,
    error_code::ErrorCode,
    ids::TopicId,
    messages::{
        JoinGroupResponse, consumer_group_describe_response::DescribedGroup,
        decode_consumer_protocol_subscription, sync_group_request::SyncGroupRequestAssignment,
    },
};

use crate::{consumer_support::*, migration, properties::essence, support::*};

const CLIENTS: usize = 4;
const PROTOCOL: &str = "cooperative-sticky";
/// Shorter than the session of either protocol is long.
const CLASSIC_REBALANCE_MS: i32 = 8_000;

#[derive(Clone, Debug)]
enum Step {
    /// What the client does next by its protocol; the answer may be lost on the way.
    Act {
        client: usize,
        lost: bool,
    },
    /// It leaves, and comes back by the other protocol.
    Switch {
        client: usize,
    },
    /// The process is gone without a word and another begins.
    Crash {
        client: usize,
    },
    Commit {
        client: usize,
        partition: i32,
        offset: i64,
    },
    Grow {
        partitions: i32,
    },
    Wait {
        ms: i64,
    },
    FailNext,
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = || 0..CLIENTS;
    let step = prop_oneof![
        20 => (client(), proptest::bool::weighted(0.1))
            .prop_map(|(client, lost)| Step::Act { client, lost }),
        2 => client().prop_map(|client| Step::Switch { client }),
        1 => client().prop_map(|client| Step::Crash { client }),
        3 => (client(), 0..4_i32, 0..100_i64)
            .prop_map(|(client, partition, offset)| Step::Commit { client, partition, offset }),
        1 => (1..6_i32).prop_map(|partitions| Step::Grow { partitions }),
        2 => prop_oneof![3 => 100..3_000_i64, 1 => Just(11_000), 1 => Just(46_000)]
            .prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::FailNext),
        1 => Just(Step::Reload),
    ];
    proptest::collection::vec(step, 1..100)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Out,
    /// A classic member waits for the answer to its JoinGroup, or its SyncGroup.
    Joining(u64),
    Syncing(u64),
    In,
}

#[derive(Debug, Default)]
struct Client {
    is_classic: bool,
    /// Kept by a classic member that must join again.
    id: String,
    epoch: i32,
    stage: Stage,
    reads: BTreeSet<i32>,
    /// What a member of the new protocol was told to read.
    told: BTreeSet<i32>,
    must_tell_all: bool,
}

impl Client {
    /// The group has let go of it, and it knows.
    fn forget(&mut self) {
        *self = Self {
            is_classic: self.is_classic,
            ..Self::default()
        };
    }
}

struct World {
    rt: Runtime,
    partitions: i32,
    topic: TopicId,
    clients: [Client; CLIENTS],
    /// How many members of the new protocol there ever were: they name themselves.
    named: usize,
    /// The consumer group's epoch when it was last looked at, if it had members ever since.
    epoch: i32,
    committed: BTreeMap<(String, i32), i64>,
    /// How much of the log has been held against the shard.
    checked: usize,
}

impl World {
    fn new() -> Self {
        let mut rt = Runtime::new(migration::config(MigrationPolicy::Bidirectional));
        let topic = rt.cluster.set_topic("t", 2);
        let mut clients: [Client; CLIENTS] = Default::default();
        for (at, client) in clients.iter_mut().enumerate() {
            client.is_classic = at % 2 == 0;
        }
        Self {
            rt,
            partitions: 2,
            topic,
            clients,
            named: 0,
            epoch: 0,
            committed: BTreeMap::new(),
            checked: 0,
        }
    }

    fn do_step(&mut self, step: &Step) {
        match *step {
            Step::Act { client, lost } => self.act(client, lost),
            Step::Switch { client: at } => {
                let client = &self.clients[at];
                let id = client.id.clone();
                match (client.stage, client.is_classic) {
                    (Stage::Out, _) => {}
                    (_, true) => {
                        self.rt.leave("g", &[(&id, None)]);
                    }
                    (_, false) => {
                        self.rt.beat(&Beat::of("g", &id, -1));
                    }
                }
                let client = &mut self.clients[at];
                client.forget();
                client.is_classic = !client.is_classic;
            }
            Step::Crash { client } => self.clients[client].forget(),
            Step::Commit {
                client,
                partition,
                offset,
            } => {
                let client = &self.clients[client];
                let (id, generation) = (client.id.clone(), client.epoch);
                if client.stage == Stage::In {
                    let ticket = self.rt.commit(&Commit {
                        member_id: &id,
                        generation,
                        partition,
                        ..Commit::new("g", offset)
                    });
                    if self.rt.error(ticket) == ErrorCode::None {
                        self.committed.insert(("t".to_owned(), partition), offset);
                    }
                }
            }
            Step::Grow { partitions } => {
                self.partitions = self.partitions.max(partitions);
                self.topic = self.rt.cluster.set_topic("t", self.partitions);
            }
            Step::Wait { ms } => self.rt.advance(ms),
            Step::FailNext => self.rt.fail_next = Some(ErrorCode::NotEnoughReplicas),
            Step::Reload => self.rt.reload(),
        }
        self.check();
    }

    fn act(&mut self, at: usize, lost: bool) {
        if self.clients[at].is_classic {
            self.act_as_classic(at, lost);
        } else {
            self.beat(at, lost);
        }
    }

    fn act_as_classic(&mut self, at: usize, lost: bool) {
        let client = &mut self.clients[at];
        match client.stage {
            Stage::Out => self.join(at),
            Stage::Joining(ticket) | Stage::Syncing(ticket) if self.rt.is_waiting(ticket) => {}
            Stage::Joining(_) | Stage::Syncing(_) if lost => self.join(at),
            Stage::Joining(ticket) => {
                let answer = self.rt.joined(ticket).clone();
                match ErrorCode::from_code(answer.error_code).expect("known") {
                    ErrorCode::None => {
                        client.id = answer.member_id.to_string();
                        client.epoch = answer.generation_id;
                        let mut request = sync_request("g", &client.id, client.epoch, &[]);
                        request.protocol_name = Some(PROTOCOL.into());
                        if answer.leader == answer.member_id {
                            request.assignments = lead(&answer, self.partitions);
                        }
                        let ticket = self.rt.send(5, GroupRequest::Sync(request));
                        self.clients[at].stage = Stage::Syncing(ticket);
                    }
                    ErrorCode::MemberIdRequired => {
                        client.id = answer.member_id.to_string();
                        client.stage = Stage::Out;
                    }
                    error => self.refused(at, error),
                }
            }
            Stage::Syncing(ticket) => {
                let answer = self.rt.synced(ticket).clone();
                match ErrorCode::from_code(answer.error_code).expect("known") {
                    ErrorCode::None => {
                        let mut assigned = BTreeSet::new();
                        if !answer.assignment.is_empty() {
                            assigned.extend(migration::read_assignment(&answer.assignment));
                        }
                        let gives_up = !client.reads.is_subset(&assigned);
                        client.reads = assigned;
                        client.stage = Stage::In;
                        if gives_up {
                            self.join(at);
                        }
                    }
                    error => self.refused(at, error),
                }
            }
            Stage::In => {
                let ticket = self.rt.heartbeat("g", &client.id, client.epoch);
                match self.rt.error(ticket) {
                    _ if lost => {}
                    ErrorCode::None => {}
                    error => self.refused(at, error),
                }
            }
        }
    }

    fn join(&mut self, at: usize) {
        let client = &self.clients[at];
        let owned: Vec<i32> = client.reads.iter().copied().collect();
        let metadata = migration::metadata(&owned);
        let join = Join {
            member_id: &client.id,
            rebalance_ms: CLASSIC_REBALANCE_MS,
            protocols: &[(PROTOCOL, &metadata)],
            ..Join::new("g")
        };
        let ticket = self.rt.join(&join);
        self.clients[at].stage = Stage::Joining(ticket);
    }

    fn refused(&mut self, at: usize, error: ErrorCode) {
        let client = &mut self.clients[at];
        client.stage = Stage::Out;
        match error {
            ErrorCode::UnknownMemberId => client.forget(),
            ErrorCode::IllegalGeneration => client.reads.clear(),
            ErrorCode::RebalanceInProgress
            | ErrorCode::NotCoordinator
            | ErrorCode::CoordinatorNotAvailable => {}
            other => panic!("{other:?}"),
        }
    }

    fn beat(&mut self, at: usize, lost: bool) {
        let client = &mut self.clients[at];
        if client.stage == Stage::Out {
            self.named += 1;
            client.id = format!("new-{}", self.named);
            client.stage = Stage::In;
            client.must_tell_all = true;
        }
        client.reads = client.reads.intersection(&client.told).copied().collect();
        let reads = owned(
            self.topic,
            &client.reads.iter().copied().collect::<Vec<_>>(),
        );
        let beat = Beat {
            rebalance_ms: if client.must_tell_all {
                REBALANCE_MS
            } else {
                -1
            },
            topics: client.must_tell_all.then_some(&["t"]),
            owned: Some(&reads),
            ..Beat::of("g", &client.id, client.epoch)
        };
        let answer = self.rt.beat(&beat);
        let error = error_of(&answer);
        if lost || error == ErrorCode::CoordinatorNotAvailable {
            client.must_tell_all = true;
            return;
        }
        if error != ErrorCode::None {
            let text = answer.error_message;
            assert!(
                matches!(
                    error,
                    ErrorCode::FencedMemberEpoch
                        | ErrorCode::UnknownMemberId
                        | ErrorCode::GroupIdNotFound
                ),
                "{error:?} {text:?}"
            );
            client.forget();
            return;
        }
        client.must_tell_all = false;
        assert!(client.epoch <= answer.member_epoch, "an epoch went back");
        client.epoch = answer.member_epoch;
        if let Some(assigned) = given(&answer) {
            client.told = assigned.into_iter().collect();
            client.reads.extend(&client.told);
        }
    }

    /// The group, if it is one of the new protocol.
    fn consumer_group(&mut self) -> Option<DescribedGroup> {
        let described = self.rt.describe_consumers("g");
        (described.error_code == 0).then_some(described)
    }

    fn check(&mut self) {
        assert_eq!(self.rt.fetch_all("g"), self.committed);
        let group = self.consumer_group();
        if self.checked != self.rt.log.len() {
            self.checked = self.rt.log.len();
            self.check_log(group.as_ref());
        }
        let ids: Vec<String> = if let Some(group) = group {
            assert!(self.epoch <= group.group_epoch, "an epoch went back");
            self.epoch = group.group_epoch;
            let ids = group.members.iter().map(|m| m.member_id.to_string());
            ids.collect()
        } else {
            let members = self.rt.describe("g").members;
            members.iter().map(|m| m.member_id.to_string()).collect()
        };
        if ids.is_empty() {
            self.epoch = 0;
        }
        let members: BTreeSet<String> = ids.into_iter().collect();
        // A process that the coordinator has given up, and that does not know so yet, reads
        // what it should not; its commits are fenced.
        let mut readers: BTreeMap<i32, &str> = BTreeMap::new();
        for client in self.clients.iter().filter(|c| members.contains(&c.id)) {
            for partition in &client.reads {
                let other = readers.insert(*partition, &client.id);
                assert_eq!(other, None, "{partition} is read by {} too", client.id);
            }
        }
    }

    /// Who reads the log finds the same group.
    fn check_log(&mut self, group: Option<&DescribedGroup>) {
        let mut fresh = Runtime::new(self.rt.config.clone());
        fresh.cluster = self.rt.cluster.clone();
        fresh.shard = self.rt.fresh_shard();
        assert_eq!(fresh.fetch_all("g"), self.committed, "as the log has it");
        if let Some(group) = group {
            assert_eq!(fresh.describe_consumers("g"), *group);
            return;
        }
        let group = self.rt.describe("g");
        if group.group_state.as_str() == "Stable" {
            assert_eq!(essence(fresh.describe("g")), essence(group));
        }
    }

    fn settle(&mut self) {
        self.rt.fail_next = None;
        let mut rounds = 0;
        while !self.is_at_rest() {
            rounds += 1;
            if rounds >= 200 {
                let described = self.rt.describe_consumers("g");
                let classic = self.rt.describe("g");
                panic!("no rest: {:?} {described:?} {classic:?}", self.clients);
            }
            self.rt.advance(1_000);
            self.check();
            for client in [0, 0, 1, 1, 2, 2, 3, 3] {
                self.act(client, false);
                self.check();
            }
        }
    }

    /// Everybody is a member, and every partition is read.
    fn is_at_rest(&self) -> bool {
        let mut read: Vec<i32> = Vec::new();
        for client in &self.clients {
            read.extend(&client.reads);
        }
        read.sort_unstable();
        let are_in = self.clients.iter().all(|client| client.stage == Stage::In);
        are_in && read == (0..self.partitions).collect::<Vec<i32>>()
    }
}

/// What the leader of a classic group decides: who owns a partition keeps it, and what
/// nobody owns goes to whoever has least.
fn lead(joined: &JoinGroupResponse, partitions: i32) -> Vec<SyncGroupRequestAssignment> {
    let mut shares: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    let mut free: BTreeSet<i32> = (0..partitions).collect();
    for member in &joined.members {
        let limits = DecodeLimits::default();
        let (_, subscription) =
            decode_consumer_protocol_subscription(member.metadata.clone(), limits).expect("ours");
        let owned = subscription.owned_partitions.iter();
        let share: Vec<i32> = owned.flat_map(|topic| topic.partitions.clone()).collect();
        for partition in &share {
            assert!(free.remove(partition), "{partition} has two owners");
        }
        shares.insert(&member.member_id, share);
    }
    for partition in free {
        if let Some(least) = shares.values_mut().min_by_key(|share| share.len()) {
            least.push(partition);
        }
    }
    let assignments = shares.into_iter().map(|(member, share)| {
        let mut assignment = SyncGroupRequestAssignment::default();
        assignment.member_id = member.into();
        assignment.assignment = migration::assignment(&share);
        assignment
    });
    assignments.collect()
}

proptest! {
    #[test]
    fn members_of_both_protocols_never_read_the_same_nor_lose_an_offset(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.do_step(step);
        }
        world.settle();
    }
}
