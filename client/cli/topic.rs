//! `yuxi topic`: create, list, describe, alter, trim, delete.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::{Value, json};
use yuxi_client::admin::{
    ConfigOp, ConfigResource, ConfigSource, NewPartitions, NewTopic, TopicAnswer,
};
use yuxi_client::offsets::list_offsets;
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::{BrokerId, TopicPartition};
use yuxi_client::{Admin, ClientConfig, Cluster, OffsetSpec};

use crate::config::pair;
use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json};
use crate::placement;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create topics.
    Create {
        /// Their names.
        #[arg(required = true)]
        topics: Vec<String>,
        /// How many partitions; the broker's num.partitions unless given.
        #[arg(short, long)]
        partitions: Option<i32>,
        /// How many replicas; the broker's default.replication.factor unless given.
        #[arg(short, long)]
        replication_factor: Option<i16>,
        /// A setting of the topic; may be repeated.
        #[arg(short, long, value_name = "KEY=VALUE")]
        config: Vec<String>,
        /// A topic that exists already is as good as created.
        #[arg(long)]
        if_not_exists: bool,
        /// Only say whether it could be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// List topics.
    List {
        /// Kafka's own topics too.
        #[arg(short, long)]
        internal: bool,
    },
    /// Show a topic's partitions and what is set on it.
    Describe {
        /// Its name.
        topic: String,
    },
    /// Add partitions, change settings.
    Alter {
        /// Its name.
        topic: String,
        /// How many partitions it is to have in all.
        #[arg(short, long)]
        partitions: Option<i32>,
        /// Set this; may be repeated.
        #[arg(short, long, value_name = "KEY=VALUE")]
        config: Vec<String>,
        /// Go back to the default; may be repeated.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Delete records from the start of a topic.
    Trim {
        /// Its name.
        topic: String,
        /// Delete up to this offset: a number, or end.
        #[arg(long, value_name = "OFFSET")]
        to: String,
        /// In this partition only; may be repeated.
        #[arg(short, long, value_name = "N")]
        partition: Vec<i32>,
    },
    /// Move partitions to other brokers while they serve, or show what is being moved.
    Reassign(placement::Reassign),
    /// Let the preferred replicas lead again, or any where there is no leader.
    Elect(placement::Elect),
    /// Delete topics with all their records.
    Delete {
        /// Their names.
        #[arg(required = true)]
        topics: Vec<String>,
        /// A topic that does not exist is as good as deleted.
        #[arg(long)]
        if_exists: bool,
    },
}

pub(crate) async fn run(config: ClientConfig, command: Command, format: OutputFormat) -> Outcome {
    let admin = Admin::connect(config).await?;
    match command {
        Command::Create {
            topics,
            partitions,
            replication_factor,
            config,
            if_not_exists,
            dry_run,
        } => {
            let configs = config
                .iter()
                .map(|text| pair(text))
                .collect::<Outcome<Vec<_>>>()?;
            let new = |name: &String| NewTopic {
                partitions,
                replication_factor,
                configs: configs.clone(),
                ..NewTopic::new(name)
            };
            let topics: Vec<NewTopic> = topics.iter().map(new).collect();
            if if_not_exists && !dry_run {
                let answers = admin.create_missing_topics(&topics).await?;
                return report(&answers, "exists", None, format);
            }
            let answers = admin.create_topics(&topics, dry_run).await?;
            let forgiven = if_not_exists.then_some(ErrorCode::TopicAlreadyExists);
            let what = if dry_run {
                "could be created"
            } else {
                "created"
            };
            report(&answers, what, forgiven, format)
        }
        Command::List { internal } => list(&admin, internal, format).await,
        Command::Describe { topic } => describe(&admin, &topic, format).await,
        Command::Alter {
            topic,
            partitions,
            config,
            unset,
        } => {
            let mut changes = Vec::new();
            for text in &config {
                let (name, value) = pair(text)?;
                changes.push(ConfigOp::Set(name, value));
            }
            changes.extend(unset.into_iter().map(ConfigOp::Unset));
            if changes.is_empty() && partitions.is_none() {
                return Err(Failure::Usage(
                    "nothing to alter: give -p, -c or --unset".to_owned(),
                ));
            }
            if let Some(total) = partitions {
                let wanted = NewPartitions {
                    topic: topic.clone(),
                    total,
                    assignment: Vec::new(),
                };
                for answer in admin.create_partitions(&[wanted], false).await? {
                    answer.result?;
                }
            }
            if !changes.is_empty() {
                let resource = ConfigResource::Topic(topic.clone());
                admin.alter_configs(&resource, &changes, false).await?;
            }
            done(&topic, "altered", format)
        }
        Command::Trim {
            topic,
            to,
            partition,
        } => trim(&admin, &topic, &to, &partition, format).await,
        Command::Reassign(args) => placement::reassign(&admin, args, format).await,
        Command::Elect(args) => placement::elect(&admin, args, format).await,
        Command::Delete { topics, if_exists } => {
            let answers = admin.delete_topics(&topics).await?;
            let forgiven = if_exists.then_some(ErrorCode::UnknownTopicOrPartition);
            report(&answers, "deleted", forgiven, format)
        }
    }
}

/// For commands that write to a topic whether or not it was there before.
pub(crate) async fn create_if_missing(cluster: &Cluster, topic: NewTopic) -> Outcome {
    for answer in Admin::new(cluster.clone())
        .create_missing_topics(&[topic])
        .await?
    {
        answer.result?;
    }
    Ok(())
}

/// Prints what was done; fails with the first failure once all are printed.
fn report(
    answers: &[TopicAnswer],
    what: &str,
    forgiven: Option<ErrorCode>,
    format: OutputFormat,
) -> Outcome {
    let mut failure = None;
    for answer in answers {
        match &answer.result {
            Ok(()) => done(&answer.name, what, format)?,
            Err(error) if forgiven.is_some() && error.code() == forgiven => {}
            Err(error) => {
                if let Some(earlier) = failure.replace(error.clone()) {
                    eprintln!("yuxi: {earlier}");
                }
            }
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn done(topic: &str, what: &str, format: OutputFormat) -> Outcome {
    match format {
        OutputFormat::Table => line(&format!("topic {topic} {what}")),
        OutputFormat::Json => print_json(&json!({ "topic": topic, "result": what })),
    }
}

async fn list(admin: &Admin, internal: bool, format: OutputFormat) -> Outcome {
    let metadata = admin.cluster().refresh_all().await?;
    let mut topics: Vec<_> = metadata
        .topics
        .values()
        .filter(|topic| internal || !topic.internal)
        .collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = Table::new(&["NAME", "PARTITIONS", "REPLICAS"]);
    for topic in topics {
        let replicas = topic
            .partitions
            .first()
            .map_or(0, |partition| partition.replicas.len());
        table.row(vec![
            json!(*topic.name),
            json!(topic.partitions.len()),
            json!(replicas),
        ]);
    }
    table.print(format)
}

async fn describe(admin: &Admin, name: &str, format: OutputFormat) -> Outcome {
    let topic = admin.cluster().topic(&name.into(), false).await?;
    let wanted = |spec| {
        let led = topic
            .partitions
            .iter()
            .filter(|partition| partition.leader.is_some());
        led.map(|partition| {
            (
                TopicPartition::new(topic.name.clone(), partition.index),
                spec,
            )
        })
        .collect::<BTreeMap<_, _>>()
    };
    let first = list_offsets(admin.cluster(), &wanted(OffsetSpec::Earliest), false).await?;
    let last = list_offsets(admin.cluster(), &wanted(OffsetSpec::Latest), false).await?;
    let mut table = Table::new(&[
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "IN-SYNC",
        "OFFLINE",
        "START",
        "END",
    ]);
    let ids =
        |brokers: &[BrokerId]| -> Value { brokers.iter().map(|broker| broker.value()).collect() };
    for partition in &topic.partitions {
        let key = TopicPartition::new(topic.name.clone(), partition.index);
        let offset = |listed: &BTreeMap<_, yuxi_client::offsets::ListedOffset>| {
            json!(listed.get(&key).and_then(|found| found.offset))
        };
        table.row(vec![
            json!(partition.index),
            json!(partition.leader.map(BrokerId::value)),
            json!(partition.leader_epoch.value()),
            ids(&partition.replicas),
            ids(&partition.isr),
            ids(&partition.offline),
            offset(&first),
            offset(&last),
        ]);
    }
    let resource = ConfigResource::Topic(name.to_owned());
    let configs: BTreeMap<String, Option<String>> = admin
        .describe_configs(&resource, None)
        .await?
        .into_iter()
        .filter(|entry| entry.source == ConfigSource::Topic)
        .map(|entry| (entry.name, entry.value))
        .collect();
    if format == OutputFormat::Json {
        return print_json(&json!({
            "name": *topic.name,
            "id": topic.id.to_string(),
            "internal": topic.internal,
            "configs": configs,
            "partitions": table.json(),
        }));
    }
    let set: Vec<String> = configs
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("(hidden)")))
        .collect();
    line(&format!("topic {}, id {}", topic.name, topic.id))?;
    if !set.is_empty() {
        line(&format!("set: {}", set.join(" ")))?;
    }
    table.print(format)
}

async fn trim(
    admin: &Admin,
    name: &str,
    to: &str,
    partitions: &[i32],
    format: OutputFormat,
) -> Outcome {
    let offset = match to {
        "end" => -1,
        _ => to
            .parse()
            .ok()
            .filter(|offset| *offset >= 0)
            .ok_or_else(|| Failure::Usage(format!("--to {to}: expected an offset or end")))?,
    };
    let topic = admin.cluster().topic(&name.into(), false).await?;
    let chosen: Vec<i32> = if partitions.is_empty() {
        topic
            .partitions
            .iter()
            .map(|partition| partition.index)
            .collect()
    } else {
        partitions.to_vec()
    };
    let before = chosen
        .into_iter()
        .map(|index| (TopicPartition::new(topic.name.clone(), index), offset))
        .collect();
    let mut table = Table::new(&["PARTITION", "START"]);
    let mut failure = None;
    for (partition, start) in admin.delete_records(&before).await? {
        match start {
            Ok(start) => table.row(vec![json!(partition.partition.value()), json!(start)]),
            Err(error) => failure = Some(error),
        }
    }
    table.print(format)?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}
