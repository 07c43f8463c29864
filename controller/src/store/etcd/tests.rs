//! What is particular to etcd, against real ones; `contract.rs` has what every store does.

mod access;
mod faults;
#[path = "../../../tests/etcd/mod.rs"]
mod process;
mod silence;

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Client, GetOptions, LeaseTimeToLiveOptions};
use futures_util::StreamExt;
use tokio::time::timeout;

pub(in crate::store) use self::process::Etcd;
use super::*;
use crate::store::{Batch, Change, Guard, Operation, WatchEvent};

const DEADLINE: Duration = Duration::from_mins(1);

fn options(url: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![url.to_owned()],
        prefix: process::new_prefix(),
        user: None,
        tls: None,
        request_timeout: Duration::from_secs(5),
    }
}

/// A store in an etcd that other tests use as well.
pub(in crate::store) async fn shared_store() -> EtcdStore {
    connect(process::shared()).await
}

/// A store under a prefix of its own.
pub(in crate::store) async fn connect(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(options(&etcd.url())).await.unwrap()
}

async fn refusal(options: EtcdOptions) -> StoreError {
    let connected = timeout(DEADLINE, EtcdStore::connect(options)).await;
    let error = connected.expect("in time").expect_err("refused");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// Makes the etcd at `url` forget all but its last revision.
pub(in crate::store) async fn compact(url: String) {
    let mut client = Client::connect([url], None).await.unwrap();
    let now = client.get("x", None).await.unwrap();
    let now = now.header().expect("every answer has one").revision();
    client.compact(now, None).await.unwrap();
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Put {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            session: None,
        }],
    }
}

async fn apply(store: &EtcdStore, transaction: Transaction) -> Revision {
    match store.commit(transaction).await.unwrap() {
        Commit::Applied(revision) => revision,
        Commit::Refused => panic!("nothing guards this"),
    }
}

/// Applies it in the end, however often it has to be tried.
async fn insist(store: &EtcdStore, key: &str, value: &str) -> Revision {
    let insisting = async {
        loop {
            if let Ok(Commit::Applied(revision)) = store.commit(put(key, value)).await {
                return revision;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, insisting).await.expect("applied in time")
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let event = timeout(DEADLINE, watch.next()).await;
    event.expect("in time").expect("it never ends").unwrap()
}

async fn next_batch(watch: &mut Watch) -> Arc<Batch> {
    match next(watch).await {
        WatchEvent::Batch(batch) => batch,
        WatchEvent::Compacted => panic!("nothing was compacted"),
    }
}

fn value(batch: &Batch) -> &[u8] {
    match &batch.changes[..] {
        [Change::Put(entry)] => &entry.value,
        other => panic!("expected one put, got {other:?}"),
    }
}

#[test]
fn a_prefix_ends_in_one_slash() {
    for (given, expected) in [
        ("/yuxi/default/", "/yuxi/default/"),
        ("/yuxi/default", "/yuxi/default/"),
        ("yuxi//", "yuxi/"),
        ("", "/"),
    ] {
        assert_eq!(normalised(given), expected, "{given}");
    }
}

#[test]
fn the_password_is_not_shown() {
    let options = EtcdOptions {
        user: Some(("yuxi".to_owned(), "s3cret".to_owned())),
        ..options("http://localhost:2379")
    };
    assert!(!format!("{options:?}").contains("s3cret"));
}

#[tokio::test]
async fn keys_stand_under_the_prefix_as_they_are() {
    let etcd = process::shared();
    let mut options = options(&etcd.url());
    options.prefix = options.prefix.trim_end_matches('/').to_owned();
    let prefix = options.prefix.clone();
    let store = EtcdStore::connect(options).await.unwrap();
    apply(&store, put("topics/orders", "{}")).await;
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let found = client
        .get(prefix.as_str(), Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(found.kvs().len(), 1);
    assert_eq!(
        found.kvs()[0].key_str().unwrap(),
        format!("{prefix}/topics/orders")
    );
}

#[tokio::test]
async fn stores_under_other_prefixes_do_not_see_each_other() {
    let etcd = process::shared();
    let mut longer = options(&etcd.url());
    let short = options(&etcd.url());
    longer.prefix = format!("{}-2", short.prefix.trim_end_matches('/'));
    let [short, longer] = [short, longer].map(EtcdStore::connect);
    let (short, longer) = (short.await.unwrap(), longer.await.unwrap());
    let start = short.read("").await.unwrap().revision;
    let mut watch = short.watch("", start).await.unwrap();
    apply(&longer, put("k", "theirs")).await;
    let ours = apply(&short, put("k", "ours")).await;
    assert_eq!(next_batch(&mut watch).await.revision, ours);
    assert_eq!(short.read("").await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_session_is_rounded_up_to_whole_seconds() {
    let store = shared_store().await;
    for (ttl, seconds) in [(2000, 2), (2001, 3), (9000, 9)] {
        let session = store.open_session(Duration::from_millis(ttl)).await;
        let session = session.unwrap();
        let mut client = Client::connect([process::shared().url()], None)
            .await
            .unwrap();
        let lease = client
            .lease_time_to_live(session.value(), None::<LeaseTimeToLiveOptions>)
            .await
            .unwrap();
        assert_eq!(lease.granted_ttl(), seconds, "{ttl} ms");
        store.close_session(session).await.unwrap();
    }
}
