//! An etcd that dies, stalls, forgets, or has no room left.

use super::*;

/// Short enough that a stalled member is noticed within a test, and more than a member takes
/// that is only slow to write to its disk.
const IMPATIENT: Duration = Duration::from_secs(3);

async fn connect_impatiently(members: &[&Etcd]) -> EtcdStore {
    EtcdStore::connect(EtcdOptions {
        endpoints: members.iter().map(|member| member.url()).collect(),
        request_timeout: IMPATIENT,
        ..options("")
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_watch_goes_on_after_etcd_was_killed_and_started_again() {
    let mut etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    let mut written = vec![apply(&store, put("k", "1")).await];
    written.push(apply(&store, put("k", "2")).await);
    let mut seen = vec![next_batch(&mut watch).await.revision];
    etcd.kill();
    etcd.restart();
    written.push(insist(&store, "k", "3").await);
    etcd.kill();
    // This time the watch is waiting when it happens.
    let watching = tokio::spawn(async move {
        for _ in 0..3 {
            seen.push(next_batch(&mut watch).await.revision);
        }
        seen
    });
    tokio::task::yield_now().await;
    etcd.restart();
    written.push(insist(&store, "k", "4").await);
    assert_eq!(watching.await.unwrap(), written);
}

#[tokio::test]
async fn without_etcd_nothing_was_done_and_the_store_recovers_by_itself() {
    let mut etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    let session = store.open_session(DEADLINE).await.unwrap();
    etcd.kill();
    // The first may have been on its way when the connection broke.
    let _ = store.commit(put("k", "0")).await;
    for outcome in [
        store.commit(put("k", "1")).await.map(|_| ()),
        store.read("").await.map(|_| ()),
        store.keep_session(session).await,
        store.open_session(DEADLINE).await.map(|_| ()),
        store.close_session(session).await,
    ] {
        let Err(StoreError::Unavailable(why)) = outcome else {
            panic!("expected it to be unavailable, got {outcome:?}");
        };
        assert!(why.contains(&etcd.url()), "{why}");
    }
    etcd.restart();
    apply(&store, put("k", "2")).await;
    store.keep_session(session).await.unwrap();
}

#[tokio::test]
async fn a_stalled_etcd_leaves_a_commit_in_doubt_and_everything_else_unavailable() {
    let etcd = Etcd::start(&[]);
    let store = connect_impatiently(&[&etcd]).await;
    let session = store.open_session(DEADLINE).await.unwrap();
    let start = apply(&store, put("k", "0")).await;
    let mut watch = store.watch("", start).await.unwrap();
    etcd.pause();
    let doubtful = timeout(DEADLINE, store.commit(put("k", "1"))).await;
    let doubtful = doubtful.expect("in time");
    assert!(
        matches!(doubtful, Err(StoreError::Unknown(_))),
        "{doubtful:?}"
    );
    let read = timeout(DEADLINE, store.read("")).await.expect("in time");
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let kept = timeout(DEADLINE, store.keep_session(session)).await;
    let kept = kept.expect("in time");
    assert!(matches!(kept, Err(StoreError::Unavailable(_))), "{kept:?}");
    etcd.resume();
    // Read back, as whoever is in doubt has to. The watch says the same.
    insist(&store, "other", "").await;
    let now = store.read("k").await.unwrap().entries.remove(0);
    if now.mod_revision > start {
        let batch = next_batch(&mut watch).await;
        assert_eq!(batch.revision, now.mod_revision);
        assert_eq!(value(&batch), b"1");
    }
    assert!(
        matches!(next(&mut watch).await, WatchEvent::Batch(batch) if batch.changes[0].key().as_ref() == "other")
    );
}

#[tokio::test]
async fn a_watch_leaves_a_member_that_stalls_and_loses_nothing() {
    let members = Etcd::cluster(3);
    let [first, second, third] = &members[..] else {
        panic!("three members");
    };
    let store = connect_impatiently(&[first, second, third]).await;
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    apply(&store, put("k", "1")).await;
    assert_eq!(value(&*next_batch(&mut watch).await), b"1");
    let other = EtcdStore {
        prefix: Arc::clone(&store.prefix),
        connection: connect_impatiently(&[second, third]).await.connection,
    };
    first.pause();
    // Written by somebody who doesn't use the stalled member.
    insist(&other, "k", "2").await;
    assert_eq!(value(&*next_batch(&mut watch).await), b"2");
    // And the store itself has moved on with its watch.
    insist(&store, "k", "3").await;
    assert_eq!(value(&*next_batch(&mut watch).await), b"3");
    first.resume();
}

#[tokio::test]
async fn a_session_is_kept_though_the_member_it_was_opened_with_is_killed() {
    let mut members = Etcd::cluster(3);
    let urls: Vec<&Etcd> = members.iter().collect();
    let store = connect_impatiently(&urls).await;
    let session = store.open_session(DEADLINE).await.unwrap();
    members[0].kill();
    let keeping = async {
        while store.keep_session(session).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, keeping).await.expect("kept in time");
}

#[tokio::test]
async fn a_member_that_is_not_there_is_passed_over() {
    let etcd = process::shared();
    let dead = format!("http://127.0.0.1:{}", process::free_ports(1)[0]);
    let store = EtcdStore::connect(EtcdOptions {
        endpoints: vec![dead.clone(), etcd.url(), dead.clone()],
        ..options("")
    })
    .await
    .unwrap();
    apply(&store, put("k", "1")).await;
    let error = refusal(options(&dead)).await;
    let StoreError::Unavailable(why) = &error else {
        panic!("expected it to be unavailable, got {error:?}");
    };
    assert!(
        why.contains("etcd.endpoints") && why.contains(&dead),
        "{why}"
    );
}

#[tokio::test]
async fn members_of_another_etcd_are_refused() {
    let mut ours = Etcd::start(&["--initial-cluster-token=ours"]);
    let theirs = Etcd::start(&["--initial-cluster-token=theirs"]);
    let store = connect_impatiently(&[&ours, &theirs]).await;
    ours.kill();
    let insisting = async {
        loop {
            match store.read("").await {
                Err(StoreError::Denied(why)) => return why,
                Err(_) => {}
                Ok(_) => panic!("another etcd was read"),
            }
        }
    };
    let why = timeout(DEADLINE, insisting).await.expect("in time");
    assert!(why.contains("etcd.endpoints"), "{why}");
}

#[tokio::test]
async fn a_watch_that_comes_back_after_a_compaction_is_told_so() {
    let mut etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    let start = apply(&store, put("k", "1")).await;
    let mut watch = store.watch("", start).await.unwrap();
    apply(&store, put("k", "2")).await;
    next_batch(&mut watch).await;
    etcd.restart();
    insist(&store, "k", "3").await;
    insist(&store, "k", "4").await;
    compact(etcd.url()).await;
    assert_eq!(next(&mut watch).await, WatchEvent::Compacted);
}

#[tokio::test]
async fn a_watch_of_an_etcd_that_has_lost_its_data_is_told_so() {
    let mut etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    for i in 0..5 {
        apply(&store, put("k", &i.to_string())).await;
    }
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    etcd.restart_empty();
    assert_eq!(next(&mut watch).await, WatchEvent::Compacted);
    assert!(store.read("").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn an_etcd_without_space_says_so_and_can_still_be_read() {
    let etcd = Etcd::start(&["--quota-backend-bytes=4194304"]);
    let store = connect(&etcd).await;
    apply(&store, put("kept", "1")).await;
    let large = "x".repeat(1 << 19);
    let filling = async {
        loop {
            match store.commit(put("large", &large)).await {
                Ok(_) => {}
                Err(StoreError::Unavailable(why)) => return why,
                Err(other) => panic!("unexpected: {other}"),
            }
        }
    };
    let why = timeout(DEADLINE, filling).await.expect("full in time");
    assert!(why.contains("--quota-backend-bytes"), "{why}");
    assert_eq!(store.read("kept").await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_commit_that_is_sent_again_after_doubt_is_stopped_by_its_guard() {
    let etcd = Etcd::start(&[]);
    let store = connect_impatiently(&[&etcd]).await;
    let mut once = put("k", "1");
    once.guards.push(Guard::Absent("k".to_owned()));
    etcd.pause();
    let doubtful = store.commit(once.clone()).await;
    assert!(
        matches!(doubtful, Err(StoreError::Unknown(_))),
        "{doubtful:?}"
    );
    etcd.resume();
    let settling = async {
        loop {
            match store.commit(once.clone()).await {
                Ok(outcome) => return outcome,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(DEADLINE, settling).await.expect("settled in time");
    let entry = store.read("k").await.unwrap().entries.remove(0);
    assert_eq!(entry.create_revision, entry.mod_revision, "it was put once");
}

#[tokio::test]
async fn a_commit_goes_to_no_other_member_while_the_first_may_have_taken_it() {
    let members = Etcd::cluster(3);
    let store = connect_impatiently(&members.iter().collect::<Vec<_>>()).await;
    apply(&store, put("k", "0")).await;
    members[0].pause();
    let doubtful = timeout(DEADLINE, store.commit(put("k", "1"))).await;
    let doubtful = doubtful.expect("in time");
    assert!(
        matches!(doubtful, Err(StoreError::Unknown(_))),
        "{doubtful:?}"
    );
    members[0].resume();
}
