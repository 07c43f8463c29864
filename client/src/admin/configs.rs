//! Configurations of topics and brokers.

use std::collections::HashMap;
use std::fmt;

use yuxi_protocol::ids::BrokerId;
use yuxi_protocol::message;
use yuxi_protocol::messages::describe_configs_request::DescribeConfigsResource;
use yuxi_protocol::messages::describe_configs_response::DescribeConfigsResult;
use yuxi_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use yuxi_protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};

use super::Admin;
use crate::connection::Connection;
use crate::error::{Error, Result, check};

/// Whose configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigResource {
    /// A topic's.
    Topic(String),
    /// One broker's.
    Broker(BrokerId),
    /// What holds for every broker that has nothing of its own.
    BrokerDefault,
    /// A group's.
    Group(String),
}

impl ConfigResource {
    const fn kind(&self) -> i8 {
        match self {
            Self::Topic(_) => 2,
            Self::Broker(_) | Self::BrokerDefault => 4,
            Self::Group(_) => 32,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Topic(name) | Self::Group(name) => name.clone(),
            Self::Broker(id) => id.to_string(),
            Self::BrokerDefault => String::new(),
        }
    }
}

impl fmt::Display for ConfigResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic {name}"),
            Self::Broker(id) => write!(f, "broker {id}"),
            Self::BrokerDefault => write!(f, "the brokers' defaults"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// Set on the topic.
    Topic,
    /// Set at run time on this broker.
    DynamicBroker,
    /// Set at run time for all brokers.
    DynamicDefault,
    /// In the broker's file.
    File,
    /// Nowhere: the built-in default.
    Default,
    /// Set on the group.
    Group,
    /// Something newer than this client.
    Other(i8),
}

impl ConfigSource {
    const fn from_wire(source: i8) -> Self {
        match source {
            1 => Self::Topic,
            2 => Self::DynamicBroker,
            3 => Self::DynamicDefault,
            4 => Self::File,
            5 => Self::Default,
            8 => Self::Group,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic => f.write_str("topic"),
            Self::DynamicBroker => f.write_str("broker"),
            Self::DynamicDefault => f.write_str("all brokers"),
            Self::File => f.write_str("file"),
            Self::Default => f.write_str("default"),
            Self::Group => f.write_str("group"),
            Self::Other(source) => write!(f, "source {source}"),
        }
    }
}

/// One setting of a resource.
#[derive(Clone, Debug)]
pub struct ConfigEntry {
    /// Its name.
    pub name: String,
    /// Its value; `None` for secrets.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: ConfigSource,
    /// Whether it can only be changed in the broker's file.
    pub read_only: bool,
    /// What it does, if the broker tells.
    pub documentation: Option<String>,
}

/// A change to one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigOp {
    /// Gives it this value.
    Set(String, String),
    /// Takes the value away, so that what lies below holds again.
    Unset(String),
    /// Adds to a list.
    Append(String, String),
    /// Removes from a list.
    Subtract(String, String),
}

impl Admin {
    /// All settings of a resource, or those named.
    pub async fn describe_configs(
        &self,
        resource: &ConfigResource,
        names: Option<&[String]>,
    ) -> Result<Vec<ConfigEntry>> {
        let target = self.config_target(resource).await?;
        let resources = std::slice::from_ref(resource);
        let mut described = describe(&target, resources, names).await?;
        described.pop().ok_or_else(|| missing(resource))?
    }

    /// All settings of topics, or those named, asked for in one call; in the order of the
    /// topics.
    pub async fn describe_topic_configs(
        &self,
        topics: &[&str],
        names: Option<&[String]>,
    ) -> Result<Vec<Result<Vec<ConfigEntry>>>> {
        let topic = |name: &&str| ConfigResource::Topic((*name).to_owned());
        let resources: Vec<ConfigResource> = topics.iter().map(topic).collect();
        describe(&self.cluster.any().await?, &resources, names).await
    }

