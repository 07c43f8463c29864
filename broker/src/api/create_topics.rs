//! CreateTopics (key 19).

use super::{Context, errors_told::of_decision};
use std::collections::BTreeMap;
use yuxi_controller::{
    ControllerError,
    decide::topics::{CreatedTopic, ManualAssignment, NewTopic},
    settings::describe,
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerId, PartitionId},
    message,
    messages::{
        CreateTopicsRequest, CreateTopicsResponse,
        create_topics_request::CreatableTopic,
        create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
    },
};

/// The answer has error messages, what was created, and topic ids from these versions on.
const MESSAGES_FROM: i16 = 1;
const DETAILS_FROM: i16 = 5;
const TOPIC_IDS_FROM: i16 = 7;
/// Defaults for partitions and replicas may be asked for with -1 (KIP-464).
const DEFAULTS_FROM: i16 = 4;

const FROM_DEFAULT: i32 = -1;

pub(super) async fn handle(context: Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let node = &context.node;
    let mut results = Vec::with_capacity(request.topics.len());
    let mut wanted = Vec::new();
    for topic in &request.topics {
        if uses_defaults(topic) && context.version < DEFAULTS_FROM {
            let error = ControllerError::InvalidPartitions(
                "this version of the request must name the number of partitions and replicas"
                    .to_owned(),
            );
            results.push(refused(&context, &topic.name, &error));
        } else {
            wanted.push(new_topic(topic));
        }
    }
    let configs: BTreeMap<String, BTreeMap<String, String>> = wanted
        .iter()
        .map(|topic| {
            let set =
                |(name, value): &(String, Option<String>)| Some((name.clone(), value.clone()?));
            (
                topic.name.clone(),
                topic.configs.iter().filter_map(set).collect(),
            )
        })
        .collect();
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let created = node
        .controller
        .within(request.timeout_ms)
        .create_topics(wanted, request.validate_only)
        .await;
    node.caught_up().await;
    for (name, created) in names.into_iter().zip(created) {
        results.push(match created {
            Ok(created) => answer(&context, &created, &configs[&name]),
            Err(error) => refused(&context, &name, &error),
        });
    }
    message!(CreateTopicsResponse { topics: results })
}

fn uses_defaults(topic: &CreatableTopic) -> bool {
    topic.assignments.is_empty()
        && (topic.num_partitions == FROM_DEFAULT
            || i32::from(topic.replication_factor) == FROM_DEFAULT)
}

fn new_topic(topic: &CreatableTopic) -> NewTopic {
    NewTopic {
        adopted: None,
        name: topic.name.as_str().to_owned(),
        partitions: topic.num_partitions,
        replication_factor: topic.replication_factor,
        assignments: topic
            .assignments
            .iter()
            .map(|assignment| ManualAssignment {
                partition: PartitionId::new(assignment.partition_index),
                replicas: assignment
                    .broker_ids
                    .iter()
                    .copied()
                    .map(BrokerId::new)
                    .collect(),
            })
            .collect(),
        configs: topic
            .configs
            .iter()
            .map(|config| {
                let value = config.value.as_ref().map(|value| value.as_str().to_owned());
                (config.name.as_str().to_owned(), value)
            })
            .collect(),
    }
}

fn answer(
    context: &Context,
    created: &CreatedTopic,
    overrides: &BTreeMap<String, String>,
) -> CreatableTopicResult {
    let mut result = message!(CreatableTopicResult {
        name: created.name.as_str().into(),
        error_code: ErrorCode::None.code(),
    });
    if context.version >= DETAILS_FROM {
        result.num_partitions = created.partitions;
        result.replication_factor = created.replication_factor;
        result.configs = Some(
            describe::topic(&context.node.live_settings(), overrides)
                .into_iter()
                .map(|config| {
                    message!(CreatableTopicConfigs {
                        name: config.name.into(),
                        value: config.value.map(StrBytes::from),
                        read_only: false,
                        config_source: config.source as i8,
                        is_sensitive: false,
                    })
                })
                .collect(),
        );
    }
    if context.version >= TOPIC_IDS_FROM {
        result.topic_id = created.id.into();
    }
    result
}

fn refused(context: &Context, name: &str, error: &ControllerError) -> CreatableTopicResult {
    let (error_code, error_message) = of_decision(Some(error));
    message!(CreatableTopicResult {
        name: name.into(),
        error_code,
        error_message: error_message.filter(|_| context.version >= MESSAGES_FROM),
    })
}
