//! `yuxi tx`: transactions that are open, and the end of those that nobody else ends.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::json;
use yuxi_client::admin::{HangingTransaction, ProducerDescription, TransactionFilter};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{Admin, ClientConfig};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List transactional ids and the state of their last transaction.
    List {
        /// Only in this state, such as Ongoing; may be repeated.
        #[arg(short, long, value_name = "STATE")]
        state: Vec<String>,
        /// Only of this producer; may be repeated.
        #[arg(long, value_name = "N")]
        producer_id: Vec<i64>,
        /// Only what is open for longer than so many milliseconds.
        #[arg(long, value_name = "MS")]
        longer_than: Option<i64>,
    },
    /// Show a transactional id, and the partitions in its transaction.
    Describe {
        /// The id.
        transactional_id: String,
    },
    /// Show the producers that a topic's leaders remember.
    Producers {
        /// The topic.
        topic: String,
        /// Only this partition; may be repeated.
        #[arg(short, long, value_name = "N")]
        partition: Vec<i32>,
    },
    /// Find transactions that hold readers back and that no coordinator knows of.
    Hanging {
        /// Only in these topics; all unless given.
        topics: Vec<String>,
        /// Only where nothing was written for so many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 900)]
        idle: u32,
    },
    /// Abort a transaction: by its id, with whoever has that fenced; or a hanging one, by
    /// where it begins.
    Abort {
        /// The transactional id, for a transaction that its coordinator knows of.
        #[arg(long, value_name = "ID", required_unless_present = "topic")]
        transactional_id: Option<String>,
        /// The topic, for one that hangs.
        #[arg(
            conflicts_with = "transactional_id",
            requires = "partition",
            requires = "start_offset"
        )]
        topic: Option<String>,
        /// The partition.
        #[arg(short, long, value_name = "N", requires = "topic")]
        partition: Option<i32>,
        /// Its first offset, as "yuxi tx hanging" shows it.
        #[arg(long, value_name = "OFFSET", requires = "topic")]
        start_offset: Option<i64>,
        /// Even if its coordinator knows of it: readers may see half of it then.
        #[arg(long, requires = "topic")]
        force: bool,
    },
}

pub(crate) async fn run(config: ClientConfig, command: Command, format: OutputFormat) -> Outcome {
    let admin = Admin::connect(config).await?;
    match command {
        Command::List {
            state,
            producer_id,
            longer_than,
        } => {
            let filter = TransactionFilter {
                states: state,
                producer_ids: producer_id,
                longer_than_ms: longer_than,
            };
            list(&admin, &filter, format).await
        }
        Command::Describe { transactional_id } => describe(&admin, &transactional_id, format).await,
        Command::Producers { topic, partition } => {
            producers(&admin, &topic, &partition, format).await
        }
        Command::Hanging { topics, idle } => hanging(&admin, &topics, idle, format).await,
        Command::Abort {
            transactional_id: Some(id),
            ..
        } => {
            admin.fence_producers(&id).await?;
            line(&format!(
                "the transaction of {id} is aborted, and its producer fenced"
            ))
        }
        Command::Abort {
            topic: Some(topic),
            partition: Some(partition),
            start_offset: Some(start),
            force,
            ..
        } => {
            let partition = TopicPartition::new(topic.as_str(), partition);
            abort(&admin, &partition, start, force).await
        }
        // The arguments' declaration demands one or the other.
        Command::Abort { .. } => Err(Failure::Usage(
            "name --transactional-id, or TOPIC -p N --start-offset OFFSET".to_owned(),
        )),
    }
}

async fn list(admin: &Admin, filter: &TransactionFilter, format: OutputFormat) -> Outcome {
    let mut table = Table::new(&["TRANSACTIONAL-ID", "COORDINATOR", "PRODUCER-ID", "STATE"]);
    for listed in admin.list_transactions(filter).await? {
        table.row(vec![
            json!(listed.transactional_id),
            json!(listed.coordinator.value()),
            json!(listed.producer_id),
            json!(listed.state),
        ]);
    }
    table.print(format)
}

