//! Producing: what is refused, what is changed on the way in, when it is acknowledged; and
//! where records are found, how long they stay.

use crate::support::{
    Client, Server, batch, batch_with, fetch_request, now_ms, only_partition, produce_request,
    records, sequenced, value_of, wait_for,
};
use bytes::Bytes;
use yuxi_protocol::{
    codec::Uuid,
    error_code::ErrorCode,
    message,
    messages::{
        self, ListOffsetsRequest, ProduceResponse,
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
    record::{BatchView, Compression, RecordBatchBuilder, TimestampType},
};

pub(crate) async fn topic(server: &Server, configs: &[(&str, &str)]) -> Client {
    let mut client = server.client().await;
    client.create_topic("t", 1, configs).await;
    client
}

pub(crate) async fn alter(client: &mut Client, name: &str, value: &str) {
    alter_topic(client, "t", name, value).await;
}

pub(crate) async fn alter_topic(client: &mut Client, topic: &str, name: &str, value: &str) {
    let answer = client
        .ask(
            1,
            &message!(messages::IncrementalAlterConfigsRequest {
                resources: vec![message!(AlterConfigsResource {
                    resource_type: 2,
                    resource_name: topic.into(),
                    configs: vec![message!(AlterableConfig {
                        name: name.into(),
                        value: Some(value.into()),
                    })],
                })],
            }),
        )
        .await;
    assert_eq!(answer.responses[0].error_code, 0, "{name}={value}");
}

async fn offset_at(client: &mut Client, timestamp: i64) -> (i64, i64) {
    let answer = client
        .ask(
            7,
            &message!(ListOffsetsRequest {
                replica_id: -1,
                topics: vec![message!(ListOffsetsTopic {
                    name: "t".into(),
                    partitions: vec![message!(ListOffsetsPartition {
                        partition_index: 0,
                        timestamp,
                        current_leader_epoch: -1,
                    })],
                })],
            }),
        )
        .await;
    let found = &answer.topics[0].partitions[0];
    assert_eq!(found.error_code, 0);
    (found.offset, found.timestamp)
}

async fn delete_before(client: &mut Client, offset: i64) -> (i16, i64) {
    let answer = client
        .ask(
            2,
            &message!(messages::DeleteRecordsRequest {
                topics: vec![message!(DeleteRecordsTopic {
                    name: "t".into(),
                    partitions: vec![message!(DeleteRecordsPartition {
                        partition_index: 0,
                        offset,
                    })],
                })],
                timeout_ms: 1000,
            }),
        )
        .await;
    let deleted = &answer.topics[0].partitions[0];
    (deleted.error_code, deleted.low_watermark)
}

pub(crate) fn code(error: ErrorCode) -> i16 {
    error.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_flush_messages_1_an_answer_means_that_the_log_was_flushed() {
    let server = Server::start_with(&[("admin.listener", "127.0.0.1:0")]).await;
    let mut client = topic(&server, &[("flush.messages", "1")]).await;
    for (acks, expected) in [(1, 0), (-1, 1), (-1, 2)] {
        let before = flushes(&server).await;
        let answer = client
            .ask(9, &produce_request("t", 0, acks, batch(&["x"])))
            .await;
        assert_eq!(only_partition(answer).base_offset, expected);
        assert!(flushes(&server).await > before, "acks={acks}");
    }
    // Many at once share flushes and are all answered.
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(
            client
                .send(9, &produce_request("t", 0, -1, batch(&["x"])))
                .await,
        );
    }
    for (id, expected) in ids.into_iter().zip(3..) {
        let answer: ProduceResponse = client.receive(id, 9).await;
        assert_eq!(only_partition(answer).base_offset, expected);
    }
}

/// How many flushes the metrics tell of.
async fn flushes(server: &Server) -> u64 {
    let name = "kafka_log_logflushstats_logflushrateandtimems_count ";
    let page = metrics(server).await;
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the count").trim().parse().expect("a number")
}

pub(crate) async fn metrics(server: &Server) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = server.broker().admin_address().expect("an admin listener");
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connects");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("written");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("a page");
    page
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_by_topic_id_count_for_their_topic_and_every_error_told_is_counted() {
    let server = Server::start_with(&[("admin.listener", "127.0.0.1:0")]).await;
    let mut client = server.client().await;
    let id = client.create_topic("t", 1, &[]).await;
    client.produce("t", batch(&["x"])).await;
    for offset in [0, 99] {
        let mut request = fetch_request("", 0, offset, 0, 1);
        request.topics[0].topic_id = id;
        client.ask(16, &request).await;
    }
    client.produce("missing", batch(&["x"])).await;
    let page = metrics(&server).await;
    for expected in [
        "kafka_server_brokertopicmetrics_totalfetchrequests_total{topic=\"t\"} 2",
        "kafka_server_brokertopicmetrics_failedfetchrequests_total{topic=\"t\"} 1",
        "kafka_network_requestmetrics_errors_total{request=\"Fetch\",error=\"OFFSET_OUT_OF_RANGE\"} 1",
        "kafka_network_requestmetrics_errors_total{request=\"Produce\",\
         error=\"UNKNOWN_TOPIC_OR_PARTITION\"} 1",
    ] {
        assert!(page.lines().any(|line| line == expected), "{expected}");
    }
    assert!(!page.contains("topic=\"\""), "a topic without a name");
    client.delete_topic("t").await;
    wait_for("its counters to go", async || {
        (!metrics(&server).await.contains("topic=\"t\"")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_topic_flushes_every_record_still_answers() {
    let server = Server::start_with(&[("log.flush.interval.messages", "1")]).await;
    let mut client = topic(&server, &[]).await;
    crate::groups::commit(&mut client, "g", "t", 5).await;
    assert_eq!(crate::groups::committed(&mut client, "g", "t").await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotent_producers_retries_are_stored_once_and_gaps_are_refused() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    let first = client.produce("t", sequenced(9, 0, 0, &["a", "b"])).await;
    assert_eq!((first.error_code, first.base_offset), (0, 0));
    let again = client.produce("t", sequenced(9, 0, 0, &["a", "b"])).await;
    assert_eq!((again.error_code, again.base_offset), (0, 0));
    let gap = client.produce("t", sequenced(9, 0, 3, &["d"])).await;
    assert_eq!(gap.error_code, code(ErrorCode::OutOfOrderSequenceNumber));
    let next = client.produce("t", sequenced(9, 0, 2, &["c"])).await;
    assert_eq!((next.error_code, next.base_offset), (0, 2));
    let newer = client.produce("t", sequenced(9, 1, 0, &["d"])).await;
    assert_eq!((newer.error_code, newer.base_offset), (0, 3));
    let fenced = client.produce("t", sequenced(9, 0, 3, &["old"])).await;
    assert_eq!(fenced.error_code, code(ErrorCode::InvalidProducerEpoch));
    let server = server.restart().await;
    let mut client = server.client().await;
    let again = client.produce("t", sequenced(9, 1, 0, &["d"])).await;
    assert_eq!(
        (again.error_code, again.base_offset),
        (0, 3),
        "after a restart"
    );
    assert_eq!(client.values("t", 0).await, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_times_are_the_brokers_where_the_topic_says_so() {
    let server = Server::start().await;
    let mut client = topic(&server, &[("message.timestamp.type", "LogAppendTime")]).await;
    let before = now_ms();
    let answer = client
        .produce("t", batch_with(RecordBatchBuilder::new(), 1, &["x", "y"]))
        .await;
    assert!(answer.log_append_time_ms >= before);
    let fetched = client.fetch("t", 0).await;
    let found = records(fetched.responses[0].partitions[0].records.as_ref());
    assert_eq!(found.len(), 2);
    assert!(
        found
            .iter()
            .all(|record| record.timestamp == answer.log_append_time_ms)
    );
    assert_eq!(offset_at(&mut client, before).await.0, 0);
    // A producer may not claim append times itself.
    alter(&mut client, "message.timestamp.type", "CreateTime").await;
    let claimed = batch_with(RecordBatchBuilder::new().log_append_time(7), 7, &["z"]);
    let answer = client.produce("t", claimed).await;
    assert_eq!(answer.error_code, code(ErrorCode::InvalidTimestamp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_stored_in_the_topics_codec() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    let codecs = [
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
        ("uncompressed", Compression::None),
    ];
    for (offset, (name, codec)) in (0..).zip(codecs) {
        alter(&mut client, "compression.type", name).await;
        let sent = RecordBatchBuilder::new().compression(
            if codec == Compression::Zstd {
                Compression::Gzip
            } else {
                Compression::Zstd
            },
            None,
        );
        let answer = client
            .produce("t", batch_with(sent, now_ms(), &["value"]))
            .await;
        assert_eq!((answer.error_code, answer.base_offset), (0, offset));
        let fetched = client.fetch("t", offset).await;
        let bytes = fetched.responses[0].partitions[0]
            .records
            .clone()
            .expect("records");
        let view = BatchView::parse(&bytes).expect("a batch");
        view.check_crc().expect("the checksum fits");
        assert_eq!(view.header().compression(), codec);
        assert_eq!(value_of(&records(Some(&bytes))[0]), "value");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_over_max_message_bytes_is_refused_before_and_after_conversion() {
    let server = Server::start().await;
    let mut client = topic(&server, &[("max.message.bytes", "2000")]).await;
    let large = "x".repeat(5000);
    let answer = client.produce("t", batch(&[&large])).await;
    assert_eq!(answer.error_code, code(ErrorCode::MessageTooLarge));
    let packed = || {
        let builder = RecordBatchBuilder::new().compression(Compression::Gzip, None);
        batch_with(builder, now_ms(), &[&large])
    };
    assert!(packed().len() < 2000);
    assert_eq!(client.produce("t", packed()).await.error_code, 0);
    alter(&mut client, "compression.type", "uncompressed").await;
    let answer = client.produce("t", packed()).await;
    assert_eq!(answer.error_code, code(ErrorCode::MessageTooLarge));
    alter(&mut client, "max.message.bytes", "100000").await;
    assert_eq!(client.produce("t", packed()).await.base_offset, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timestamps_outside_of_the_topics_window_are_refused() {
    let server = Server::start().await;
    let mut client = topic(
        &server,
        &[
            ("message.timestamp.before.max.ms", "60000"),
            ("message.timestamp.after.max.ms", "60000"),
        ],
    )
    .await;
    for (shift, expected) in [
        (0, 0),
        (-30_000, 0),
        (30_000, 0),
        (-90_000, 32),
        (90_000, 32),
    ] {
        let sent = batch_with(RecordBatchBuilder::new(), now_ms() + shift, &["x"]);
        assert_eq!(
            client.produce("t", sent).await.error_code,
            expected,
            "{shift}"
        );
    }
    let mut mixed = RecordBatchBuilder::new();
    for shift in [0, -90_000, 30_000, 90_000] {
        let value = Some(&b"x"[..]);
        mixed
            .append(now_ms() + shift, None, value, &[])
            .expect("a record");
    }
    let answer = client.produce("t", mixed.build().expect("a batch")).await;
    assert_eq!(answer.error_code, 32);
    let named = answer.record_errors.iter().map(|at| at.batch_index);
    assert_eq!(named.collect::<Vec<_>>(), [1, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_one_wrong_bit_is_refused_and_nothing_of_it_is_stored() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    let good = batch(&["some value"]);
    // The base offset and the leader epoch are the broker's to fill in.
    for at in (8..12).chain(16..good.len()) {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        let answer = client.produce("t", Bytes::from(bad)).await;
        assert_ne!(answer.error_code, 0, "byte {at}");
    }
    assert_eq!(client.produce("t", good).await.base_offset, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_deleted_up_to_an_offset_and_stay_deleted() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    for value in ["a", "b", "c", "d"] {
        client.produce("t", batch(&[value])).await;
    }
    let out_of_range = code(ErrorCode::OffsetOutOfRange);
    assert_eq!(delete_before(&mut client, 5).await.0, out_of_range);
    assert_eq!(delete_before(&mut client, -2).await.0, out_of_range);
    assert_eq!(delete_before(&mut client, 2).await, (0, 2));
    assert_eq!(delete_before(&mut client, 1).await, (0, 2), "never back");
    let before = client.fetch("t", 1).await;
    assert_eq!(before.responses[0].partitions[0].error_code, out_of_range);
    assert_eq!(client.values("t", 2).await, ["c", "d"]);
    let server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(offset_at(&mut client, -2).await.0, 2);
    assert_eq!(delete_before(&mut client, -1).await, (0, 4));
    assert_eq!(offset_at(&mut client, -2).await.0, 4);
    assert_eq!(client.produce("t", batch(&["e"])).await.base_offset, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_found_by_time() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    assert_eq!(offset_at(&mut client, -3).await, (-1, -1));
    let base = now_ms() - 10_000;
    for (value, time) in [("a", 0), ("b", 300), ("c", 100), ("d", 200)] {
        let sent = batch_with(RecordBatchBuilder::new(), base + time, &[value]);
        client.produce("t", sent).await;
    }
    for (timestamp, expected) in [
        (-1, (4, -1)),
        (-2, (0, -1)),
        (-3, (1, base + 300)),
        (0, (0, base)),
        (base, (0, base)),
        (base + 1, (1, base + 300)),
        (base + 300, (1, base + 300)),
        (base + 301, (-1, -1)),
        (i64::MAX, (-1, -1)),
    ] {
        assert_eq!(
            offset_at(&mut client, timestamp).await,
            expected,
            "{timestamp}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_that_is_changed_while_running_takes_effect() {
    let server = Server::start_with(&[("log.retention.check.interval.ms", "100")]).await;
    let mut client = topic(&server, &[("segment.bytes", "1048576")]).await;
    let large = "x".repeat(600_000);
    for _ in 0..6 {
        client.produce("t", batch(&[&large])).await;
    }
    assert_eq!(offset_at(&mut client, -2).await.0, 0);
    alter(&mut client, "retention.bytes", "1000000").await;
    let start = wait_for("retention", async || {
        let start = offset_at(&mut client, -2).await.0;
        (start > 0).then_some(start)
    })
    .await;
    assert!(start < 6, "the active segment stays");
    assert_eq!(offset_at(&mut client, -1).await.0, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_clean_restart_and_after_a_crash() {
    let server = Server::start().await;
    let mut client = topic(&server, &[("segment.bytes", "1048576")]).await;
    let id = client.topic_id("t").await;
    assert_ne!(id, Uuid::ZERO);
    let large = "x".repeat(500_000);
    let mut expected = Vec::new();
    for number in 0..7 {
        let value = format!("{number}{large}");
        client.produce("t", batch(&[&value])).await;
        expected.push(value);
    }
    let crashed = server.start_after_crash().await;
    let mut after = crashed.client().await;
    assert!(after.values("t", 0).await == expected, "after a crash");
    assert_eq!(after.topic_id("t").await, id);
    assert_eq!(after.produce("t", batch(&["more"])).await.base_offset, 7);

    let server = server.restart().await;
    let mut client = server.client().await;
    assert!(
        client.values("t", 0).await == expected,
        "after a clean restart"
    );
    assert_eq!(client.topic_id("t").await, id);
    assert_eq!(client.produce("t", batch(&["more"])).await.base_offset, 7);
    let header = {
        let fetched = client.fetch("t", 7).await;
        let bytes = fetched.responses[0].partitions[0]
            .records
            .clone()
            .expect("records");
        *BatchView::parse(&bytes).expect("a batch").header()
    };
    assert_eq!(header.timestamp_type(), TimestampType::CreateTime);
}
