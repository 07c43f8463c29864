//! The Yuxi broker: a Kafka protocol server over mapped logs.
//!
//! A program embeds it with [`Broker::start`]; the daemon does no more than that.

#![forbid(unsafe_code)]

mod adoption;
mod api;
mod cleaner;
mod deletions;
mod gathered;
mod groups;
mod handover;
mod internal_topics;
mod life;
mod log_config;
mod maintenance;
mod metrics;
mod net;
mod node;
mod opened;
mod partition;
mod producer_ids;
mod replicas;
mod replication;
mod shards;
mod sync;
mod time;
mod transactions;

// For `benches/`, which see a crate from outside.
#[cfg(feature = "bench")]
#[doc(hidden)]
pub use api::fetch::bench;

use crate::{
    life::Life,
    maintenance::Maintenance,
    net::listener,
    node::{Node, Parts},
    opened::{Opened, check_cluster, check_owner},
    replicas::Replicas,
};
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use yuxi_controller::{
    Address, Campaign, Controller, ControllerError, ControllerOptions, Registration,
    keys::{self, ValueError},
    settings::{HostPort, Listener, ServerSettings},
    store::{EmbeddedStore, EtcdOptions, EtcdStore, MetadataStore, StoreError},
};
use yuxi_log::{CleanShutdown, Incarnations, LogDirError, MetaProperties};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, TopicId};

/// A session of the embedded store lives and dies with this process, so it is only made
/// long enough that a suspended machine does not end it.
const EMBEDDED_SESSION: Duration = Duration::from_hours(24 * 365);

/// How long a shutdown waits for other brokers to take over.
const HANDOVER_TIME: Duration = Duration::from_secs(20);

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("{setting}={address}: {error}")]
    Listen {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] LogDirError),
    /// A file in the data directory cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The metadata store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the metadata store holds cannot be read.
    #[error(transparent)]
    Stored(#[from] ValueError),
    /// The data directory is of a cluster, and the metadata store holds none.
    #[error(
        "{path} belongs to cluster {cluster_id}, and the metadata store holds no cluster: correct \
         etcd.endpoints and etcd.prefix, or set another log.dirs",
        path = path.display()
    )]
    NoCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster in its `meta.properties`.
        cluster_id: String,
    },
    /// The data directory is of a cluster whose metadata is elsewhere, and the start names no
    /// metadata store.
    #[error(
        "{path} is of a broker of cluster {cluster_id}, whose metadata is not there: set \
         etcd.endpoints, or another log.dirs; to make a cluster of its own of what this broker \
         holds, remove {path}/{file}",
        path = path.display(),
        file = Incarnations::FILE_NAME
    )]
    MetadataElsewhere {
        /// The directory.
        path: PathBuf,
        /// The cluster in its `meta.properties`.
        cluster_id: String,
    },
    /// The logs could not be checked.
    #[error("the logs could not be checked: {0}")]
    Logs(String),
    /// A data directory written by another broker cannot be taken over.
    #[error("the topics in the data directory: {0}")]
    Adoption(String),
    /// The controller refused this broker.
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

impl StartError {
    /// Whether it is the metadata store that is away and may come back by itself.
    fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Unavailable(_)),
            Self::Controller(error) => error.is_store_unavailable(),
            Self::Listen { .. }
            | Self::Directory(_)
            | Self::File { .. }
            | Self::Stored(_)
            | Self::NoCluster { .. }
            | Self::MetadataElsewhere { .. }
            | Self::Logs(_)
            | Self::Adoption(_) => false,
        }
    }
}

/// Why a broker did not stop cleanly. What was acknowledged is safe; the next start
/// checks the logs.
#[derive(Debug, thiserror::Error)]
#[error("the data directory was not closed cleanly: {0}")]
pub struct ShutdownError(String);

