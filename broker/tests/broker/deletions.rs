//! Deletions of topics that a broker did not live to carry out.

use crate::support::{Server, batch, wait_for};
use std::{path::Path, sync::Arc};
use yuxi_controller::{
    decide::topics::{self, TopicSelector},
    image::ClusterImage,
    store::{Commit, EmbeddedStore, MetadataStore, Transaction},
};

/// Deletes a topic in the metadata store of a broker that is not there to see it.
async fn delete_unseen(directory: &Path, topic: &str) {
    let store = EmbeddedStore::open(directory).expect("the store");
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

#[tokio::test]
async fn a_broker_that_died_before_it_removed_a_deleted_topic_removes_it_when_it_starts() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for topic in ["t", "u"] {
        client.create_topic(topic, 2, &[]).await;
        assert_eq!(client.produce(topic, batch(&["a"])).await.error_code, 0);
    }
    let directory = server.shutdown_to_directory().await;
    delete_unseen(directory.path(), "t").await;
    let server = Server::start_in(Arc::clone(&directory), Vec::new()).await;
    let mut client = server.client().await;
    // What is there anew under the name is not what was deleted.
    client.create_topic("t", 1, &[]).await;
    assert_eq!(client.produce("t", batch(&["b"])).await.error_code, 0);
    wait_for("the removal", async || {
        (directories(&server) == ["t-0", "u-0", "u-1"]).then_some(())
    })
    .await;
    assert_eq!(client.values("t", 0).await, ["b"]);
    assert_eq!(client.values("u", 0).await, ["a"]);
    let mut server = Some(server);
    wait_for("the end of what is remembered", async || {
        let started = match server.take() {
            Some(server) => server,
            None => Server::start_in(Arc::clone(&directory), Vec::new()).await,
        };
        started.shutdown().await;
        let store = EmbeddedStore::open(directory.path()).expect("the store");
        let left = store.read("deleted/").await.expect("its entries");
        left.entries.is_empty().then_some(())
    })
    .await;
}
