//! `yuxi group`: who reads what and how far, and moving that.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use serde_json::json;
use yuxi_client::admin::GroupDescription;
use yuxi_client::consumer::CommittedOffset;
use yuxi_client::offsets::{ListedOffset, list_offsets};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{Admin, ClientConfig, OffsetSpec};

use crate::consume::Begin;
use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List groups.
    List,
    /// Show a group's members, offsets and lag.
    Describe {
        /// Its name.
        group: String,
    },
    /// Move a group's offsets. It must have no members.
    Seek {
        /// Its name.
        group: String,
        /// Where to: start, end, an offset, -N before the end, or @TIMESTAMP in ms.
        #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
        to: String,
        /// Only this topic; may be repeated. All that it has offsets of unless given.
        #[arg(short, long, value_name = "TOPIC")]
        topic: Vec<String>,
        /// Only this partition of them; may be repeated.
        #[arg(short, long, value_name = "N")]
        partition: Vec<i32>,
    },
    /// Delete groups and their offsets. They must have no members.
    Delete {
        /// Their names.
        #[arg(required = true)]
        groups: Vec<String>,
    },
}

pub(crate) async fn run(config: ClientConfig, command: Command, format: OutputFormat) -> Outcome {
    let admin = Admin::connect(config).await?;
    match command {
        Command::List => {
            let mut table = Table::new(&["GROUP", "STATE", "TYPE", "PROTOCOL"]);
            for group in admin.list_groups().await? {
                table.row(vec![
                    json!(group.group),
                    json!(group.state),
                    json!(group.kind),
                    json!(group.protocol_type),
                ]);
            }
            table.print(format)
        }
        Command::Describe { group } => describe(&admin, &group, format).await,
        Command::Seek {
            group,
            to,
            topic,
            partition,
        } => seek(&admin, &group, &to, &topic, &partition, format).await,
        Command::Delete { groups } => {
            for group in groups {
                admin
                    .delete_group(&group)
                    .await
                    .map_err(|error| has_members(&group, error))?;
                line(&format!("group {group} deleted"))?;
            }
            Ok(())
        }
    }
}

async fn describe(admin: &Admin, group: &str, format: OutputFormat) -> Outcome {
    let missing =
        || Failure::Unsuccessful(format!("there is no group {group}; see: yuxi group list"));
    let described = match admin.describe_group(group).await {
        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => return Err(missing()),
        described => described?,
    };
    let offsets = admin.group_offsets(group).await?;
    if described.state == "Dead" && offsets.is_empty() {
        return Err(missing());
    }
    let table = lag_table(admin, &described, &offsets).await?;
    if format == OutputFormat::Json {
        return print_json(&json!({
            "group": group,
            "state": described.state,
            "assignor": described.assignor,
            "partitions": table.json(),
        }));
    }
    line(&format!(
        "group {group}: {}, {} members{}{}",
        described.state,
        described.members.len(),
        if described.assignor.is_empty() {
            ""
        } else {
            ", assignor "
        },
        described.assignor
    ))?;
    table.print(format)
}

async fn lag_table(
    admin: &Admin,
    described: &GroupDescription,
    offsets: &BTreeMap<TopicPartition, CommittedOffset>,
) -> Outcome<Table> {
    let mut partitions: BTreeSet<&TopicPartition> = offsets.keys().collect();
    partitions.extend(
        described
            .members
            .iter()
            .flat_map(|member| &member.assignment),
    );
    // A topic may have been deleted while the group's offsets of it are still there.
    let topics: BTreeSet<_> = partitions.iter().map(|p| p.topic.clone()).collect();
    let metadata = admin
        .cluster()
        .refresh(&topics.into_iter().collect::<Vec<_>>(), false)
        .await?;
    let wanted = partitions
        .iter()
        .filter(|p| metadata.leader(&p.topic, p.partition.value()).is_some())
        .map(|p| ((*p).clone(), OffsetSpec::Latest))
        .collect();
    let ends = list_offsets(admin.cluster(), &wanted, false).await?;
    let mut table = Table::new(&[
        "TOPIC",
        "PARTITION",
        "OFFSET",
        "END",
        "LAG",
        "MEMBER",
        "CLIENT",
        "HOST",
    ]);
    for partition in partitions {
        let member = described
            .members
            .iter()
            .find(|member| member.assignment.contains(partition));
        let committed = offsets.get(partition).map(|committed| committed.offset);
        let end = ends.get(partition).and_then(|listed| listed.offset);
        let lag = committed
            .zip(end)
            .map(|(committed, end)| (end - committed).max(0));
        table.row(vec![
            json!(*partition.topic),
            json!(partition.partition.value()),
            json!(committed),
            json!(end),
            json!(lag),
            json!(member.map(|member| &member.id)),
            json!(member.map(|member| &member.client_id)),
            json!(member.map(|member| &member.host)),
        ]);
    }
    Ok(table)
}

