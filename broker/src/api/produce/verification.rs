//! Before the first batch of a transaction is appended to a partition, its coordinator is
//! asked whether it knows that (I13, KIP-890). Producers that speak transaction.version 2
//! leave it to this question to add the partition; of others the coordinator must have
//! heard before.

use super::{Failure, find};
use crate::{
    api::Context,
    partition::{Partition, VerificationGuard},
    transactions::admission::Admission,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
    messages::ProduceRequest,
    record::BatchView,
};

/// The producer speaks transaction.version 2 from this version on.
const ADDS_FROM: i16 = 12;

/// Clients know TRANSACTION_ABORTABLE from this version on.
const ABORTABLE_FROM: i16 = 11;

/// A batch whose transaction is not open in its partition.
pub(super) struct Question {
    topic: usize,
    partition: usize,
    at: Arc<Partition>,
    producer_id: ProducerId,
    producer_epoch: ProducerEpoch,
    base_sequence: i32,
    /// The producer speaks transaction.version 2.
    adds: bool,
}

/// What became of the questions, by where the batches stand in the request. A batch that
/// nothing was asked about is in none.
#[derive(Default)]
pub(super) struct Verified {
    answers: HashMap<(usize, usize), Result<VerificationGuard, ErrorCode>>,
    /// Clients know TRANSACTION_ABORTABLE.
    knows_abortable: bool,
}

impl Verified {
    /// The guard with which a batch is to be appended, if it needs one.
    pub(super) fn guard(
        &self,
        topic: usize,
        partition: usize,
    ) -> Result<Option<VerificationGuard>, Failure> {
        match self.answers.get(&(topic, partition)) {
            None => Ok(None),
            Some(Ok(guard)) => Ok(Some(*guard)),
            Some(Err(error)) => Err(Failure::new(
                told(*error, self.knows_abortable),
                &format_args!(
                    "the transaction's coordinator did not let the partition in: {}",
                    error.message()
                ),
            )),
        }
    }
}

/// The batches of a request whose coordinator has to be asked.
pub(super) fn questions(context: &Context, produce: &ProduceRequest) -> Vec<Question> {
    if produce.transactional_id.is_none() {
        return Vec::new();
    }
    let mut questions = Vec::new();
    for (topic_at, topic) in produce.topic_data.iter().enumerate() {
        for (partition_at, data) in topic.partition_data.iter().enumerate() {
            // What can't be appended anyway is refused where that is tried.
            let Some(records) = &data.records else {
                continue;
            };
            let Ok(view) = BatchView::parse(records) else {
                continue;
            };
            let header = view.header();
            if !header.is_transactional() || !header.has_producer_id() {
                continue;
            }
            let Ok(at) = find(context, topic, data.index) else {
                continue;
            };
            let question = Question {
                topic: topic_at,
                partition: partition_at,
                at,
                producer_id: header.producer_id,
                producer_epoch: header.producer_epoch,
                base_sequence: header.base_sequence,
                adds: context.version >= ADDS_FROM,
            };
            if question.guard().is_some() {
                questions.push(question);
            }
        }
    }
    questions
}

impl Question {
    fn guard(&self) -> Option<VerificationGuard> {
        let (id, epoch, sequence) = (self.producer_id, self.producer_epoch, self.base_sequence);
        if self.adds {
            self.at.needs_verification_from_0(id, epoch, sequence)
        } else {
            self.at.needs_verification(id, epoch, sequence)
        }
    }
}

/// Asks the coordinator of the request's transaction.
pub(super) async fn ask(
    context: &Context,
    produce: &ProduceRequest,
    questions: Vec<Question>,
) -> Verified {
    let mut verified = Verified {
        answers: HashMap::new(),
        knows_abortable: context.version >= ABORTABLE_FROM,
    };
    let Some(transactional_id) = &produce.transactional_id else {
        return verified;
    };
    // Usually there is one producer; each is asked about by itself.
    let mut by_producer: HashMap<(ProducerId, ProducerEpoch), Vec<Question>> = HashMap::new();
    for question in questions {
        by_producer
            .entry((question.producer_id, question.producer_epoch))
            .or_default()
            .push(question);
    }
    let patience = Duration::from_millis(produce.timeout_ms.max(0) as u64);
    for questions in by_producer.into_values() {
        let asking = ask_one(context, transactional_id, &questions);
        let answers = tokio::time::timeout(patience, asking)
            .await
            .unwrap_or_else(|_| vec![Err(ErrorCode::RequestTimedOut); questions.len()]);
        for (question, answer) in questions.iter().zip(answers) {
            // Meanwhile it may have come to be open.
            if let Some(answer) = answer.transpose() {
                verified
                    .answers
                    .insert((question.topic, question.partition), answer);
            }
        }
    }
    verified
}

type Answer = Result<Option<VerificationGuard>, ErrorCode>;

/// Asks about the batches of one producer.
async fn ask_one(
    context: &Context,
    transactional_id: &StrBytes,
    questions: &[Question],
) -> Vec<Answer> {
    let node = &context.node;
    let guards = || questions.iter().map(Question::guard).collect::<Vec<_>>();
    let add = context.version >= ADDS_FROM;
    if !add
        && !node
            .live_settings()
            .transaction_partition_verification_enable
    {
        return guards().into_iter().map(Ok).collect();
    }
    let Some(first) = questions.first() else {
        return Vec::new();
    };
    let asked = Admission {
        transactional_id: transactional_id.clone(),
        producer_id: first.producer_id,
        producer_epoch: first.producer_epoch,
        partitions: questions
            .iter()
            .map(|question| {
                let id = question.at.id();
                (StrBytes::from(&*id.topic), id.partition.value())
            })
            .collect(),
        add,
    };
    let (guards, errors) = node.transactions.admit(node, &asked, guards).await;
    guards
        .into_iter()
        .zip(errors)
        .map(|(guard, error)| match error {
            ErrorCode::None => Ok(guard),
            error => Err(error),
        })
        .collect()
}

/// The code that a producer gets. Whatever may go well next time is one that every
/// producer tries again on.
fn told(error: ErrorCode, knows_abortable: bool) -> ErrorCode {
    match error {
        ErrorCode::ConcurrentTransactions
        | ErrorCode::CoordinatorLoadInProgress
        | ErrorCode::CoordinatorNotAvailable
        | ErrorCode::NotCoordinator
        | ErrorCode::OperationNotAttempted => ErrorCode::NotEnoughReplicas,
        ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        ErrorCode::TransactionAbortable if !knows_abortable => ErrorCode::InvalidTxnState,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_try_again_what_may_go_well_and_know_what_they_are_told() {
        for (error, knows_abortable, expected) in [
            (
                ErrorCode::ConcurrentTransactions,
                true,
                ErrorCode::NotEnoughReplicas,
            ),
            (
                ErrorCode::NotCoordinator,
                false,
                ErrorCode::NotEnoughReplicas,
            ),
            (
                ErrorCode::ProducerFenced,
                true,
                ErrorCode::InvalidProducerEpoch,
            ),
            (
                ErrorCode::TransactionAbortable,
                true,
                ErrorCode::TransactionAbortable,
            ),
            (
                ErrorCode::TransactionAbortable,
                false,
                ErrorCode::InvalidTxnState,
            ),
            (
                ErrorCode::InvalidProducerIdMapping,
                true,
                ErrorCode::InvalidProducerIdMapping,
            ),
        ] {
            assert_eq!(told(error, knows_abortable), expected, "{error:?}");
        }
    }
}
