//! ListTransactions (key 66): the transactional ids whose coordinator is here.

use super::Context;
use regex::{Regex, RegexBuilder};
use yuxi_coordinator::transactions::{ListFilter, TransactionState};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::ProducerId,
    message,
    messages::{
        ListTransactionsRequest, ListTransactionsResponse,
        list_transactions_response::TransactionState as ListedState,
    },
};

/// States that Kafka has a name for and nobody is ever seen in.
const UNSEEN_STATES: [&str; 2] = ["Dead", "PrepareEpochFence"];

/// What the automaton of a pattern may take. Matching is linear in the id, whatever the
/// pattern is.
const MOST_PATTERN_BYTES: usize = 1024 * 1024;

pub(super) async fn handle(
    context: Context,
    request: ListTransactionsRequest,
) -> ListTransactionsResponse {
    let pattern = match pattern(&request) {
        Ok(pattern) => pattern,
        Err(error) => {
            tracing::debug!(%error, "a pattern of transactional ids is none");
            return message!(ListTransactionsResponse {
                error_code: ErrorCode::InvalidRegularExpression.code(),
            });
        }
    };
    let mut unknown_state_filters = Vec::new();
    let mut states = Vec::new();
    for name in &request.state_filters {
        match TransactionState::from_name(name) {
            Some(state) => states.push(state),
            None if UNSEEN_STATES.contains(&name.as_str()) => {}
            None => unknown_state_filters.push(name.clone()),
        }
    }
    let producers = &request.producer_id_filters;
    let filter = ListFilter {
        states: (!request.state_filters.is_empty()).then_some(states),
        producer_ids: (!producers.is_empty())
            .then(|| producers.iter().copied().map(ProducerId::new).collect()),
        longer_than_ms: Some(request.duration_filter).filter(|&least| least >= 0),
    };
    let node = &context.node;
    match node.transactions.list(node, &filter).await {
        Ok(listed) => message!(ListTransactionsResponse {
            unknown_state_filters,
            transaction_states: listed
                .into_iter()
                .filter(|one| {
                    pattern
                        .as_ref()
                        .is_none_or(|pattern| pattern.is_match(&one.transactional_id))
                })
                .map(|one| message!(ListedState {
                    transactional_id: one.transactional_id,
                    producer_id: one.producer_id.value(),
                    transaction_state: one.state.name().into(),
                }))
                .collect(),
        }),
        Err(error) => message!(ListTransactionsResponse {
            error_code: error.code(),
            unknown_state_filters,
        }),
    }
}

/// What a whole id has to match (KIP-1152).
fn pattern(request: &ListTransactionsRequest) -> Result<Option<Regex>, regex::Error> {
    let pattern = request.transactional_id_pattern.as_ref();
    let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) else {
        return Ok(None);
    };
    // By itself first, so that it can't close the group that it is put in.
    Regex::new(pattern)?;
    RegexBuilder::new(&format!(r"\A(?:{})\z", pattern.as_str()))
        .size_limit(MOST_PATTERN_BYTES)
        .build()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(text: &str, id: &str) -> Option<bool> {
        let request = message!(ListTransactionsRequest {
            transactional_id_pattern: Some(text.into()),
        });
        let pattern = pattern(&request).ok()?;
        Some(pattern.is_none_or(|pattern| pattern.is_match(id)))
    }

    #[test]
    fn a_pattern_is_matched_by_whole_ids() {
        for (pattern, id, expected) in [
            ("", "anything", Some(true)),
            ("app-.*", "app-1", Some(true)),
            ("app-.*", "my-app-1", Some(false)),
            ("a|b", "b", Some(true)),
            ("a|b", "ab", Some(false)),
            ("a)(b", "ab", None),
            ("[", "[", None),
            ("(x{1000}){1000}", "x", None),
        ] {
            assert_eq!(matches(pattern, id), expected, "{pattern} {id}");
        }
    }
}
