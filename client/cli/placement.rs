//! `yuxi topic reassign` and `elect`: who holds the replicas of partitions, and who leads.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use yuxi_client::Admin;
use yuxi_client::admin::{ElectionKind, OngoingReassignment, PartitionAnswers};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::{BrokerId, TopicPartition};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json};

/// How often a reassignment is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Reassign {
    /// The topic; all reassignments that are going on are shown if there is none.
    topic: Option<String>,
    /// In this partition only; may be repeated.
    #[arg(short, long, value_name = "N")]
    partition: Vec<i32>,
    /// The brokers that are to hold it, the preferred leader first: 1,2,3.
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        conflicts_with = "cancel"
    )]
    to: Vec<i32>,
    /// Go back to what it was before.
    #[arg(long)]
    cancel: bool,
    /// Let the number of replicas change.
    #[arg(long)]
    resize: bool,
    /// Return when it is done.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Elect {
    /// The topic; all if there is none.
    topic: Option<String>,
    /// In this partition only; may be repeated.
    #[arg(short, long, value_name = "N", requires = "topic")]
    partition: Vec<i32>,
    /// Where there is no leader, take any replica that lives, though records may be lost.
    #[arg(long)]
    unclean: bool,
}

pub(crate) async fn reassign(admin: &Admin, args: Reassign, format: OutputFormat) -> Outcome {
    let Some(topic) = &args.topic else {
        if args.to.is_empty() && !args.cancel {
            return list(&admin.list_reassignments().await?, format);
        }
        return Err(Failure::Usage(
            "which topic shall be reassigned?".to_owned(),
        ));
    };
    if args.to.is_empty() && !args.cancel {
        let mut ongoing = admin.list_reassignments().await?;
        ongoing.retain(|one| *one.partition.topic == **topic);
        return list(&ongoing, format);
    }
    let replicas: Option<Vec<BrokerId>> =
        (!args.cancel).then(|| args.to.iter().copied().map(BrokerId::new).collect());
    let partitions = partitions(admin, topic, &args.partition).await?;
    let wanted: BTreeMap<_, _> = partitions
        .into_iter()
        .map(|partition| (partition, replicas.clone()))
        .collect();
    let mut answers = admin.alter_reassignments(&wanted, args.resize).await?;
    if args.cancel && args.partition.is_empty() {
        // All of the topic: those that are not being reassigned are as they should be.
        let none = Some(ErrorCode::NoReassignmentInProgress);
        answers
            .retain(|_, answer| answer.as_ref().err().and_then(yuxi_client::Error::code) != none);
        if answers.is_empty() && format == OutputFormat::Table {
            return line(&format!(
                "nothing to cancel: no partition of '{topic}' is being reassigned"
            ));
        }
    }
    report(
        &answers,
        if args.cancel {
            "cancelled"
        } else {
            "reassigned"
        },
        format,
    )?;
    if !args.wait {
        return Ok(());
    }
    loop {
        let ongoing = admin.list_reassignments().await?;
        if !ongoing
            .iter()
            .any(|one| wanted.contains_key(&one.partition))
        {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) async fn elect(admin: &Admin, args: Elect, format: OutputFormat) -> Outcome {
    let kind = if args.unclean {
        ElectionKind::Unclean
    } else {
        ElectionKind::Preferred
    };
    let named = match &args.topic {
        Some(topic) => Some(partitions(admin, topic, &args.partition).await?),
        None => None,
    };
    let mut answers = admin.elect_leaders(kind, named.as_deref()).await?;
    // Whoever leads where it should needs nothing, which is what was asked for.
    answers.retain(|_, answer| {
        answer.as_ref().err().and_then(yuxi_client::Error::code)
            != Some(ErrorCode::ElectionNotNeeded)
    });
    if answers.is_empty() && format == OutputFormat::Table {
        return line(match kind {
            ElectionKind::Preferred => "nothing to elect: the preferred replicas lead",
            ElectionKind::Unclean => "nothing to elect: every partition has a leader",
        });
    }
    report(&answers, "elected", format)
}

async fn partitions(admin: &Admin, topic: &str, chosen: &[i32]) -> Outcome<Vec<TopicPartition>> {
    let mut indexes = chosen.to_vec();
    if indexes.is_empty() {
        let topic = admin.cluster().topic(&topic.into(), false).await?;
        indexes = topic.partitions.iter().map(|part| part.index).collect();
    }
    Ok(indexes
        .into_iter()
        .map(|index| TopicPartition::new(topic, index))
        .collect())
}

fn list(ongoing: &[OngoingReassignment], format: OutputFormat) -> Outcome {
    let mut table = Table::new(&["PARTITION", "REPLICAS", "ADDING", "REMOVING"]);
    let ids = |ids: &[BrokerId]| -> Value { ids.iter().map(|broker| broker.value()).collect() };
    for one in ongoing {
        table.row(vec![
            json!(one.partition.to_string()),
            ids(&one.replicas),
            ids(&one.adding),
            ids(&one.removing),
        ]);
    }
    table.print(format)
}

/// Prints what was done; fails with the first failure once all are printed.
fn report(answers: &PartitionAnswers, what: &str, format: OutputFormat) -> Outcome {
    let mut failure = None;
    let mut done = Vec::new();
    for (partition, answer) in answers {
        match answer {
            Ok(()) => done.push(partition.to_string()),
            Err(error) => {
                if let Some(earlier) = failure.replace(error.clone()) {
                    eprintln!("yuxi: {earlier}");
                }
            }
        }
    }
    match format {
        OutputFormat::Json => print_json(&json!({ "partitions": done, "result": what }))?,
        OutputFormat::Table => {
            for partition in done {
                line(&format!("{partition} {what}"))?;
            }
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}
