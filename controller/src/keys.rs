//! What stands in the metadata store: the keys and their JSON values. Every
//! byte that this system writes there is named here, so that
//! `etcdctl get --prefix /yuxi/` can be read beside this page.
//!
//! ```text
//! cluster                  {"cluster_id":"…","layout":1}
//! controller               {"node_id":1,"incarnation":"…","session":"1f",…}          session-bound
//! brokers/1                {"incarnation":"…","endpoints":[…],"rack":"a",…}          session-bound
//! daemons/101              {"incarnation":"…","endpoint":{…}}                    session-bound
//! admitted/1               {"broker_epoch":12,"boot_id":"…",…}
//! topics/orders            {"topic_id":"…","partitions":300}
//! deleted/TOPIC_ID         {"topic":"orders","brokers":[2]}                      until broker 2 has removed it
//! partitions/TOPIC_ID/2    {"256":{"replicas":[1,2],"isr":[1,2],"leader":1,…},…}     partitions 256 to 383
//! configs/topics/orders    {"retention.ms":"1000"}
//! configs/brokers/1, configs/cluster, configs/groups/G
//! producer_ids             {"next_producer_id":4000}
//! ```
//!
//! The create revision of `controller` is the controller epoch, the mod revision
//! of `brokers/ID` the broker epoch. Unknown fields and keys are passed over, so
//! that an older process can stand beside a newer one.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned, ser::SerializeMap as _};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, ProducerId, TopicId};

/// How many partitions of a topic share one key, so that the death of a broker
/// costs few transactions.
pub const PARTITIONS_PER_CHUNK: usize = 128;

/// The layout of the keys and values that this version reads and writes. A version that
/// older ones can't work beside writes a higher number to `cluster`, and they refuse.
pub const LAYOUT: u32 = 1;

/// A key of the metadata store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The cluster's identity.
    Cluster,
    /// Who is the controller.
    Controller,
    /// A live broker.
    Broker(BrokerId),
    /// A live controller that is no broker.
    Daemon(BrokerId),
    /// The incarnation of a broker that the controller has last let in.
    Admission(BrokerId),
    /// A topic.
    Topic(Arc<str>),
    /// The states of up to [`PARTITIONS_PER_CHUNK`] partitions of a topic.
    Partitions(TopicId, u32),
    /// A topic that was deleted, as long as brokers may hold replicas of it.
    Deletion(TopicId),
    /// Configuration overrides.
    Config(ConfigScope),
    /// The producer ids given out so far.
    ProducerIds,
    /// The levels of the cluster's features.
    Features,
}

/// What a set of configuration overrides applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ConfigScope {
    /// One topic.
    Topic(Arc<str>),
    /// One broker.
    Broker(BrokerId),
    /// Every broker that has no override of its own.
    Cluster,
    /// One consumer group.
    Group(Arc<str>),
}

/// As its key spells it.
impl From<ConfigScope> for String {
    fn from(scope: ConfigScope) -> Self {
        Key::Config(scope).to_string()
    }
}

impl TryFrom<String> for ConfigScope {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match Key::parse(&text) {
            Some(Key::Config(scope)) => Ok(scope),
            _ => Err(ValueError::new(&text, "it names no scope of configs")),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Controller => f.write_str("controller"),
            Self::Broker(id) => write!(f, "brokers/{id}"),
            Self::Daemon(id) => write!(f, "daemons/{id}"),
            Self::Admission(id) => write!(f, "admitted/{id}"),
            Self::Topic(name) => write!(f, "topics/{name}"),
            Self::Partitions(topic, chunk) => write!(f, "partitions/{topic}/{chunk}"),
            Self::Deletion(topic) => write!(f, "deleted/{topic}"),
            Self::Config(ConfigScope::Topic(name)) => write!(f, "configs/topics/{name}"),
            Self::Config(ConfigScope::Broker(id)) => write!(f, "configs/brokers/{id}"),
            Self::Config(ConfigScope::Cluster) => f.write_str("configs/cluster"),
            Self::Config(ConfigScope::Group(id)) => write!(f, "configs/groups/{id}"),
            Self::ProducerIds => f.write_str("producer_ids"),
            Self::Features => f.write_str("features"),
        }
    }
}

