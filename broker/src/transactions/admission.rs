//! Asks the coordinator of a transaction, here or elsewhere, whether partitions are in it,
//! or has it add them (KIP-890). A partition asks so before the first batch of a
//! transaction is appended (I13).

use super::{Begun, coordinator_of};
use crate::node::Node;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use yuxi_coordinator::transactions::{
    Partitions, Producer, TransactionRequest, TransactionResponse,
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerId, ProducerEpoch, ProducerId},
    message,
    messages::{
        AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
    },
};

/// How long a transaction that is still being ended is waited for before the producer is
/// told to come again (Kafka's `add.partitions.to.txn.retry.backoff.max.ms` is of this
/// order).
const PATIENCE: Duration = Duration::from_millis(500);

const FIRST_REST: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(20);

/// What brokers ask each other, and no client: several transactions at once.
const VERSION: i16 = 5;

/// Of whose transaction, and which partitions.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) transactional_id: StrBytes,
    pub(crate) producer_id: ProducerId,
    pub(crate) producer_epoch: ProducerEpoch,
    pub(crate) partitions: Vec<(StrBytes, i32)>,
    /// Whether they shall be added; else they are only looked for.
    pub(crate) add: bool,
}

impl super::Transactions {
    /// What the coordinator says of each of the partitions, in their order, and the guards
    /// with which it was asked so. Errors are the coordinator's own, or say that it could not
    /// be asked.
    pub(crate) async fn admit<G: PartialEq>(
        &self,
        node: &Arc<Node>,
        asked: &Admission,
        guards: impl FnMut() -> G,
    ) -> (G, Vec<ErrorCode>) {
        let began = Instant::now();
        let settled = until_settled(guards, || self.ask_coordinator(node, asked)).await;
        let refused = settled.1.iter().filter(|one| **one != ErrorCode::None);
        node.metrics
            .partitions_verified(began.elapsed(), refused.count());
        settled
    }

    async fn ask_coordinator(&self, node: &Arc<Node>, asked: &Admission) -> Vec<ErrorCode> {
        let all = |error| vec![error; asked.partitions.len()];
        let coordinator = coordinator_of(&node.image(), &asked.transactional_id);
        let Some((_, leader)) = coordinator.filter(|(_, leader)| *leader != BrokerId::NONE) else {
            return all(ErrorCode::CoordinatorNotAvailable);
        };
        if leader == node.broker_id {
            let begun = self.begin(node, asked.request(), None);
            return asked.answers(begun).await;
        }
        let answer = self
            .peers
            .ask(node, leader, VERSION, |_| asked.wire_request())
            .await;
        match answer {
            Ok(answer) => asked.read(&answer),
            Err(error) => {
                tracing::debug!(%leader, %error, "a transaction's coordinator was not reached");
                all(ErrorCode::CoordinatorNotAvailable)
            }
        }
    }
}

/// Asks until the answer counts, at most for [`PATIENCE`]. It does not while the last
/// transaction is still being ended, nor if a guard that was taken before the question is
/// worth nothing any more. Each question gets new guards.
async fn until_settled<G, Asking>(
    mut guards: impl FnMut() -> G,
    mut ask: impl FnMut() -> Asking,
) -> (G, Vec<ErrorCode>)
where
    G: PartialEq,
    Asking: Future<Output = Vec<ErrorCode>>,
{
    let began = Instant::now();
    let mut rests = Rests::default();
    loop {
        let given = guards();
        let answers = ask().await;
        // The end of the last transaction is told to its producer before all is marked, so
        // the next may well begin too early. And the last marker may come, or come again,
        // after the guards were taken and before the coordinator has let the next one in.
        let too_early = answers.contains(&ErrorCode::ConcurrentTransactions);
        let is_agreed = answers.iter().all(|answer| *answer == ErrorCode::None);
        let overtaken = is_agreed && guards() != given;
        if !(too_early || overtaken) {
            return (given, answers);
        }
        let Some(rest) = rests.next_after(began.elapsed()) else {
            return (given, answers);
        };
        sleep(rest).await;
    }
}

/// The rests between questions: longer and longer, until they would go beyond [`PATIENCE`].
#[derive(Default)]
struct Rests {
    last: Duration,
}

impl Rests {
    /// The rest before the next question, `elapsed` after the first.
    fn next_after(&mut self, elapsed: Duration) -> Option<Duration> {
        self.last = (self.last * 2).clamp(FIRST_REST, LONGEST_REST);
        (elapsed + self.last <= PATIENCE).then_some(self.last)
    }
}

impl Admission {
    fn request(&self) -> TransactionRequest {
        let producer = Producer {
            id: self.producer_id,
            epoch: self.producer_epoch,
        };
        let transactional_id = self.transactional_id.clone();
        let partitions: Partitions = self
            .partitions
            .iter()
            .map(|(topic, partition)| (topic, *partition))
            .collect();
        if self.add {
            TransactionRequest::Add {
                transactional_id,
                producer,
                partitions,
            }
        } else {
            TransactionRequest::Verify {
                transactional_id,
                producer,
                partitions,
            }
        }
    }

