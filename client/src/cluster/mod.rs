//! The connections to a cluster and the one current [`ClusterMetadata`].
//!
//! A [`Cluster`] is shared by everything that talks to the same cluster. The
//! snapshot sits behind a short lock that is never held across an await; each
//! broker has one connection, opened by whoever needs it first while the others
//! wait for the same attempt; refreshes that are asked for at once are one.

mod connections;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use yuxi_protocol::codec::ApiVersion;
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, LeaderEpoch};
use yuxi_protocol::messages::metadata_request::MetadataRequestTopic;
use yuxi_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse,
    RequestResponsePair,
};

use crate::backoff::Backoff;
use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::{Error, Result, check};
use crate::metadata::{Broker, ClusterMetadata, Topic};
use connections::{Connections, Purpose};

/// A cluster, by its bootstrap servers. Clones share everything.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<ClientConfig>,
    metadata: RwLock<Arc<ClusterMetadata>>,
    connections: Connections,
    refreshing: tokio::sync::Mutex<()>,
}

impl Cluster {
    /// Reaches the first bootstrap server that answers and learns the brokers from it.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        let config = Arc::new(config);
        let cluster = Self {
            inner: Arc::new(Inner {
                connections: Connections::new(config.clone()),
                config,
                metadata: RwLock::default(),
                refreshing: tokio::sync::Mutex::default(),
            }),
        };
        cluster.refresh(&[], false).await?;
        Ok(cluster)
    }

    /// The settings.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.inner.config
    }

    /// The current snapshot.
    pub fn metadata(&self) -> Arc<ClusterMetadata> {
        self.inner
            .metadata
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A connection to one broker, opened if there is none.
    pub async fn broker(&self, id: BrokerId) -> Result<Connection> {
        let address = self.metadata().brokers.get(&id).map(Broker::address);
        match address {
            Some(address) => self.inner.connections.open(&address, Purpose::Data).await,
            None => Err(Error::broker(
                format!("broker {id}"),
                ErrorCode::BrokerNotAvailable,
                Some("the cluster does not list it as alive"),
            )),
        }
    }

    /// A connection to any broker that answers: known ones first, in random order,
    /// then the bootstrap servers.
    pub async fn any(&self) -> Result<Connection> {
        let mut known: Vec<String> = self
            .metadata()
            .brokers
            .values()
            .map(Broker::address)
            .collect();
        known.shuffle(&mut rand::rng());
        let mut last = None;
        for address in known.iter().chain(&self.inner.config.bootstrap) {
            match self.inner.connections.open(address, Purpose::Data).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(Error::NoBootstrap {
            addresses: self.inner.config.bootstrap.join(", "),
            last: Arc::new(last.unwrap_or(Error::Closed)),
        })
    }

    /// Sends a request to whichever broker answers.
    pub async fn call_any<R>(&self, build: impl FnOnce(ApiVersion) -> R) -> Result<R::Response>
    where
        R: RequestResponsePair,
    {
        self.any().await?.call(build).await
    }

    /// Asks anew for these topics (none: for the brokers only). `create` lets the
    /// broker make missing ones, if its configuration does.
    pub async fn refresh(&self, topics: &[Arc<str>], create: bool) -> Result<Arc<ClusterMetadata>> {
        let asked = Instant::now();
        let _one_at_a_time = self.inner.refreshing.lock().await;
        let current = self.metadata();
        // Someone else asked for the same while this call waited its turn.
        let fresh = |name: &Arc<str>| current.topics.get(name).is_some_and(|t| t.as_of >= asked);
        if !topics.is_empty() && topics.iter().all(fresh) {
            return Ok(current);
        }
        let names = topics
            .iter()
            .map(|name| {
                let mut topic = MetadataRequestTopic::default();
                topic.name = Some((&**name).into());
                topic
            })
            .collect();
        self.ask(Some(names), create).await
    }

    /// Asks for every topic.
    pub async fn refresh_all(&self) -> Result<Arc<ClusterMetadata>> {
        let _one_at_a_time = self.inner.refreshing.lock().await;
        self.ask(None, false).await
    }

    /// A topic's metadata, from the snapshot if it is there and young enough,
    /// else asked for until it exists, has partitions, or time is up.
    pub async fn topic(&self, name: &Arc<str>, create: bool) -> Result<Arc<Topic>> {
        let config = &self.inner.config;
        if let Some(topic) = self.metadata().topic(name)
            && topic.as_of.elapsed() < config.metadata_max_age
        {
            return Ok(topic.clone());
        }
        let deadline = Instant::now() + config.topic_propagation;
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        loop {
            let metadata = self.refresh(std::slice::from_ref(name), create).await?;
            let code = match metadata.topics.get(name) {
                Some(topic) => match topic.error {
                    None if !topic.partitions.is_empty() => return Ok(topic.clone()),
                    None => ErrorCode::LeaderNotAvailable,
                    Some(code) => code,
                },
                None => ErrorCode::UnknownTopicOrPartition,
            };
            // Without leave to create it, a topic that is not there stays away.
            let hopeless = code == ErrorCode::UnknownTopicOrPartition && !create;
            let pause = backoff.next();
            if !code.is_retriable() || hopeless || Instant::now() + pause >= deadline {
                let advice = (code == ErrorCode::UnknownTopicOrPartition).then(|| {
                    format!("it does not exist; create it with: yuxi topic create {name}")
                });
                return Err(Error::broker(
                    format!("topic {name}"),
                    code,
                    advice.as_deref(),
                ));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes a partition's new leader from a produce or fetch answer (KIP-951).
    /// Returns whether that was news.
    pub(crate) fn learn_leader(&self, topic: &str, index: i32, leader: i32, epoch: i32) -> bool {
        if leader < 0 {
            return false;
        }
        let mut current = self
            .inner
            .metadata
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let changed =
            current.with_leader(topic, index, BrokerId::new(leader), LeaderEpoch::new(epoch));
        match changed {
            Some(next) => {
                *current = Arc::new(next);
                true
            }
            None => false,
        }
    }

    /// The broker that coordinates a group, asked for until there is one.
    pub async fn group_coordinator(&self, group: &str) -> Result<Connection> {
        let config = &self.inner.config;
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        let deadline = Instant::now() + config.request_timeout;
        loop {
            match self.find_coordinator(group).await {
                Err(error) if error.is_retriable() && Instant::now() < deadline => {
                    tokio::time::sleep(backoff.next()).await;
                }
                found => return found,
            }
        }
    }

    async fn find_coordinator(&self, group: &str) -> Result<Connection> {
        let answer: FindCoordinatorResponse = self
            .call_any(|version| {
                let mut request = FindCoordinatorRequest::default();
                if version.value() >= 4 {
                    request.coordinator_keys = vec![group.into()];
                } else {
                    request.key = group.into();
                }
                request
            })
            .await?;
        let context = || format!("finding the coordinator of group {group}");
        let (code, message, host, port) = match answer.coordinators.first() {
            Some(found) => (
                found.error_code,
                &found.error_message,
                &found.host,
                found.port,
            ),
            None => (
                answer.error_code,
                &answer.error_message,
                &answer.host,
                answer.port,
            ),
        };
        check(code, message.as_deref(), context)?;
        let broker = Broker {
            id: BrokerId::NONE,
            host: host.to_string(),
            port,
            rack: None,
        };
        self.inner
            .connections
            .open(&broker.address(), Purpose::Group)
            .await
    }

    async fn ask(
        &self,
        topics: Option<Vec<MetadataRequestTopic>>,
        create: bool,
    ) -> Result<Arc<ClusterMetadata>> {
        let whole = topics.is_none();
        let answer: MetadataResponse = self
            .call_any(|version| {
                let mut request = MetadataRequest::default();
                // Before version 1 an empty list meant all topics, and there was no null.
                request.topics = if version.value() == 0 {
                    Some(topics.unwrap_or_default())
                } else {
                    topics
                };
                // Versions before 4 cannot forbid creation.
                request.allow_auto_topic_creation = create || version.value() < 4;
                request
            })
            .await?;
        check(answer.error_code, None, || "asking for metadata".to_owned())?;
        let mut current = self
            .inner
            .metadata
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(current.merged(&answer, whole, Instant::now()));
        Ok(current.clone())
    }
}

/// Milliseconds as the wire has them.
pub(crate) fn wire_ms(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