impl Key {
    /// The key that `text` spells; `None` for keys that this version doesn't know.
    pub fn parse(text: &str) -> Option<Self> {
        let broker = |id: &str| id.parse().ok().map(BrokerId::new);
        Some(match text.split_once('/') {
            None => match text {
                "cluster" => Self::Cluster,
                "controller" => Self::Controller,
                "producer_ids" => Self::ProducerIds,
                "features" => Self::Features,
                _ => return None,
            },
            Some(("brokers", id)) => Self::Broker(broker(id)?),
            Some(("daemons", id)) => Self::Daemon(broker(id)?),
            Some(("admitted", id)) => Self::Admission(broker(id)?),
            Some(("topics", name)) => Self::Topic(name.into()),
            Some(("partitions", rest)) => {
                let (topic, chunk) = rest.split_once('/')?;
                Self::Partitions(topic.parse().ok()?, chunk.parse().ok()?)
            }
            Some(("deleted", topic)) => Self::Deletion(topic.parse().ok()?),
            Some(("configs", "cluster")) => Self::Config(ConfigScope::Cluster),
            Some(("configs", rest)) => match rest.split_once('/')? {
                ("topics", name) => Self::Config(ConfigScope::Topic(name.into())),
                ("brokers", id) => Self::Config(ConfigScope::Broker(broker(id)?)),
                ("groups", id) => Self::Config(ConfigScope::Group(id.into())),
                _ => return None,
            },
            Some(_) => return None,
        })
    }
}

/// A value that is not what its key promises.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("the value of '{key}' in the metadata store is not readable: {reason}")]
pub struct ValueError {
    key: String,
    reason: String,
}

impl ValueError {
    /// Says what is wrong with the value of `key`.
    pub fn new(key: &str, reason: impl fmt::Display) -> Self {
        Self {
            key: key.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Reads the value of `key`.
pub fn parse_value<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ValueError> {
    serde_json::from_slice(value).map_err(|error| ValueError::new(key, error))
}

/// Writes a value as it stands in the store.
pub fn print_value<T: Serialize>(value: &T) -> Bytes {
    // Our own types have string or integer keys and no failing serializers.
    serde_json::to_vec(value)
        .expect("every value type has a JSON form")
        .into()
}

/// The value of `cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterValue {
    /// Chosen at random when the cluster was first started, spelled as Kafka does.
    pub cluster_id: String,
    /// The layout of all that stands in the store.
    #[serde(default = "first_layout")]
    pub layout: u32,
}

/// That of the stores that don't say.
const fn first_layout() -> u32 {
    1
}

/// Reads the value of `cluster`, and refuses a layout that this version doesn't know.
pub fn parse_cluster(key: &str, value: &[u8]) -> Result<ClusterValue, ValueError> {
    let cluster: ClusterValue = parse_value(key, value)?;
    if cluster.layout > LAYOUT {
        return Err(ValueError::new(
            key,
            format_args!(
                "a newer version of Yuxi has written layout {}, and this one knows layouts up to \
                 {LAYOUT}: run the newer version",
                cluster.layout
            ),
        ));
    }
    Ok(cluster)
}

/// The value of `controller`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerValue {
    /// The node that holds the seal.
    pub node_id: BrokerId,
    /// Which life of that node.
    pub incarnation: String,
    /// The session the key is bound to, for whoever has to revoke it.
    pub session: String,
    /// Where other processes send what only the controller may decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Address>,
}

/// Where a process listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The value of `brokers/ID`: what a broker says about itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerValue {
    /// Which life of the broker this is; random.
    pub incarnation: String,
    /// Where it can be reached.
    pub endpoints: Vec<Endpoint>,
    /// `broker.rack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The operating system's boot id: with the same one, what the last
    /// incarnation wrote is still in the page cache (I8).
    #[serde(default)]
    pub boot_id: String,
    /// The ids of its data directories; a wiped disk comes back under another (I7).
    #[serde(default)]
    pub directories: Vec<String>,
    /// The incarnations that may have been the last to use its data directory. If the last
    /// that was let in is not among them, the disk was put back from a copy.
    #[serde(default)]
    pub former_incarnations: Vec<String>,
    /// The broker epoch that the last incarnation left in its clean-shutdown file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_shutdown_epoch: Option<BrokerEpoch>,
    /// Whether its process competes for the seal.
    #[serde(default)]
    pub candidate: bool,
    /// Whether a log failed its checks when it was opened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// The value of `daemons/ID`: a controller that is no broker, whether it holds the seal or
/// waits for it. Like that of a broker its key keeps others from using its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonValue {
    /// Which life of the daemon this is; random.
    pub incarnation: String,
    /// Where the brokers reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Address>,
}

/// One listener of a broker, as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The listener's name.
    pub listener: String,
    /// `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub security_protocol: String,
    /// The advertised host.
    pub host: String,
    /// The advertised port.
    pub port: u16,
}

