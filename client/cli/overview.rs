//! `yuxi cluster info` and `health`: the brokers, and the partitions that are not as they
//! should be.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};
use yuxi_client::admin::{ClusterDescription, PartitionDescription};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::BrokerId;
use yuxi_client::{Admin, Error};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json, print_text};

/// How many troubled partitions are shown one by one, unless all are asked for.
const SHOWN: usize = 20;

/// What one look at the cluster found.
struct Overview {
    cluster: ClusterDescription,
    topics: usize,
    partitions: Vec<PartitionDescription>,
    /// Those that are not as they should be, with the worst that is wrong with them.
    troubled: Vec<(usize, Trouble)>,
}

/// What may be wrong with a partition, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Offline,
    UnderMinIsr,
    UnderReplicated,
}

impl Trouble {
    const ALL: [Self; 3] = [Self::Offline, Self::UnderMinIsr, Self::UnderReplicated];

    fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::UnderMinIsr => "under min ISR",
            Self::UnderReplicated => "under-replicated",
        }
    }
}

/// Shows the cluster, again and again if `every` is given.
pub(crate) async fn info(
    admin: &Admin,
    every: Option<Duration>,
    all: bool,
    format: OutputFormat,
) -> Outcome {
    let Some(every) = every else {
        return show(&Overview::look(admin).await?, all, format);
    };
    let redraw = format == OutputFormat::Table && std::io::stdout().is_terminal();
    loop {
        let overview = Overview::look(admin).await;
        if redraw {
            // To the upper left corner, and nothing below.
            print_text("\x1b[H\x1b[J")?;
        }
        match overview {
            Ok(overview) => show(&overview, all, format)?,
            // What is watched may be down for a while.
            Err(error) => eprintln!("yuxi: {error}"),
        }
        if !redraw && format == OutputFormat::Table {
            line("")?;
        }
        tokio::time::sleep(every).await;
    }
}

/// Says whether all is well, and fails if not.
pub(crate) async fn health(admin: &Admin, format: OutputFormat) -> Outcome {
    let overview = Overview::look(admin).await?;
    let healthy = overview.troubled.is_empty();
    match format {
        OutputFormat::Json => {
            let mut json = overview.counts();
            json["healthy"] = json!(healthy);
            json["brokers"] = json!(overview.cluster.brokers.len());
            for trouble in Trouble::ALL {
                let names = overview.with(trouble).map(|p| p.partition.to_string());
                json[key(trouble)] = names.collect();
            }
            print_json(&json)?;
        }
        OutputFormat::Table => line(&overview.summary())?,
    }
    let Some(&(worst, trouble)) = overview.troubled.first() else {
        return Ok(());
    };
    Err(Failure::Unsuccessful(format!(
        "the cluster is not healthy: {} is {}; see: yuxi cluster info",
        overview.partitions[worst].partition,
        trouble.name()
    )))
}

impl Overview {
    async fn look(admin: &Admin) -> Result<Self, Error> {
        let cluster = admin.describe_cluster().await?;
        let partitions = admin.describe_partitions(&[]).await?;
        let min_isr = min_isr(admin, &partitions).await?;
        let mut troubled: Vec<(usize, Trouble)> = partitions
            .iter()
            .enumerate()
            .filter_map(|(at, partition)| Some((at, trouble(partition, &min_isr)?)))
            .collect();
        troubled.sort_by_key(|&(at, trouble)| (trouble, at));
        let topics: BTreeSet<&str> = partitions.iter().map(|p| &*p.partition.topic).collect();
        Ok(Self {
            topics: topics.len(),
            cluster,
            troubled,
            partitions,
        })
    }

    /// Those with this trouble or a worse one, which brings it along.
    fn with(&self, trouble: Trouble) -> impl Iterator<Item = &PartitionDescription> {
        let those = self.troubled.iter().filter(move |(_, of)| *of <= trouble);
        those.map(|&(at, _)| &self.partitions[at])
    }

    fn summary(&self) -> String {
        let troubles = Trouble::ALL.map(|t| format!("{} {}", self.with(t).count(), t.name()));
        format!(
            "{} brokers, {} topics, {} partitions: {}",
            self.cluster.brokers.len(),
            self.topics,
            self.partitions.len(),
            troubles.join(", ")
        )
    }

