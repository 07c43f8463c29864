//! How long the controller takes to decide what the death of one broker of a large cluster
//! changes, and how much memory it needs for it.
//!
//! `cargo bench -p yuxi-controller --bench decide [-- PARTITIONS BROKERS]`

use std::{env, fs, time::Instant};

use yuxi_controller::{
    decide::{brokers, leaders},
    image::ClusterImage,
    keys::{
        AdmissionValue, BrokerValue, Key, PARTITIONS_PER_CHUNK, PartitionState, TopicValue,
        print_partitions, print_value,
    },
    settings::ServerSettings,
    store::{Batch, Change, Entry, Operation, Revision, Snapshot},
};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, TopicId};

const PARTITIONS_PER_TOPIC: usize = 100;
const REPLICAS: usize = 3;
const ROUNDS: usize = 5;

fn main() {
    let numbers: Vec<usize> = env::args()
        .skip(1)
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let partitions = numbers.first().copied().unwrap_or(1_000_000);
    let brokers = numbers.get(1).copied().unwrap_or(100);
    let settings = ServerSettings::from_properties("", &[]).expect("the defaults are valid");

    let started = Instant::now();
    let image = ClusterImage::from_snapshot(&snapshot(partitions, brokers)).expect("readable");
    println!(
        "an image of {partitions} partitions of {REPLICAS} replicas over {brokers} brokers: read in {:?}",
        started.elapsed()
    );
    let death = Batch {
        revision: image.revision().next(),
        changes: vec![Change::Delete(
            Key::Broker(BrokerId::new(1)).to_string().into(),
        )],
    };
    let image = image.advanced_by(&death).expect("readable");

    for round in 1..=ROUNDS {
        let started = Instant::now();
        let changes = brokers::reconcile(&image, &settings);
        let took = started.elapsed();
        let bytes: usize = changes
            .iter()
            .flat_map(|set| &set.operations)
            .map(Operation::size_in_bytes)
            .sum();
        println!(
            "round {round}: the death of a broker decided in {took:?}: {} chunks, {:.1} MB to write",
            changes.len(),
            bytes as f64 / 1e6
        );
    }
    let started = Instant::now();
    let (_, more) = yuxi_controller::decide::elections::rebalance(&image, &settings);
    println!(
        "a look for leaders to give back: {:?} (more: {more})",
        started.elapsed()
    );
    println!("peak resident memory: {}", peak_memory());
}

fn snapshot(partitions: usize, brokers: usize) -> Snapshot {
    let mut entries = Vec::new();
    let mut revision = 0;
    let mut put = |key: &Key, value| {
        revision += 1;
        entries.push(Entry {
            key: key.to_string().into(),
            value,
            create_revision: Revision::new(revision),
            mod_revision: Revision::new(revision),
            session: None,
        });
        revision
    };
    for number in 1..=brokers as i32 {
        let id = BrokerId::new(number);
        let registration = BrokerValue {
            incarnation: format!("{number:016x}"),
            endpoints: Vec::new(),
            rack: None,
            boot_id: "boot".to_owned(),
            directories: vec!["disk".to_owned()],
            former_incarnations: Vec::new(),
            clean_shutdown_epoch: None,
            candidate: true,
            damaged: false,
        };
        let epoch = put(&Key::Broker(id), print_value(&registration));
        let admission = AdmissionValue {
            broker_epoch: BrokerEpoch::new(epoch),
            incarnation: format!("{number:016x}"),
            boot_id: "boot".to_owned(),
            directories: vec!["disk".to_owned()],
            shutting_down: false,
        };
        put(&Key::Admission(id), print_value(&admission));
    }
    for topic in 0..partitions.div_ceil(PARTITIONS_PER_TOPIC) {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&(topic as u64).to_be_bytes());
        let topic_id = TopicId::from_bytes(id);
        let states: Vec<PartitionState> = (0..PARTITIONS_PER_TOPIC)
            .map(|partition| {
                let first = topic * 7 + partition;
                let replicas = (0..REPLICAS).map(|at| (first + at * (1 + topic % 5)) % brokers + 1);
                let replicas = replicas.map(|id| BrokerId::new(id as i32)).collect();
                leaders::first_state(replicas, &|_| true).expect("all are active")
            })
            .collect();
        for (chunk, states) in (0..).zip(states.chunks(PARTITIONS_PER_CHUNK)) {
            put(
                &Key::Partitions(topic_id, chunk),
                print_partitions(chunk, states),
            );
        }
        let value = TopicValue {
            topic_id,
            partitions: PARTITIONS_PER_TOPIC as u32,
        };
        put(
            &Key::Topic(format!("topic-{topic:06}").into()),
            print_value(&value),
        );
    }
    Snapshot {
        revision: Revision::new(revision),
        entries,
    }
}

/// As Linux tells it.
fn peak_memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.map_or_else(
        || "unknown".to_owned(),
        |line| line.trim_start_matches("VmHWM:").trim().to_owned(),
    )
}
