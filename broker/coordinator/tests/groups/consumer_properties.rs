//! Whatever members do, and whatever fails or is lost: by what members were told no
//! partition has two readers, epochs never go back, the log tells the same story, and once
//! everybody sends heartbeats again the group comes to rest with everything read.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use yuxi_coordinator::groups::GroupConfig;
use yuxi_protocol::{
    error_code::ErrorCode, ids::TopicId, messages::ConsumerGroupHeartbeatResponse,
};

use crate::{consumer_support::*, support::*};

const MEMBERS: [&str; 4] = ["a", "b", "c", "d"];
const TOPICS: [&str; 3] = ["t", "u", "v"];

#[derive(Clone, Debug)]
enum Step {
    /// What the member does next: it joins if it is not there. It may have given up what
    /// it was told to, and the answer may be lost on the way.
    Beat {
        member: usize,
        gave_up: bool,
        lost: bool,
    },
    Subscribe {
        member: usize,
        topics: usize,
        assignor: bool,
    },
    Leave {
        member: usize,
    },
    /// The process is gone without a word and another begins under a new id.
    Crash {
        member: usize,
    },
    Grow {
        topic: usize,
        partitions: i32,
    },
    Wait {
        ms: i64,
    },
    FailNext,
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let member = || 0..MEMBERS.len();
    let step = prop_oneof![
        12 => (member(), any::<bool>(), proptest::bool::weighted(0.2))
            .prop_map(|(member, gave_up, lost)| Step::Beat { member, gave_up, lost }),
        2 => (member(), 1..8_usize, any::<bool>())
            .prop_map(|(member, topics, assignor)| Step::Subscribe { member, topics, assignor }),
        1 => member().prop_map(|member| Step::Leave { member }),
        1 => member().prop_map(|member| Step::Crash { member }),
        1 => (0..TOPICS.len(), 1..6_i32)
            .prop_map(|(topic, partitions)| Step::Grow { topic, partitions }),
        2 => prop_oneof![3 => 100..5_000_i64, 1 => Just(46_000), 1 => Just(61_000)]
            .prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::FailNext),
        1 => Just(Step::Reload),
    ];
    proptest::collection::vec(step, 1..100)
}

type Partition = (TopicId, i32);

/// A consumer as its protocol has it.
#[derive(Default)]
struct Client {
    lives: usize,
    epoch: i32,
    /// What it was last told to read.
    told: BTreeSet<Partition>,
    /// What it may still be reading.
    reads: BTreeSet<Partition>,
    /// Bits of the topics that it subscribes to.
    topics: usize,
    range: bool,
    /// The coordinator may not know what it subscribes to, or gave an answer that was lost.
    must_tell_all: bool,
}

impl Client {
    fn id(&self, member: usize) -> String {
        format!("{}{}", MEMBERS[member], self.lives)
    }

    fn forget(&mut self) {
        self.epoch = 0;
        self.told.clear();
        self.reads.clear();
    }
}

struct World {
    rt: Runtime,
    clients: [Client; MEMBERS.len()],
    /// The partitions of each topic.
    topics: BTreeMap<&'static str, (TopicId, i32)>,
    epochs: BTreeMap<String, i32>,
}

impl World {
    fn new() -> Self {
        let mut rt = Runtime::new(GroupConfig::default());
        let topics = TOPICS
            .iter()
            .map(|name| (*name, (rt.cluster.set_topic(name, 1), 1)))
            .collect();
        let mut clients: [Client; MEMBERS.len()] = Default::default();
        for (number, client) in clients.iter_mut().enumerate() {
            client.topics = 1 + number % 2;
        }
        Self {
            rt,
            clients,
            topics,
            epochs: BTreeMap::new(),
        }
    }

    fn act(&mut self, step: &Step) {
        match *step {
            Step::Beat {
                member,
                gave_up,
                lost,
            } => self.beat(member, gave_up, lost),
            Step::Subscribe {
                member,
                topics,
                assignor,
            } => {
                let client = &mut self.clients[member];
                client.topics = topics;
                client.range = assignor;
                client.must_tell_all = true;
            }
            Step::Leave { member } => {
                let client = &mut self.clients[member];
                let id = client.id(member);
                let was_there = client.epoch > 0;
                client.forget();
                if was_there {
                    self.rt.beat(&Beat::of("g", &id, -1));
                }
            }
            Step::Crash { member } => {
                let client = &mut self.clients[member];
                client.forget();
                client.lives += 1;
            }
            Step::Grow { topic, partitions } => {
                let name = TOPICS[topic];
                let (_, count) = self.topics[name];
                let count = count.max(partitions);
                let id = self.rt.cluster.set_topic(name, count);
                self.topics.insert(name, (id, count));
            }
            Step::Wait { ms } => self.rt.advance(ms),
            Step::FailNext => self.rt.fail_next = Some(ErrorCode::NotEnoughReplicas),
            Step::Reload => self.rt.reload(),
        }
        self.check_readers();
    }

