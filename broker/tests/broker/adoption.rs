//! Topics of another broker that are in the data directory.

use crate::support::{Server, batch, copy_directory, soon, start_broker};
use std::{fs, sync::Arc};
use tempfile::TempDir;
use yuxi_broker::StartError;

#[tokio::test]
async fn what_a_first_start_did_not_come_to_take_over_is_taken_over_by_the_next() {
    let theirs = Server::start().await;
    let mut client = theirs.client().await;
    client.create_topic("t", 1, &[]).await;
    assert_eq!(client.produce("t", batch(&["a"])).await.error_code, 0);
    let theirs = theirs.shutdown_to_directory().await;
    let found = theirs.path().join("t-0");
    let ours = Arc::new(TempDir::new().expect("a temporary directory"));
    let put = |into: &TempDir, name: &str| {
        let directory = into.path().join(name);
        copy_directory(&found, &directory);
        directory
    };
    put(&ours, "t-0");
    // It founds the cluster, and ends because nobody can tell what topic this is.
    let unknown = put(&ours, "unknown-0");
    fs::remove_file(unknown.join("partition.metadata")).expect("it is there");
    let started = soon("the refusal", start_broker(ours.path(), &[])).await;
    assert!(
        matches!(started, Err(StartError::Adoption(_))),
        "{started:?}"
    );
    // As the next process finds it, without what the first one holds.
    let ours = {
        let copy = Arc::new(TempDir::new().expect("a temporary directory"));
        copy_directory(ours.path(), copy.path());
        copy
    };
    fs::remove_dir_all(ours.path().join("unknown-0")).expect("it is there");

    let server = Server::start_in(Arc::clone(&ours), Vec::new()).await;
    assert_eq!(server.client().await.values("t", 0).await, ["a"]);
    // With that it is finished: what comes later is no topic of the cluster.
    let later = server
        .shutdown_and(async { drop(put(&ours, "later-0")) })
        .await;
    assert!(!ours.path().join("later-0").exists(), "it is set aside");
    assert_eq!(later.client().await.values("t", 0).await, ["a"]);
    later.shutdown().await;
}
