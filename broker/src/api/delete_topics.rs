//! DeleteTopics (key 20), by name or by id.

use super::{Context, errors_told::of_decision};
use yuxi_controller::{
    ControllerError,
    decide::topics::{DeletedTopic, TopicSelector},
};
use yuxi_protocol::{
    codec::{StrBytes, Uuid},
    ids::TopicId,
    message,
    messages::{
        DeleteTopicsRequest, DeleteTopicsResponse, delete_topics_request::DeleteTopicState,
        delete_topics_response::DeletableTopicResult,
    },
};

/// Topics stand in a list of names and ids from this version on.
const STATES_FROM: i16 = 6;
const MESSAGES_FROM: i16 = 5;

pub(super) async fn handle(context: Context, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let asked: Vec<DeleteTopicState> = if context.version >= STATES_FROM {
        request.topics
    } else {
        request
            .topic_names
            .into_iter()
            .map(|name| message!(DeleteTopicState { name: Some(name) }))
            .collect()
    };
    let node = &context.node;
    let deleted: Vec<Result<DeletedTopic, ControllerError>> = if node.settings.delete_topic_enable {
        let selectors = asked.iter().map(selector).collect();
        let controller = node.controller.within(request.timeout_ms);
        let deleted = controller.delete_topics(selectors).await;
        node.caught_up().await;
        deleted
    } else {
        vec![Err(ControllerError::TopicDeletionDisabled); asked.len()]
    };
    message!(DeleteTopicsResponse {
        responses: asked
            .into_iter()
            .zip(deleted)
            .map(|(asked, deleted)| answer(context.version, asked, deleted))
            .collect(),
    })
}

fn selector(asked: &DeleteTopicState) -> TopicSelector {
    match &asked.name {
        Some(name) => TopicSelector::Name(name.as_str().to_owned()),
        None => TopicSelector::Id(TopicId::from(asked.topic_id)),
    }
}

fn answer(
    version: i16,
    asked: DeleteTopicState,
    deleted: Result<DeletedTopic, ControllerError>,
) -> DeletableTopicResult {
    let (error_code, error_message) = of_decision(deleted.as_ref().err());
    let mut result = message!(DeletableTopicResult {
        name: asked.name,
        topic_id: asked.topic_id,
        error_code,
        error_message: error_message.filter(|_| version >= MESSAGES_FROM),
    });
    if let Ok(deleted) = deleted {
        result.name = Some(StrBytes::from(deleted.name));
        result.topic_id = deleted.id.into();
    }
    if version < STATES_FROM {
        result.topic_id = Uuid::ZERO;
    }
    result
}