/// A running broker. Dropping it without [`Broker::shutdown`] is like killing it.
pub struct Broker {
    node: Arc<Node>,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    /// The admin listener; ends with it.
    admin: JoinSet<()>,
    stop: watch::Sender<bool>,
    listener: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    cleaner: JoinHandle<()>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts a broker of the cluster that the etcd of `etcd.endpoints` holds, or, if that is
    /// not set, one that is a cluster by itself, with a metadata store in its data directory.
    /// Returns once it serves clients, and waits for an etcd that is away. Needs a tokio
    /// runtime, and must be the only one on its data directory.
    pub async fn start(settings: ServerSettings) -> Result<Self, StartError> {
        let opened = Opened::new(settings).await?;
        if let Some(etcd) = EtcdOptions::from_settings(&opened.settings) {
            let connect = || {
                let etcd = etcd.clone();
                async { Ok(EtcdStore::connect(etcd).await?) }
            };
            let waiting = opened.observer.store.clone();
            let store = Box::pin(waiting.until_available(StartError::may_pass, connect)).await?;
            return Box::pin(Self::run(opened, store, StoreKind::Shared)).await;
        }
        let store = EmbeddedStore::open(opened.directory.path())?;
        let is_new = store.read("").await?.entries.is_empty();
        if is_new {
            check_owner(opened.directory.path(), opened.stored.as_ref())?;
        }
        let adopt = adoption::is_due(opened.directory.path(), is_new)?;
        Box::pin(Self::run(opened, store, StoreKind::Private { adopt })).await
    }

    /// As [`Broker::start`], as one broker of the cluster that `store` holds. A store in
    /// this process is shared by its clones.
    pub async fn start_with_store(
        settings: ServerSettings,
        store: impl MetadataStore,
    ) -> Result<Self, StartError> {
        let opened = Opened::new(settings).await?;
        Box::pin(Self::run(opened, store, StoreKind::Shared)).await
    }

    async fn run(
        opened: Opened,
        store: impl MetadataStore,
        kind: StoreKind,
    ) -> Result<Self, StartError> {
        let controller = OnceLock::new();
        let started = Box::pin(Self::run_with(opened, store, kind, &controller)).await;
        if started.is_err()
            && let Some(controller) = controller.get()
        {
            // The next start in this process finds the store free.
            controller.stop().await;
        }
        started
    }

