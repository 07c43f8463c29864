use super::*;
use yuxi_controller::admin::Readiness;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;

fn metrics() -> Arc<Metrics> {
    Metrics::new([(FETCH, "Fetch"), (PRODUCE, "Produce")])
}

fn rendered(metrics: &Metrics) -> String {
    text_of(metrics, &Gathered::default())
}

fn text_of(metrics: &Metrics, state: &Gathered) -> String {
    let mut page = Page::default();
    metrics.render(&mut page, state, Instant::now());
    page.into_text()
}

fn has(text: &str, sample: &str) {
    assert!(
        text.lines().any(|line| line == sample),
        "{sample} is not in:\n{text}"
    );
}

#[test]
fn what_is_appended_counts_for_the_broker_and_for_the_topic() {
    let metrics = metrics();
    metrics.records_in("a", 2, 100);
    metrics.records_in("b", 1, 10);
    metrics.bytes_out("a", 7);
    let text = rendered(&metrics);
    has(&text, "kafka_server_brokertopicmetrics_bytesin_total 110");
    has(
        &text,
        "kafka_server_brokertopicmetrics_bytesin_total{topic=\"a\"} 100",
    );
    has(
        &text,
        "kafka_server_brokertopicmetrics_messagesin_total{topic=\"b\"} 1",
    );
    has(&text, "kafka_server_brokertopicmetrics_bytesout_total 7");
}

#[test]
fn the_brokers_total_does_not_fall_when_a_topic_is_deleted() {
    let metrics = metrics();
    metrics.records_in("a", 2, 100);
    metrics.topic_deleted("a");
    let text = rendered(&metrics);
    has(&text, "kafka_server_brokertopicmetrics_bytesin_total 100");
    assert!(!text.contains("topic=\"a\""));
}

#[test]
fn requests_are_counted_by_api_and_version_and_timed() {
    let metrics = metrics();
    let answered = |version| {
        metrics.request_answered(PRODUCE, version, Duration::from_millis(1), 50);
    };
    answered(9);
    answered(9);
    answered(i16::MAX);
    answered(-1);
    metrics.request_answered(77, 0, Duration::ZERO, 1);
    let text = rendered(&metrics);
    has(
        &text,
        "kafka_network_requestmetrics_requests_total{request=\"Produce\",version=\"9\"} 2",
    );
    has(&text, "yuxi_answer_bytes_total{request=\"Produce\"} 200");
    has(
        &text,
        "yuxi_request_duration_seconds_bucket{api=\"Produce\",le=\"0.0005\"} 0",
    );
    has(
        &text,
        "yuxi_request_duration_seconds_bucket{api=\"Produce\",le=\"0.001\"} 4",
    );
    has(
        &text,
        "yuxi_request_duration_seconds_bucket{api=\"Produce\",le=\"+Inf\"} 4",
    );
    has(
        &text,
        "yuxi_request_duration_seconds_sum{api=\"Produce\"} 0.004",
    );
    has(
        &text,
        "kafka_network_requestmetrics_totaltimems{request=\"Produce\",quantile=\"0.50\"} 0.75",
    );
    has(
        &text,
        "kafka_network_requestmetrics_totaltimems_sum{request=\"Produce\"} 4",
    );
    has(
        &text,
        "kafka_network_requestmetrics_totaltimems_count{request=\"Fetch\"} 0",
    );
}

#[test]
fn errors_are_counted_by_their_names() {
    let metrics = metrics();
    metrics.request_failed(FETCH, ErrorCode::OffsetOutOfRange);
    metrics.request_failed(77, ErrorCode::OffsetOutOfRange);
    has(
        &rendered(&metrics),
        "kafka_network_requestmetrics_errors_total{request=\"Fetch\",error=\"OFFSET_OUT_OF_RANGE\"} 1",
    );
}

