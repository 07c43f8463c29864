//! What a broker takes possession of before it looks at the metadata store: its sockets and its
//! data directory; and whether that directory and a store belong together.

use crate::{StartError, api, gathered::Observer, metrics::Metrics, net::listener};
use std::{net::SocketAddr, path::Path, sync::Arc};
use tokio::{net::TcpListener, task::JoinSet};
use yuxi_controller::{
    admin,
    keys::{self, Key},
    settings::{HostPort, ServerSettings},
    store::MetadataStore,
};
use yuxi_log::{Incarnations, LogDir, LogDirError, MetaProperties};
use yuxi_protocol::ids::BrokerId;

/// See the module.
pub(crate) struct Opened {
    pub(crate) settings: ServerSettings,
    pub(crate) listener: TcpListener,
    /// The admin listener, which tells of the start too.
    pub(crate) admin: JoinSet<()>,
    pub(crate) admin_address: Option<SocketAddr>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) address: SocketAddr,
    pub(crate) directory: LogDir,
    pub(crate) stored: Option<MetaProperties>,
}

impl Opened {
    pub(crate) async fn new(settings: ServerSettings) -> Result<Self, StartError> {
        let listener = bind("listeners", &settings.listeners.0).await?;
        let admin = match &settings.admin_listener {
            Some(address) => Some(bind("admin.listener", address).await?),
            None => None,
        };
        let address = local_address(&listener, "listeners")?;
        let broker_id = BrokerId::new(settings.node_id);
        let directory = LogDir::open(settings.data_dir())?;
        let stored = directory.meta_properties()?;
        // Before the store, which would register this node there.
        if let Some(stored) = stored.as_ref().filter(|stored| stored.node_id != broker_id) {
            return Err(StartError::Directory(LogDirError::OtherNode {
                path: directory.path().to_owned(),
                stored: stored.node_id,
                expected: broker_id,
            }));
        }
        let metrics = Metrics::new(api::APIS.iter().map(|api| (api.key, api.name)));
        let observer = Arc::new(Observer::new(metrics));
        let mut serving = JoinSet::new();
        let mut admin_address = None;
        if let Some(admin) = admin {
            let address = local_address(&admin, "admin.listener")?;
            tracing::info!(%address, "health and metrics are served");
            let observer = Arc::clone(&observer);
            serving.spawn(admin::serve(admin, observer, std::future::pending()));
            admin_address = Some(address);
        }
        Ok(Self {
            settings,
            listener,
            admin: serving,
            admin_address,
            observer,
            address,
            directory,
            stored,
        })
    }
}

/// Makes sure that the data directory is of the cluster in the store, before anything is
/// written there: a mistyped prefix must not found another cluster, in which every
/// partition of this one is a stray.
pub(crate) async fn check_cluster(
    store: &impl MetadataStore,
    directory: &LogDir,
    stored: &MetaProperties,
) -> Result<(), StartError> {
    let key = Key::Cluster.to_string();
    let snapshot = store.read(&key).await?;
    let Some(entry) = snapshot.entries.iter().find(|entry| *entry.key == key) else {
        return Err(StartError::NoCluster {
            path: directory.path().to_owned(),
            cluster_id: stored.cluster_id.clone(),
        });
    };
    let expected = keys::parse_cluster(&key, &entry.value)?.cluster_id;
    if expected == stored.cluster_id {
        return Ok(());
    }
    Err(StartError::Directory(LogDirError::OtherCluster {
        path: directory.path().to_owned(),
        stored: stored.cluster_id.clone(),
        expected,
    }))
}

/// Makes sure that an empty metadata store may take over what the data directory holds. A
/// broker of a cluster that is started without its etcd must not: it would acknowledge records
/// that the cluster never hears of.
pub(crate) fn check_owner(
    directory: &Path,
    stored: Option<&MetaProperties>,
) -> Result<(), StartError> {
    // Kafka has no such file. A damaged one names somebody.
    let nobody = Incarnations::new(directory)
        .read()
        .is_ok_and(|lives| lives.is_empty());
    match stored {
        Some(stored) if !nobody => Err(StartError::MetadataElsewhere {
            path: directory.to_owned(),
            cluster_id: stored.cluster_id.clone(),
        }),
        _ => Ok(()),
    }
}

async fn bind(setting: &'static str, address: &HostPort) -> Result<TcpListener, StartError> {
    listener::bind(address)
        .await
        .map_err(|error| StartError::Listen {
            setting,
            address: address.to_string(),
            error,
        })
}

fn local_address(listener: &TcpListener, setting: &'static str) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Listen {
        setting,
        address: String::new(),
        error,
    })
}