/// The value of `admitted/ID`. It outlives the registration, so that the next
/// incarnation can be judged by it (I7, I8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionValue {
    /// The registration that was let in.
    pub broker_epoch: BrokerEpoch,
    /// Which life of the broker that is.
    #[serde(default)]
    pub incarnation: String,
    /// Its boot id.
    #[serde(default)]
    pub boot_id: String,
    /// Its data directories.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Whether it has asked to shut down: it leads nothing new and joins no ISR.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shutting_down: bool,
}

/// The value of `topics/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicValue {
    /// The topic's id, which its partitions are filed under.
    pub topic_id: TopicId,
    /// How many partitions it has. States beyond that are not yet, or no longer, part of it.
    pub partitions: u32,
}

/// The value of `deleted/TOPIC_ID`, which is written with the deletion. It tells a broker that
/// was away from one whose metadata store was put back from a backup: only what is known to have
/// been deleted is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionValue {
    /// The name that the topic had, for whoever reads this; another topic may have it now.
    pub topic: String,
    /// The brokers that had replicas of it and have not said that they hold none any more.
    pub brokers: Vec<BrokerId>,
}

/// The value of `producer_ids`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdsValue {
    /// The first id that no broker was given.
    pub next_producer_id: ProducerId,
}

/// The levels of features by name, as far as they were ever set.
pub type FeaturesValue = BTreeMap<String, i16>;

/// Configuration overrides by name.
pub type ConfigValue = BTreeMap<String, String>;

/// The state of one partition. Only the controller writes it (I5).
/// What is seldom there is left out of its JSON where it is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// The assignment, preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The replicas that have every acknowledged record.
    pub isr: Vec<BrokerId>,
    /// Former ISR members that still have every acknowledged record, since none
    /// could be acknowledged after they left (KIP-966, I9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elr: Vec<BrokerId>,
    /// Who leads, or [`BrokerId::NONE`].
    pub leader: BrokerId,
    /// How often a leader was named.
    pub leader_epoch: LeaderEpoch,
    /// How often this state was changed.
    pub partition_epoch: i32,
    /// Whether the leader has yet to recover from an election outside the ISR (KIP-704).
    #[serde(default, skip_serializing_if = "LeaderRecovery::is_recovered")]
    pub leader_recovery: LeaderRecovery,
    /// Who led last before both ISR and ELR ran empty; the best one to lead again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_leader: Option<BrokerId>,
    /// Replicas that a running reassignment adds (KIP-455).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adding_replicas: Vec<BrokerId>,
    /// Replicas that leave once those it keeps and adds are all in sync.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removing_replicas: Vec<BrokerId>,
    /// Replicas that came back without what they had (a wiped or damaged disk) and have
    /// not been in sync since. They are the last that anybody should follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_data: Vec<BrokerId>,
}

impl PartitionState {
    /// Whether replicas are being added or removed.
    pub fn is_reassigning(&self) -> bool {
        !self.adding_replicas.is_empty() || !self.removing_replicas.is_empty()
    }

    /// The replicas that remain when the running reassignment is complete.
    pub fn target_replicas(&self) -> Vec<BrokerId> {
        without(&self.replicas, &self.removing_replicas)
    }

    /// The replicas that remain when the running reassignment is cancelled.
    pub fn original_replicas(&self) -> Vec<BrokerId> {
        without(&self.replicas, &self.adding_replicas)
    }
}

fn without(replicas: &[BrokerId], leaving: &[BrokerId]) -> Vec<BrokerId> {
    let stays = |id: &BrokerId| !leaving.contains(id);
    replicas.iter().copied().filter(stays).collect()
}

/// Whether a leader elected outside the ISR has finished recovering (KIP-704).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaderRecovery {
    /// Nothing to recover from.
    #[default]
    Recovered,
    /// The leader was elected uncleanly and must stay the only ISR member.
    Recovering,
}

impl LeaderRecovery {
    /// The number that AlterPartition and LeaderAndIsr carry.
    pub const fn code(self) -> i8 {
        match self {
            Self::Recovered => 0,
            Self::Recovering => 1,
        }
    }

    /// The state that AlterPartition's number means.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Recovered),
            1 => Some(Self::Recovering),
            _ => None,
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
    fn is_recovered(&self) -> bool {
        *self == Self::Recovered
    }
}

