//! Compaction in a running broker. What stays of a log is tested with the log; here is what
//! the broker adds: choosing logs, while clients write and read; the checkpoint; logs that
//! can't be compacted; the topics of the coordinators.

use crate::{
    groups::{commit, committed},
    records::{alter, alter_topic, metrics},
    support::{
        Client, Server, batch, now_ms, only_partition, owned, produce_request, records, wait_for,
    },
    transactions::{Who, init, topics, transactional},
};
use bytes::Bytes;
use std::{collections::BTreeMap, fs, path::PathBuf};
use yuxi_protocol::{
    message,
    messages::{
        AddPartitionsToTxnRequest, DescribeTransactionsRequest, EndTxnRequest,
        FindCoordinatorRequest, describe_transactions_response::TransactionState,
    },
    record::RecordBatchBuilder,
};

/// The error of a batch with a record that has no key.
const INVALID_RECORD: i16 = 87;

const EAGER: &[(&str, &str)] = &[
    ("log.cleaner.backoff.ms", "20"),
    ("log.cleaner.min.cleanable.ratio", "0"),
    ("log.segment.delete.delay.ms", "0"),
];

const SMALL: &[(&str, &str)] = &[("segment.bytes", "2000"), ("cleanup.policy", "compact")];

fn keyed(key: &str, value: Option<&str>) -> Bytes {
    let mut builder = RecordBatchBuilder::new();
    builder
        .append(
            now_ms(),
            Some(key.as_bytes()),
            value.map(str::as_bytes),
            &[],
        )
        .expect("a record");
    builder.build().expect("a batch")
}

/// Everything that a reader sees: offset, key and value.
async fn read(client: &mut Client, topic: &str) -> Vec<(i64, String, String)> {
    let text = |bytes: Option<&Bytes>| {
        String::from_utf8_lossy(bytes.map_or(&[][..], |bytes| bytes)).into_owned()
    };
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        let answer = client.fetch(topic, from).await;
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0, "{topic} at {from}");
        let read = records(partition.records.as_ref());
        let Some(last) = read.last() else {
            return found;
        };
        let next = last.offset.value() + 1;
        for record in read.iter().filter(|record| record.offset.value() >= from) {
            let (key, value) = (text(record.key.as_ref()), text(record.value.as_ref()));
            found.push((record.offset.value(), key, value));
        }
        from = next;
    }
}

/// Writes `count` values to each of ten keys in turn.
async fn write(client: &mut Client, topic: &str, count: usize) {
    for number in 0..10 * count {
        let value = format!("{number:060}");
        let key = format!("k{}", number % 10);
        let answer = client.produce(topic, keyed(&key, Some(&value))).await;
        assert_eq!(answer.error_code, 0);
    }
}

/// Waits until the log holds little more than the last of each key.
async fn wait_until_clean(client: &mut Client, topic: &str) -> Vec<(i64, String, String)> {
    wait_for("the compaction", async || {
        let found = read(client, topic).await;
        // The active segment has some more.
        (found.len() < 40).then_some(found)
    })
    .await
}

fn last_of_each(records: &[(i64, String, String)]) -> BTreeMap<String, String> {
    let pairs = records
        .iter()
        .map(|(_, key, value)| (key.clone(), value.clone()));
    pairs.collect()
}

fn last_values(count: usize) -> BTreeMap<String, String> {
    (0..10)
        .map(|key| (format!("k{key}"), format!("{:060}", 10 * (count - 1) + key)))
        .collect()
}

fn checkpoint(server: &Server) -> Option<String> {
    fs::read_to_string(server.directory().join("cleaner-offset-checkpoint")).ok()
}

