//! Who is the controller, and the session that this rests on.
//!
//! Whoever creates the key `controller` holds the seal for as long as its session
//! lives; the key's create revision is the controller epoch. A process knows that it is
//! the controller by finding its own incarnation and session in the image, however its
//! commit was answered, so a lost answer can't leave a key that nobody acts on. It
//! stops deciding when by its own clock the session may have ended; what it had
//! already sent is stopped by the guard on the key.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use yuxi_protocol::ids::{BrokerId, ControllerEpoch};

use crate::{
    complaints::Complaints,
    image::ClusterImage,
    keys::{Address, ControllerValue, Key, print_value},
    store::{Guard, MetadataStore, Operation, Revision, SessionId, StoreError, Transaction},
};

/// How often a session is kept within its TTL.
const KEEPS_PER_TTL: u32 = 4;

/// This process as a candidate.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) node_id: BrokerId,
    pub(crate) incarnation: String,
    /// Where others reach it once it is the controller.
    pub(crate) endpoint: Option<Address>,
}

/// What the image says about the seal, as seen by one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// Nobody holds it.
    Free,
    /// This process does, in this session.
    Mine(ControllerEpoch),
    /// This process did, in a session that it no longer has.
    Stale(ControllerEpoch),
    /// Somebody else does.
    Taken,
}

impl Candidate {
    pub(crate) fn seal(&self, image: &ClusterImage, session: SessionId) -> Seal {
        match image.controller() {
            None => Seal::Free,
            Some(holder) if holder.incarnation != self.incarnation => Seal::Taken,
            Some(holder) if holder.session == Some(session) => Seal::Mine(holder.epoch),
            Some(holder) => Seal::Stale(holder.epoch),
        }
    }

    /// Takes the seal if nobody has it.
    pub(crate) fn campaign(&self, session: SessionId) -> Transaction {
        let key = Key::Controller.to_string();
        Transaction {
            guards: vec![Guard::Absent(key.clone())],
            operations: vec![Operation::Put {
                key,
                value: print_value(&ControllerValue {
                    node_id: self.node_id,
                    incarnation: self.incarnation.clone(),
                    session: session.to_string(),
                    endpoint: self.endpoint.clone(),
                }),
                session: Some(session),
            }],
        }
    }

    /// Gives up a seal of `epoch`.
    pub(crate) fn resign(epoch: ControllerEpoch) -> Transaction {
        Transaction {
            guards: vec![reign(epoch)],
            operations: vec![Operation::Delete {
                key: Key::Controller.to_string(),
            }],
        }
    }
}

/// What guards every transaction of a controller.
pub(crate) fn reign(epoch: ControllerEpoch) -> Guard {
    Guard::Created(Key::Controller.to_string(), Revision::new(epoch.value()))
}

/// How a session stands.
#[derive(Clone, Copy, Debug)]
enum SessionState {
    /// It lives at least until then, by this process's clock.
    Alive(Instant),
    /// It has ended.
    Lost,
}

/// A session, and the task that keeps it until this is dropped.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    state: watch::Receiver<SessionState>,
    keeping: JoinHandle<()>,
}

