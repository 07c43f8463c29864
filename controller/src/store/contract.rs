//! What every metadata store must do, checked against each of them by the same tests.
//! A store is one row at the end of this file.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_mins(1);

fn put(key: &str, value: &str) -> Operation {
    bound(key, value, None)
}

fn bound(key: &str, value: &str, session: Option<SessionId>) -> Operation {
    Operation::Put {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        session,
    }
}

fn delete(key: &str) -> Operation {
    Operation::Delete {
        key: key.to_owned(),
    }
}

async fn commit(
    store: &impl MetadataStore,
    guards: Vec<Guard>,
    operations: Vec<Operation>,
) -> Commit {
    let transaction = Transaction { guards, operations };
    store.commit(transaction).await.unwrap()
}

async fn apply(store: &impl MetadataStore, operations: Vec<Operation>) -> Revision {
    match commit(store, Vec::new(), operations).await {
        Commit::Applied(revision) => revision,
        Commit::Refused => panic!("nothing guards this"),
    }
}

async fn keys(store: &impl MetadataStore, prefix: &str) -> Vec<String> {
    let snapshot = store.read(prefix).await.unwrap();
    snapshot
        .entries
        .iter()
        .map(|entry| entry.key.to_string())
        .collect()
}

async fn next_batch(watch: &mut Watch) -> Arc<Batch> {
    match timeout(DEADLINE, watch.next())
        .await
        .expect("a batch in time")
    {
        Some(Ok(WatchEvent::Batch(batch))) => batch,
        other => panic!("expected a batch, got {other:?}"),
    }
}

/// A change in few words: `key=value` or `-key`.
fn words(batch: &Batch) -> Vec<String> {
    let mut words: Vec<String> = batch
        .changes
        .iter()
        .map(|change| match change {
            Change::Put(entry) => {
                format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))
            }
            Change::Delete(key) => format!("-{key}"),
        })
        .collect();
    words.sort();
    words
}

pub(super) async fn a_read_finds_a_prefix_in_key_order_at_one_revision(store: impl MetadataStore) {
    apply(&store, vec![put("b/2", "x"), put("a", "y")]).await;
    let last = apply(&store, vec![put("b/1", "z"), put("c", "w")]).await;
    let snapshot = store.read("b/").await.unwrap();
    // Others may use the same store.
    assert!(snapshot.revision >= last);
    assert_eq!(keys(&store, "b/").await, ["b/1", "b/2"]);
    assert_eq!(keys(&store, "").await, ["a", "b/1", "b/2", "c"]);
    assert!(keys(&store, "d").await.is_empty());
}

pub(super) async fn entries_carry_when_they_were_created_and_last_put(store: impl MetadataStore) {
    let created = apply(&store, vec![put("k", "1")]).await;
    let modified = apply(&store, vec![put("k", "2")]).await;
    assert!(modified > created);
    let entry = store.read("k").await.unwrap().entries.remove(0);
    assert_eq!(
        (entry.create_revision, entry.mod_revision, entry.session),
        (created, modified, None)
    );
    apply(&store, vec![delete("k")]).await;
    let again = apply(&store, vec![put("k", "3")]).await;
    let entry = store.read("k").await.unwrap().entries.remove(0);
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));
}

pub(super) async fn a_transaction_applies_whole_at_one_revision(store: impl MetadataStore) {
    apply(&store, vec![put("old", "x")]).await;
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    let at = apply(&store, vec![put("a", "1"), put("b", "2"), delete("old")]).await;
    let batch = next_batch(&mut watch).await;
    assert_eq!(batch.revision, at);
    assert_eq!(words(&batch), ["-old", "a=1", "b=2"]);
}

pub(super) async fn a_guard_that_fails_leaves_everything_as_it_was(store: impl MetadataStore) {
    let first = apply(&store, vec![put("k", "1")]).await;
    let second = apply(&store, vec![put("k", "2")]).await;
    let key = || "k".to_owned();
    let absent = || "none".to_owned();
    let failing = [
        Guard::Absent(key()),
        Guard::Modified(key(), first),
        Guard::Created(key(), second),
        Guard::Modified(absent(), first),
        Guard::Created(absent(), first),
        // No key is put at revision 0, least of all one that does not exist.
        Guard::Modified(absent(), Revision::ZERO),
        Guard::Created(absent(), Revision::ZERO),
        Guard::Created(key(), Revision::ZERO),
    ];
    for guard in failing {
        // One that holds beside it doesn't help.
        let guards = vec![Guard::Absent(absent()), guard.clone()];
        let outcome = commit(&store, guards, vec![put("new", "x"), delete("k")]).await;
        assert_eq!(outcome, Commit::Refused, "{guard:?}");
        assert_eq!(keys(&store, "").await, ["k"]);
        let entry = store.read("k").await.unwrap().entries.remove(0);
        assert_eq!(entry.mod_revision, second);
    }
    let holding = vec![
        Guard::Absent(absent()),
        Guard::Modified(key(), second),
        Guard::Created(key(), first),
    ];
    let outcome = commit(&store, holding, vec![put("new", "x"), delete("k")]).await;
    assert!(matches!(outcome, Commit::Applied(_)));
    assert_eq!(keys(&store, "").await, ["new"]);
}

