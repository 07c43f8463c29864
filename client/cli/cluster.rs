//! `yuxi cluster`: who is there, and whether all is well.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use yuxi_client::protocol::ids::BrokerId;
use yuxi_client::{Admin, ClientConfig};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line, print_json};
use crate::overview;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the brokers, and the partitions that are not as they should be.
    Info {
        /// Keep it current.
        #[arg(short, long)]
        watch: bool,
        /// How many seconds to wait before looking again.
        #[arg(
            long,
            value_name = "SECONDS",
            default_value_t = 2.0,
            requires = "watch"
        )]
        interval: f64,
        /// Every such partition, not only the first.
        #[arg(short, long)]
        all: bool,
    },
    /// Say whether every partition has a leader and all its replicas; fails if not.
    Health,
    /// Forget a broker that is gone for good.
    Unregister {
        /// Its node.id.
        broker: i32,
    },
    /// Show the brokers' log directories and how full they are.
    LogDirs,
}

pub(crate) async fn run(config: ClientConfig, command: Command, format: OutputFormat) -> Outcome {
    let admin = Admin::connect(config).await?;
    match command {
        Command::Info {
            watch,
            interval,
            all,
        } => {
            let every = Duration::try_from_secs_f64(interval)
                .ok()
                .filter(|every| !every.is_zero())
                .ok_or_else(|| Failure::Usage("--interval: expected a time".to_owned()))?;
            overview::info(&admin, watch.then_some(every), all, format).await
        }
        Command::Health => overview::health(&admin, format).await,
        Command::Unregister { broker } => {
            admin.unregister_broker(BrokerId::new(broker)).await?;
            match format {
                OutputFormat::Table => line(&format!("broker {broker} unregistered")),
                OutputFormat::Json => print_json(&json!({ "unregistered": broker })),
            }
        }
        Command::LogDirs => log_dirs(&admin, format).await,
    }
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
