//! A process that is a candidate for the seal and no broker: the controller's handle and a
//! listener on which brokers reach it. The `yuxi-controller` binary does no more than this.
//!
//! Clients have no business here: ApiVersions offers nothing but itself, and what the
//! others ask is answered to live brokers only. Requests of a connection are answered one
//! after the other, as the controller decides them.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use yuxi_protocol::{
    codec::{ApiKey, DecodeLimits, EncodeError},
    error_code::ErrorCode,
    frame::{self, FrameError, Known, RequestHead},
    ids::BrokerId,
    message,
    messages::{
        AllocateProducerIdsRequest, AlterPartitionRequest, ApiVersionsRequest, ApiVersionsResponse,
        EnvelopeRequest, KafkaRequest, api_versions_response,
    },
};

use crate::{
    Address, Campaign, Controller, ControllerError, ControllerOptions, Waiting,
    admin::{self, Observed, Page, Readiness},
    keys::DaemonValue,
    remote::read_frame,
    settings::{HostPort, ServerSettings},
    store::{EtcdOptions, EtcdStore, MetadataStore, StoreError},
};

/// Connections beyond these are closed at once.
const MAX_CONNECTIONS: usize = 1024;

/// How long accepting rests after it failed, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The address can't be listened on.
    #[error("{setting}={address}: {error}")]
    Listen {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: HostPort,
        /// What the system said.
        error: io::Error,
    },
    /// No etcd was named.
    #[error(
        "there is no cluster to control without an etcd: give --etcd URL or set etcd.endpoints"
    )]
    NoEtcd,
    /// It may not do what it is for.
    #[error("controller.candidate=false leaves a controller daemon nothing to do")]
    NoCandidate,
    /// The store can't be used.
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

impl DaemonError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Controller(error) if error.is_store_unavailable())
    }
}

impl From<StoreError> for DaemonError {
    fn from(error: StoreError) -> Self {
        Self::Controller(error.into())
    }
}

/// A running daemon. Dropping it without [`Daemon::stop`] is like killing it.
pub struct Daemon {
    controller: Controller,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    observer: Arc<Observer>,
    /// What it serves; ends with it.
    _serving: JoinSet<()>,
}

impl Daemon {
    /// Starts to listen and to compete for the seal of the cluster that the etcd of
    /// `etcd.endpoints` holds, for which it waits if it is away.
    pub async fn start(settings: ServerSettings) -> Result<Self, DaemonError> {
        if !settings.controller_candidate {
            return Err(DaemonError::NoCandidate);
        }
        let etcd = EtcdOptions::from_settings(&settings).ok_or(DaemonError::NoEtcd)?;
        let opened = Opened::new(settings).await?;
        let connect = || {
            let etcd = etcd.clone();
            async { Ok(EtcdStore::connect(etcd).await?) }
        };
        let store = &opened.observer.store;
        let store = store
            .until_available(DaemonError::may_pass, connect)
            .await?;
        Self::run(opened, store).await
    }

    /// As [`Daemon::start`], for the cluster that `store` holds.
    pub async fn start_with_store(
        settings: ServerSettings,
        store: impl MetadataStore,
    ) -> Result<Self, DaemonError> {
        Self::run(Opened::new(settings).await?, store).await
    }

    async fn run(opened: Opened, store: impl MetadataStore) -> Result<Self, DaemonError> {
        let Opened {
            settings,
            listener,
            address,
            admin_address,
            observer,
            mut serving,
        } = opened;
        let advertised = settings.advertised(address.port());
        let session_ttl = settings.broker_session_timeout_ms.unsigned_abs();
        let max_frame_bytes = usize::try_from(settings.socket_request_max_bytes).unwrap_or(0);
        let options = ControllerOptions {
            node_id: BrokerId::new(settings.node_id),
            session_ttl: Duration::from_millis(session_ttl.into()),
            settings: Arc::new(settings),
            endpoint: Some(Address {
                host: advertised.host,
                port: advertised.port,
            }),
            campaign: Campaign::OnceRegistered,
            is_alone: false,
            cluster_id: None,
            seed: None,
        };
        let start = || {
            let (store, options) = (store.clone(), options.clone());
            async { Ok(Controller::start(store, options).await?) }
        };
        let controller = observer
            .store
            .until_available(DaemonError::may_pass, start)
            .await?;
        serving.spawn(listen(listener, controller.clone(), max_frame_bytes));
        let registered = controller
            .register_daemon(DaemonValue {
                incarnation: uuid::Uuid::new_v4().to_string(),
                endpoint: options.endpoint.clone(),
            })
            .await;
        if let Err(error) = registered {
            controller.stop().await;
            return Err(error.into());
        }
        let _ = observer.controller.set(controller.clone());
        Ok(Self {
            controller,
            address,
            admin_address,
            observer,
            _serving: serving,
        })
    }

