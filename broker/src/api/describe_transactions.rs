//! DescribeTransactions (key 65): where transactional ids stand.

use super::Context;
use yuxi_coordinator::transactions::{TransactionRequest, TransactionResponse};
use yuxi_protocol::{
    message,
    messages::{
        DescribeTransactionsRequest, DescribeTransactionsResponse,
        describe_transactions_response::{TopicData, TransactionState},
    },
};

pub(super) async fn handle(
    context: Context,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let node = &context.node;
    let mut transaction_states = Vec::with_capacity(request.transactional_ids.len());
    for transactional_id in request.transactional_ids {
        let asked = TransactionRequest::Describe {
            transactional_id: transactional_id.clone(),
        };
        transaction_states.push(match node.transactions.handle(node, asked).await {
            TransactionResponse::Describe(Ok(told)) => message!(TransactionState {
                transactional_id,
                transaction_state: told.state.name().into(),
                transaction_timeout_ms: told.timeout_ms,
                transaction_start_time_ms: told.start_ms,
                producer_id: told.producer.id.value(),
                producer_epoch: told.producer.epoch.value(),
                topics: told
                    .partitions
                    .topics()
                    .map(|(topic, partitions)| message!(TopicData {
                        topic: topic.clone(),
                        partitions: partitions.iter().copied().collect(),
                    }))
                    .collect(),
            }),
            TransactionResponse::Describe(Err(error)) => message!(TransactionState {
                error_code: error.code(),
                transactional_id,
            }),
            other => unreachable!("the coordinator answered with {other:?}"),
        });
    }
    message!(DescribeTransactionsResponse { transaction_states })
}
