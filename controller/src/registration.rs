//! The registration of this process under its `node.id`, as a broker or as a controller
//! that is no broker: what it says about itself, and how the image has it.
//!
//! A number belongs to one process at a time, whatever that is: its key can be written
//! only while neither a broker's nor a daemon's key of that number is there.

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

/// A process that wants to be, or is, registered.
pub(crate) struct Registration {
    pub(crate) registrant: Registrant,
    pub(crate) waiting: Vec<Registered>,
    pub(crate) give_up_at: Instant,
    /// When to say again that it is not let in yet.
    pub(crate) remind_at: Instant,
    /// The session in which it was last seen to be registered.
    pub(crate) session: Option<SessionId>,
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
    use std::time::Duration;

    use super::*;
    use crate::{
        decide::testing::registration,
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
}
