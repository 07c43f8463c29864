//! Consumers of the client crate that share a group: who reads what as they come and go.

use crate::support::{DEADLINE, Server, wait_for};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use yuxi_client::{ClientConfig, Cluster, Consumer, ConsumerRecord, Producer, Record};

const TOPIC: &str = "shared";
const PARTITIONS: i32 = 4;
const EAGER: &str = "range";
const COOPERATIVE: &str = "cooperative-sticky";

fn config(server: &Server, settings: &[(&str, &str)]) -> ClientConfig {
    let address = server.broker().address().to_string();
    let mut config = ClientConfig::new(&address).expect("an address");
    for (name, value) in [
        ("group.id", "group"),
        ("auto.offset.reset", "earliest"),
        ("heartbeat.interval.ms", "50"),
        ("session.timeout.ms", "6000"),
        ("enable.auto.commit", "false"),
    ]
    .iter()
    .chain(settings)
    {
        config.set(name, value).expect("a valid setting");
    }
    config
}

async fn topic_with_partitions(server: &Server) {
    let mut client = server.client().await;
    client.create_topic(TOPIC, PARTITIONS, &[]).await;
}

async fn member(server: &Server, settings: &[(&str, &str)]) -> Consumer {
    let cluster = Cluster::connect(config(server, settings)).await;
    let mut consumer = Consumer::new(cluster.expect("the broker answers"));
    consumer
        .subscribe([Arc::from(TOPIC)])
        .expect("a group is set");
    consumer
}

/// Spreads the values of `range` over the partitions.
async fn produce(server: &Server, range: std::ops::Range<i32>) {
    let producer = Producer::connect(config(server, &[])).await.expect("up");
    for value in range {
        let mut record = Record::new(TOPIC, value.to_string());
        record.partition = Some(value % PARTITIONS);
        producer.enqueue(record).await.expect("room");
    }
    producer.flush().await;
    assert_eq!(producer.totals().failed, 0);
}

fn value(record: &ConsumerRecord) -> i32 {
    let text = std::str::from_utf8(record.value.as_deref().unwrap_or_default());
    text.ok().and_then(|text| text.parse().ok()).expect("ours")
}

/// What the members have read: each value with how often.
#[derive(Default)]
struct Read(BTreeMap<i32, u32>);

impl Read {
    /// Lets the members poll in turn, committing what they got, until `enough` holds.
    async fn until(
        &mut self,
        members: &mut [&mut Consumer],
        what: &str,
        mut enough: impl FnMut(&Self, &[&mut Consumer]) -> bool,
    ) {
        let deadline = Instant::now() + DEADLINE;
        while !enough(self, members) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.0);
            for consumer in members.iter_mut() {
                let polled = consumer.poll(Duration::from_millis(20)).await;
                let records = polled.expect("the group goes on");
                for record in &records {
                    *self.0.entry(value(record)).or_default() += 1;
                }
                if !records.is_empty() {
                    // A rebalance may have begun: then the next member has what was not
                    // committed, and no test here lets records come in the midst of one.
                    consumer.commit().await.expect("no rebalance is going on");
                }
            }
        }
    }

    fn has_all(&self, range: std::ops::Range<i32>) -> bool {
        range.into_iter().all(|value| self.0.contains_key(&value))
    }

    fn assert_once(&self, range: std::ops::Range<i32>) {
        let expected: BTreeMap<i32, u32> = range.map(|value| (value, 1)).collect();
        assert_eq!(self.0, expected);
    }
}

fn owned(consumer: &Consumer) -> BTreeSet<i32> {
    let partitions = consumer.assignment();
    partitions.map(|p| p.partition.value()).collect()
}

/// Every partition has one owner, and everyone has an equal share.
fn shared_evenly(members: &[&mut Consumer]) -> bool {
    let owners: Vec<BTreeSet<i32>> = members.iter().map(|member| owned(member)).collect();
    let share = PARTITIONS as usize / members.len();
    let all: BTreeSet<i32> = owners.iter().flatten().copied().collect();
    owners.iter().all(|owned| owned.len() == share) && all.len() == PARTITIONS as usize
}

