//! Carries out orders so that each counts once, whatever dies or gets lost: reads them from
//! one topic, writes two commands for each into another, and takes its own progress into the
//! same transaction. It keeps nothing itself: whoever starts it again goes on where the last
//! committed transaction ended.
//!
//! ```text
//! transfers BOOTSTRAP ORDERS COMMANDS
//! ```
//!
//! An order is `{"number": 7, "payer": "Li", "payee": "Wang", "yuan": 100}`. It ends when it
//! has carried out all orders that are there. `scripts/demo-100-yuan` runs it over a network
//! that loses, delays and repeats requests, and kills it now and then.

use std::time::Duration;

use serde_json::{Value, json};
use yuxi_client::consumer::{GroupMetadata, committed_offsets};
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{
    ClientConfig, Consumer, OffsetSpec, Record, Start, TransactionError, TransactionalProducer,
};

const GROUP: &str = "transfers";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, orders, commands] = arguments.as_slice() else {
        anyhow::bail!("usage: transfers BOOTSTRAP ORDERS COMMANDS");
    };
    let mut config = ClientConfig::new(bootstrap)?;
    for (name, value) in [
        ("group.id", format!("{GROUP}-{orders}")),
        ("transactional.id", format!("{GROUP}-{orders}")),
        ("retry.backoff.ms", "10".to_owned()),
        ("reconnect.backoff.ms", "5".to_owned()),
    ] {
        config.set(name, &value)?;
    }
    let group = GroupMetadata::outsider(&format!("{GROUP}-{orders}"));
    // First of all, so that whatever an earlier life of this program left open is aborted
    // before its progress is asked for.
    let mut producer = TransactionalProducer::connect(config).await?;
    let mut consumer = Consumer::new(producer.cluster().clone());
    let partition = TopicPartition::new(orders.as_str(), 0);
    let committed = committed_offsets(
        producer.cluster(),
        &group.group,
        Some(std::slice::from_ref(&partition)),
    )
    .await?;
    let start = match committed.get(&partition) {
        Some(committed) => Start::Offset(committed.offset),
        None => Start::Spec(OffsetSpec::Earliest),
    };
    consumer.assign([(partition.clone(), start)]).await?;
    while !consumer.is_at_end() {
        for order in consumer.poll(Duration::from_millis(50)).await? {
            let mut progress = consumer.positions();
            if let Some(position) = progress.get_mut(&partition) {
                position.offset = order.offset + 1;
            }
            let order: Value = serde_json::from_slice(order.value.as_deref().unwrap_or_default())?;
            loop {
                match carry_out(&order, commands, &mut producer, &progress, &group).await {
                    Ok(()) => break,
                    Err(error) if error.is_abortable() => eprintln!("once more: {error}"),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    producer.close(Duration::from_secs(10)).await;
    Ok(())
}

/// Both commands of an order and the progress behind it: all of it, or nothing.
async fn carry_out(
    order: &Value,
    commands: &str,
    producer: &mut TransactionalProducer,
    progress: &std::collections::BTreeMap<TopicPartition, yuxi_client::consumer::CommittedOffset>,
    group: &GroupMetadata,
) -> Result<(), TransactionError> {
    let yuan = order["yuan"].as_i64().unwrap_or_default();
    let transaction = producer.begin().await?;
    for (part, account, yuan) in [(0, &order["payer"], -yuan), (1, &order["payee"], yuan)] {
        let command = json!({
            "id": format!("{}.{part}", order["number"]),
            "account": account,
            "way": "A",
            "meant": yuan,
            "add": yuan,
        });
        let record = Record {
            partition: Some(0),
            ..Record::new(commands, command.to_string())
        };
        transaction.enqueue(record).await?;
    }
    transaction.send_offsets(progress.clone(), group).await?;
    transaction.commit().await
}