    /// The address that it listens on, with the port really bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the admin listener, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The cluster as this process sees it.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Hands the seal over, if it holds it, and stops.
    pub async fn stop(self) {
        self.observer.stopping.store(true, SeqCst);
        self.controller.stop().await;
    }
}

/// What a daemon has before it looks at the metadata store.
struct Opened {
    settings: ServerSettings,
    listener: TcpListener,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    observer: Arc<Observer>,
    serving: JoinSet<()>,
}

impl Opened {
    async fn new(settings: ServerSettings) -> Result<Self, DaemonError> {
        let (listener, address) = bind("listeners", &settings.listeners.0).await?;
        let observer = Arc::new(Observer::default());
        let mut serving = JoinSet::new();
        let mut admin_address = None;
        if let Some(setting) = &settings.admin_listener {
            let (admin, address) = bind("admin.listener", setting).await?;
            tracing::info!(%address, "health and metrics are served");
            serving.spawn(admin::serve(admin, Arc::clone(&observer), pending()));
            admin_address = Some(address);
        }
        Ok(Self {
            settings,
            listener,
            address,
            admin_address,
            observer,
            serving,
        })
    }
}

async fn bind(
    setting: &'static str,
    address: &HostPort,
) -> Result<(TcpListener, SocketAddr), DaemonError> {
    let HostPort { host, port } = address;
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    let bound = async {
        let listener = TcpListener::bind((host, *port)).await?;
        let address = listener.local_addr()?;
        io::Result::Ok((listener, address))
    };
    bound.await.map_err(|error| DaemonError::Listen {
        setting,
        address: address.clone(),
        error,
    })
}

/// The daemon as the admin listener tells of it, from its very start.
#[derive(Default)]
struct Observer {
    store: Waiting,
    controller: OnceLock<Controller>,
    stopping: AtomicBool,
}

impl Observed for Observer {
    fn readiness(&self) -> Readiness {
        if self.stopping.load(SeqCst) {
            return Readiness::Stopping;
        }
        match (self.controller.get(), self.store.why()) {
            (Some(_), _) => Readiness::Ready,
            (None, Some(why)) => Readiness::Waiting(why),
            (None, None) => Readiness::Starting,
        }
    }

    fn metrics(&self) -> String {
        let mut page = Page::default();
        if let Some(controller) = self.controller.get() {
            controller.render_metrics(&mut page);
        }
        admin::render_process(&mut page);
        page.into_text()
    }
}

