//! Several processes in one, for tests: each has a controller on a shared store, a listener
//! that the others reach it by, and ways to fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{StreamExt as _, stream};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use yuxi_protocol::{
    frame::{self, RequestHead},
    ids::{BrokerEpoch, BrokerId},
    messages::{
        AllocateProducerIdsRequest, AlterPartitionRequest, ApiVersionsResponse, EnvelopeRequest,
    },
};

use crate::{
    Address, Campaign, Controller, ControllerError, ControllerOptions, Endpoint, Registration,
    decide::{
        testing::{registration, settings},
        topics::NewTopic,
    },
    image::ClusterImage,
    keys::DaemonValue,
    remote::read_frame,
    store::{
        Commit, EmbeddedStore, MetadataStore, Revision, SessionId, Snapshot, StoreError,
        Transaction, Watch,
    },
};

pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// Longer than any test waits for something faster than the end of a session.
const SESSION_TTL: Duration = Duration::from_mins(2);

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    /// It accepts connections and answers nothing, as when it is stopped.
    Silent,
    /// It decides, and closes the connection instead of answering, once.
    LosesAnAnswer,
    /// Its port is closed, and nothing of it reaches the store.
    Killed,
}

pub(crate) struct Process {
    pub(crate) controller: Controller,
    health: watch::Sender<Health>,
    store: UncertainStore,
    registering: Registration,
}

impl Process {
    /// A process that is registered as a broker and was let in.
    pub(crate) async fn start(store: &EmbeddedStore, node: i32) -> Self {
        let process = Self::start_as(store, node, Campaign::OnceRegistered).await;
        process.register().await.unwrap();
        process
    }

    pub(crate) async fn start_as(store: &EmbeddedStore, node: i32, campaign: Campaign) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = "127.0.0.1".to_owned();
        let store = UncertainStore {
            store: store.clone(),
            severed: Arc::default(),
            deaf: watch::Sender::new(false),
        };
        let options = ControllerOptions {
            node_id: BrokerId::new(node),
            settings: Arc::new(settings()),
            session_ttl: SESSION_TTL,
            endpoint: Some(Address {
                host: host.clone(),
                port,
            }),
            campaign,
            is_alone: false,
            cluster_id: None,
            seed: None,
        };
        let controller = Controller::start(store.clone(), options).await.unwrap();
        let health = watch::Sender::new(Health::Well);
        tokio::spawn(listen(listener, controller.clone(), health.clone()));
        let registering = Registration {
            incarnation: format!("life of {node} at {port}"),
            endpoints: vec![Endpoint {
                listener: "PLAINTEXT".to_owned(),
                security_protocol: "PLAINTEXT".to_owned(),
                host,
                port,
            }],
            candidate: campaign != Campaign::Never,
            directories: vec![format!("disk of {node}")],
            ..registration()
        };
        Self {
            controller,
            health,
            store,
            registering,
        }
    }

    pub(crate) async fn register(&self) -> Result<BrokerEpoch, ControllerError> {
        let registration = self.registering.clone();
        let registering = self.controller.register_broker(registration);
        let registered = tokio::time::timeout(DEADLINE, registering).await;
        registered.expect("a new broker in the image has the controller compare anew")
    }

    pub(crate) async fn register_daemon(&self) -> Result<(), ControllerError> {
        let registration = DaemonValue {
            incarnation: self.registering.incarnation.clone(),
            endpoint: None,
        };
        self.controller.register_daemon(registration).await
    }

    pub(crate) fn incarnation(&self) -> &str {
        &self.registering.incarnation
    }

    pub(crate) fn become_(&self, health: Health) {
        if health == Health::Killed {
            self.store.severed.store(true, Ordering::SeqCst);
        }
        self.health.send_replace(health);
    }

    /// Its watch says nothing more, and it is told that its session is kept.
    pub(crate) fn deafen(&self) {
        self.store.deaf.send_replace(true);
    }

    pub(crate) fn epoch(&self, node: i32) -> BrokerEpoch {
        let image = self.controller.image();
        image.broker(BrokerId::new(node)).unwrap().epoch
    }

    pub(crate) async fn until(&self, holds: impl Fn(&ClusterImage) -> bool) -> Arc<ClusterImage> {
        let mut images = self.controller.subscribe();
        let wait = images.wait_for(|image| holds(image));
        let image = tokio::time::timeout(DEADLINE, wait).await;
        Arc::clone(&image.expect("in time").unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.health.send_replace(Health::Killed);
    }
}

