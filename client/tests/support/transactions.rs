//! A transaction coordinator that checks what it is told, by both protocols.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::frame::{RequestHead, request_limits};
use yuxi_client::protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use yuxi_client::protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use yuxi_client::protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse, InitProducerIdRequest,
    InitProducerIdResponse, KafkaRequest, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};

use super::{Answer, FRAME_LIMIT, Fault, State, frame};

/// AddPartitionsToTxn, AddOffsetsToTxn, EndTxn, TxnOffsetCommit.
pub(super) const APIS: [(i16, i16); 4] = [(24, 5), (25, 4), (26, 5), (28, 5)];
const OLDEST_IMPLIED_PRODUCE: i16 = 12;
const OLDEST_IMPLIED_END: i16 = 5;
const OLDEST_IMPLIED_COMMIT: i16 = 5;

/// What is known of transactions.
#[derive(Default)]
pub(crate) struct Transactions {
    /// The finalised feature.
    pub(crate) version: Option<i16>,
    ids: HashMap<String, Transaction>,
    /// Next for this API.
    pub(crate) faults: VecDeque<(i16, Fault)>,
    /// The values that readers of committed records see, by partition.
    pub(crate) committed: BTreeMap<i32, Vec<String>>,
    /// Offsets of committed transactions, by partition.
    pub(crate) committed_offsets: BTreeMap<i32, i64>,
    /// The APIs that were asked, in order.
    pub(crate) asked: Vec<i16>,
}

#[derive(Default)]
struct Transaction {
    producer_id: i64,
    epoch: i16,
    open: bool,
    /// How the last one ended: by which epoch, and whether it was committed.
    ended: Option<(i16, bool)>,
    partitions: BTreeSet<i32>,
    written: Vec<(i32, String)>,
    groups: BTreeSet<String>,
    offsets: BTreeMap<i32, i64>,
}

impl Transactions {
    fn implied(&self) -> bool {
        self.version >= Some(2)
    }

    fn of(
        &mut self,
        id: &str,
        producer_id: i64,
        epoch: i16,
    ) -> Result<&mut Transaction, ErrorCode> {
        let found = self
            .ids
            .get_mut(id)
            .ok_or(ErrorCode::InvalidProducerIdMapping)?;
        if found.producer_id != producer_id {
            return Err(ErrorCode::InvalidProducerIdMapping);
        }
        if found.epoch != epoch {
            return Err(ErrorCode::ProducerFenced);
        }
        Ok(found)
    }

    /// Whether a transactional batch may be written to the partition.
    pub(super) fn admit(
        &mut self,
        version: i16,
        id: &str,
        producer: (i64, i16),
        partition: i32,
    ) -> Result<(), ErrorCode> {
        let implied = self.implied();
        assert_eq!(
            version >= OLDEST_IMPLIED_PRODUCE,
            implied,
            "Produce version {version}"
        );
        let transaction = self
            .of(id, producer.0, producer.1)
            .map_err(|_| ErrorCode::InvalidProducerEpoch)?;
        if implied {
            transaction.open = true;
            transaction.partitions.insert(partition);
        }
        if transaction.open && transaction.partitions.contains(&partition) {
            Ok(())
        } else {
            Err(ErrorCode::InvalidTxnState)
        }
    }

    pub(super) fn wrote(&mut self, id: &str, partition: i32, values: Vec<String>) {
        let transaction = self.ids.get_mut(id).expect("it was admitted");
        let values = values.into_iter().map(|value| (partition, value));
        transaction.written.extend(values);
    }

    fn initialize(
        &mut self,
        id: &str,
        next_producer_id: i64,
        resumed: (i64, i16),
    ) -> Result<(i64, i16), ErrorCode> {
        self.finish(id, false);
        let transaction = self
            .ids
            .entry(id.to_owned())
            .or_insert_with(|| Transaction {
                producer_id: next_producer_id,
                epoch: -1,
                ..Transaction::default()
            });
        if resumed.0 >= 0 && resumed.1 < transaction.epoch {
            return Err(ErrorCode::ProducerFenced);
        }
        transaction.epoch += 1;
        transaction.ended = None;
        Ok((transaction.producer_id, transaction.epoch))
    }

