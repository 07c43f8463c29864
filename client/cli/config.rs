//! `yuxi config`: settings of topics, brokers and groups.

use std::collections::BTreeSet;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use yuxi_client::admin::{ConfigOp, ConfigResource, ConfigSource};
use yuxi_client::protocol::ids::BrokerId;
use yuxi_client::{Admin, ClientConfig};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Table, line};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show settings and where their values come from.
    Get {
        #[command(flatten)]
        resource: Resource,
        /// Only these settings; those that differ from the default unless given.
        #[arg(value_name = "KEY")]
        entries: Vec<String>,
        /// Every setting, the defaults too.
        #[arg(short, long)]
        all: bool,
    },
    /// Change settings, all or none.
    Set {
        #[command(flatten)]
        resource: Resource,
        /// What to set.
        #[arg(required = true, value_name = "KEY=VALUE")]
        entries: Vec<String>,
    },
    /// Take values away, so that the defaults hold again.
    Unset {
        #[command(flatten)]
        resource: Resource,
        /// What to take away.
        #[arg(required = true, value_name = "KEY")]
        entries: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Resource {
    /// What kind of thing it is.
    kind: Kind,
    /// The topic's or group's name, the broker's id, or "default" for all brokers.
    name: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Topic,
    Broker,
    Group,
}

impl Resource {
    fn resolve(self) -> Outcome<ConfigResource> {
        Ok(match (self.kind, self.name) {
            (Kind::Topic, name) => ConfigResource::Topic(name),
            (Kind::Group, name) => ConfigResource::Group(name),
            (Kind::Broker, name) if name == "default" => ConfigResource::BrokerDefault,
            (Kind::Broker, name) => {
                let id = name.parse().map_err(|_| {
                    Failure::Usage(format!("broker '{name}': expected an id or default"))
                })?;
                ConfigResource::Broker(BrokerId::new(id))
            }
        })
    }
}

pub(crate) async fn run(config: ClientConfig, command: Command, format: OutputFormat) -> Outcome {
    let admin = Admin::connect(config).await?;
    match command {
        Command::Get {
            resource,
            entries,
            all,
        } => {
            let resource = resource.resolve()?;
            let names = (!entries.is_empty()).then_some(entries.as_slice());
            let mut table = Table::new(&["NAME", "VALUE", "SOURCE", "READ-ONLY"]);
            let mut unknown: BTreeSet<&str> = entries.iter().map(String::as_str).collect();
            for entry in admin.describe_configs(&resource, names).await? {
                unknown.remove(entry.name.as_str());
                if !all && names.is_none() && entry.source == ConfigSource::Default {
                    continue;
                }
                table.row(vec![
                    json!(entry.name),
                    json!(entry.value),
                    json!(entry.source.to_string()),
                    json!(entry.read_only),
                ]);
            }
            table.print(format)?;
            match unknown.first() {
                None => Ok(()),
                Some(name) => Err(Failure::Unsuccessful(format!(
                    "{resource} tells nothing of '{name}': it is not set there, or there is no such \
                     setting; see: yuxi config get -a"
                ))),
            }
        }
        Command::Set { resource, entries } => {
            let resource = resource.resolve()?;
            let changes = entries
                .iter()
                .map(|text| pair(text).map(|(name, value)| ConfigOp::Set(name, value)))
                .collect::<Outcome<Vec<_>>>()?;
            admin.alter_configs(&resource, &changes, false).await?;
            line(&format!("{resource} altered"))
        }
        Command::Unset { resource, entries } => {
            let resource = resource.resolve()?;
            let changes: Vec<ConfigOp> = entries.into_iter().map(ConfigOp::Unset).collect();
            admin.alter_configs(&resource, &changes, false).await?;
            line(&format!("{resource} altered"))
        }
    }
}

/// KEY=VALUE in two.
pub(crate) fn pair(text: &str) -> Outcome<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::Usage(format!("'{text}': expected KEY=VALUE"))),
    }
}
