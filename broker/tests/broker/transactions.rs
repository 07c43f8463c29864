//! Transactions from InitProducerId to the markers in the partitions, by both protocols.

use crate::{
    support::{
        Client, Server, batch_with, fetch_request, now_ms, only_partition, produce_request,
        records, value_of, wait_for,
    },
    versions::{Table, code},
};
use std::sync::{
    Arc,
    atomic::{AtomicI16, Ordering},
};
use yuxi_protocol::{
    codec::Bytes,
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{
        AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiVersionsRequest,
        DescribeTransactionsRequest, EndTxnRequest, EndTxnResponse, FindCoordinatorRequest,
        InitProducerIdRequest, ListTransactionsRequest, UpdateFeaturesRequest,
        WriteTxnMarkersRequest,
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
        describe_transactions_response::TransactionState,
        update_features_request::FeatureUpdateKey,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
    record::RecordBatchBuilder,
};

const ID: &str = "tx";

/// Who a producer is: number and epoch.
pub(crate) type Who = (i64, i16);

pub(crate) fn init(transactional_id: &str, timeout_ms: i32, who: Who) -> InitProducerIdRequest {
    message!(InitProducerIdRequest {
        transactional_id: Some(transactional_id.into()),
        transaction_timeout_ms: timeout_ms,
        producer_id: who.0,
        producer_epoch: who.1,
    })
}

pub(crate) fn topics(partitions: &[(&str, i32)]) -> Vec<AddPartitionsToTxnTopic> {
    partitions
        .iter()
        .map(|&(topic, partition)| {
            message!(AddPartitionsToTxnTopic {
                name: topic.into(),
                partitions: vec![partition],
            })
        })
        .collect()
}

fn add(who: Who, partitions: &[(&str, i32)]) -> AddPartitionsToTxnRequest {
    message!(AddPartitionsToTxnRequest {
        v3_and_below_transactional_id: ID.into(),
        v3_and_below_producer_id: who.0,
        v3_and_below_producer_epoch: who.1,
        v3_and_below_topics: topics(partitions),
    })
}

/// The end of the transaction before the one of `who`, by the new protocol.
fn marker(who: Who) -> WriteTxnMarkersRequest {
    message!(WriteTxnMarkersRequest {
        markers: vec![message!(WritableTxnMarker {
            producer_id: who.0,
            producer_epoch: who.1,
            transaction_result: true,
            topics: vec![message!(WritableTxnMarkerTopic {
                name: "t".into(),
                partition_indexes: vec![0],
            })],
            transaction_version: 2,
        })],
    })
}

fn end(who: Who, committed: bool) -> EndTxnRequest {
    message!(EndTxnRequest {
        transactional_id: ID.into(),
        producer_id: who.0,
        producer_epoch: who.1,
        committed,
    })
}

pub(crate) fn transactional(who: Who, sequence: i32, values: &[&str]) -> Bytes {
    let builder = RecordBatchBuilder::new()
        .producer(ProducerId::new(who.0), ProducerEpoch::new(who.1), sequence)
        .transactional();
    batch_with(builder, now_ms(), values)
}

impl Client {
    /// A producer with a transactional id, once the coordinator is there.
    pub(crate) async fn init(&mut self, timeout_ms: i32) -> Who {
        wait_for("a producer id", async || {
            let find = message!(FindCoordinatorRequest {
                key: ID.into(),
                key_type: 1,
            });
            self.ask(3, &find).await;
            let answer = self.ask(4, &init(ID, timeout_ms, (-1, -1))).await;
            (answer.error_code == 0).then_some((answer.producer_id, answer.producer_epoch))
        })
        .await
    }

    /// Produces to partition 0 in a transaction; the error.
    pub(crate) async fn write_in(&mut self, version: i16, topic: &str, batch: Bytes) -> i16 {
        let mut request = produce_request(topic, 0, -1, batch);
        request.transactional_id = Some(ID.into());
        only_partition(self.ask(version, &request).await).error_code
    }

    pub(crate) async fn add(&mut self, who: Who, partitions: &[(&str, i32)]) -> Vec<i16> {
        let answer = self.ask(3, &add(who, partitions)).await;
        answer
            .results_by_topic_v3_and_below
            .iter()
            .flat_map(|topic| &topic.results_by_partition)
            .map(|result| result.partition_error_code)
            .collect()
    }

    pub(crate) async fn end(&mut self, version: i16, who: Who, committed: bool) -> EndTxnResponse {
        self.ask(version, &end(who, committed)).await
    }

    async fn state(&mut self) -> TransactionState {
        let request = message!(DescribeTransactionsRequest {
            transactional_ids: vec![ID.into()],
        });
        self.ask(0, &request).await.transaction_states.remove(0)
    }

    async fn until(&mut self, state: &str) {
        wait_for(state, async || {
            (self.state().await.transaction_state.as_str() == state).then_some(())
        })
        .await;
    }

    /// What a reader of committed records sees, data of aborted transactions aside.
    pub(crate) async fn committed(&mut self, topic: &str) -> Vec<String> {
        let mut request = fetch_request(topic, 0, 0, 0, 1);
        request.isolation_level = 1;
        let answer = self.ask(11, &request).await;
        let partition = &answer.responses[0].partitions[0];
        let aborted: Vec<_> = partition
            .aborted_transactions
            .iter()
            .flatten()
            .map(|one| one.first_offset)
            .collect();
        assert!(aborted.is_sorted());
        records(partition.records.as_ref())
            .iter()
            .filter(|record| record.key.is_none())
            .map(value_of)
            .collect()
    }
}

/// The rows of these APIs in the table of all versions.
pub(crate) async fn check(table: &mut Table, topic: &str) {
    table
        .row(
            |version| {
                let mut request = message!(AddPartitionsToTxnRequest {});
                let wanted = [(topic, 0), ("unknown", 0)];
                if version >= 4 {
                    request.transactions = ["a", "b"]
                        .map(|id| {
                            message!(AddPartitionsToTxnTransaction {
                                transactional_id: id.into(),
                                producer_id: 1,
                                verify_only: id == "b",
                                topics: topics(&wanted[..if id == "a" { 2 } else { 1 }]),
                            })
                        })
                        .to_vec();
                } else {
                    request = add((1, 0), &wanted);
                }
                request
            },
            |version, answer| {
                let results = if version >= 4 {
                    &answer.results_by_transaction[0].topic_results
                } else {
                    &answer.results_by_topic_v3_and_below
                };
                let errors: Vec<_> = results
                    .iter()
                    .map(|topic| topic.results_by_partition[0].partition_error_code)
                    .collect();
                let expected = [
                    ErrorCode::OperationNotAttempted,
                    ErrorCode::UnknownTopicOrPartition,
                ];
                assert_eq!(errors, expected.map(code), "version {version}");
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(AddOffsetsToTxnRequest {
                    transactional_id: "nobody".into(),
                    producer_id: 1,
                    group_id: "g".into(),
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |_| end((1, 0), true),
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |_| {
                message!(DescribeTransactionsRequest {
                    transactional_ids: vec!["nobody".into(), "".into()],
                })
            },
            |_, answer| {
                assert_eq!(answer.transaction_states.len(), 2);
                assert_ne!(answer.transaction_states[0].error_code, 0);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(ListTransactionsRequest {
                    state_filters: vec!["Ongoing".into(), "Nowhere".into()],
                    duration_filter: if version >= 1 { 5 } else { -1 },
                    transactional_id_pattern: (version >= 2).then(|| "a.*".into()),
                })
            },
            |_, answer| {
                assert_eq!(answer.error_code, 0);
                assert_eq!(answer.unknown_state_filters.len(), 1);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(UpdateFeaturesRequest {
                    feature_updates: vec![message!(FeatureUpdateKey {
                        feature: "transaction.version".into(),
                        max_version_level: 2,
                        upgrade_type: 1,
                    })],
                    validate_only: version >= 1,
                })
            },
            |version, answer| {
                assert_eq!(answer.error_code, 0);
                assert_eq!(answer.results.len(), usize::from(version < 2));
            },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_old_protocol_a_partition_is_added_before_anything_is_written_to_it() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 2, &[]).await;
    let who = client.init(60_000).await;
    let early = transactional(who, 0, &["early"]);
    assert_eq!(
        client.write_in(9, "t", early.clone()).await,
        code(ErrorCode::InvalidTxnState)
    );
    assert_eq!(
        client.write_in(11, "t", early).await,
        code(ErrorCode::TransactionAbortable)
    );
    assert_eq!(client.add(who, &[("t", 0), ("t", 1)]).await, [0, 0]);
    for (sequence, value) in [(0, "a"), (1, "b")] {
        let batch = transactional(who, sequence, &[value]);
        assert_eq!(client.write_in(9, "t", batch).await, 0);
    }
    assert_eq!(client.committed("t").await, [""; 0], "it is open");
    let state = client.state().await;
    assert_eq!(state.transaction_state.as_str(), "Ongoing");
    assert_eq!(state.topics[0].partitions, [0, 1]);
    assert_eq!(client.end(3, who, true).await.error_code, 0);
    client.until("CompleteCommit").await;
    assert_eq!(client.committed("t").await, ["a", "b"]);
    assert_eq!(
        client.end(3, who, true).await.error_code,
        0,
        "the answer was lost: once more"
    );
    let late = transactional(who, 2, &["late"]);
    assert_eq!(
        client.write_in(9, "t", late).await,
        code(ErrorCode::InvalidTxnState),
        "nothing begins a transaction behind the coordinator's back"
    );
    assert_eq!(client.add(who, &[("t", 0)]).await, [0]);
    let batch = transactional(who, 2, &["c"]);
    assert_eq!(client.write_in(9, "t", batch).await, 0);
    assert_eq!(client.end(3, who, false).await.error_code, 0);
    client.until("CompleteAbort").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_new_protocol_a_produce_adds_its_partition_and_each_transaction_has_its_epoch() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let mut who = client.init(60_000).await;
    for (n, commit) in [(0, true), (1, false), (2, true), (3, true)] {
        let first = format!("{n}-0");
        let second = format!("{n}-1");
        assert_eq!(
            client
                .write_in(12, "t", transactional(who, 0, &[&first]))
                .await,
            0,
            "transaction {n}: while the last may still be marked"
        );
        assert_eq!(
            client
                .write_in(12, "t", transactional(who, 1, &[&second]))
                .await,
            0
        );
        let ended = client.end(5, who, commit).await;
        assert_eq!(ended.error_code, 0);
        let next = (ended.producer_id, ended.producer_epoch);
        assert_eq!(next, (who.0, who.1 + 1));
        client
            .until(if commit {
                "CompleteCommit"
            } else {
                "CompleteAbort"
            })
            .await;
        let late = transactional(who, 2, &["late"]);
        assert_eq!(
            client.write_in(12, "t", late).await,
            code(ErrorCode::InvalidProducerEpoch)
        );
        let again = client.end(5, who, commit).await;
        assert_eq!(
            (again.error_code, again.producer_id, again.producer_epoch),
            (0, next.0, next.1),
            "the answer was lost: once more"
        );
        assert_eq!(
            client.end(5, who, !commit).await.error_code,
            code(ErrorCode::InvalidTxnState)
        );
        who = next;
    }
    let seen = client.values("t", 0).await;
    assert!(!seen.contains(&"late".to_owned()), "{seen:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_new_protocol_a_producer_that_is_unknown_begins_with_its_first_batch() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = client.init(60_000).await;
    // What was sent before it is lost.
    let gap = transactional(who, 3, &["gap"]);
    assert_eq!(
        client.write_in(12, "t", gap).await,
        code(ErrorCode::OutOfOrderSequenceNumber)
    );
    for (sequence, value) in [(0, "a"), (1, "b")] {
        let batch = transactional(who, sequence, &[value]);
        assert_eq!(client.write_in(12, "t", batch).await, 0);
    }
    assert_eq!(client.end(3, who, true).await.error_code, 0);
    client.until("CompleteCommit").await;
    // One that came to the new protocol meanwhile has its old epoch still.
    let batch = transactional(who, 2, &["c"]);
    assert_eq!(client.write_in(12, "t", batch).await, 0);
    assert_eq!(client.end(5, who, true).await.error_code, 0);
    client.until("CompleteCommit").await;
    assert_eq!(client.committed("t").await, ["a", "b", "c"]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_that_come_again_and_again_leave_the_next_transaction_alone() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = client.init(60_000).await;
    let epoch = Arc::new(AtomicI16::new(who.1));
    let mut coordinator = server.client().await;
    let repeated = tokio::spawn({
        let epoch = Arc::clone(&epoch);
        async move {
            loop {
                let who = (who.0, epoch.load(Ordering::SeqCst));
                coordinator.ask(2, &marker(who)).await;
            }
        }
    });
    let mut who = who;
    for n in 0..100 {
        // Java and librdkafka try again on no other error than this one.
        wait_for("a record", async || {
            let batch = transactional(who, 0, &["v"]);
            let error = client.write_in(12, "t", batch).await;
            if error != 0 {
                assert_eq!(error, code(ErrorCode::NotEnoughReplicas), "{n}");
            }
            (error == 0).then_some(())
        })
        .await;
        let ended = client.end(5, who, true).await;
        assert_eq!(ended.error_code, 0);
        who = (ended.producer_id, ended.producer_epoch);
        epoch.store(who.1, Ordering::SeqCst);
    }
    repeated.abort();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_producer_of_an_id_aborts_and_fences_the_one_before() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let zombie = client.init(60_000).await;
    let batch = transactional(zombie, 0, &["zombie"]);
    assert_eq!(client.write_in(12, "t", batch).await, 0);
    let alive = client.init(60_000).await;
    assert_eq!(alive, (zombie.0, zombie.1 + 2), "one epoch is nobody's");
    let late = transactional(zombie, 1, &["late"]);
    assert_eq!(
        client.write_in(12, "t", late).await,
        code(ErrorCode::InvalidProducerEpoch)
    );
    for (version, expected) in [
        (1, ErrorCode::InvalidProducerEpoch),
        (3, ErrorCode::ProducerFenced),
        (5, ErrorCode::ProducerFenced),
    ] {
        let answer = client.end(version, zombie, true).await;
        assert_eq!(answer.error_code, code(expected), "version {version}");
    }
    assert_eq!(
        client.add((zombie.0, 999), &[("t", 0)]).await,
        [code(ErrorCode::ProducerFenced)],
        "an epoch from the future"
    );
    assert_eq!(
        client.add((zombie.0 + 77, 0), &[("t", 0)]).await,
        [code(ErrorCode::InvalidProducerIdMapping)]
    );
    let too_long = client.ask(4, &init(ID, i32::MAX, (-1, -1))).await;
    assert_eq!(
        too_long.error_code,
        code(ErrorCode::InvalidTransactionTimeout)
    );
    let batch = transactional(alive, 0, &["alive"]);
    assert_eq!(client.write_in(12, "t", batch).await, 0);
    assert_eq!(client.end(5, alive, true).await.error_code, 0);
    client.until("CompleteCommit").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_open_too_long_is_aborted_by_its_coordinator() {
    let interval = "transaction.abort.timed.out.transaction.cleanup.interval.ms";
    let server = Server::start_with(&[(interval, "50")]).await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = client.init(3000).await;
    let batch = transactional(who, 0, &["slow"]);
    assert_eq!(client.write_in(12, "t", batch).await, 0);
    client.until("CompleteAbort").await;
    assert_eq!(
        client.end(4, who, true).await.error_code,
        code(ErrorCode::ProducerFenced)
    );
    let late = transactional(who, 1, &["late"]);
    assert_eq!(
        client.write_in(12, "t", late).await,
        code(ErrorCode::InvalidProducerEpoch)
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_killed_goes_on_where_its_log_ends() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = client.init(60_000).await;
    let batch = transactional(who, 0, &["open"]);
    assert_eq!(client.write_in(12, "t", batch).await, 0);
    drop(client);
    let server = server.start_after_crash().await;
    let mut client = server.client().await;
    client.until("Ongoing").await;
    let batch = transactional(who, 1, &["goes on"]);
    assert_eq!(client.write_in(12, "t", batch).await, 0);
    let ended = client.end(5, who, true).await;
    assert_eq!((ended.error_code, ended.producer_epoch), (0, who.1 + 1));
    drop(client);
    // Perhaps before all is marked.
    let server = server.start_after_crash().await;
    let mut client = server.client().await;
    client.until("CompleteCommit").await;
    assert_eq!(client.committed("t").await, ["open", "goes on"]);
    let again = wait_for("the end's answer", async || {
        let answer = client.end(5, who, true).await;
        (answer.error_code == 0).then_some(answer)
    })
    .await;
    assert_eq!(again.producer_epoch, ended.producer_epoch);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_ends_though_a_partition_of_it_is_gone() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    client.create_topic("gone", 1, &[]).await;
    let who = client.init(60_000).await;
    for topic in ["t", "gone"] {
        let batch = transactional(who, 0, &[topic]);
        assert_eq!(client.write_in(12, topic, batch).await, 0);
    }
    let delete = message!(yuxi_protocol::messages::DeleteTopicsRequest {
        topic_names: vec!["gone".into()],
        timeout_ms: 10_000,
    });
    assert_eq!(client.ask(4, &delete).await.responses[0].error_code, 0);
    assert_eq!(client.end(5, who, true).await.error_code, 0);
    client.until("CompleteCommit").await;
    assert_eq!(client.committed("t").await, ["t"]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_behind_one_that_waits_for_the_coordinator_do_not_overtake_it() {
    const COUNT: i32 = 200;
    let server = Server::start().await;
    let mut client = server.client().await;
    // Acknowledgements wait for an fsync, so that many requests are under way.
    client
        .create_topic("t", 1, &[("flush.messages", "1")])
        .await;
    let who = client.init(60_000).await;
    let mut ids = Vec::new();
    for sequence in 0..COUNT {
        let batch = transactional(who, sequence, &[&sequence.to_string()]);
        let mut request = produce_request("t", 0, -1, batch);
        request.transactional_id = Some(ID.into());
        let (id, frame) = client.encode(12, &request);
        ids.push(id);
        // One by one, so that some come when the first has its answer from the coordinator.
        client.write(&frame).await;
    }
    for id in ids {
        let answer = only_partition(client.receive(id, 12).await);
        assert_eq!(answer.error_code, 0);
    }
    let expected: Vec<_> = (0..COUNT).map(|n| n.to_string()).collect();
    assert_eq!(client.values("t", 0).await, expected);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_are_lowered_and_raised_and_told() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let listing = message!(ApiVersionsRequest {
        client_software_name: "test".into(),
        client_software_version: "1".into(),
    });
    let level = |answer: &yuxi_protocol::messages::ApiVersionsResponse| {
        answer
            .finalized_features
            .iter()
            .find(|feature| feature.name.as_str() == "transaction.version")
            .map(|feature| feature.max_version_level)
    };
    let old = client.ask(3, &listing).await;
    assert!(old.supported_features.is_empty(), "version 3 fails on it");
    assert_eq!(level(&old), Some(2));
    let mut epoch = old.finalized_features_epoch;
    let update = |to: i16, upgrade_type: i8| {
        message!(UpdateFeaturesRequest {
            feature_updates: vec![message!(FeatureUpdateKey {
                feature: "transaction.version".into(),
                max_version_level: to,
                upgrade_type,
            })],
        })
    };
    for (to, kind, expected, told) in [
        (1, 1, ErrorCode::InvalidUpdateVersion, Some(2)),
        (3, 1, ErrorCode::InvalidUpdateVersion, Some(2)),
        (1, 7, ErrorCode::InvalidUpdateVersion, Some(2)),
        (1, 2, ErrorCode::None, Some(1)),
        (0, 3, ErrorCode::None, None),
        (2, 1, ErrorCode::None, Some(2)),
    ] {
        let answer = client.ask(2, &update(to, kind)).await;
        assert_eq!(answer.error_code, code(expected), "to {to} by {kind}");
        let now = client.ask(4, &listing).await;
        assert_eq!(level(&now), told, "to {to} by {kind}");
        assert_eq!(now.supported_features.len(), 2);
        assert_eq!(
            now.finalized_features_epoch > epoch,
            expected == ErrorCode::None
        );
        epoch = now.finalized_features_epoch;
    }
    server.shutdown().await;
}