#[test]
fn transactions_are_counted_by_state_and_loads_are_forgotten_after_half_a_minute() {
    let metrics = metrics();
    metrics.shard_loaded("__transaction_state", Duration::from_millis(30));
    metrics.shard_loaded("__transaction_state", Duration::from_millis(10));
    metrics.partitions_verified(Duration::from_millis(2), 1);
    let state = Gathered {
        transactions: TransactionsState {
            ids: vec![("Ongoing", 3)],
            unwritten_markers: 2,
        },
        ..Gathered::default()
    };
    let rendered = |after| {
        let mut page = Page::default();
        metrics.render(&mut page, &state, Instant::now() + after);
        page.into_text()
    };
    let text = rendered(Duration::ZERO);
    has(&text, "yuxi_transactional_ids{state=\"Ongoing\"} 3");
    has(&text, "yuxi_transaction_markers_unwritten 2");
    let load = "kafka_server_transaction_coordinator_metrics_partition_load_time";
    has(&text, &format!("{load}_max 30"));
    has(&text, &format!("{load}_avg 20"));
    let verification = "kafka_server_addpartitionstotxnmanager_verification";
    has(&text, &format!("{verification}failurerate_count 1"));
    has(&text, &format!("{verification}timems_sum 2"));
    let groups = "kafka_server_group_coordinator_metrics_partition_load_time_max 0";
    has(&text, groups);
    let later = rendered(Duration::from_secs(31));
    has(&later, &format!("{load}_max 0"));
}

#[test]
fn open_connections_are_those_not_yet_closed() {
    let metrics = metrics();
    metrics.connection_opened();
    metrics.connection_opened();
    metrics.connection_closed();
    metrics.connection_refused();
    let text = rendered(&metrics);
    has(&text, "kafka_server_socketservermetrics_connection_count 1");
    has(&text, "yuxi_connections_refused_total 1");
}

#[test]
fn what_is_true_at_the_scrape_is_told_of_each_partition_and_in_sum() {
    let partition = |partition, is_leader| PartitionState {
        topic: "a".into(),
        partition,
        is_leader,
        lag: 0,
        is_offline: false,
        replicas: 3,
        in_sync: 2,
        min_in_sync: 2,
        last_stable_lag: 4,
        producers: 5,
        has_late_transaction: is_leader,
        log_start_offset: 3,
        log_end_offset: 10,
        size_bytes: 4096,
        segments: 2,
    };
    let state = Gathered {
        readiness: Readiness::Ready,
        partitions: vec![partition(0, true), partition(1, false)],
        ..Gathered::default()
    };
    let metrics = metrics();
    let text = text_of(&metrics, &state);
    has(&text, "kafka_server_replicamanager_partitioncount 2");
    has(&text, "kafka_server_replicamanager_leadercount 1");
    has(
        &text,
        "kafka_server_replicamanager_underreplicatedpartitions 1",
    );
    has(
        &text,
        "kafka_server_replicamanager_underminisrpartitioncount 0",
    );
    for (of_led, of_followed, name) in [
        (3, 0, "replicascount"),
        (2, 0, "insyncreplicascount"),
        (1, 0, "underreplicated"),
        (1, 0, "atminisr"),
        (0, 0, "underminisr"),
    ] {
        for (partition, value) in [(0, of_led), (1, of_followed)] {
            let labels = format!("topic=\"a\",partition=\"{partition}\"");
            has(
                &text,
                &format!("kafka_cluster_partition_{name}{{{labels}}} {value}"),
            );
        }
    }
    has(&text, "kafka_server_kafkaserver_brokerstate 3");
    has(
        &text,
        "kafka_log_log_logendoffset{topic=\"a\",partition=\"1\"} 10",
    );
    has(
        &text,
        "kafka_cluster_partition_laststableoffsetlag{topic=\"a\",partition=\"0\"} 4",
    );
    has(&text, "kafka_server_replicamanager_produceridcount 10");
    has(
        &text,
        "kafka_server_replicamanager_partitionswithlatetransactionscount 1",
    );
}

#[test]
fn every_sample_stands_under_its_familys_help_and_type_and_no_family_comes_twice() {
    let metrics = metrics();
    metrics.records_in("a", 1, 1);
    metrics.request_answered(FETCH, 12, Duration::from_mins(1), 1);
    metrics.log_flushed(Duration::from_millis(3));
    let text = rendered(&metrics);
    let mut seen = std::collections::HashSet::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().expect("a name");
            assert!(seen.insert(family), "{family} comes twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert_eq!(kind.split(' ').next(), Some(family));
        } else {
            let (name, value) = line.rsplit_once(' ').expect(line);
            let name = name.split('{').next().expect("a name");
            let suffix = name.strip_prefix(family).expect(line);
            assert!(
                matches!(suffix, "" | "_sum" | "_count" | "_bucket"),
                "{line}"
            );
            value.parse::<f64>().expect(line);
        }
    }
}
