//! What holds whatever clients, time, failing writes and restarts do.

use std::collections::BTreeMap;

use proptest::prelude::*;
use yuxi_coordinator::transactions::{
    ListFilter, Producer, Transaction, TransactionState, TransactionVersion,
};
use yuxi_protocol::{error_code::ErrorCode, ids::ProducerId};

use crate::support::*;

const IDS: [&str; 2] = ["a", "b"];

/// One thing that happens. Producers are meant by how long ago they were told who they
/// are, so that zombies come up.
#[derive(Clone, Debug)]
enum Step {
    Init {
        id: usize,
        goes_on: Option<usize>,
    },
    Add {
        id: usize,
        who: usize,
        partition: i32,
    },
    End {
        id: usize,
        who: usize,
        commit: bool,
        new: bool,
    },
    Marker {
        order: usize,
    },
    Wait {
        ms: i64,
    },
    FailNext,
    Reload,
    Version(i16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = || 0..IDS.len();
    let who = || prop_oneof![6 => Just(0_usize), 1 => 1_usize..4];
    let step = prop_oneof![
        3 => (id(), proptest::option::of(who()))
            .prop_map(|(id, goes_on)| Step::Init { id, goes_on }),
        6 => (id(), who(), 0..3)
            .prop_map(|(id, who, partition)| Step::Add { id, who, partition }),
        6 => (id(), who(), any::<bool>(), any::<bool>())
            .prop_map(|(id, who, commit, new)| Step::End { id, who, commit, new }),
        6 => (0_usize..3).prop_map(|order| Step::Marker { order }),
        1 => (0_i64..90_000).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::FailNext),
        1 => Just(Step::Reload),
        1 => (0_i16..3).prop_map(Step::Version),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What the clients of one id know.
#[derive(Default)]
struct Clients {
    /// Everything that a producer was ever told to be, the latest last.
    told: Vec<Producer>,
}

impl Clients {
    fn ago(&self, who: usize) -> Option<Producer> {
        self.told.iter().rev().nth(who).copied()
    }

    fn tell(&mut self, producer: Producer) {
        self.told.retain(|one| *one != producer);
        self.told.push(producer);
    }
}

fn run(steps: &[Step], start_epoch: i16) {
    let mut broker = Runtime::new();
    let mut clients: BTreeMap<&str, Clients> = BTreeMap::new();
    for id in IDS {
        // Some begin where epochs are about to run out.
        let mut own = broker.init(id).unwrap();
        if start_epoch > 0 {
            let mut first = broker.last(id);
            first.producer = producer(own.id.value(), start_epoch);
            own = first.producer;
            let record = yuxi_coordinator::transactions::records::transaction(
                &id.into(),
                &first,
                TransactionVersion::V2,
            );
            broker.log.push(record);
        }
        clients.entry(id).or_default().tell(own);
    }
    broker.reload();
    for step in steps {
        take(&mut broker, &mut clients, step);
        check_orders(&broker);
    }
    check_log(&broker);
    check_reload(&mut broker);
}

fn take(broker: &mut Runtime, clients: &mut BTreeMap<&str, Clients>, step: &Step) {
    match *step {
        Step::Init { id, goes_on } => {
            let id = IDS[id];
            let known = clients.get_mut(id).unwrap();
            let current = goes_on.and_then(|who| known.ago(who));
            if let Ok(producer) = broker.init_as(id, current) {
                if let Some(current) = current {
                    let latest = known.ago(0);
                    assert!(
                        Some(current) == latest || latest == Some(producer),
                        "{current:?} went on, though {latest:?} was there"
                    );
                }
                known.tell(producer);
            }
        }
        Step::Add { id, who, partition } => {
            let id = IDS[id];
            let known = &clients[id];
            let Some(asks) = known.ago(who) else { return };
            if broker.add(id, asks, &[("t", partition)]).is_ok() {
                assert_eq!(Some(asks), known.ago(0), "a zombie writes");
            }
        }
        Step::End {
            id,
            who,
            commit,
            new,
        } => {
            let id = IDS[id];
            let known = clients.get_mut(id).unwrap();
            let Some(asks) = known.ago(who) else { return };
            let client = if new { NEW } else { OLD };
            let written = broker.log.len();
            match broker.end(id, asks, commit, client) {
                Ok(producer) => {
                    let last = broker.last(id);
                    assert!(
                        outcome(&last) == Some(commit),
                        "told {commit}, and the log has {last:?}"
                    );
                    if broker.log.len() > written {
                        assert_eq!(Some(asks), known.ago(0), "a zombie ends a transaction");
                        assert_eq!(asks != producer, new, "each end is another epoch");
                    }
                    known.tell(producer);
                }
                Err(_) => {
                    assert_eq!(broker.log.len(), written, "refused, and yet written");
                }
            }
        }
        Step::Marker { order } => drop(broker.write_marker(order)),
        Step::Wait { ms } => broker.wait(ms),
        Step::FailNext => broker.fail_next = Some(ErrorCode::NotEnoughReplicas),
        Step::Reload => broker.reload(),
        Step::Version(level) => {
            broker.config.version = TransactionVersion::new(level);
            broker.shard.set_config(broker.config.clone());
        }
    }
}

fn outcome(transaction: &Transaction) -> Option<bool> {
    match transaction.state {
        TransactionState::PrepareCommit | TransactionState::CompleteCommit => Some(true),
        TransactionState::PrepareAbort | TransactionState::CompleteAbort => Some(false),
        TransactionState::Empty | TransactionState::Ongoing => None,
    }
}

/// Whatever is to be marked is what the log has decided, and in the newest epoch.
fn check_orders(broker: &Runtime) {
    for order in &broker.orders {
        let last = broker.last(&order.transactional_id);
        let ends = matches!(
            last.state,
            TransactionState::PrepareCommit | TransactionState::PrepareAbort
        );
        assert!(ends, "markers without an end: {last:?}");
        assert_eq!(Some(order.commit), outcome(&last));
        assert_eq!(order.producer, last.producer);
        assert!(last.partitions.contains_all(&order.partitions));
    }
}

/// The log tells of each transaction one outcome, and of each producer rising epochs.
fn check_log(broker: &Runtime) {
    let mut owners: BTreeMap<ProducerId, String> = BTreeMap::new();
    let mut before: BTreeMap<String, Transaction> = BTreeMap::new();
    for (id, value) in broker.written() {
        let next = value.expect("nothing expires within the test");
        let owner = owners.entry(next.producer.id).or_insert(id.to_string());
        assert_eq!(*owner, id.as_str(), "two ids have one producer");
        if let Some(before) = before.get(id.as_str()) {
            if next.producer.id == before.producer.id {
                assert!(next.producer.epoch >= before.producer.epoch, "{next:?}");
            }
            match before.state {
                TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                    assert_eq!(outcome(&next), outcome(before), "two outcomes");
                    assert!(next.partitions.is_empty(), "it is complete: {next:?}");
                }
                TransactionState::Ongoing => {
                    assert_ne!(next.state, TransactionState::Empty, "it has no outcome");
                    if outcome(&next).is_some() && !next.partitions.is_empty() {
                        assert_eq!(next.partitions, before.partitions, "all are marked");
                    }
                }
                TransactionState::Empty
                | TransactionState::CompleteCommit
                | TransactionState::CompleteAbort => {}
            }
        }
        before.insert(id.to_string(), next);
    }
}

/// Another coordinator knows all that this one knew.
fn check_reload(broker: &mut Runtime) {
    let listed = broker.list(ListFilter::default());
    let known: Vec<_> = IDS.iter().map(|id| broker.describe(id).unwrap()).collect();
    broker.reload();
    assert_eq!(broker.list(ListFilter::default()), listed);
    for (id, known) in IDS.iter().zip(known) {
        let mut again = broker.describe(id).unwrap();
        if outcome(&broker.last(id)).is_some() {
            // It does not know which markers are written.
            assert!(again.partitions.contains_all(&known.partitions));
            again.partitions = known.partitions.clone();
        }
        assert_eq!(again, known);
    }
    // And brings everything to its end.
    broker.fail_next = None;
    broker.write_markers();
    broker.wait(1_000_000);
    broker.write_markers();
    for id in IDS {
        let state = broker.state(id);
        assert!(
            !matches!(
                state,
                TransactionState::Ongoing
                    | TransactionState::PrepareCommit
                    | TransactionState::PrepareAbort
            ),
            "{id} hangs in {state:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn transactions_have_one_outcome_and_zombies_none(
        steps in steps(),
        start_epoch in prop_oneof![Just(0_i16), (i16::MAX - 6)..i16::MAX],
    ) {
        run(&steps, start_epoch);
    }
}