    fn finish(&mut self, id: &str, commit: bool) {
        let Some(transaction) = self.ids.get_mut(id) else {
            return;
        };
        transaction.open = false;
        transaction.partitions.clear();
        transaction.groups.clear();
        let written = std::mem::take(&mut transaction.written);
        let offsets = std::mem::take(&mut transaction.offsets);
        if commit {
            for (partition, value) in written {
                self.committed.entry(partition).or_default().push(value);
            }
            self.committed_offsets.extend(offsets);
        }
    }

    fn end(
        &mut self,
        id: &str,
        producer: (i64, i16),
        commit: bool,
    ) -> Result<(i64, i16), ErrorCode> {
        let implied = self.implied();
        let known = self
            .ids
            .get(id)
            .ok_or(ErrorCode::InvalidProducerIdMapping)?;
        if !known.open && known.ended == Some((producer.1, commit)) {
            return Ok((known.producer_id, known.epoch));
        }
        let transaction = self.of(id, producer.0, producer.1)?;
        if !transaction.open && (!implied || commit) {
            return Err(ErrorCode::InvalidTxnState);
        }
        transaction.ended = Some((producer.1, commit));
        if implied {
            transaction.epoch += 1;
        }
        let next = (transaction.producer_id, transaction.epoch);
        self.finish(id, commit);
        Ok(next)
    }
}

fn decode<R: KafkaRequest>(head: &RequestHead, body: Bytes) -> R {
    head.decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed")
}

fn code<T>(result: &Result<T, ErrorCode>) -> i16 {
    result.as_ref().err().map_or(0, |code| code.code())
}

/// Answers requests to the transaction coordinator, and TxnOffsetCommit.
pub(super) fn answer(head: &RequestHead, body: Bytes, state: &mut State) -> Answer {
    state.transactions.asked.push(head.api_key);
    let faults = &mut state.transactions.faults;
    let fault = match faults.front() {
        Some((api, _)) if *api == head.api_key => faults.pop_front().map(|(_, fault)| fault),
        Some(_) | None => None,
    };
    let refusal = match &fault {
        Some(Fault::DropBefore) => return Answer::Close,
        Some(Fault::Silence) => return Answer::Hold,
        Some(Fault::Refuse(code)) => Some(*code),
        Some(Fault::None | Fault::DropAfter | Fault::Raw(_)) | None => None,
    };
    let answered = match head.api_key {
        22 => initialize(head, body, refusal, state),
        24 => add_partitions(head, body, refusal, state),
        25 => add_group(head, body, refusal, state),
        26 => end(head, body, refusal, state),
        28 => commit_offsets(head, body, refusal, state),
        other => panic!("not of transactions: {other}"),
    };
    if matches!(fault, Some(Fault::DropAfter)) {
        return Answer::Close;
    }
    answered
}

fn initialize(
    head: &RequestHead,
    body: Bytes,
    refusal: Option<ErrorCode>,
    state: &mut State,
) -> Answer {
    let request: InitProducerIdRequest = decode(head, body);
    state.next_producer_id += 1;
    let fresh = 1000 + state.next_producer_id;
    let given = match (refusal, &request.transactional_id) {
        (Some(code), _) => Err(code),
        (None, None) => Ok((fresh, 0)),
        (None, Some(id)) => {
            let resumed = (request.producer_id, request.producer_epoch);
            state.transactions.initialize(id, fresh, resumed)
        }
    };
    let mut answer = InitProducerIdResponse::default();
    answer.error_code = code(&given);
    if let Ok((producer_id, epoch)) = given {
        answer.producer_id = producer_id;
        answer.producer_epoch = epoch;
    }
    frame(head, &answer)
}

