//! `yuxi cluster`: who is there, and whether all is well.

use clap::Subcommand;
use serde_json::json;
use yuxi_client::{Admin, ClientConfig};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the brokers.
    Info,
    /// Say whether every partition has a leader and all its replicas; fails if not.
    Health,
    /// Show the brokers' log directories and how full they are.
    LogDirs,
}

pub(crate) async fn run(config: ClientConfig, command: Command, format: OutputFormat) -> Outcome {
    let admin = Admin::connect(config).await?;
    match command {
        Command::Info => info(&admin, format).await,
        Command::Health => health(&admin, format).await,
        Command::LogDirs => log_dirs(&admin, format).await,
    }
}

async fn info(admin: &Admin, format: OutputFormat) -> Outcome {
    let cluster = admin.describe_cluster().await?;
    let mut table = Table::new(&["ID", "ADDRESS", "RACK", "CONTROLLER"]);
    for broker in &cluster.brokers {
        table.row(vec![
            json!(broker.id.value()),
            json!(broker.address()),
            json!(broker.rack),
            json!(cluster.controller == Some(broker.id)),
        ]);
    }
    if format == OutputFormat::Json {
        return print_json(&json!({ "id": cluster.id, "brokers": table.json() }));
    }
    line(&format!("cluster {}", cluster.id))?;
    table.print(format)
}

async fn health(admin: &Admin, format: OutputFormat) -> Outcome {
    let metadata = admin.cluster().refresh_all().await?;
    let mut leaderless = Vec::new();
    let mut behind = Vec::new();
    let mut partitions = 0;
    for topic in metadata.topics.values() {
        for partition in &topic.partitions {
            partitions += 1;
            let name = format!("{}-{}", topic.name, partition.index);
            if partition.leader.is_none() {
                leaderless.push(name);
            } else if partition.isr.len() < partition.replicas.len() {
                behind.push(name);
            }
        }
    }
    leaderless.sort();
    behind.sort();
    let healthy = leaderless.is_empty() && behind.is_empty();
    match format {
        OutputFormat::Json => print_json(&json!({
            "healthy": healthy,
            "brokers": metadata.brokers.len(),
            "topics": metadata.topics.len(),
            "partitions": partitions,
            "without_leader": leaderless,
            "under_replicated": behind,
        }))?,
        OutputFormat::Table => line(&format!(
            "{} brokers, {} topics, {partitions} partitions: {} without a leader, {} under-replicated",
            metadata.brokers.len(),
            metadata.topics.len(),
            leaderless.len(),
            behind.len(),
        ))?,
    }
    if healthy {
        return Ok(());
    }
    let worst = leaderless
        .first()
        .or(behind.first())
        .cloned()
        .unwrap_or_default();
    Err(Failure::Unsuccessful(format!(
        "the cluster is not healthy, {worst} for one; see: yuxi topic describe"
    )))
}

async fn log_dirs(admin: &Admin, format: OutputFormat) -> Outcome {
    let mut table = Table::new(&[
        "BROKER", "PATH", "REPLICAS", "BYTES", "VOLUME", "FREE", "ERROR",
    ]);
    for dir in admin.log_dirs().await? {
        let bytes: i64 = dir.replicas.iter().map(|(_, _, bytes)| bytes).sum();
        table.row(vec![
            json!(dir.broker.value()),
            json!(dir.path),
            json!(dir.replicas.len()),
            json!(bytes),
            json!(dir.total_bytes),
            json!(dir.usable_bytes),
            json!(dir.error.map(|error| error.to_string())),
        ]);
    }
    table.print(format)
}
