//! The registration of this process under its `node.id`, as a broker or as a controller
//! that is no broker: what it says about itself, how the image has it, and who waits for the
//! controller to let it in.
//!
//! A number belongs to one process at a time, whatever that is: its key can be written
//! only while neither a broker's nor a daemon's key of that number is there, and a process
//! that another one's number was given to competes for nothing.

use std::time::Duration;

use tokio::{sync::oneshot, time::Instant};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId};

use crate::{
    ControllerError,
    image::ClusterImage,
    keys::{BrokerValue, DaemonValue, Key, print_value},
    store::{Guard, Operation, SessionId, Transaction},
};

/// What a process registers as.
pub(crate) enum Registrant {
    Broker(BrokerValue),
    Daemon(DaemonValue),
}

/// The way back to whoever asked for a registration.
pub(crate) type Registered = oneshot::Sender<Result<BrokerEpoch, ControllerError>>;

/// How many session TTLs a registration waits for an earlier one under its id to go.
const PATIENCE_TTLS: u32 = 2;

/// When a process that is not let in says so, first and then again.
const FIRST_REMINDER: Duration = Duration::from_secs(1);
const REMINDER: Duration = Duration::from_secs(10);

/// The registration of this process, from when it is asked for. Owns who waits for it.
pub(crate) struct OwnRegistration {
    node_id: BrokerId,
    session_ttl: Duration,
    /// `None` before it is asked for.
    asked: Option<Registration>,
}

/// A process that wants to be, or is, registered.
struct Registration {
    registrant: Registrant,
    waiting: Vec<Registered>,
    give_up_at: Instant,
    /// When to say again that it is not let in yet.
    remind_at: Instant,
    /// The session in which it was last seen to be registered.
    session: Option<SessionId>,
}

impl Registrant {
    pub(crate) fn incarnation(&self) -> &str {
        match self {
            Self::Broker(value) => &value.incarnation,
            Self::Daemon(value) => &value.incarnation,
        }
    }

    /// Registers it as `node_id`, if that is free.
    pub(crate) fn transaction(&self, node_id: BrokerId, session: SessionId) -> Transaction {
        let (as_broker, as_daemon) = (Key::Broker(node_id), Key::Daemon(node_id));
        let (key, value) = match self {
            Self::Broker(value) => (&as_broker, print_value(value)),
            Self::Daemon(value) => (&as_daemon, print_value(value)),
        };
        Transaction {
            guards: vec![
                Guard::Absent(as_broker.to_string()),
                Guard::Absent(as_daemon.to_string()),
            ],
            operations: vec![Operation::Put {
                key: key.to_string(),
                value,
                session: Some(session),
            }],
        }
    }
}

impl OwnRegistration {
    pub(crate) fn new(node_id: BrokerId, session_ttl: Duration) -> Self {
        Self {
            node_id,
            session_ttl,
            asked: None,
        }
    }

    /// Asks for it, in place of what was asked for before.
    pub(crate) fn ask(&mut self, registrant: Registrant, reply: Registered) {
        let now = Instant::now();
        let mut waiting = self.asked.take().map_or(Vec::new(), |old| old.waiting);
        waiting.push(reply);
        self.asked = Some(Registration {
            registrant,
            waiting,
            give_up_at: now + self.session_ttl * PATIENCE_TTLS,
            remind_at: now + FIRST_REMINDER,
            session: None,
        });
    }

    /// As what it registers.
    pub(crate) fn incarnation(&self) -> Option<&str> {
        let asked = self.asked.as_ref();
        asked.map(|asked| asked.registrant.incarnation())
    }

    /// Whether this process has its number, or asks for it and nobody else has it.
    pub(crate) fn has_its_number(&self, image: &ClusterImage) -> bool {
        self.asked.is_some() && !self.is_taken(image)
    }

    /// Whether another process, or another life of this one, has this one's number.
    fn is_taken(&self, image: &ClusterImage) -> bool {
        let holder = holder(image, self.node_id);
        holder.is_some_and(|holder| Some(holder.incarnation) != self.incarnation())
    }

    /// What registers it, if it is asked for and nobody has the number.
    pub(crate) fn due(&self, image: &ClusterImage, session: SessionId) -> Option<Transaction> {
        let asked = self.asked.as_ref()?;
        holder(image, self.node_id)
            .is_none()
            .then(|| asked.registrant.transaction(self.node_id, session))
    }

    /// Takes in how the image has it, and answers who waited for that.
    pub(crate) fn follow(&mut self, image: &ClusterImage) {
        let Some(asked) = &mut self.asked else {
            return;
        };
        let registered = holder(image, self.node_id)
            .filter(|holder| holder.incarnation == asked.registrant.incarnation());
        if let Some(holder) = registered {
            asked.session = holder.session;
        }
        if let Some(epoch) = registered.and_then(|holder| holder.admitted) {
            for waiting in asked.waiting.drain(..) {
                let _ = waiting.send(Ok(epoch));
            }
        }
    }

    /// Whether it was there in `session` and is gone.
    pub(crate) fn is_gone_from(&self, image: &ClusterImage, session: SessionId) -> bool {
        let asked = self.asked.as_ref();
        asked.is_some_and(|asked| asked.session == Some(session))
            && holder(image, self.node_id).is_none()
    }