async fn listen(listener: TcpListener, controller: Controller, max_frame_bytes: usize) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                while connections.try_join_next().is_some() {}
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    tracing::warn!(%peer, "too many connections");
                    continue;
                };
                let controller = controller.clone();
                connections.spawn(async move {
                    if let Err(reason) = serve(stream, &controller, max_frame_bytes).await {
                        tracing::debug!(%peer, %reason, "connection closed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Closing {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Answer(#[from] EncodeError),
    #[error("idle for longer than a minute")]
    Idle,
    #[error("API key {0} version {1} is not served here: this is no broker")]
    NotServed(i16, i16),
}

/// Those that have something to ask ask several times a second.
const MAX_IDLE: Duration = Duration::from_mins(1);

async fn serve(
    mut stream: TcpStream,
    controller: &Controller,
    max_frame_bytes: usize,
) -> Result<(), Closing> {
    stream.set_nodelay(true)?;
    let limits = frame::request_limits(max_frame_bytes);
    let mut buffer = BytesMut::new();
    loop {
        let frame = timeout(
            MAX_IDLE,
            read_frame(&mut stream, &mut buffer, max_frame_bytes),
        )
        .await
        .map_err(|_| Closing::Idle)??;
        let (head, body) = RequestHead::decode(frame, limits)?;
        let answer = answer(controller, &head, body, limits).await?;
        stream.write_all(&answer).await?;
    }
}

async fn answer(
    controller: &Controller,
    head: &RequestHead,
    body: Bytes,
    limits: DecodeLimits,
) -> Result<Bytes, Closing> {
    let (id, version) = (head.correlation_id, head.api_version);
    let is_known = matches!(head.known(), Known::Yes(_));
    let asked = |api_key: ApiKey| head.api_key == api_key.value();
    Ok(if asked(ApiVersionsRequest::API_KEY) {
        // A client that is newer is answered in version 0 and tries again (KIP-511).
        let (version, error) = if is_known {
            (version, ErrorCode::None)
        } else {
            (0, ErrorCode::UnsupportedVersion)
        };
        frame::encode_response(id, version, &api_versions(error))?
    } else if !is_known {
        return Err(Closing::NotServed(head.api_key, version));
    } else if asked(AlterPartitionRequest::API_KEY) {
        let request: AlterPartitionRequest = head.decode_body(body, limits)?;
        let answer = controller.answer_alter_partition(version, &request).await;
        frame::encode_response(id, version, &answer)?
    } else if asked(EnvelopeRequest::API_KEY) {
        let request: EnvelopeRequest = head.decode_body(body, limits)?;
        frame::encode_response(id, version, &controller.answer_envelope(&request).await)?
    } else if asked(AllocateProducerIdsRequest::API_KEY) {
        let request: AllocateProducerIdsRequest = head.decode_body(body, limits)?;
        let answer = controller.answer_allocate_producer_ids(&request).await;
        frame::encode_response(id, version, &answer)?
    } else {
        return Err(Closing::NotServed(head.api_key, version));
    })
}

/// The versions of the only API that is offered.
const OFFERED: std::ops::RangeInclusive<i16> = 0..=5;

fn api_versions(error: ErrorCode) -> ApiVersionsResponse {
    message!(ApiVersionsResponse {
        error_code: error.code(),
        api_keys: vec![message!(api_versions_response::ApiVersion {
            api_key: ApiVersionsRequest::API_KEY.value(),
            min_version: *OFFERED.start(),
            max_version: *OFFERED.end(),
        })],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        processes::{DEADLINE, Process, all_ok, led, topic},
        store::EmbeddedStore,
    };

    async fn daemon(store: &EmbeddedStore, node: i32) -> Daemon {
        let text = format!("node.id={node}\nlisteners=PLAINTEXT://127.0.0.1:0");
        let settings = ServerSettings::from_properties(&text, &[]).unwrap();
        Daemon::start_with_store(settings, store.clone())
            .await
            .unwrap()
    }

    async fn until_it_controls(daemon: &Daemon, node: i32) {
        let mut images = daemon.controller().subscribe();
        let controls = images.wait_for(|image| {
            let controller = image.controller();
            controller.is_some_and(|now| now.node_id == BrokerId::new(node))
        });
        timeout(DEADLINE, controls).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_daemon_lets_brokers_in_and_decides_for_them_and_hands_over_to_another() {
        let store = EmbeddedStore::in_memory();
        let first = daemon(&store, 101).await;
        until_it_controls(&first, 101).await;
        let second = daemon(&store, 102).await;
        let one = Process::start_as(&store, 1, Campaign::Never).await;
        one.register().await.unwrap();
        all_ok(
            one.controller
                .create_topics(vec![topic("t", 3, 1)], false)
                .await,
        );
        assert_eq!(led(&one.controller.image(), 1), 3);
        first.stop().await;
        until_it_controls(&second, 102).await;
        let block = one.controller.allocate_producer_ids().await.unwrap();
        assert_eq!(block.first.value(), 0);
    }

    #[tokio::test]
    async fn a_daemon_that_is_killed_is_followed_at_once_by_another_candidate() {
        let store = EmbeddedStore::in_memory();
        let first = Process::start_as(&store, 101, Campaign::OnceRegistered).await;
        first.register_daemon().await.unwrap();
        let second = daemon(&store, 102).await;
        until_it_controls(&second, 101).await;
        // Until the second has heard of the first.
        sleep(Duration::from_millis(300)).await;
        first.become_(crate::processes::Health::Killed);
        until_it_controls(&second, 102).await;
    }

    #[tokio::test]
    async fn a_client_that_takes_it_for_a_broker_is_told_no_more_than_that() {
        let daemon = daemon(&EmbeddedStore::in_memory(), 101).await;
        let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
        let mut buffer = BytesMut::new();
        // ApiVersions 99, then Metadata 0, each with correlation id 7 and no client id.
        stream
            .write_all(&[0, 0, 0, 10, 0, 18, 0, 99, 0, 0, 0, 7, 255, 255])
            .await
            .unwrap();
        let answer = read_frame(&mut stream, &mut buffer, 1 << 10).await.unwrap();
        assert_eq!(answer[..6], [0, 0, 0, 7, 0, 35]);
        stream
            .write_all(&[0, 0, 0, 14, 0, 3, 0, 0, 0, 0, 0, 7, 255, 255, 0, 0, 0, 0])
            .await
            .unwrap();
        let ended = timeout(DEADLINE, read_frame(&mut stream, &mut buffer, 1 << 10)).await;
        assert_eq!(
            ended.unwrap().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