async fn listen(listener: TcpListener, controller: Controller, health: watch::Sender<Health>) {
    let mut killed = health.subscribe();
    let killed = killed.wait_for(|health| *health == Health::Killed);
    let accepting = async {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, controller.clone(), health.clone()));
        }
    };
    tokio::select! {
        _ = killed => {}
        () = accepting => {}
    }
}

async fn serve(mut stream: TcpStream, controller: Controller, health: watch::Sender<Health>) {
    let mut killed = health.subscribe();
    let killed = killed.wait_for(|health| *health == Health::Killed);
    let serving = async {
        let limits = frame::request_limits(1 << 20);
        let mut buffer = BytesMut::new();
        while let Ok(frame) = read_frame(&mut stream, &mut buffer, 1 << 20).await {
            let (head, body) = RequestHead::decode(frame, limits).unwrap();
            let (id, version) = (head.correlation_id, head.api_version);
            let answer = match head.api_key {
                18 => frame::encode_response(id, version, &ApiVersionsResponse::default()),
                56 => {
                    let request: AlterPartitionRequest = head.decode_body(body, limits).unwrap();
                    let answer = controller.answer_alter_partition(version, &request).await;
                    frame::encode_response(id, version, &answer)
                }
                58 => {
                    let request: EnvelopeRequest = head.decode_body(body, limits).unwrap();
                    let answer = controller.answer_envelope(&request).await;
                    frame::encode_response(id, version, &answer)
                }
                _ => {
                    let request: AllocateProducerIdsRequest =
                        head.decode_body(body, limits).unwrap();
                    let answer = controller.answer_allocate_producer_ids(&request).await;
                    frame::encode_response(id, version, &answer)
                }
            };
            if head.api_key != 18 && *health.borrow() == Health::LosesAnAnswer {
                health.send_replace(Health::Well);
                return;
            }
            let mut well = health.subscribe();
            let _ = well.wait_for(|health| *health != Health::Silent).await;
            stream.write_all(&answer.unwrap()).await.unwrap();
        }
    };
    tokio::select! {
        _ = killed => {}
        () = serving => {}
    }
}

/// The shared store as one process reaches it, or no longer does.
#[derive(Clone)]
struct UncertainStore {
    store: EmbeddedStore,
    severed: Arc<AtomicBool>,
    deaf: watch::Sender<bool>,
}

impl UncertainStore {
    fn reach(&self) -> Result<(), StoreError> {
        if self.severed.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("severed".to_owned()));
        }
        Ok(())
    }
}

impl MetadataStore for UncertainStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.reach()?;
        self.store.read(prefix).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.reach()?;
        let batches = self.store.watch(prefix, after).await?;
        let mut deafened = self.deaf.subscribe();
        let deafened = async move {
            let _ = deafened.wait_for(|deaf| *deaf).await;
        };
        let heard = batches.take_until(Box::pin(deafened));
        Ok(Box::pin(heard.chain(stream::pending())))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.reach()?;
        self.store.commit(transaction).await
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, StoreError> {
        self.reach()?;
        self.store.open_session(ttl).await
    }

    async fn keep_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.reach()?;
        if *self.deaf.borrow() {
            return Ok(());
        }
        self.store.keep_session(session).await
    }

    async fn close_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.reach()?;
        self.store.close_session(session).await
    }
}

pub(crate) fn topic(name: &str, partitions: i32, replication_factor: i16) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        assignments: Vec::new(),
        configs: Vec::new(),
        adopted: None,
    }
}

#[track_caller]
pub(crate) fn all_ok<T>(answers: Vec<Result<T, ControllerError>>) -> Vec<T> {
    let answers: Result<_, _> = answers.into_iter().collect();
    answers.unwrap()
}

/// How many partitions a broker leads.
pub(crate) fn led(image: &ClusterImage, node: i32) -> usize {
    let partitions = image.topics().flat_map(|topic| topic.partitions());
    partitions
        .filter(|(_, state)| state.leader == BrokerId::new(node))
        .count()
}