async fn describe(admin: &Admin, transactional_id: &str, format: OutputFormat) -> Outcome {
    let described = match admin.describe_transaction(transactional_id).await {
        Err(error) if error.code() == Some(ErrorCode::TransactionalIdNotFound) => {
            return Err(Failure::Unsuccessful(format!(
                "there is no transactional id {transactional_id}; see: yuxi tx list"
            )));
        }
        described => described?,
    };
    let age_ms = described.started_ms.map(|at| (now_ms() - at).max(0));
    let partitions: Vec<String> = described
        .partitions
        .iter()
        .map(ToString::to_string)
        .collect();
    if format == OutputFormat::Json {
        return print_json(&json!({
            "transactional_id": described.transactional_id,
            "producer_id": described.producer_id,
            "producer_epoch": described.producer_epoch,
            "state": described.state,
            "timeout_ms": described.timeout_ms,
            "started_ms": described.started_ms,
            "age_ms": age_ms,
            "partitions": partitions,
        }));
    }
    let open = age_ms.map_or_else(String::new, |age| {
        format!(", open for {:.1} s", age as f64 / 1000.0)
    });
    line(&format!(
        "{}: {}{open}\nproducer {}, epoch {}, timeout {} ms",
        described.transactional_id,
        described.state,
        described.producer_id,
        described.producer_epoch,
        described.timeout_ms
    ))?;
    if partitions.is_empty() {
        return Ok(());
    }
    line(&format!("partitions: {}", partitions.join(" ")))
}

async fn producers(admin: &Admin, topic: &str, indexes: &[i32], format: OutputFormat) -> Outcome {
    let topic = admin.cluster().topic(&topic.into(), false).await?;
    let all: Vec<TopicPartition> = match indexes {
        [] => topic.partitions.iter().map(|p| p.index).collect(),
        chosen => chosen.to_vec(),
    }
    .into_iter()
    .map(|index| TopicPartition::new(topic.name.clone(), index))
    .collect();
    let mut table = Table::new(&[
        "PARTITION",
        "PRODUCER-ID",
        "EPOCH",
        "COORDINATOR-EPOCH",
        "LAST-SEQUENCE",
        "LAST-WRITTEN-MS",
        "TRANSACTION-START",
    ]);
    for (partition, producers) in admin.describe_producers(&all).await? {
        for producer in producers? {
            table.row(vec![
                json!(partition.partition.value()),
                json!(producer.producer_id),
                json!(producer.producer_epoch),
                json!(producer.coordinator_epoch),
                json!(producer.last_sequence),
                json!(producer.last_written_ms),
                json!(producer.transaction_start),
            ]);
        }
    }
    table.print(format)
}

async fn hanging(admin: &Admin, topics: &[String], idle_s: u32, format: OutputFormat) -> Outcome {
    let idle_ms = i64::from(idle_s) * 1000;
    let found = admin
        .find_hanging_transactions(topics, idle_ms, now_ms())
        .await?;
    let mut table = Table::new(&[
        "TOPIC",
        "PARTITION",
        "START-OFFSET",
        "PRODUCER-ID",
        "EPOCH",
        "IDLE-MS",
        "TRANSACTIONAL-ID",
    ]);
    for HangingTransaction {
        partition,
        producer,
        transactional_id,
    } in found
    {
        table.row(vec![
            json!(*partition.topic),
            json!(partition.partition.value()),
            json!(producer.transaction_start),
            json!(producer.producer_id),
            json!(producer.producer_epoch),
            json!((now_ms() - producer.last_written_ms).max(0)),
            json!(transactional_id),
        ]);
    }
    table.print(format)
}

async fn abort(admin: &Admin, partition: &TopicPartition, start: i64, force: bool) -> Outcome {
    let producer = transaction_at(admin, partition, start).await?;
    if !force {
        let topics = [partition.topic.to_string()];
        let hanging = admin
            .find_hanging_transactions(&topics, 0, now_ms())
            .await?;
        let hangs = hanging.iter().any(|one| {
            one.partition == *partition && one.producer.producer_id == producer.producer_id
        });
        if !hangs {
            return Err(Failure::Unsuccessful(format!(
                "the transaction at offset {start} of {partition} is in its coordinator's care; \
                 abort it with: yuxi tx abort --transactional-id ID (yuxi tx list --producer-id {})",
                producer.producer_id
            )));
        }
    }
    admin
        .abort_hanging_transaction(partition, &producer)
        .await?;
    line(&format!(
        "the transaction of producer {} at offset {start} of {partition} is aborted",
        producer.producer_id
    ))
}

async fn transaction_at(
    admin: &Admin,
    partition: &TopicPartition,
    start: i64,
) -> Outcome<ProducerDescription> {
    let described = admin
        .describe_producers(std::slice::from_ref(partition))
        .await?;
    for producers in described.into_values() {
        let found = producers?
            .into_iter()
            .find(|producer| producer.transaction_start == Some(start));
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Err(Failure::Unsuccessful(format!(
        "no open transaction begins at offset {start} of {partition}; see: yuxi tx producers {}",
        partition.topic
    )))
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}