async fn seek(
    admin: &Admin,
    group: &str,
    to: &str,
    topics: &[String],
    indexes: &[i32],
    format: OutputFormat,
) -> Outcome {
    let to = Begin::parse(to)?;
    let mut partitions: Vec<TopicPartition> = if topics.is_empty() {
        admin.group_offsets(group).await?.into_keys().collect()
    } else {
        let mut all = Vec::new();
        for topic in topics {
            let topic = admin.cluster().topic(&topic.as_str().into(), false).await?;
            let of_topic = topic
                .partitions
                .iter()
                .map(|p| TopicPartition::new(topic.name.clone(), p.index));
            all.extend(of_topic);
        }
        all
    };
    if !indexes.is_empty() {
        partitions.retain(|partition| indexes.contains(&partition.partition.value()));
    }
    if partitions.is_empty() {
        return Err(Failure::Unsuccessful(format!(
            "group {group} has no offsets of that; name a topic with -t"
        )));
    }
    let offsets = targets(admin, to, &partitions).await?;
    admin
        .set_group_offsets(group, &offsets)
        .await
        .map_err(|error| has_members(group, error))?;
    let mut table = Table::new(&["TOPIC", "PARTITION", "OFFSET"]);
    for (partition, offset) in &offsets {
        table.row(vec![
            json!(*partition.topic),
            json!(partition.partition.value()),
            json!(offset),
        ]);
    }
    table.print(format)
}

/// The offsets to go to, none outside the log.
async fn targets(
    admin: &Admin,
    to: Begin,
    partitions: &[TopicPartition],
) -> Outcome<BTreeMap<TopicPartition, i64>> {
    let ask = |spec| {
        partitions
            .iter()
            .map(|partition| (partition.clone(), spec))
            .collect()
    };
    let cluster = admin.cluster();
    let first = list_offsets(cluster, &ask(OffsetSpec::Earliest), false).await?;
    let last = list_offsets(cluster, &ask(OffsetSpec::Latest), false).await?;
    let listed = match to {
        Begin::Spec(spec) => list_offsets(cluster, &ask(spec), false).await?,
        Begin::Offset(_) | Begin::BeforeEnd(_) => BTreeMap::new(),
    };
    let of = |listed: &BTreeMap<TopicPartition, ListedOffset>, partition: &TopicPartition| {
        listed.get(partition).and_then(|found| found.offset)
    };
    let target = |partition: &TopicPartition| {
        let low = of(&first, partition).unwrap_or(0);
        let high = of(&last, partition).unwrap_or(low).max(low);
        let wanted = match to {
            Begin::Offset(offset) => offset,
            Begin::BeforeEnd(count) => high - count,
            // No record is as late as the time: go to the end.
            Begin::Spec(_) => of(&listed, partition).unwrap_or(high),
        };
        wanted.clamp(low, high)
    };
    Ok(partitions
        .iter()
        .map(|partition| (partition.clone(), target(partition)))
        .collect())
}

/// A commit from outside is refused as "unknown member" while a group has members.
fn has_members(group: &str, error: yuxi_client::Error) -> Failure {
    match error.code() {
        Some(
            ErrorCode::UnknownMemberId | ErrorCode::NonEmptyGroup | ErrorCode::RebalanceInProgress,
        ) => Failure::Unsuccessful(format!(
            "group {group} has members; stop its consumers first (yuxi group describe {group})"
        )),
        Some(ErrorCode::GroupIdNotFound) => {
            Failure::Unsuccessful(format!("there is no group {group}; see: yuxi group list"))
        }
        _ => error.into(),
    }
}