pub(super) async fn of_two_that_compare_and_swap_one_wins(store: impl MetadataStore) {
    let seen = apply(&store, vec![put("k", "0")]).await;
    let swap = |value: &'static str| {
        let store = store.clone();
        async move {
            let guards = vec![Guard::Modified("k".to_owned(), seen)];
            commit(&store, guards, vec![put("k", value)]).await
        }
    };
    let (a, b) = tokio::join!(swap("a"), swap("b"));
    let won = [a, b]
        .iter()
        .filter(|outcome| **outcome != Commit::Refused)
        .count();
    assert_eq!(won, 1);
}

pub(super) async fn deleting_what_is_not_there_is_no_error(store: impl MetadataStore) {
    let before = apply(&store, vec![put("k", "1")]).await;
    let outcome = commit(&store, Vec::new(), vec![delete("none")]).await;
    assert!(matches!(outcome, Commit::Applied(at) if at >= before));
    assert_eq!(keys(&store, "").await, ["k"]);
}

pub(super) async fn a_watch_delivers_every_later_revision_of_its_prefix_in_order(
    store: impl MetadataStore,
) {
    let start = apply(&store, vec![put("p/0", "old")]).await;
    let first = apply(&store, vec![put("p/1", "a"), put("q", "x")]).await;
    let mut watch = store.watch("p/", start).await.unwrap();
    apply(&store, vec![put("q", "y")]).await;
    let second = apply(&store, vec![put("p/1", "b")]).await;
    let third = apply(&store, vec![delete("p/1")]).await;
    for (revision, changes) in [(first, "p/1=a"), (second, "p/1=b"), (third, "-p/1")] {
        let batch = next_batch(&mut watch).await;
        assert_eq!(batch.revision, revision);
        assert_eq!(words(&batch), [changes]);
    }
    // And what comes while it waits.
    let waiting = tokio::spawn(async move { next_batch(&mut watch).await });
    tokio::task::yield_now().await;
    let fourth = apply(&store, vec![put("p/2", "c")]).await;
    assert_eq!(waiting.await.unwrap().revision, fourth);
}

pub(super) async fn a_batch_carries_what_the_entries_carry(store: impl MetadataStore) {
    let session = store.open_session(DEADLINE).await.unwrap();
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    let created = apply(&store, vec![bound("k", "1", Some(session))]).await;
    apply(&store, vec![put("k", "2")]).await;
    next_batch(&mut watch).await;
    let batch = next_batch(&mut watch).await;
    let Change::Put(entry) = &batch.changes[0] else {
        panic!("a put");
    };
    assert_eq!(entry.create_revision, created);
    assert_eq!(entry.mod_revision, batch.revision);
    // Putting it without a session has set it free.
    assert_eq!(entry.session, None);
    store.close_session(session).await.unwrap();
    assert_eq!(keys(&store, "").await, ["k"]);
}

pub(super) async fn keys_of_a_session_go_when_it_is_closed(store: impl MetadataStore) {
    let session = store.open_session(DEADLINE).await.unwrap();
    let at = apply(
        &store,
        vec![bound("s", "1", Some(session)), put("free", "2")],
    )
    .await;
    let entry = store.read("s").await.unwrap().entries.remove(0);
    assert_eq!(entry.session, Some(session));
    let mut watch = store.watch("", at).await.unwrap();
    store.close_session(session).await.unwrap();
    assert_eq!(words(&*next_batch(&mut watch).await), ["-s"]);
    assert_eq!(keys(&store, "").await, ["free"]);
    store.close_session(session).await.unwrap();
}