    async fn run_with(
        opened: Opened,
        store: impl MetadataStore,
        kind: StoreKind,
        running: &OnceLock<Controller>,
    ) -> Result<Self, StartError> {
        let Opened {
            settings,
            listener,
            admin,
            admin_address,
            observer,
            address,
            directory,
            stored,
        } = opened;
        let broker_id = BrokerId::new(settings.node_id);
        let in_directory = |name: &str| {
            let path = directory.path().join(name);
            move |error| StartError::File { path, error }
        };
        let directory_id = stored
            .as_ref()
            .and_then(|stored| stored.directory_id)
            .unwrap_or_else(|| TopicId::from_bytes(*uuid::Uuid::new_v4().as_bytes()));
        let mark = CleanShutdown::new(directory.path());
        let shutdown = mark
            .read()
            .map_err(in_directory(CleanShutdown::FILE_NAME))?;
        // A cluster of one broker has nobody else.
        let is_candidate = kind != StoreKind::Shared || settings.controller_candidate;
        let options = ControllerOptions {
            node_id: broker_id,
            settings: Arc::new(settings.clone()),
            session_ttl: kind.session_ttl(&settings),
            endpoint: Some(advertised_address(&settings, address.port())),
            campaign: if is_candidate {
                Campaign::OnceRegistered
            } else {
                Campaign::Never
            },
            is_alone: kind != StoreKind::Shared,
            cluster_id: stored.as_ref().map(|stored| stored.cluster_id.clone()),
            seed: None,
        };
        let (directory_found, cluster_found) = (&directory, stored.as_ref());
        let start = || {
            let (store, options) = (store.clone(), options.clone());
            async move {
                if kind == StoreKind::Shared
                    && let Some(stored) = cluster_found
                {
                    check_cluster(&store, directory_found, stored).await?;
                }
                Ok(Controller::start(store, options).await?)
            }
        };
        let controller = observer
            .store
            .until_available(StartError::may_pass, start)
            .await?;
        let controller = running.get_or_init(|| controller).clone();
        directory.claim(&MetaProperties {
            cluster_id: controller
                .image()
                .cluster_id()
                .map(ToString::to_string)
                .unwrap_or_default(),
            node_id: broker_id,
            directory_id: Some(directory_id),
        })?;
        let mut replicas =
            Replicas::new(broker_id, directory, shutdown.is_some()).map_err(|error| {
                StartError::File {
                    path: settings.data_dir().to_owned(),
                    error,
                }
            })?;
        let life = Life::begin(settings.data_dir())?;
        let mut damaged = Ok(false);
        if kind == StoreKind::Shared {
            // Before the cluster counts on what is here.
            let (image, opening) = (controller.image(), settings.clone());
            (replicas, damaged) = tokio::task::spawn_blocking(move || {
                let damaged = replicas.open_logs(&image, &opening);
                (replicas, damaged)
            })
            .await
            .map_err(|error| StartError::Logs(error.to_string()))?;
        }
        controller
            .register_broker(Registration {
                incarnation: life.incarnation().to_owned(),
                damaged: damaged?,
                candidate: is_candidate,
                endpoints: vec![endpoint(&settings, address.port())],
                rack: settings.broker_rack.clone(),
                boot_id: boot_id(),
                directories: vec![directory_id.to_string()],
                former_incarnations: life.former().to_vec(),
                clean_shutdown_epoch: shutdown.flatten().map(BrokerEpoch::new),
            })
            .await?;
        let image = controller.image();
        life.was_let_in()?;
        replicas.remove_left_over()?;
        mark.remove().map_err(|error| StartError::File {
            path: settings.data_dir().join(CleanShutdown::FILE_NAME),
            error,
        })?;
        let node = Node::new(Parts {
            settings,
            is_alone: kind != StoreKind::Shared,
            controller,
            replicas,
            metrics: Arc::clone(&observer.metrics),
        });
        let mut background = vec![tokio::spawn(Arc::clone(&node).follow_images())];
        let timing = Arc::clone(&node);
        background.push(tokio::spawn(async move {
            timing.groups.keep_time(&timing).await;
        }));
        let timing = Arc::clone(&node);
        background.push(tokio::spawn(async move {
            timing.transactions.keep_time(&timing).await;
        }));
        let marking = Arc::clone(&node);
        background.push(tokio::spawn(async move {
            marking.transactions.write_markers(&marking).await;
        }));
        background.push(tokio::spawn(deletions::confirm(Arc::clone(&node))));
        node.applied(image.revision()).await;
        adoption::settle_strays(&node, kind.adopts()).await?;
        background.extend(Maintenance::start(&node));
        let cleaner = cleaner::start(&node);
        let proposing = Arc::clone(&node);
        background.push(tokio::spawn(async move {
            proposing.replication.propose(&proposing).await;
        }));

        let (stop, stopping) = watch::channel(false);
        observer.serves(&node);
        let listener = tokio::spawn(listener::serve(listener, Arc::clone(&node), stopping));
        Ok(Self {
            node,
            address,
            admin_address,
            admin,
            stop,
            listener,
            background,
            cleaner,
        })
    }

    /// The address that clients connect to, with the port really bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the admin listener, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Resolves, with the reason, when the broker can no longer serve and should be shut
    /// down.
    pub async fn failed(&self) -> String {
        self.node.failed().await
    }