    fn controller_id(&self) -> Option<BrokerId> {
        match self.cluster.seal {
            Some(seal) => Some(seal.node),
            None => self.cluster.controller,
        }
    }

    fn controller(&self) -> String {
        let Some(id) = self.controller_id() else {
            return "none".to_owned();
        };
        let is_broker = self.cluster.brokers.iter().any(|broker| broker.id == id);
        let kind = if is_broker { "" } else { " (not a broker)" };
        match self.cluster.seal {
            Some(seal) => format!("{id}{kind}, epoch {}", seal.epoch),
            None => format!("{id}{kind}"),
        }
    }

    fn counts(&self) -> Value {
        json!({ "topics": self.topics, "partitions": self.partitions.len() })
    }

    fn brokers(&self) -> Table {
        let mut table = Table::new(&[
            "ID",
            "ADDRESS",
            "RACK",
            "CONTROLLER",
            "LEADERS",
            "REPLICAS",
            "IN-SYNC",
        ]);
        let mut shares: BTreeMap<BrokerId, (usize, usize, usize)> = BTreeMap::new();
        for partition in &self.partitions {
            if let Some(leader) = partition.leader {
                shares.entry(leader).or_default().0 += 1;
            }
            for &replica in &partition.replicas {
                let (_, replicas, in_sync) = shares.entry(replica).or_default();
                *replicas += 1;
                *in_sync += usize::from(partition.isr.contains(&replica));
            }
        }
        for broker in &self.cluster.brokers {
            let (leaders, replicas, in_sync) = shares.remove(&broker.id).unwrap_or_default();
            table.row(vec![
                json!(broker.id.value()),
                json!(broker.address()),
                json!(broker.rack),
                json!(self.controller_id() == Some(broker.id)),
                json!(leaders),
                json!(replicas),
                json!(in_sync),
            ]);
        }
        // What is left holds replicas and is away.
        for (id, (leaders, replicas, in_sync)) in shares {
            table.row(vec![
                json!(id.value()),
                json!("away"),
                json!(null),
                json!(false),
                json!(leaders),
                json!(replicas),
                json!(in_sync),
            ]);
        }
        table
    }

    fn troubles(&self, most: usize) -> Table {
        let mut table = Table::new(&[
            "PARTITION",
            "STATE",
            "LEADER",
            "EPOCH",
            "REPLICAS",
            "IN-SYNC",
            "ELIGIBLE",
            "AWAY",
        ]);
        let ids = |ids: &[BrokerId]| -> Value { ids.iter().map(|broker| broker.value()).collect() };
        for &(at, trouble) in self.troubled.iter().take(most) {
            let partition = &self.partitions[at];
            table.row(vec![
                json!(partition.partition.to_string()),
                json!(trouble.name()),
                json!(partition.leader.map(BrokerId::value)),
                json!(partition.leader_epoch.value()),
                ids(&partition.replicas),
                ids(&partition.isr),
                ids(&partition.elr),
                ids(&partition.offline),
            ]);
        }
        table
    }
}

fn show(overview: &Overview, all: bool, format: OutputFormat) -> Outcome {
    let most = if all { usize::MAX } else { SHOWN };
    if format == OutputFormat::Json {
        let mut json = overview.counts();
        json["id"] = json!(overview.cluster.id);
        json["controller"] = json!(overview.controller_id().map(BrokerId::value));
        json["controller_epoch"] = json!(overview.cluster.seal.map(|seal| seal.epoch.value()));
        json["brokers"] = overview.brokers().json();
        for trouble in Trouble::ALL {
            json[key(trouble)] = json!(overview.with(trouble).count());
        }
        json["troubled"] = overview.troubles(usize::MAX).json();
        return print_json(&json);
    }
    line(&format!(
        "cluster {}, controller {}",
        overview.cluster.id,
        overview.controller()
    ))?;
    line(&overview.summary())?;
    overview.brokers().print(format)?;
    if overview.troubled.is_empty() {
        return Ok(());
    }
    line("")?;
    overview.troubles(most).print(format)?;
    match overview.troubled.len().checked_sub(most) {
        None | Some(0) => Ok(()),
        Some(more) => line(&format!("and {more} more; --all shows them")),
    }
}

