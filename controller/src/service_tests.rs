//! The loop over a store that fails in chosen ways.

use std::sync::Mutex;

use super::*;
use crate::{
    Controller,
    decide::{
        testing::{registration, settings},
        topics::NewTopic,
    },
    store::{EmbeddedStore, SessionId},
};

/// What happens to a commit that touches a key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It is applied, and the answer is lost.
    AnswerLost,
    /// It never arrives.
    RequestLost,
    /// The store says that it can't.
    Unavailable,
    /// Another process has deleted the controller key just before.
    Deposed,
    /// It is applied, and the watch loses its place.
    Compacted,
}

#[derive(Clone)]
struct FaultyStore {
    store: EmbeddedStore,
    /// The faults to come, for commits that touch a key with this prefix.
    faults: Arc<Mutex<VecDeque<(&'static str, Fault)>>>,
    compacted: watch::Sender<u32>,
}

impl FaultyStore {
    fn new(faults: &[(&'static str, Fault)]) -> Self {
        Self {
            store: EmbeddedStore::in_memory(),
            faults: Arc::new(Mutex::new(faults.iter().copied().collect())),
            compacted: watch::Sender::new(0),
        }
    }

    fn next_fault(&self, transaction: &Transaction) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (prefix, fault) = *faults.front()?;
        let touched = transaction
            .operations
            .iter()
            .any(|op| op.key().starts_with(prefix));
        touched.then(|| {
            faults.pop_front();
            fault
        })
    }
}

impl MetadataStore for FaultyStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.store.read(prefix).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let watch = self.store.watch(prefix, after).await?;
        let mut compacted = self.compacted.subscribe();
        let lost = async move {
            let _ = compacted.changed().await;
            Ok(WatchEvent::Compacted)
        };
        Ok(Box::pin(futures_util::stream::select(
            watch,
            futures_util::stream::once(lost),
        )))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        let unknown = || Err(StoreError::Unknown("a fault".to_owned()));
        match self.next_fault(&transaction) {
            None => self.store.commit(transaction).await,
            Some(Fault::AnswerLost) => {
                self.store.commit(transaction).await?;
                unknown()
            }
            Some(Fault::RequestLost) => unknown(),
            Some(Fault::Unavailable) => Err(StoreError::Unavailable("a fault".to_owned())),
            Some(Fault::Deposed) => {
                let deposed = Transaction {
                    guards: Vec::new(),
                    operations: vec![Operation::Delete {
                        key: "controller".to_owned(),
                    }],
                };
                self.store.commit(deposed).await?;
                self.store.commit(transaction).await
            }
            Some(Fault::Compacted) => {
                let outcome = self.store.commit(transaction).await;
                self.compacted.send_modify(|count| *count += 1);
                outcome
            }
        }
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, StoreError> {
        self.store.open_session(ttl).await
    }

    async fn keep_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.store.keep_session(session).await
    }

    async fn close_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.store.close_session(session).await
    }
}

