//! Deletions of topics that a broker did not live to carry out.

use crate::support::{Client, Server, batch, wait_for};
use std::{path::Path, sync::Arc};
use tempfile::TempDir;
use yuxi_controller::{
    decide::{
        leaders::first_state,
        topics::{self, TopicSelector},
    },
    image::ClusterImage,
    keys::{Key, TopicValue, print_partitions, print_value},
    store::{Commit, EmbeddedStore, MetadataStore, Operation, Transaction},
};
use yuxi_protocol::{
    ids::{BrokerId, TopicId},
    message,
    messages::{
        DeleteRecordsRequest,
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    },
};

/// The metadata store of a broker that was shut down, once nothing has it open.
async fn open_store(directory: &Path) -> EmbeddedStore {
    let opened = wait_for("the store", async || EmbeddedStore::open(directory).ok());
    opened.await
}

/// Deletes a topic in the metadata store of a broker that is not there to see it.
async fn delete_unseen(directory: &Path, topic: &str) {
    let store = open_store(directory).await;
    let snapshot = store.read("").await.expect("its entries");
    let image = ClusterImage::from_snapshot(&snapshot).expect("an image");
    let selector = TopicSelector::Name(topic.to_owned());
    let (changes, _) = topics::delete(&image, &[selector]);
    assert!(!changes.is_empty());
    for set in changes {
        let transaction = Transaction {
            guards: set.guards,
            operations: set.operations,
        };
        let committed = store.commit(transaction).await;
        assert!(matches!(committed, Ok(Commit::Applied(_))), "{committed:?}");
    }
}

fn directories(server: &Server) -> Vec<String> {
    let entries = std::fs::read_dir(server.directory()).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("t-") || name.starts_with("u-"))
        .collect();
    names.sort();
    names
}

/// Creates a topic with one partition likewise.
async fn create_unseen(directory: &Path, topic: &str) {
    let topic_id = TopicId::from_bytes([7; 16]);
    let broker = BrokerId::new(1);
    let state = first_state(vec![broker], &|_| true).expect("it may lead");
    let value = TopicValue {
        topic_id,
        partitions: 1,
    };
    let entries = [
        (Key::Topic(topic.into()), print_value(&value)),
        (Key::Partitions(topic_id, 0), print_partitions(0, &[state])),
    ];
    let operations = entries.map(|(key, value)| Operation::Put {
        key: key.to_string(),
        value,
        session: None,
    });
    let store = open_store(directory).await;
    let transaction = Transaction {
        guards: Vec::new(),
        operations: operations.into(),
    };
    store.commit(transaction).await.expect("a commit");
}

/// Deletes the first record of partition 0.
async fn delete_first(client: &mut Client, topic: &str) {
    let request = message!(DeleteRecordsRequest {
        topics: vec![message!(DeleteRecordsTopic {
            name: topic.into(),
            partitions: vec![message!(DeleteRecordsPartition {
                partition_index: 0,
                offset: 1,
            })],
        })],
        timeout_ms: 1000,
    });
    let answer = client.ask(2, &request).await;
    assert_eq!(answer.topics[0].partitions[0].low_watermark, 1);
}

/// Waits until a broker that is started on the directory has nothing left to confirm.
async fn until_confirmed(directory: &Arc<TempDir>) {
    Box::pin(wait_for("the end of what is remembered", async || {
        let store = open_store(directory.path()).await;
        let left = store.read("deleted/").await.expect("its entries");
        drop(store);
        if left.entries.is_empty() {
            return Some(());
        }
        let server = Server::start_in(Arc::clone(directory), Vec::new()).await;
        server.shutdown().await;
        None
    }))
    .await;
}

#[tokio::test]
async fn a_broker_that_died_before_it_removed_a_deleted_topic_removes_it_when_it_starts() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for topic in ["t", "u"] {
        client.create_topic(topic, 2, &[]).await;
        for value in ["a", "b"] {
            assert_eq!(client.produce(topic, batch(&[value])).await.error_code, 0);
        }
        delete_first(&mut client, topic).await;
    }
    let directory = server.shutdown_to_directory().await;
    delete_unseen(directory.path(), "t").await;
    // What is there anew under the name is not what was deleted.
    create_unseen(directory.path(), "t").await;
    let server = Server::start_in(Arc::clone(&directory), Vec::new()).await;
    wait_for("the removal", async || {
        (directories(&server) == ["t-0", "u-0", "u-1"]).then_some(())
    })
    .await;
    let mut client = server.client().await;
    let produced = client.produce("t", batch(&["c"])).await;
    assert_eq!((produced.error_code, produced.base_offset), (0, 0));
    assert_eq!(client.values("t", 0).await, ["c"]);
    assert_eq!(client.values("u", 1).await, ["b"]);
    server.shutdown().await;
    Box::pin(until_confirmed(&directory)).await;
}

#[tokio::test]
async fn nothing_of_a_deleted_topic_is_known_of_one_that_has_its_name() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    for value in ["a", "b", "c"] {
        assert_eq!(client.produce("t", batch(&[value])).await.error_code, 0);
    }
    delete_first(&mut client, "t").await;
    // Its checkpoints name it.
    let server = server.restart().await;
    let mut client = server.client().await;
    client.delete_topic("t").await;
    client.create_topic("t", 1, &[]).await;
    let produced = client.produce("t", batch(&["d"])).await;
    assert_eq!((produced.error_code, produced.base_offset), (0, 0));
    let after = server.start_after_crash().await;
    assert_eq!(after.client().await.values("t", 0).await, ["d"]);
}