fn key(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Offline => "without_leader",
        Trouble::UnderMinIsr => "under_min_isr",
        Trouble::UnderReplicated => "under_replicated",
    }
}

fn trouble(partition: &PartitionDescription, min_isr: &BTreeMap<&str, usize>) -> Option<Trouble> {
    let replicas = partition.replicas.len();
    let needed = min_isr.get(&*partition.partition.topic).copied();
    if partition.leader.is_none() {
        Some(Trouble::Offline)
    } else if partition.isr.len() < needed.unwrap_or(1).min(replicas) {
        Some(Trouble::UnderMinIsr)
    } else if partition.isr.len() < replicas {
        Some(Trouble::UnderReplicated)
    } else {
        None
    }
}

/// `min.insync.replicas` of the topics that have too few in sync; the others can't be below
/// it.
async fn min_isr<'a>(
    admin: &Admin,
    partitions: &'a [PartitionDescription],
) -> Result<BTreeMap<&'a str, usize>, Error> {
    let name = "min.insync.replicas";
    let short = partitions.iter().filter(|p| p.isr.len() < p.replicas.len());
    let topics: BTreeSet<&str> = short.map(|p| &*p.partition.topic).collect();
    if topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let topics: Vec<&str> = topics.into_iter().collect();
    let configs = admin
        .describe_topic_configs(&topics, Some(&[name.to_owned()]))
        .await?;
    let mut of_topics = BTreeMap::new();
    for (topic, configs) in topics.into_iter().zip(configs) {
        let value = match configs {
            Ok(configs) => configs.into_iter().find(|entry| entry.name == name),
            // It was deleted a moment ago.
            Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => None,
            Err(error) => return Err(error),
        };
        let value = value.and_then(|entry| entry.value?.parse().ok());
        of_topics.insert(topic, value.unwrap_or(1));
    }
    Ok(of_topics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_client::protocol::ids::{LeaderEpoch, TopicPartition};

    fn ids(numbers: &[i32]) -> Vec<BrokerId> {
        numbers.iter().copied().map(BrokerId::new).collect()
    }

    fn partition(leader: Option<i32>, isr: &[i32]) -> PartitionDescription {
        PartitionDescription {
            partition: TopicPartition::new("t", 0),
            leader: leader.map(BrokerId::new),
            leader_epoch: LeaderEpoch::new(0),
            replicas: ids(&[1, 2, 3]),
            isr: ids(isr),
            elr: Vec::new(),
            offline: Vec::new(),
        }
    }

    #[test]
    fn a_worse_trouble_counts_as_the_lesser_ones_too() {
        let partitions = vec![
            partition(Some(1), &[1, 2]),
            partition(Some(1), &[1]),
            partition(None, &[]),
        ];
        let overview = Overview {
            cluster: ClusterDescription {
                id: String::new(),
                controller: None,
                seal: None,
                brokers: Vec::new(),
            },
            topics: 1,
            partitions,
            troubled: vec![
                (2, Trouble::Offline),
                (1, Trouble::UnderMinIsr),
                (0, Trouble::UnderReplicated),
            ],
        };
        let counts = Trouble::ALL.map(|trouble| overview.with(trouble).count());
        assert_eq!(counts, [1, 2, 3]);
    }

    #[test]
    fn the_worst_that_is_wrong_with_a_partition_is_what_is_said() {
        let min_isr = BTreeMap::from([("t", 2)]);
        for (leader, isr, expected) in [
            (Some(1), &[1, 2, 3][..], None),
            (Some(1), &[1, 2], Some(Trouble::UnderReplicated)),
            (Some(1), &[1], Some(Trouble::UnderMinIsr)),
            (None, &[], Some(Trouble::Offline)),
        ] {
            assert_eq!(trouble(&partition(leader, isr), &min_isr), expected);
        }
        // A partition can't have more in sync than it has replicas.
        let min_isr = BTreeMap::from([("t", 9)]);
        assert_eq!(trouble(&partition(Some(1), &[1, 2, 3]), &min_isr), None);
    }
}