/// A broker that registers and creates a topic while these things go wrong.
async fn create_under(
    faults: &[(&'static str, Fault)],
) -> (Controller, Result<(), ControllerError>) {
    let store = FaultyStore::new(faults);
    let options = ControllerOptions {
        node_id: 1.into(),
        settings: Arc::new(settings()),
        session_ttl: Duration::from_secs(10),
        campaign: Campaign::OnceRegistered,
        cluster_id: None,
        seed: Some(1),
    };
    let controller = Controller::start(store.clone(), options).await.unwrap();
    controller.register_broker(registration()).await.unwrap();
    let answer = controller
        .create_topics(vec![topic()], false)
        .await
        .remove(0);
    assert!(
        store.faults.lock().unwrap().is_empty(),
        "every fault has happened"
    );
    (controller, answer.map(|_| ()))
}

fn topic() -> NewTopic {
    NewTopic {
        adopted: None,
        name: "t".to_owned(),
        partitions: 200,
        replication_factor: 1,
        assignments: Vec::new(),
        configs: Vec::new(),
    }
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_found_by_reading_back_and_not_made_twice() {
    let (controller, answer) = create_under(&[("topics/", Fault::AnswerLost)]).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(
        controller.image().topic("t").unwrap().partitions().count(),
        200
    );
}

#[tokio::test]
async fn a_change_that_never_arrived_is_made_again() {
    let faults = [
        ("topics/", Fault::RequestLost),
        ("topics/", Fault::RequestLost),
    ];
    let (controller, answer) = create_under(&faults).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(controller.image().topic_count(), 1);
}

#[tokio::test]
async fn a_caller_is_not_left_waiting_for_a_store_that_stays_away() {
    let faults = [("topics/", Fault::RequestLost); MAX_ATTEMPTS as usize];
    let (controller, answer) = create_under(&faults).await;
    assert!(matches!(
        answer,
        Err(ControllerError::Store(StoreError::Unknown(_)))
    ));
    // When it is back, so is the controller.
    let mut answer = controller
        .create_topics(vec![topic()], false)
        .await
        .remove(0);
    while matches!(answer, Err(ControllerError::Store(_))) {
        tokio::time::sleep(RETRY_DELAY / 4).await;
        answer = controller
            .create_topics(vec![topic()], false)
            .await
            .remove(0);
    }
    answer.unwrap();
}

#[tokio::test]
async fn what_the_store_refuses_is_reported_and_changes_nothing() {
    let (controller, answer) = create_under(&[("topics/", Fault::Unavailable)]).await;
    assert!(matches!(
        answer,
        Err(ControllerError::Store(StoreError::Unavailable(_)))
    ));
    assert_eq!(controller.image().topic_count(), 0);
}

#[tokio::test]
async fn a_controller_that_was_deposed_changes_nothing_until_it_has_the_seal_again() {
    let (controller, answer) = create_under(&[("topics/", Fault::Deposed)]).await;
    assert_eq!(answer, Err(ControllerError::NotController));
    let mut images = controller.subscribe();
    images
        .wait_for(|image| image.controller().is_some())
        .await
        .unwrap();
    assert_eq!(controller.image().topic_count(), 0);
    // It reconciles first, so this waits its turn rather than being refused.
    controller
        .create_topics(vec![topic()], false)
        .await
        .remove(0)
        .unwrap();
}

#[tokio::test]
async fn a_watch_that_lost_its_place_is_replaced_by_reading_everything() {
    let (controller, answer) = create_under(&[("topics/", Fault::Compacted)]).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(controller.image().topic_count(), 1);
}

#[tokio::test]
async fn the_start_survives_lost_answers_too() {
    for key in ["brokers/", "controller", "admitted/", "cluster"] {
        for fault in [Fault::AnswerLost, Fault::RequestLost] {
            let (_, answer) = create_under(&[(key, fault)]).await;
            assert_eq!(answer, Ok(()), "{key} {fault:?}");
        }
    }
}

fn put(key: &str, bytes: usize) -> Operation {
    Operation::Put {
        key: key.to_owned(),
        value: vec![b'x'; bytes].into(),
        session: None,
    }
}

fn set(operations: Vec<Operation>) -> ChangeSet {
    ChangeSet {
        guards: vec![Guard::Absent("other".to_owned())],
        operations,
    }
}

#[test]
fn transactions_are_full_within_the_limits_in_order_and_guarded_by_the_reign() {
    let epoch = ControllerEpoch::new(5);
    let sets = (0..300)
        .map(|i| set(vec![put(&format!("k{i}"), 1)]))
        .collect();
    let packed = pack(sets, epoch);
    // The reign's own guard takes one of 128.
    let sizes: Vec<usize> = packed.iter().map(|t| t.operations.len()).collect();
    assert_eq!(sizes, [127, 127, 46]);
    let order: Vec<&str> = packed
        .iter()
        .flat_map(|t| &t.operations)
        .map(Operation::key)
        .collect();
    assert_eq!(order, (0..300).map(|i| format!("k{i}")).collect::<Vec<_>>());
    for transaction in &packed {
        assert_eq!(transaction.guards[0], reign(epoch));
        assert_eq!(transaction.check_limits(), Ok(()));
    }
    let large = (0..3)
        .map(|i| set(vec![put(&format!("k{i}"), 600_000)]))
        .collect();
    assert_eq!(pack(large, epoch).len(), 3);
}

#[test]
fn a_key_is_changed_once_in_a_transaction() {
    let epoch = ControllerEpoch::new(5);
    let sets = vec![set(vec![put("k", 1)]), set(vec![put("k", 2)])];
    assert_eq!(pack(sets, epoch).len(), 2);
}

#[test]
fn nothing_to_change_is_no_transaction() {
    assert!(pack(Vec::new(), ControllerEpoch::new(5)).is_empty());
}