    /// Changes settings of a resource, all or none.
    pub async fn alter_configs(
        &self,
        resource: &ConfigResource,
        changes: &[ConfigOp],
        validate_only: bool,
    ) -> Result<()> {
        let answer: IncrementalAlterConfigsResponse = self
            .config_target(resource)
            .await?
            .call(|_| {
                let mut one = AlterConfigsResource::default();
                one.resource_type = resource.kind();
                one.resource_name = resource.name().into();
                one.configs = changes.iter().map(alterable).collect();
                message!(IncrementalAlterConfigsRequest {
                    resources: vec![one],
                    validate_only
                })
            })
            .await?;
        let result = answer.responses.first().ok_or_else(|| missing(resource))?;
        check(result.error_code, result.error_message.as_deref(), || {
            format!("changing the configuration of {resource}")
        })
    }

    /// A broker answers for itself; for everything else any broker does.
    async fn config_target(&self, resource: &ConfigResource) -> Result<Connection> {
        match resource {
            ConfigResource::Broker(id) => self.cluster.broker(*id).await,
            ConfigResource::Topic(_) | ConfigResource::BrokerDefault | ConfigResource::Group(_) => {
                self.cluster.any().await
            }
        }
    }
}

/// One answer for each of `resources`, in their order.
async fn describe(
    target: &Connection,
    resources: &[ConfigResource],
    names: Option<&[String]>,
) -> Result<Vec<Result<Vec<ConfigEntry>>>> {
    let answer: DescribeConfigsResponse = target
        .call(|version| {
            let asked = |resource: &ConfigResource| {
                let mut one = DescribeConfigsResource::default();
                one.resource_type = resource.kind();
                one.resource_name = resource.name().into();
                one.configuration_keys =
                    names.map(|names| names.iter().map(|name| name.as_str().into()).collect());
                one
            };
            message!(DescribeConfigsRequest {
                include_documentation: version.value() >= 3,
                resources: resources.iter().map(asked).collect()
            })
        })
        .await?;
    let told: HashMap<(i8, &str), &DescribeConfigsResult> = answer
        .results
        .iter()
        .map(|one| ((one.resource_type, one.resource_name.as_str()), one))
        .collect();
    let answered = |resource: &ConfigResource| {
        let name = resource.name();
        let found = told.get(&(resource.kind(), name.as_str()));
        entries(resource, found.ok_or_else(|| missing(resource))?)
    };
    Ok(resources.iter().map(answered).collect())
}

fn entries(resource: &ConfigResource, told: &DescribeConfigsResult) -> Result<Vec<ConfigEntry>> {
    check(told.error_code, told.error_message.as_deref(), || {
        format!("configuration of {resource}")
    })?;
    let mut entries: Vec<ConfigEntry> = told
        .configs
        .iter()
        .map(|entry| ConfigEntry {
            name: entry.name.to_string(),
            value: entry.value.as_ref().map(ToString::to_string),
            source: ConfigSource::from_wire(entry.config_source),
            read_only: entry.read_only,
            documentation: entry.documentation.as_ref().map(ToString::to_string),
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn alterable(change: &ConfigOp) -> AlterableConfig {
    let (operation, name, value) = match change {
        ConfigOp::Set(name, value) => (0, name, Some(value)),
        ConfigOp::Unset(name) => (1, name, None),
        ConfigOp::Append(name, value) => (2, name, Some(value)),
        ConfigOp::Subtract(name, value) => (3, name, Some(value)),
    };
    message!(AlterableConfig {
        name: name.as_str().into(),
        config_operation: operation,
        value: value.map(|value| value.as_str().into())
    })
}

fn missing(resource: &ConfigResource) -> Error {
    Error::Malformed {
        what: "configuration answer",
        address: resource.to_string(),
        detail: "the resource is missing from it".to_owned(),
    }
}