pub(super) async fn a_session_ends_when_it_is_not_kept(store: impl MetadataStore, ttl: Duration) {
    let kept = store.open_session(ttl).await.unwrap();
    let left = store.open_session(ttl).await.unwrap();
    let at = apply(
        &store,
        vec![
            bound("kept", "1", Some(kept)),
            bound("left", "2", Some(left)),
        ],
    )
    .await;
    let keeper = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                store.keep_session(kept).await.unwrap();
                tokio::time::sleep(ttl / 8).await;
            }
        }
    });
    let mut watch = store.watch("", at).await.unwrap();
    assert_eq!(words(&*next_batch(&mut watch).await), ["-left"]);
    assert_eq!(keys(&store, "").await, ["kept"]);
    assert_eq!(store.keep_session(left).await, Err(StoreError::SessionLost));
    keeper.abort();
}

pub(super) async fn nothing_can_be_bound_to_a_session_that_has_ended(store: impl MetadataStore) {
    let session = store.open_session(DEADLINE).await.unwrap();
    store.close_session(session).await.unwrap();
    let transaction = Transaction {
        guards: Vec::new(),
        operations: vec![put("a", "1"), bound("b", "2", Some(session))],
    };
    assert_eq!(
        store.commit(transaction).await,
        Err(StoreError::SessionLost)
    );
    assert!(keys(&store, "").await.is_empty());
}

pub(super) async fn a_transaction_over_the_limits_is_refused_before_it_is_sent(
    store: impl MetadataStore,
) {
    let many = |count: usize| (0..count).map(|i| put(&format!("k{i}"), "")).collect();
    let transaction = |guards, operations| Transaction { guards, operations };
    let too_many = transaction(Vec::new(), many(MAX_TRANSACTION_OPERATIONS + 1));
    let absent = (0..=MAX_TRANSACTION_OPERATIONS).map(|i| Guard::Absent(format!("n{i}")));
    let too_guarded = transaction(absent.collect(), many(1));
    let big = "x".repeat(MAX_TRANSACTION_BYTES + 1);
    let too_big = transaction(Vec::new(), vec![put("k", &big)]);
    for refused in [too_many, too_guarded, too_big] {
        let outcome = store.commit(refused).await;
        assert!(
            matches!(outcome, Err(StoreError::TooLarge { .. })),
            "{outcome:?}"
        );
    }
}

pub(super) async fn a_transaction_at_the_limits_is_applied(store: impl MetadataStore) {
    let absent = (0..MAX_TRANSACTION_OPERATIONS).map(|i| Guard::Absent(format!("n{i}")));
    let value = "x".repeat(MAX_TRANSACTION_BYTES / MAX_TRANSACTION_OPERATIONS - 8);
    let puts = (0..MAX_TRANSACTION_OPERATIONS).map(|i| put(&format!("k{i}"), &value));
    let outcome = commit(&store, absent.collect(), puts.collect()).await;
    assert!(matches!(outcome, Commit::Applied(_)), "{outcome:?}");
    assert_eq!(keys(&store, "k").await.len(), MAX_TRANSACTION_OPERATIONS);
}

/// More than etcd answers at once, or its clients read.
pub(super) async fn a_read_of_many_large_values_is_whole(store: impl MetadataStore) {
    const KEYS: usize = 700;
    let value = "x".repeat(10_000);
    let all: Vec<String> = (0..KEYS).map(|i| format!("k{i:04}")).collect();
    for some in all.chunks(100) {
        apply(&store, some.iter().map(|key| put(key, &value)).collect()).await;
    }
    let snapshot = store.read("").await.unwrap();
    let found: Vec<&str> = snapshot.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(found, all);
    assert!(snapshot.entries.iter().all(|entry| entry.value == value));
}

pub(super) async fn a_watch_goes_on_where_another_left_off(store: impl MetadataStore) {
    let mut after = store.read("").await.unwrap().revision;
    let mut written = Vec::new();
    for i in 0..10 {
        written.push(apply(&store, vec![put("k", &i.to_string())]).await);
    }
    let mut seen = Vec::new();
    while seen.len() < written.len() {
        let mut watch = store.watch("k", after).await.unwrap();
        for _ in 0..3 {
            if seen.len() < written.len() {
                after = next_batch(&mut watch).await.revision;
                seen.push(after);
            }
        }
    }
    assert_eq!(seen, written);
}