    /// The session of an earlier process on this broker's own data directory, which is surely
    /// gone, since this one has locked the directory on the same, still running, machine.
    pub(crate) fn former_life(&self, image: &ClusterImage) -> Option<SessionId> {
        let asked = self
            .asked
            .as_ref()
            .filter(|asked| asked.session.is_none())?;
        let Registrant::Broker(mine) = &asked.registrant else {
            return None;
        };
        let former = image.registration(self.node_id).filter(|broker| {
            let other = &broker.registration;
            other.incarnation != mine.incarnation
                && !mine.boot_id.is_empty()
                && other.boot_id == mine.boot_id
                && !mine.directories.is_empty()
                && other.directories == mine.directories
        });
        former.and_then(|broker| broker.session)
    }

    /// When to call [`OwnRegistration::look_at_the_clock`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waits = self
            .asked
            .as_ref()
            .filter(|asked| !asked.waiting.is_empty());
        waits.map(|asked| asked.give_up_at.min(asked.remind_at))
    }

    /// Says what is waited for, and tells those who have waited too long why: `trouble` is
    /// what is wrong with the store.
    pub(crate) fn look_at_the_clock(
        &mut self,
        now: Instant,
        image: &ClusterImage,
        trouble: Option<&ControllerError>,
    ) {
        let taken = self.is_taken(image);
        let Some(asked) = &mut self.asked else {
            return;
        };
        if asked.remind_at <= now && !asked.waiting.is_empty() {
            asked.remind_at = now + REMINDER;
            remind(self.node_id, image, taken);
        }
        if asked.give_up_at <= now {
            let error = match trouble {
                Some(error) if !error.is_store_unavailable() => error.clone(),
                _ if taken => ControllerError::DuplicateBrokerRegistration(self.node_id.value()),
                // Sooner or later the store is back and a controller lets it in.
                _ => {
                    asked.give_up_at = now + self.session_ttl * PATIENCE_TTLS;
                    return;
                }
            };
            for waiting in asked.waiting.drain(..) {
                let _ = waiting.send(Err(error.clone()));
            }
        }
    }
}

fn remind(node_id: BrokerId, image: &ClusterImage, taken: bool) {
    match image.controller() {
        _ if taken => tracing::info!(
            node = %node_id,
            "waiting for another process with this node.id to be gone"
        ),
        None => tracing::info!(
            broker = %node_id,
            "waiting for a controller: there is none, and this broker is no candidate or not yet \
             one"
        ),
        Some(controller) => tracing::info!(
            broker = %node_id,
            controller = %controller.node_id,
            "waiting for the controller to let this broker in"
        ),
    }
}

/// Who has a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder<'a> {
    pub(crate) incarnation: &'a str,
    pub(crate) session: Option<SessionId>,
    /// Its broker epoch, once it was let in; a daemon's is not looked at.
    pub(crate) admitted: Option<BrokerEpoch>,
}

/// Who is registered under `node_id`, as a broker or as a daemon.
pub(crate) fn holder(image: &ClusterImage, node_id: BrokerId) -> Option<Holder<'_>> {
    let broker = image.registration(node_id).map(|broker| Holder {
        incarnation: &broker.registration.incarnation,
        session: broker.session,
        admitted: Some(broker.epoch).filter(|_| image.is_admitted(broker)),
    });
    broker.or_else(|| {
        image.daemon(node_id).map(|daemon| Holder {
            incarnation: &daemon.value.incarnation,
            session: daemon.session,
            admitted: Some(BrokerEpoch::new(daemon.revision.value())),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::testing::{Cluster, registration},
        store::{Commit, EmbeddedStore, MetadataStore as _},
    };

    #[tokio::test]
    async fn whichever_kind_takes_a_number_first_keeps_the_other_from_it() {
        let daemon = || {
            Registrant::Daemon(DaemonValue {
                incarnation: "a life".to_owned(),
                endpoint: None,
            })
        };
        let broker = || Registrant::Broker(registration());
        for (first, second) in [
            (daemon(), broker()),
            (broker(), daemon()),
            (daemon(), daemon()),
            (broker(), broker()),
        ] {
            let store = EmbeddedStore::in_memory();
            let session = store.open_session(Duration::from_mins(1)).await.unwrap();
            let take = |it: &Registrant| store.commit(it.transaction(BrokerId::new(1), session));
            assert!(matches!(take(&first).await, Ok(Commit::Applied(_))));
            assert_eq!(take(&second).await, Ok(Commit::Refused));
        }
    }

    #[test]
    fn a_process_competes_only_as_the_one_that_has_its_number_or_asks_for_a_free_one() {
        let life = |incarnation: &str| BrokerValue {
            incarnation: incarnation.to_owned(),
            ..registration()
        };
        let mut cluster = Cluster::new();
        let mut own = OwnRegistration::new(BrokerId::new(1), Duration::from_mins(1));
        assert!(!own.has_its_number(&cluster.image), "it has not asked");
        own.ask(Registrant::Broker(life("mine")), oneshot::channel().0);
        assert!(own.has_its_number(&cluster.image));
        cluster.register(2, &life("two"));
        assert!(own.has_its_number(&cluster.image));
        cluster.register(1, &life("another"));
        assert!(!own.has_its_number(&cluster.image));
        cluster.unregister(1);
        cluster.register(1, &life("mine"));
        assert!(own.has_its_number(&cluster.image));
    }
}
