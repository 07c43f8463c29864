//! A cluster whose brokers can be killed and started again, and what is asked of it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use yuxi_broker::{Broker, StartError};
use yuxi_client::{
    Admin, ClientConfig, Cluster as Connected, Consumer, OffsetSpec, Producer, Record,
    RecordMetadata, Start,
    admin::NewTopic,
    protocol::ids::{BrokerId, TopicPartition},
};
use yuxi_controller::{
    image::ClusterImage,
    keys::PartitionState,
    settings::ServerSettings,
    store::{EmbeddedStore, MetadataStore},
};
use yuxi_log::LogDirError;

/// Nothing that a test waits for takes longer on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// Awaits something that must happen.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {DEADLINE:?}"))
}

/// Asks again and again until `probe` has something.
pub(crate) async fn wait_for<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

pub(crate) struct Cluster {
    pub(crate) store: EmbeddedStore,
    brokers: BTreeMap<i32, Broker>,
    directory: TempDir,
    overrides: Vec<(String, String)>,
}

impl Cluster {
    /// Brokers 1 to `count`.
    pub(crate) async fn start(count: i32, overrides: &[(&str, &str)]) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut cluster = Self {
            store: EmbeddedStore::in_memory(),
            brokers: BTreeMap::new(),
            directory: TempDir::new().expect("a temporary directory"),
            overrides: overrides
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        };
        for id in 1..=count {
            cluster.start_broker(id).await;
        }
        cluster
    }

    pub(crate) async fn start_broker(&mut self, id: i32) {
        let text = format!(
            "node.id={id}\nbroker.rack=rack-{id}\nlisteners=PLAINTEXT://127.0.0.1:0\nlog.dirs={}\n\
             offsets.topic.num.partitions=3\ngroup.initial.rebalance.delay.ms=0\n\
             default.replication.factor=3\nmin.insync.replicas=2\nreplica.fetch.backoff.ms=100\n",
            self.data_dir(id).display()
        );
        let settings =
            ServerSettings::from_properties(&text, &self.overrides).expect("valid settings");
        let broker = wait_for("a start", async || {
            let started = Broker::start_with_store(settings.clone(), self.store.clone());
            match soon("a start", started).await {
                Ok(broker) => Some(broker),
                // A thread of a killed broker may still be at its last work.
                Err(StartError::Directory(LogDirError::Locked { .. })) => None,
                Err(error) => panic!("broker {id}: {error}"),
            }
        })
        .await;
        self.brokers.insert(id, broker);
    }

    pub(crate) fn data_dir(&self, id: i32) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    /// Ends a broker as `kill -9` would.
    pub(crate) async fn kill(&mut self, id: i32) {
        self.strike(id);
        self.wait_until_gone(id).await;
    }

    /// The same, without waiting until the cluster has heard of it.
    pub(crate) fn strike(&mut self, id: i32) {
        drop(self.brokers.remove(&id).expect("it runs"));
    }

    pub(crate) async fn shut_down(&mut self, id: i32) {
        let broker = self.brokers.remove(&id).expect("it runs");
        soon("a shutdown", broker.shutdown())
            .await
            .expect("a clean shutdown");
    }

    async fn wait_until_gone(&self, id: i32) {
        wait_for("the end of a session", async || {
            self.image()
                .await
                .registration(BrokerId::new(id))
                .is_none()
                .then_some(())
        })
        .await;
    }

    pub(crate) async fn image(&self) -> ClusterImage {
        let snapshot = self.store.read("").await.expect("the store");
        ClusterImage::from_snapshot(&snapshot).expect("an image")
    }

    pub(crate) async fn state(&self, topic: &str, partition: i32) -> Option<PartitionState> {
        self.image()
            .await
            .partition(topic, partition.into())
            .cloned()
    }

    /// Waits until the state of a partition fulfils `condition`.
    pub(crate) async fn until(
        &self,
        topic: &str,
        partition: i32,
        what: &str,
        condition: impl Fn(&PartitionState) -> bool,
    ) -> PartitionState {
        wait_for(what, async || {
            self.state(topic, partition).await.filter(&condition)
        })
        .await
    }

    pub(crate) async fn leader(&self, topic: &str, partition: i32) -> i32 {
        let led = |state: &PartitionState| state.leader != BrokerId::NONE;
        let state = self.until(topic, partition, "a leader", led).await;
        state.leader.value()
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.bootstrap = self
            .brokers
            .values()
            .map(|broker| broker.address().to_string())
            .collect();
        config.retry_backoff = Duration::from_millis(10);
        config.retry_backoff_max = Duration::from_millis(100);
        config.reconnect_backoff = Duration::from_millis(10);
        config.reconnect_backoff_max = Duration::from_millis(100);
        config.request_timeout = Duration::from_secs(10);
        config
    }

    pub(crate) async fn connect(&self) -> Connected {
        soon("a connection", Connected::connect(self.config()))
            .await
            .expect("a connection")
    }

    pub(crate) async fn create_topic(
        &self,
        name: &str,
        replicas: &[i32],
        configs: &[(&str, &str)],
    ) {
        let mut topic = NewTopic::new(name);
        topic.assignment = vec![replicas.iter().map(|&id| BrokerId::new(id)).collect()];
        topic.configs = configs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        wait_for("a topic", async || {
            let admin = Admin::new(self.connect().await);
            let answers = admin
                .create_topics(std::slice::from_ref(&topic), false)
                .await;
            let answer = answers.expect("an answer").remove(0).result;
            answer
                .inspect_err(|error| eprintln!("creating {name}: {error}"))
                .ok()
        })
        .await;
    }

    pub(crate) async fn producer(&self) -> Producer {
        Producer::new(self.connect().await).expect("a producer")
    }

    /// All values in a partition, with their offsets.
    pub(crate) async fn values(&self, topic: &str, partition: i32) -> Vec<(i64, String)> {
        let mut consumer = Consumer::new(self.connect().await);
        let partition = TopicPartition::new(topic, partition);
        soon(
            "an assignment",
            consumer.assign([(partition, Start::Spec(OffsetSpec::Earliest))]),
        )
        .await
        .expect("assigned");
        let mut values = Vec::new();
        loop {
            let records = soon("records", consumer.poll(Duration::from_millis(200)))
                .await
                .expect("polled");
            if records.is_empty() && consumer.is_at_end() {
                return values;
            }
            values.extend(records.into_iter().map(|record| {
                let value = record.value.unwrap_or_default();
                (record.offset, String::from_utf8_lossy(&value).into_owned())
            }));
        }
    }

    /// The bytes of a replica's segments, one after the other.
    pub(crate) fn log_bytes(&self, id: i32, topic: &str, partition: i32) -> Vec<u8> {
        let directory = self.data_dir(id).join(format!("{topic}-{partition}"));
        let mut segments: Vec<PathBuf> = std::fs::read_dir(directory)
            .map(|entries| {
                entries
                    .map(|entry| entry.expect("an entry").path())
                    .filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
                    .collect()
            })
            .unwrap_or_default();
        segments.sort();
        segments
            .iter()
            .flat_map(|path| std::fs::read(path).expect("a segment"))
            .collect()
    }
}

pub(crate) async fn produce(
    producer: &Producer,
    topic: &str,
    value: impl Into<String>,
) -> yuxi_client::Result<RecordMetadata> {
    let mut record = Record::new(Arc::<str>::from(topic), value.into());
    record.partition = Some(0);
    soon("a delivery", producer.send(record)).await
}

/// Produces numbers one after the other until told to stop; returns how many were
/// acknowledged.
pub(crate) fn load(
    producer: Arc<Producer>,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<usize> {
    tokio::spawn(async move {
        let mut acknowledged = 0;
        while !stop.load(Ordering::SeqCst) {
            produce(&producer, "t", acknowledged.to_string())
                .await
                .unwrap_or_else(|error| panic!("record {acknowledged}: {error}"));
            acknowledged += 1;
        }
        acknowledged
    })
}