impl Session {
    pub(crate) async fn open(
        store: &impl MetadataStore,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let asked = Instant::now();
        let id = store.open_session(ttl).await?;
        let (sender, state) = watch::channel(SessionState::Alive(asked + ttl));
        let store = store.clone();
        let keeping = tokio::spawn(async move {
            tokio::select! {
                () = keep(&store, id, ttl, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Ok(Self { id, state, keeping })
    }

    /// Keeps the session no longer, and returns once nothing of this holds the store.
    pub(crate) async fn let_go(self) -> SessionId {
        self.keeping.abort();
        // It was aborted.
        let _ = self.keeping.await;
        self.id
    }

    /// Whether the session is sure to be alive.
    pub(crate) fn is_alive(&self) -> bool {
        match *self.state.borrow() {
            SessionState::Alive(until) => Instant::now() < until,
            SessionState::Lost => false,
        }
    }

    /// Waits for news of the session; whether it has ended.
    pub(crate) async fn changed(&mut self) -> bool {
        self.state.changed().await.is_err()
            || matches!(*self.state.borrow_and_update(), SessionState::Lost)
    }
}

async fn keep(
    store: &impl MetadataStore,
    id: SessionId,
    ttl: Duration,
    state: &watch::Sender<SessionState>,
) {
    let mut pause = ttl / KEEPS_PER_TTL;
    let mut complaints = Complaints::default();
    loop {
        sleep(pause).await;
        let asked = Instant::now();
        match store.keep_session(id).await {
            Ok(()) => {
                state.send_replace(SessionState::Alive(asked + ttl));
                pause = ttl / KEEPS_PER_TTL;
                if complaints.is_over() {
                    tracing::info!(session = %id, "the session is kept again");
                }
            }
            Err(StoreError::SessionLost) => {
                tracing::warn!(session = %id, "the metadata session has ended");
                state.send_replace(SessionState::Lost);
                return;
            }
            // The next turn tries again; until then the clock runs on.
            Err(error) => {
                if complaints.is_worth_saying(&error, Instant::now()) {
                    tracing::warn!(session = %id, %error, "the session was not kept");
                }
                pause = ttl / KEEPS_PER_TTL / KEEPS_PER_TTL;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Commit, EmbeddedStore};

    fn candidate(node: i32) -> Candidate {
        Candidate {
            node_id: BrokerId::new(node),
            incarnation: format!("life-{node}"),
            endpoint: None,
        }
    }

    async fn image(store: &EmbeddedStore) -> ClusterImage {
        ClusterImage::from_snapshot(&store.read("").await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_of_two_candidates_takes_the_seal_and_its_epoch_is_the_keys_create_revision() {
        let store = EmbeddedStore::in_memory();
        let [a, b] = [candidate(1), candidate(2)];
        let sa = store.open_session(Duration::from_mins(1)).await.unwrap();
        let sb = store.open_session(Duration::from_mins(1)).await.unwrap();
        assert_eq!(a.seal(&image(&store).await, sa), Seal::Free);
        let Commit::Applied(revision) = store.commit(a.campaign(sa)).await.unwrap() else {
            panic!("nobody else campaigned yet");
        };
        assert_eq!(store.commit(b.campaign(sb)).await, Ok(Commit::Refused));
        let epoch = ControllerEpoch::new(revision.value());
        let seen = image(&store).await;
        assert_eq!(a.seal(&seen, sa), Seal::Mine(epoch));
        assert_eq!(b.seal(&seen, sb), Seal::Taken);
        // The same life in another session doesn't hold it.
        assert_eq!(a.seal(&seen, sb), Seal::Stale(epoch));
        store.close_session(sa).await.unwrap();
        assert_eq!(b.seal(&image(&store).await, sb), Seal::Free);
    }

    #[tokio::test]
    async fn what_a_controller_of_an_earlier_epoch_commits_is_refused() {
        let store = EmbeddedStore::in_memory();
        let a = candidate(1);
        let session = store.open_session(Duration::from_mins(1)).await.unwrap();
        let Commit::Applied(first) = store.commit(a.campaign(session)).await.unwrap() else {
            panic!("nobody else campaigned");
        };
        let first = ControllerEpoch::new(first.value());
        store.commit(Candidate::resign(first)).await.unwrap();
        store.commit(a.campaign(session)).await.unwrap();
        let late = Transaction {
            guards: vec![reign(first)],
            operations: vec![Operation::Delete {
                key: "topics/x".to_owned(),
            }],
        };
        assert_eq!(store.commit(late).await, Ok(Commit::Refused));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_kept_lives_on_and_one_that_is_closed_is_seen_to_be_lost() {
        let store = EmbeddedStore::in_memory();
        let ttl = Duration::from_millis(80);
        let mut session = Session::open(&store, ttl).await.unwrap();
        sleep(ttl * 3).await;
        assert!(session.is_alive());
        store.close_session(session.id).await.unwrap();
        while !session.changed().await {}
        assert!(!session.is_alive());
    }
}