pub(super) async fn watches_that_are_polled_by_turns_lose_nothing(store: impl MetadataStore) {
    let start = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", start).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            let mut written = Vec::new();
            for i in 0..50 {
                written.push(apply(&store, vec![put("k", &i.to_string())]).await);
            }
            written
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 50 {
        // As a loop does that waits for other things too, and gives up each wait.
        let waited = timeout(Duration::from_micros(200), watch.next()).await;
        match waited {
            Ok(Some(Ok(WatchEvent::Batch(batch)))) => seen.push(batch.revision),
            Ok(other) => panic!("expected a batch, got {other:?}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert_eq!(seen, writer.await.unwrap());
}

pub(super) async fn a_watch_of_a_past_that_is_forgotten_is_told_so<S, F>(
    store: S,
    forget: impl FnOnce(S) -> F,
) where
    S: MetadataStore,
    F: Future<Output = ()>,
{
    let start = store.read("").await.unwrap().revision;
    apply(&store, vec![put("k", "1")]).await;
    apply(&store, vec![put("k", "2")]).await;
    forget(store.clone()).await;
    let mut watch = store.watch("", start).await.unwrap();
    let event = timeout(DEADLINE, watch.next()).await.expect("in time");
    assert_eq!(event, Some(Ok(WatchEvent::Compacted)));
    // Reading again and watching from there works.
    let now = store.read("").await.unwrap().revision;
    let mut watch = store.watch("", now).await.unwrap();
    let next = apply(&store, vec![put("k", "3")]).await;
    assert_eq!(next_batch(&mut watch).await.revision, next);
}

/// Runs every fact above on a store: `$store` makes an empty one, which may share its
/// revisions with others, and `$ttl` is the shortest session that it can hold. `$forgetful` makes one
/// that shares nothing, and what makes it forget its history.
macro_rules! metadata_store_contract {
    ($module:ident, $ttl:expr, $store:expr, $forgetful:expr) => {
        mod $module {
            use super::*;

            metadata_store_contract!(@facts $store,
                a_read_finds_a_prefix_in_key_order_at_one_revision,
                entries_carry_when_they_were_created_and_last_put,
                a_transaction_applies_whole_at_one_revision,
                a_guard_that_fails_leaves_everything_as_it_was,
                of_two_that_compare_and_swap_one_wins,
                deleting_what_is_not_there_is_no_error,
                a_watch_delivers_every_later_revision_of_its_prefix_in_order,
                a_batch_carries_what_the_entries_carry,
                keys_of_a_session_go_when_it_is_closed,
                nothing_can_be_bound_to_a_session_that_has_ended,
                a_transaction_over_the_limits_is_refused_before_it_is_sent,
                a_transaction_at_the_limits_is_applied,
                a_read_of_many_large_values_is_whole,
                a_watch_goes_on_where_another_left_off,
                watches_that_are_polled_by_turns_lose_nothing,
            );

            #[tokio::test]
            async fn a_watch_of_a_past_that_is_forgotten_is_told_so() {
                let (store, forget, _guard) = $forgetful;
                super::a_watch_of_a_past_that_is_forgotten_is_told_so(store, forget).await;
            }

            #[tokio::test]
            async fn a_session_ends_when_it_is_not_kept() {
                let (store, _guard) = $store;
                super::a_session_ends_when_it_is_not_kept(store, $ttl).await;
            }
        }
    };
    (@facts $store:expr, $($fact:ident,)+) => {
        $(
            #[tokio::test]
            async fn $fact() {
                let (store, _guard) = $store;
                super::$fact(store).await;
            }
        )+
    };
}

metadata_store_contract!(
    embedded_in_memory,
    Duration::from_secs(2),
    (EmbeddedStore::in_memory(), ()),
    (EmbeddedStore::in_memory(), push_out_the_past, ())
);

metadata_store_contract!(
    embedded_in_a_file,
    Duration::from_secs(2),
    {
        let directory = tempfile::tempdir().unwrap();
        (EmbeddedStore::open(directory.path()).unwrap(), directory)
    },
    {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).unwrap();
        (store, push_out_the_past, directory)
    }
);

metadata_store_contract!(
    in_etcd,
    Duration::from_secs(6),
    (etcd::tests::shared_store().await, ()),
    {
        let own = etcd::tests::Etcd::start(&[]);
        let url = own.url();
        let store = etcd::tests::connect(&own).await;
        (store, move |_| etcd::tests::compact(url), own)
    }
);

/// The embedded store keeps so many revisions. Those of a session cost no sync.
async fn push_out_the_past(store: EmbeddedStore) {
    let session = store.open_session(DEADLINE * 10).await.unwrap();
    for i in 0..5000 {
        apply(&store, vec![bound("s", &i.to_string(), Some(session))]).await;
    }
    store.close_session(session).await.unwrap();
}