    /// Hands over what it leads to other brokers, stops serving, answers what was begun,
    /// flushes and closes every log, and leaves the mark of a clean shutdown.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.node.begin_stopping();
        if !self.node.is_alone && !self.node.is_storage_failed() {
            let handed_over = handover::hand_over(&self.node);
            if tokio::time::timeout(HANDOVER_TIME, handed_over)
                .await
                .is_err()
            {
                tracing::warn!("the shutdown goes on without a controller's consent");
            }
        }
        // So that another takes over while the logs are closed.
        self.node.controller.retire().await;
        self.node.cleaner.stop();
        // What they append must not come after the logs are closed.
        for fetcher in self.node.replication.stop() {
            let _ = fetcher.await;
        }
        self.stop.send_replace(true);
        let _ = (&mut self.listener).await;
        let _ = (&mut self.cleaner).await;
        for task in &self.background {
            task.abort();
        }
        for task in self.background.drain(..) {
            let _ = task.await;
        }
        // Nothing changes a log after it is closed.
        self.node.jobs_done().await;
        // Until here it told of the shutdown; it holds the node, and with that the directory.
        self.admin.shutdown().await;
        let node = Arc::clone(&self.node);
        // Of its present registration, which may not be its first.
        let epoch = node
            .controller
            .image()
            .registration(node.broker_id)
            .map(|registration| registration.epoch);
        let closed = tokio::task::spawn_blocking(move || maintenance::close(&node, epoch)).await;
        self.node.controller.stop().await;
        match closed {
            Ok(closed) => closed.map_err(ShutdownError),
            Err(error) => Err(ShutdownError(error.to_string())),
        }
    }
}

impl Drop for Broker {
    /// What runs for this broker ends, and with the last of it the lock on the directory.
    fn drop(&mut self) {
        drop(self.node.replication.stop());
        self.node.cleaner.stop();
        self.listener.abort();
        for task in &self.background {
            task.abort();
        }
    }
}

/// Whose the metadata store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreKind {
    /// This broker's alone: it is the whole cluster.
    Private {
        /// Topics that are in the directory become the cluster's: the store is new, or was
        /// when a start began that did not come so far.
        adopt: bool,
    },
    /// A cluster's.
    Shared,
}

impl StoreKind {
    fn session_ttl(self, settings: &ServerSettings) -> Duration {
        match self {
            Self::Private { .. } => EMBEDDED_SESSION,
            Self::Shared => Duration::from_millis(
                u64::try_from(settings.broker_session_timeout_ms).unwrap_or(0),
            ),
        }
    }

    fn adopts(self) -> bool {
        matches!(self, Self::Private { adopt: true })
    }
}

/// Where the other brokers reach this one.
fn advertised_address(settings: &ServerSettings, bound_port: u16) -> Address {
    let HostPort { host, port } = settings.advertised(bound_port);
    Address { host, port }
}

fn endpoint(settings: &ServerSettings, bound_port: u16) -> keys::Endpoint {
    let HostPort { host, port } = settings.advertised(bound_port);
    keys::Endpoint {
        listener: Listener::NAME.to_owned(),
        security_protocol: "PLAINTEXT".to_owned(),
        host,
        port,
    }
}

/// Changes with every boot of the machine, and with it all that was only in the page
/// cache (I8). Empty where the system does not tell, which counts as another boot.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Lets the process open as many files as the system allows it at most: each partition
/// in use holds a few.
pub fn raise_open_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use yuxi_log::LogDir;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_shutdown_waits_for_jobs_that_nobody_else_waits_for() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path();
        let text = format!(
            "node.id=1\nlisteners=PLAINTEXT://127.0.0.1:0\nlog.dirs={}",
            path.display()
        );
        let settings = ServerSettings::from_properties(&text, &[]).expect("valid settings");
        let broker = Broker::start(settings).await.expect("it starts");
        let done = Arc::new(AtomicBool::new(false));
        let doing = Arc::clone(&done);
        broker.node.run_blocking(move || {
            std::thread::sleep(Duration::from_millis(300));
            doing.store(true, Ordering::SeqCst);
        });
        broker.shutdown().await.expect("a clean shutdown");
        assert!(done.load(Ordering::SeqCst));
        LogDir::open(path).expect("it is free");
    }
}