    async fn answers(&self, begun: Begun) -> Vec<ErrorCode> {
        let all = |error| vec![error; self.partitions.len()];
        match begun.answer().await {
            Ok(TransactionResponse::Add(answer)) => all(answer.err().unwrap_or(ErrorCode::None)),
            Ok(TransactionResponse::Verify(Ok(missing))) => self
                .partitions
                .iter()
                .map(|(topic, partition)| {
                    if missing.contains(topic, *partition) {
                        ErrorCode::TransactionAbortable
                    } else {
                        ErrorCode::None
                    }
                })
                .collect(),
            Ok(TransactionResponse::Verify(Err(error))) => all(error),
            other => unreachable!("partitions were asked about, not {other:?}"),
        }
    }

    fn wire_request(&self) -> AddPartitionsToTxnRequest {
        let mut topics: Vec<AddPartitionsToTxnTopic> = Vec::new();
        for (topic, partition) in &self.partitions {
            match topics.iter_mut().find(|known| known.name == *topic) {
                Some(known) => known.partitions.push(*partition),
                None => topics.push(message!(AddPartitionsToTxnTopic {
                    name: topic.clone(),
                    partitions: vec![*partition],
                })),
            }
        }
        message!(AddPartitionsToTxnRequest {
            transactions: vec![message!(AddPartitionsToTxnTransaction {
                transactional_id: self.transactional_id.clone(),
                producer_id: self.producer_id.value(),
                producer_epoch: self.producer_epoch.value(),
                verify_only: !self.add,
                topics,
            })],
        })
    }

    fn read(&self, answer: &AddPartitionsToTxnResponse) -> Vec<ErrorCode> {
        let code = |code| ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError);
        if answer.error_code != ErrorCode::None.code() {
            return vec![code(answer.error_code); self.partitions.len()];
        }
        let found = |topic: &StrBytes, partition: i32| {
            let results = answer
                .results_by_transaction
                .iter()
                .find(|result| result.transactional_id == self.transactional_id)?;
            let results = results
                .topic_results
                .iter()
                .find(|one| one.name == *topic)?;
            let result = results
                .results_by_partition
                .iter()
                .find(|one| one.partition_index == partition)?;
            Some(code(result.partition_error_code))
        };
        self.partitions
            .iter()
            .map(|(topic, partition)| {
                // What is not told of is not known to be in the transaction.
                found(topic, *partition).unwrap_or(ErrorCode::UnknownServerError)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Asks with guards that are the number of markers so far. Each question is answered by
    /// the next of `script`: what the coordinator says, and whether a marker came meanwhile.
    async fn settle(script: &[(ErrorCode, bool)]) -> (u32, ErrorCode, usize) {
        let (markers, asked) = (Cell::new(0), Cell::new(0));
        let ask = async || {
            let (answer, marker_came) = script[asked.get().min(script.len() - 1)];
            asked.set(asked.get() + 1);
            markers.set(markers.get() + u32::from(marker_came));
            vec![answer]
        };
        let (guard, answers) = until_settled(|| markers.get(), ask).await;
        (guard, answers[0], asked.get())
    }

    #[tokio::test(start_paused = true)]
    async fn the_coordinator_is_asked_again_if_a_marker_came_after_the_guard_was_taken() {
        let agreed = ErrorCode::None;
        assert_eq!(settle(&[(agreed, false)]).await, (0, agreed, 1));
        // The marker of the last transaction comes a second time, late.
        let script = [(agreed, true), (agreed, true), (agreed, false)];
        assert_eq!(settle(&script).await, (2, agreed, 3));
        let too_early = ErrorCode::ConcurrentTransactions;
        let script = [(too_early, true), (agreed, true), (agreed, false)];
        assert_eq!(settle(&script).await, (2, agreed, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_and_questions_end() {
        let refused = ErrorCode::InvalidProducerEpoch;
        assert_eq!(settle(&[(refused, true)]).await, (0, refused, 1));
        let (_, answer, _) = settle(&[(ErrorCode::None, true)]).await;
        assert_eq!(answer, ErrorCode::None);
    }

    #[test]
    fn questions_are_asked_at_longer_and_longer_intervals_within_the_patience() {
        // How often a coordinator is asked that takes so long for an answer.
        let check = |answer_ms, expected: usize| {
            let taken = Duration::from_millis(answer_ms);
            let (mut rests, mut elapsed, mut asked) = (Rests::default(), taken, 1);
            while let Some(rest) = rests.next_after(elapsed) {
                elapsed += rest + taken;
                asked += 1;
            }
            assert_eq!(asked, expected, "{answer_ms} ms");
        };
        // 1, 2, 4, 8, 16 ms, and then 23 times 20.
        check(0, 29);
        check(100, 5);
        check(500, 1);
    }
}
