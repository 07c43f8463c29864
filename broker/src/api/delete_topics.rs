//! DeleteTopics (key 20), by name or by id.

use super::Context;
use yuxi_controller::{
    ControllerError,
    decide::topics::{DeletedTopic, TopicSelector},
};
use yuxi_protocol::{
    codec::{StrBytes, Uuid},
    error_code::ErrorCode,
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

/// One topic's outcome, or the code and reason why it is still there.
type Deleted = Result<DeletedTopic, (ErrorCode, String)>;

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
    let deleted: Vec<Deleted> = if node.settings.delete_topic_enable {
        let selectors = asked.iter().map(selector).collect();
        let deleted = node.controller.delete_topics(selectors).await;
        node.caught_up().await;
        let refuse = |error: ControllerError| (error.error_code(), error.to_string());
        deleted
            .into_iter()
            .map(|deleted| deleted.map_err(refuse))
            .collect()
    } else {
        let disabled = (
            ErrorCode::TopicDeletionDisabled,
            "delete.topic.enable=false on this broker".to_owned(),
        );
        vec![Err(disabled); asked.len()]
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

fn answer(version: i16, asked: DeleteTopicState, deleted: Deleted) -> DeletableTopicResult {
    let mut result = message!(DeletableTopicResult {
        name: asked.name,
        topic_id: asked.topic_id,
    });
    match deleted {
        Ok(deleted) => {
            result.error_code = ErrorCode::None.code();
            result.name = Some(StrBytes::from(deleted.name));
            result.topic_id = deleted.id.into();
        }
        Err((code, message)) => {
            result.error_code = code.code();
            if version >= MESSAGES_FROM {
                result.error_message = Some(message.into());
            }
        }
    }
    if version < STATES_FROM {
        result.topic_id = Uuid::ZERO;
    }
    result
}
