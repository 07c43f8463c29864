//! Topics that are deleted while a broker is away, and topics that the metadata store has lost.

use crate::support::{Cluster, produce, soon, wait_for};
use yuxi_client::Admin;
use yuxi_controller::store::{EmbeddedStore, MetadataStore, Operation, Snapshot, Transaction};

async fn delete(cluster: &Cluster, topics: &[&str]) {
    let admin = Admin::new(cluster.connect().await);
    let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
    let deleted = soon("a deletion", admin.delete_topics(&topics)).await;
    for topic in deleted.expect("an answer") {
        topic.result.expect("deleted");
    }
}

/// What is remembered of deletions, by topic.
async fn remembered(cluster: &Cluster) -> Vec<String> {
    let found = cluster.store.read("deleted/").await.expect("the store");
    let values = found.entries.iter();
    let mut values: Vec<String> = values
        .map(|entry| String::from_utf8_lossy(&entry.value).into_owned())
        .collect();
    values.sort();
    values
}

async fn until_remembered(cluster: &Cluster, expected: &[&str]) {
    wait_for("confirmations", async || {
        (remembered(cluster).await == expected).then_some(())
    })
    .await;
}

/// The directories of a broker that are, or were, of partitions of these topics.
fn directories(cluster: &Cluster, broker: i32, topics: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.data_dir(broker)).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| {
            topics
                .iter()
                .any(|topic| name.starts_with(&format!("{topic}-")))
        })
        .collect();
    names.sort();
    names
}

async fn fill(cluster: &Cluster, topic: &str, records: i32) {
    let producer = cluster.producer().await;
    for value in 0..records {
        let sent = produce(&producer, topic, value.to_string()).await;
        sent.expect("acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_away_removes_what_was_deleted_meanwhile_and_nobody_remembers_it_then() {
    let mut cluster = Cluster::start(3, &[]).await;
    for topic in ["t", "u", "kept"] {
        cluster.create_topic(topic, &[1, 2, 3], &[]).await;
        fill(&cluster, topic, 3).await;
    }
    cluster.kill(3).await;
    delete(&cluster, &["t", "u"]).await;
    cluster.create_topic("t", &[1, 2], &[]).await;
    fill(&cluster, "t", 5).await;
    until_remembered(
        &cluster,
        &[
            r#"{"topic":"t","brokers":[3]}"#,
            r#"{"topic":"u","brokers":[3]}"#,
        ],
    )
    .await;
    assert_eq!(directories(&cluster, 3, &["t", "u"]), ["t-0", "u-0"]);
    // Another controller is as good.
    cluster.shut_down(1).await;
    cluster.start_broker(1).await;
    cluster.start_broker(3).await;
    let aside = |name: &String| name.ends_with("-stray");
    assert!(!directories(&cluster, 3, &["t", "u"]).iter().any(aside));
    until_remembered(&cluster, &[]).await;
    wait_for("the removal", async || {
        directories(&cluster, 3, &["t", "u"])
            .is_empty()
            .then_some(())
    })
    .await;
    assert_eq!(directories(&cluster, 3, &["kept"]), ["kept-0"]);
    assert_eq!(cluster.values("t", 0).await.len(), 5);
    cluster
        .until("kept", 0, "a full ISR", |state| state.isr.len() == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_put_back_from_a_backup_does_not_know_is_kept() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("deleted", &[1, 2, 3], &[]).await;
    fill(&cluster, "deleted", 3).await;
    cluster.kill(3).await;
    delete(&cluster, &["deleted"]).await;
    let remembered = [r#"{"topic":"deleted","brokers":[3]}"#];
    until_remembered(&cluster, &remembered).await;
    let backup = cluster.store.read("").await.expect("the store");
    cluster.create_topic("t", &[1, 2], &[]).await;
    fill(&cluster, "t", 3).await;
    let records = cluster.log_bytes(2, "t", 0);
    assert!(!records.is_empty());
    for broker in [2, 1] {
        cluster.shut_down(broker).await;
    }
    cluster.store = put_back(&backup).await;
    for broker in 1..=3 {
        cluster.start_broker(broker).await;
    }
    for broker in [1, 2] {
        let kept = directories(&cluster, broker, &["t"]);
        assert!(kept.len() == 1 && kept[0].ends_with("-stray"), "{kept:?}");
        let log = cluster.data_dir(broker).join(&kept[0]);
        let log = std::fs::read(log.join("00000000000000000000.log"));
        assert_eq!(log.expect("a segment"), records);
    }
    until_remembered(&cluster, &[]).await;
    wait_for("the removal", async || {
        directories(&cluster, 3, &["deleted"])
            .is_empty()
            .then_some(())
    })
    .await;
}

/// A store as it was, without those who were alive then.
async fn put_back(backup: &Snapshot) -> EmbeddedStore {
    let store = EmbeddedStore::in_memory();
    let lasting = backup
        .entries
        .iter()
        .filter(|entry| entry.session.is_none());
    let operations = lasting.map(|entry| Operation::Put {
        key: entry.key.to_string(),
        value: entry.value.clone(),
        session: None,
    });
    let transaction = Transaction {
        guards: Vec::new(),
        operations: operations.collect(),
    };
    store.commit(transaction).await.expect("a commit");
    store
}