    fn beat(&mut self, member: usize, gave_up: bool, lost: bool) {
        let client = &mut self.clients[member];
        if gave_up {
            client.reads = client.reads.intersection(&client.told).copied().collect();
        }
        let id = client.id(member);
        let names: Vec<&str> = TOPICS
            .iter()
            .enumerate()
            .filter(|(at, _)| client.topics & (1 << at) != 0)
            .map(|(_, name)| *name)
            .collect();
        let reads: Vec<Partition> = client.reads.iter().copied().collect();
        let all = client.epoch == 0 || client.must_tell_all;
        let beat = Beat {
            rebalance_ms: if all { 60_000 } else { -1 },
            topics: all.then_some(&names[..]),
            assignor: Some(if client.range { "range" } else { "uniform" }),
            owned: (all || gave_up).then_some(&reads[..]),
            ..Beat::of("g", &id, client.epoch)
        };
        let answer = self.rt.beat(&beat);
        let client = &mut self.clients[member];
        let error = ErrorCode::from_code(answer.error_code).expect("a known code");
        if lost || error == ErrorCode::CoordinatorNotAvailable {
            client.must_tell_all = true;
            return;
        }
        if error != ErrorCode::None {
            assert!(
                matches!(
                    error,
                    ErrorCode::FencedMemberEpoch
                        | ErrorCode::UnknownMemberId
                        | ErrorCode::GroupIdNotFound
                ),
                "{error:?} {:?}",
                answer.error_message
            );
            client.forget();
            self.epochs.remove(&id);
            return;
        }
        client.must_tell_all = false;
        client.epoch = answer.member_epoch;
        let before = self.epochs.insert(id, answer.member_epoch);
        assert!(before <= Some(answer.member_epoch), "an epoch went back");
        if let Some(assigned) = assigned(&answer) {
            client.reads.extend(&assigned);
            client.told = assigned;
        }
    }

    /// No partition has two readers. A process that the coordinator has given up, and that
    /// does not know so yet, reads what it should not; its commits are fenced.
    fn check_readers(&mut self) {
        let described = self.rt.describe_consumers("g");
        let members: BTreeMap<&str, i32> = described
            .members
            .iter()
            .map(|member| (member.member_id.as_str(), member.member_epoch))
            .collect();
        let mut readers: BTreeMap<Partition, String> = BTreeMap::new();
        for (number, client) in self.clients.iter().enumerate() {
            let id = client.id(number);
            let is_member = members.contains_key(id.as_str());
            for partition in client.reads.iter().filter(|_| is_member) {
                let other = readers.insert(*partition, id.clone());
                assert_eq!(other, None, "{partition:?} is read by {id} too");
            }
        }
    }

    /// A shard that loads the log finds the group as it is.
    fn check_log(&mut self) {
        let described = self.rt.describe_consumers("g");
        let mut fresh = Runtime::new(GroupConfig::default());
        fresh.cluster = self.rt.cluster.clone();
        fresh.shard = self.rt.fresh_shard();
        assert_eq!(fresh.describe_consumers("g"), described);
        assert_eq!(
            fresh.shard.counts().consumer_groups,
            self.rt.shard.counts().consumer_groups
        );
    }

    fn settle(&mut self) {
        self.rt.fail_next = None;
        // Who crashed is found out.
        for _ in 0..24 {
            self.rt.advance(4_000);
            for member in 0..MEMBERS.len() {
                self.act(&Step::Beat {
                    member,
                    gave_up: true,
                    lost: false,
                });
            }
        }
        let described = self.rt.describe_consumers("g");
        assert_eq!(described.group_state.as_str(), "Stable", "{described:?}");
        assert_eq!(described.members.len(), MEMBERS.len());
        let mut read: BTreeSet<Partition> = BTreeSet::new();
        for client in &self.clients {
            assert_eq!(client.reads, client.told);
            read.extend(&client.reads);
        }
        for (at, name) in TOPICS.iter().enumerate() {
            let (id, count) = self.topics[name];
            let wanted = self
                .clients
                .iter()
                .any(|client| client.topics & (1 << at) != 0);
            for partition in 0..count {
                assert_eq!(
                    read.contains(&(id, partition)),
                    wanted,
                    "{name}-{partition}"
                );
            }
        }
    }
}

fn assigned(answer: &ConsumerGroupHeartbeatResponse) -> Option<BTreeSet<Partition>> {
    let assignment = answer.assignment.as_ref()?;
    let topics = assignment.topic_partitions.iter();
    let partitions = topics.flat_map(|topic| {
        let id = TopicId::from(topic.topic_id);
        topic.partitions.iter().map(move |&at| (id, at))
    });
    Some(partitions.collect())
}

proptest! {
    #[test]
    fn no_partition_ever_has_two_readers_and_everything_is_read_in_the_end(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.act(step);
            world.check_log();
        }
        world.settle();
        world.check_log();
    }
}