#[tokio::test]
async fn members_share_the_partitions_and_whoever_stays_takes_over_without_loss_or_repetition() {
    for assignor in [EAGER, "roundrobin", COOPERATIVE] {
        let server = Server::start().await;
        topic_with_partitions(&server).await;
        let settings = [("partition.assignment.strategy", assignor)];
        let mut read = Read::default();

        let mut first = member(&server, &settings).await;
        produce(&server, 0..40).await;
        let members = &mut [&mut first];
        read.until(members, "alone", |read, _| read.has_all(0..40))
            .await;
        assert_eq!(owned(&first).len(), PARTITIONS as usize);

        let mut second = member(&server, &settings).await;
        let members = &mut [&mut first, &mut second];
        read.until(members, "two", |_, members| shared_evenly(members))
            .await;
        produce(&server, 40..80).await;
        read.until(members, "two", |read, _| read.has_all(40..80))
            .await;

        second.close().await.expect("a farewell");
        let members = &mut [&mut first];
        read.until(members, "one left", |_, members| shared_evenly(members))
            .await;
        produce(&server, 80..120).await;
        read.until(members, "one left", |read, _| read.has_all(80..120))
            .await;

        read.assert_once(0..120);
        first.close().await.expect("a farewell");
        server.shutdown().await;
    }
}

#[tokio::test]
async fn cooperative_members_keep_what_does_not_move_while_the_group_rebalances() {
    let server = Server::start().await;
    topic_with_partitions(&server).await;
    let settings = [("partition.assignment.strategy", COOPERATIVE)];
    let mut read = Read::default();
    let mut first = member(&server, &settings).await;
    let members = &mut [&mut first];
    read.until(members, "alone", |_, members| shared_evenly(members))
        .await;

    let mut second = member(&server, &settings).await;
    let mut fewest = PARTITIONS as usize;
    let members = &mut [&mut first, &mut second];
    read.until(members, "two", |_, members| {
        fewest = fewest.min(owned(members[0]).len());
        shared_evenly(members)
    })
    .await;
    assert_eq!(fewest, 2, "the first gave up more than what moves");
}

#[tokio::test]
async fn a_member_that_vanishes_is_replaced_when_its_session_ends_and_what_it_committed_counts() {
    let server = Server::start().await;
    topic_with_partitions(&server).await;
    let mut read = Read::default();
    let mut first = member(&server, &[]).await;
    let mut second = member(&server, &[]).await;
    let members = &mut [&mut first, &mut second];
    read.until(members, "two", |_, members| shared_evenly(members))
        .await;
    produce(&server, 0..40).await;
    read.until(members, "two", |read, _| read.has_all(0..40))
        .await;

    drop(second);
    produce(&server, 40..80).await;
    let members = &mut [&mut first];
    read.until(members, "one left", |read, _| read.has_all(40..80))
        .await;
    read.assert_once(0..80);
}

#[tokio::test]
async fn automatic_commits_cover_what_was_handed_out_when_a_partition_moves() {
    let server = Server::start().await;
    topic_with_partitions(&server).await;
    let settings = [
        ("enable.auto.commit", "true"),
        // Only the rebalance and the farewell commit.
        ("auto.commit.interval.ms", "3600000"),
        ("max.poll.records", "3"),
    ];
    produce(&server, 0..200).await;
    let mut seen = BTreeMap::new();
    let mut note = |records: Vec<ConsumerRecord>| {
        for record in records {
            *seen.entry(value(&record)).or_insert(0) += 1;
        }
        seen.len()
    };
    let mut first = member(&server, &settings).await;
    while note(first.poll(Duration::from_millis(20)).await.expect("up")) < 50 {}
    let mut second = member(&server, &settings).await;
    wait_for("all records", async || {
        let one = first.poll(Duration::from_millis(5)).await;
        note(one.expect("the group goes on"));
        let other = second.poll(Duration::from_millis(5)).await;
        (note(other.expect("the group goes on")) == 200).then_some(())
    })
    .await;
    assert!(!owned(&second).is_empty(), "the second never got a share");
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test]
async fn a_restarted_broker_finds_its_members_again_and_their_offsets() {
    let server = Server::start().await;
    topic_with_partitions(&server).await;
    produce(&server, 0..40).await;
    let mut read = Read::default();
    let mut first = member(&server, &[]).await;
    let members = &mut [&mut first];
    read.until(members, "before", |read, _| read.has_all(0..40))
        .await;
    first.close().await.expect("a farewell");

    let server = server.restart().await;
    produce(&server, 40..80).await;
    let mut again = member(&server, &[]).await;
    let members = &mut [&mut again];
    read.until(members, "after", |read, _| read.has_all(40..80))
        .await;
    read.assert_once(0..80);
}