fn segment(server: &Server, partition: &str) -> PathBuf {
    server
        .directory()
        .join(partition)
        .join("00000000000000000000.log")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_keeps_the_last_value_of_each_key_and_its_offset() {
    let server = Server::start_with(EAGER).await;
    let mut client = server.client().await;
    client.create_topic("t", 1, SMALL).await;
    write(&mut client, "t", 30).await;
    let found = wait_until_clean(&mut client, "t").await;
    assert_eq!(last_of_each(&found), last_values(30));
    let offsets: Vec<_> = found.iter().map(|(offset, _, _)| *offset).collect();
    assert!(offsets.is_sorted() && *offsets.last().expect("records") == 299);
    for (offset, _, value) in &found {
        assert_eq!(
            *value,
            format!("{offset:060}"),
            "every record is where it was"
        );
    }
    wait_for("the checkpoint", async || {
        let rows = checkpoint(&server)?;
        let mut rows = rows.lines().skip(2);
        rows.any(|row| row.starts_with("t 0 ")).then_some(())
    })
    .await;

    // It goes on after a crash and a restart, and clients never notice.
    let crashed = server.start_after_crash().await;
    let mut after = crashed.client().await;
    assert_eq!(last_of_each(&read(&mut after, "t").await), last_values(30));
    let server = server.restart().await;
    let mut client = server.client().await;
    write(&mut client, "t", 40).await;
    assert_eq!(
        client.produce("t", keyed("k3", None)).await.base_offset,
        700
    );
    let found = wait_until_clean(&mut client, "t").await;
    let mut expected = last_values(40);
    expected.insert("k3".to_owned(), String::new());
    assert_eq!(last_of_each(&found), expected);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_without_a_key_is_refused_where_keys_count() {
    let server = Server::start_with(EAGER).await;
    let mut client = server.client().await;
    client.create_topic("t", 1, SMALL).await;
    let answer = client.produce("t", batch(&["no key"])).await;
    assert_eq!(answer.error_code, INVALID_RECORD);
    let message = answer.error_message.expect("a reason");
    assert!(message.contains("record 0 has no key"), "{message:?}");
    // Each record that is at fault is named, so that a client can send the others again.
    let mut mixed = RecordBatchBuilder::new();
    for key in [Some(&b"a"[..]), None, Some(b"b"), None] {
        let value = Some(&b"value"[..]);
        mixed.append(now_ms(), key, value, &[]).expect("a record");
    }
    let answer = client.produce("t", mixed.build().expect("a batch")).await;
    assert_eq!(answer.error_code, INVALID_RECORD);
    let named: Vec<i32> = answer
        .record_errors
        .iter()
        .map(|at| at.batch_index)
        .collect();
    assert_eq!(named, [1, 3]);
    let message = answer.record_errors[1].batch_index_error_message.as_ref();
    let message = message.expect("what is wrong with it");
    assert!(message.contains("record 3 has no key"), "{message:?}");
    assert!(read(&mut client, "t").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_of_a_topic_can_change_while_it_is_used() {
    let server = Server::start_with(EAGER).await;
    let mut client = server.client().await;
    client
        .create_topic("t", 1, &[("segment.bytes", "2000")])
        .await;
    for number in 0..30 {
        client
            .produce("t", batch(&[&format!("{number:060}")]))
            .await;
    }
    write(&mut client, "t", 30).await;
    assert_eq!(read(&mut client, "t").await.len(), 330);
    alter(&mut client, "cleanup.policy", "compact").await;
    let found = wait_until_clean(&mut client, "t").await;
    assert_eq!(last_of_each(&found), last_values(30));
    assert!(found[0].0 >= 30, "what has no key is gone");

    alter(&mut client, "cleanup.policy", "delete").await;
    let answer = client.produce("t", batch(&["no key"])).await;
    assert_eq!(answer.error_code, 0);
    write(&mut client, "t", 5).await;
    // Those, the one before and at least the last of each key.
    assert!(read(&mut client, "t").await.len() >= 61);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_left_alone_and_the_others_are_compacted() {
    let server = Server::start_with(&[]).await;
    let mut client = server.client().await;
    for topic in ["bad", "good"] {
        client.create_topic(topic, 1, SMALL).await;
        write(&mut client, topic, 10).await;
    }
    let directory = server.shutdown_to_directory().await;
    let path = directory.path().join("bad-0/00000000000000000000.log");
    let mut bytes = fs::read(&path).expect("the segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).expect("it is damaged");

    let admin = [("admin.listener", "127.0.0.1:0")];
    let server = Server::start_in(directory, owned(&[EAGER, &admin].concat())).await;
    let mut client = server.client().await;
    let good = wait_until_clean(&mut client, "good").await;
    assert_eq!(last_of_each(&good), last_values(10));
    wait_for("the damage to be told", async || {
        let page = metrics(&server).await;
        page.lines()
            .any(|line| line == "kafka_log_logcleanermanager_uncleanable_partitions_count 1")
            .then_some(())
    })
    .await;
    assert_eq!(
        fs::read(segment(&server, "bad-0")).expect("the segment"),
        bytes
    );
    // It takes records all the same.
    let answer = client.produce("bad", keyed("k", Some("v"))).await;
    assert_eq!(answer.error_code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_of_committed_offsets_is_compacted_and_loaded() {
    let settings = [
        ("offsets.topic.num.partitions", "1"),
        ("offsets.topic.segment.bytes", "3000"),
    ];
    let server = Server::start_with(&[EAGER, &settings].concat()).await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    for offset in 0..60 {
        for group in ["a", "b"] {
            commit(&mut client, group, "t", offset).await;
        }
    }
    wait_for("the compaction", async || {
        (log_size(&server, "__consumer_offsets-0") < 5000).then_some(())
    })
    .await;
    let server = server.restart().await;
    let mut client = server.client().await;
    for group in ["a", "b"] {
        assert_eq!(committed(&mut client, group, "t").await, 59);
    }
    commit(&mut client, "a", "t", 60).await;
    assert_eq!(committed(&mut client, "a", "t").await, 60);
}

/// The bytes of all segments of a partition.
fn log_size(server: &Server, partition: &str) -> u64 {
    fs::read_dir(server.directory().join(partition))
        .expect("the directory")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
        .sum()
}

/// A transactional id and who its producer is.
struct Producer {
    id: &'static str,
    who: Who,
}

impl Producer {
    /// The next producer of an id, once the coordinator is there.
    async fn of(client: &mut Client, id: &'static str) -> Self {
        let who = wait_for("a producer id", async || {
            let find = message!(FindCoordinatorRequest {
                key: id.into(),
                key_type: 1,
            });
            client.ask(3, &find).await;
            let answer = client.ask(4, &init(id, 600_000, (-1, -1))).await;
            (answer.error_code == 0).then_some((answer.producer_id, answer.producer_epoch))
        })
        .await;
        Self { id, who }
    }

    /// Begins a transaction, once the one before is wholly ended.
    async fn begin(&self, client: &mut Client) {
        let request = message!(AddPartitionsToTxnRequest {
            v3_and_below_transactional_id: self.id.into(),
            v3_and_below_producer_id: self.who.0,
            v3_and_below_producer_epoch: self.who.1,
            v3_and_below_topics: topics(&[("t", 0)]),
        });
        wait_for("a transaction", async || {
            let answer = client.ask(3, &request).await;
            let topic = &answer.results_by_topic_v3_and_below[0];
            (topic.results_by_partition[0].partition_error_code == 0).then_some(())
        })
        .await;
    }

    async fn end(&self, client: &mut Client, committed: bool) {
        let request = message!(EndTxnRequest {
            transactional_id: self.id.into(),
            producer_id: self.who.0,
            producer_epoch: self.who.1,
            committed,
        });
        assert_eq!(client.ask(3, &request).await.error_code, 0, "{}", self.id);
    }
}

/// All there is to know of transactional ids, once none of them is between two states.
async fn describe(client: &mut Client, ids: &[&str]) -> Vec<TransactionState> {
    let request = message!(DescribeTransactionsRequest {
        transactional_ids: ids.iter().map(|&id| id.into()).collect(),
    });
    wait_for("the coordinator", async || {
        let states = client.ask(0, &request).await.transaction_states;
        let settled = states
            .iter()
            .all(|state| state.error_code == 0 && !state.transaction_state.starts_with("Prepare"));
        settled.then_some(states)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_of_transactions_is_compacted_and_loaded() {
    const STATES: &str = "__transaction_state";
    let settings = [("transaction.state.log.num.partitions", "1")];
    let server = Server::start_with(&[EAGER, &settings].concat()).await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let open = Producer::of(&mut client, "open").await;
    // The setting for this has no value that small.
    alter_topic(&mut client, STATES, "segment.bytes", "2000").await;
    open.begin(&mut client).await;
    let mut write = produce_request("t", 0, -1, transactional(open.who, 0, &["kept"]));
    write.transactional_id = Some(open.id.into());
    assert_eq!(only_partition(client.ask(11, &write).await).error_code, 0);
    for _ in 0..3 {
        Producer::of(&mut client, "replaced").await;
    }
    for (id, committed) in [("committed", true), ("aborted", false), ("busy", true)] {
        let producer = Producer::of(&mut client, id).await;
        for _ in 0..if id == "busy" { 100 } else { 3 } {
            producer.begin(&mut client).await;
            producer.end(&mut client, committed).await;
        }
    }
    let ids = ["open", "replaced", "committed", "aborted", "busy"];
    let before = describe(&mut client, &ids).await;
    let states: Vec<&str> = before.iter().map(|s| &*s.transaction_state).collect();
    let expected = [
        "Ongoing",
        "Empty",
        "CompleteCommit",
        "CompleteAbort",
        "CompleteCommit",
    ];
    assert_eq!(states, expected);
    // Of the 300 states of the last alone it had been ten times that.
    wait_for("the compaction", async || {
        (log_size(&server, &format!("{STATES}-0")) < 5000).then_some(())
    })
    .await;

    let crashed = server.start_after_crash().await;
    let mut after = crashed.client().await;
    assert_eq!(describe(&mut after, &ids).await, before);
    let server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(describe(&mut client, &ids).await, before);
    open.end(&mut client, true).await;
    describe(&mut client, &["open"]).await;
    assert_eq!(client.committed("t").await, ["kept"]);
    let replaced = Producer::of(&mut client, "replaced").await;
    assert_eq!(replaced.who.1, 3, "the fourth of its id");
}