/// Writes the states of chunk `chunk`, each under its partition's number.
pub fn print_partitions<'a>(
    chunk: u32,
    states: impl IntoIterator<Item = &'a PartitionState>,
) -> Bytes {
    struct Numbered<'a>(usize, Vec<&'a PartitionState>);
    impl Serialize for Numbered<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.1.len()))?;
            for (partition, state) in (self.0..).zip(&self.1) {
                map.serialize_entry(&partition, state)?;
            }
            map.end()
        }
    }
    let states: Vec<_> = states.into_iter().collect();
    assert!(states.len() <= PARTITIONS_PER_CHUNK);
    print_value(&Numbered(first_partition(chunk), states))
}

/// Reads the states of chunk `chunk` in the order of their partitions.
pub fn parse_partitions(
    key: &str,
    chunk: u32,
    value: &[u8],
) -> Result<Vec<PartitionState>, ValueError> {
    let numbered: BTreeMap<usize, PartitionState> = parse_value(key, value)?;
    if numbered.len() > PARTITIONS_PER_CHUNK {
        return Err(ValueError::new(
            key,
            format_args!("it holds more than {PARTITIONS_PER_CHUNK} partitions"),
        ));
    }
    let mut states = Vec::with_capacity(numbered.len());
    for ((partition, state), expected) in numbered.into_iter().zip(first_partition(chunk)..) {
        if partition != expected {
            return Err(ValueError::new(
                key,
                format_args!("partition {expected} is missing"),
            ));
        }
        states.push(state);
    }
    Ok(states)
}

/// The number of the first partition in chunk `chunk`.
pub const fn first_partition(chunk: u32) -> usize {
    chunk as usize * PARTITIONS_PER_CHUNK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_back_as_it_was_written() {
        let id = TopicId::from_bytes([7; 16]);
        for key in [
            Key::Cluster,
            Key::Controller,
            Key::Broker(BrokerId::new(3)),
            Key::Daemon(BrokerId::new(3)),
            Key::Admission(BrokerId::new(3)),
            Key::Topic("a.b_c-D".into()),
            Key::Partitions(id, 78),
            Key::Deletion(id),
            Key::Config(ConfigScope::Topic("cluster".into())),
            Key::Config(ConfigScope::Broker(BrokerId::new(0))),
            Key::Config(ConfigScope::Cluster),
            Key::ProducerIds,
            Key::Features,
        ] {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
    }

    #[test]
    fn keys_of_a_later_version_are_not_taken_for_ours() {
        for text in [
            "",
            "acls/x",
            "brokers/one",
            "configs/quotas/g",
            "partitions/x/0",
            "topic",
        ] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    fn state() -> PartitionState {
        PartitionState {
            replicas: vec![BrokerId::new(1), BrokerId::new(2)],
            isr: vec![BrokerId::new(2)],
            elr: Vec::new(),
            leader: BrokerId::new(2),
            leader_epoch: LeaderEpoch::new(5),
            partition_epoch: 9,
            leader_recovery: LeaderRecovery::Recovered,
            last_known_leader: None,
            adding_replicas: Vec::new(),
            removing_replicas: Vec::new(),
            lost_data: Vec::new(),
        }
    }

    #[test]
    fn partition_states_are_legible_and_read_back() {
        let states = vec![state(); 2];
        let value = print_partitions(2, &states);
        assert_eq!(
            std::str::from_utf8(&value).unwrap(),
            r#"{"256":{"replicas":[1,2],"isr":[2],"leader":2,"leader_epoch":5,"partition_epoch":9},"257":{"replicas":[1,2],"isr":[2],"leader":2,"leader_epoch":5,"partition_epoch":9}}"#
        );
        assert_eq!(parse_partitions("k", 2, &value), Ok(states));
        let mut rare = state();
        rare.elr = vec![BrokerId::new(1)];
        rare.leader_recovery = LeaderRecovery::Recovering;
        rare.last_known_leader = Some(BrokerId::new(1));
        rare.adding_replicas = vec![BrokerId::new(1)];
        rare.removing_replicas = vec![BrokerId::new(2)];
        rare.lost_data = vec![BrokerId::new(1)];
        let value = print_partitions(0, std::slice::from_ref(&rare));
        assert_eq!(parse_partitions("k", 0, &value), Ok(vec![rare]));
    }

    #[test]
    fn a_chunk_with_a_hole_or_from_another_place_is_refused() {
        let value = print_partitions(2, &[state()]);
        assert!(parse_partitions("k", 1, &value).is_err());
        let text = String::from_utf8(print_partitions(0, &[state(), state()]).to_vec()).unwrap();
        let holed = text.replace("\"1\":", "\"2\":");
        assert!(parse_partitions("k", 0, holed.as_bytes()).is_err());
        assert!(parse_partitions("k", 0, b"[]").is_err());
    }
}