fn add_partitions(
    head: &RequestHead,
    body: Bytes,
    refusal: Option<ErrorCode>,
    state: &mut State,
) -> Answer {
    assert!(!state.transactions.implied(), "partitions add themselves");
    let request: AddPartitionsToTxnRequest = decode(head, body);
    let id = &request.v3_and_below_transactional_id;
    let producer = (
        request.v3_and_below_producer_id,
        request.v3_and_below_producer_epoch,
    );
    let mut answer = AddPartitionsToTxnResponse::default();
    for topic in &request.v3_and_below_topics {
        let mut topic_answer = AddPartitionsToTxnTopicResult::default();
        topic_answer.name = topic.name.clone();
        for index in &topic.partitions {
            let added = match refusal {
                Some(code) => Err(code),
                None => state
                    .transactions
                    .of(id, producer.0, producer.1)
                    .map(|found| {
                        found.open = true;
                        found.partitions.insert(*index);
                    }),
            };
            let mut part = AddPartitionsToTxnPartitionResult::default();
            part.partition_index = *index;
            part.partition_error_code = code(&added);
            topic_answer.results_by_partition.push(part);
        }
        answer.results_by_topic_v3_and_below.push(topic_answer);
    }
    frame(head, &answer)
}

fn add_group(
    head: &RequestHead,
    body: Bytes,
    refusal: Option<ErrorCode>,
    state: &mut State,
) -> Answer {
    assert!(!state.transactions.implied(), "groups add themselves");
    let request: AddOffsetsToTxnRequest = decode(head, body);
    let id = &request.transactional_id;
    let producer = (request.producer_id, request.producer_epoch);
    let added = match refusal {
        Some(code) => Err(code),
        None => state
            .transactions
            .of(id, producer.0, producer.1)
            .map(|found| {
                found.open = true;
                found.groups.insert(request.group_id.to_string());
            }),
    };
    let mut answer = AddOffsetsToTxnResponse::default();
    answer.error_code = code(&added);
    frame(head, &answer)
}

fn end(head: &RequestHead, body: Bytes, refusal: Option<ErrorCode>, state: &mut State) -> Answer {
    let request: EndTxnRequest = decode(head, body);
    let implied = state.transactions.implied();
    assert_eq!(head.api_version >= OLDEST_IMPLIED_END, implied);
    let producer = (request.producer_id, request.producer_epoch);
    let ended = refusal.map_or_else(
        || {
            let id = &request.transactional_id;
            state.transactions.end(id, producer, request.committed)
        },
        Err,
    );
    let mut answer = EndTxnResponse::default();
    answer.error_code = code(&ended);
    if let Ok((producer_id, epoch)) = ended
        && implied
    {
        answer.producer_id = producer_id;
        answer.producer_epoch = epoch;
    }
    frame(head, &answer)
}

fn commit_offsets(
    head: &RequestHead,
    body: Bytes,
    refusal: Option<ErrorCode>,
    state: &mut State,
) -> Answer {
    let request: TxnOffsetCommitRequest = decode(head, body);
    let implied = state.transactions.implied();
    assert_eq!(head.api_version >= OLDEST_IMPLIED_COMMIT, implied);
    let producer = (request.producer_id, request.producer_epoch);
    let mut answer = TxnOffsetCommitResponse::default();
    for topic in &request.topics {
        let mut topic_answer = TxnOffsetCommitResponseTopic::default();
        topic_answer.name = topic.name.clone();
        for partition in &topic.partitions {
            let found = state
                .transactions
                .of(&request.transactional_id, producer.0, producer.1);
            let taken = match (refusal, found) {
                (Some(code), _) | (None, Err(code)) => Err(code),
                (None, Ok(found)) => {
                    found.open |= implied;
                    if implied || found.groups.contains(&*request.group_id) {
                        let index = partition.partition_index;
                        found.offsets.insert(index, partition.committed_offset);
                        Ok(())
                    } else {
                        Err(ErrorCode::InvalidTxnState)
                    }
                }
            };
            let mut part = TxnOffsetCommitResponsePartition::default();
            part.partition_index = partition.partition_index;
            part.error_code = code(&taken);
            topic_answer.partitions.push(part);
        }
        answer.topics.push(topic_answer);
    }
    frame(head, &answer)
}
