//! A runtime for tests: it appends records to a vector, hands out answers and markers, and
//! can be told to fail writes, to let time pass and to start again from the log.

use std::collections::BTreeMap;

use yuxi_coordinator::CoordinatorRecord;
use yuxi_coordinator::time::{Monotonic, Now};
use yuxi_coordinator::transactions::{
    Description, Effects, Handled, ListFilter, Listed, MarkerOrder, MarkerWritten, Partitions,
    Producer, Ticket, Transaction, TransactionConfig, TransactionRecord, TransactionRequest,
    TransactionResponse, TransactionShard, TransactionState, TransactionVersion, records,
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
};

pub(crate) const START_MS: i64 = 1_700_000_000_000;
pub(crate) const TIMEOUT_MS: i32 = 60_000;
pub(crate) const OLD: TransactionVersion = TransactionVersion::V0;
pub(crate) const NEW: TransactionVersion = TransactionVersion::V2;

/// By both clocks. No test passes in which one of them is taken for the other.
fn at(now_ms: i64) -> Now {
    Now {
        monotonic: Monotonic::new(now_ms - START_MS),
        wall_ms: now_ms,
    }
}

pub(crate) struct Runtime {
    pub(crate) shard: TransactionShard,
    pub(crate) config: TransactionConfig,
    pub(crate) log: Vec<CoordinatorRecord>,
    /// Markers that are to be written.
    pub(crate) orders: Vec<MarkerOrder>,
    pub(crate) now_ms: i64,
    /// How far the time of day was set from there.
    pub(crate) clock_step_ms: i64,
    /// The next write fails with this.
    pub(crate) fail_next: Option<ErrorCode>,
    pub(crate) next_producer_id: i64,
    next_ticket: u64,
}

impl Runtime {
    pub(crate) fn new() -> Self {
        Self::with(TransactionConfig::default())
    }

    pub(crate) fn with(config: TransactionConfig) -> Self {
        let mut shard = TransactionShard::new(config.clone());
        assert!(shard.loaded(at(START_MS)).is_empty());
        Self {
            shard,
            config,
            log: Vec::new(),
            orders: Vec::new(),
            now_ms: START_MS,
            clock_step_ms: 0,
            fail_next: None,
            next_producer_id: 1_000,
            next_ticket: 0,
        }
    }

    pub(crate) fn ask(&mut self, request: TransactionRequest) -> TransactionResponse {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let handled = self.shard.handle(request, ticket, None, self.now());
        let effects = match handled {
            Handled::Done(effects) => effects,
            Handled::NeedsProducerId(request) => {
                let spare = ProducerId::new(self.next_producer_id);
                self.next_producer_id += 1;
                match self.shard.handle(request, ticket, Some(spare), self.now()) {
                    Handled::Done(effects) => effects,
                    Handled::NeedsProducerId(_) => panic!("one producer id is enough"),
                }
            }
        };
        let mut replies = self.carry_out(effects);
        let (answered, response) = replies.pop().expect("every request is answered at once");
        assert!(replies.is_empty() && answered == ticket, "and only that");
        response
    }

    fn carry_out(&mut self, effects: Effects) -> Vec<(Ticket, TransactionResponse)> {
        if effects.records.is_empty() {
            return effects.replies;
        }
        if let Some(error) = self.fail_next.take() {
            return self.shard.write_failed(effects, error, self.now());
        }
        self.log.extend(effects.records.iter().cloned());
        let released = self.shard.written(effects, self.now());
        self.orders.extend(released.markers);
        released.replies
    }

    pub(crate) fn init(&mut self, id: &str) -> Result<Producer, ErrorCode> {
        self.init_as(id, None)
    }

    pub(crate) fn init_as(
        &mut self,
        id: &str,
        current: Option<Producer>,
    ) -> Result<Producer, ErrorCode> {
        self.init_within(id, current, TIMEOUT_MS)
    }

    pub(crate) fn init_within(
        &mut self,
        id: &str,
        current: Option<Producer>,
        timeout_ms: i32,
    ) -> Result<Producer, ErrorCode> {
        match self.ask(TransactionRequest::Init {
            transactional_id: id.into(),
            timeout_ms,
            current,
        }) {
            TransactionResponse::Init(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn add(
        &mut self,
        id: &str,
        producer: Producer,
        wanted: &[(&str, i32)],
    ) -> Result<(), ErrorCode> {
        match self.ask(TransactionRequest::Add {
            transactional_id: id.into(),
            producer,
            partitions: partitions(wanted),
        }) {
            TransactionResponse::Add(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn missing(
        &mut self,
        id: &str,
        producer: Producer,
        wanted: &[(&str, i32)],
    ) -> Result<Partitions, ErrorCode> {
        match self.ask(TransactionRequest::Verify {
            transactional_id: id.into(),
            producer,
            partitions: partitions(wanted),
        }) {
            TransactionResponse::Verify(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn end(
        &mut self,
        id: &str,
        producer: Producer,
        commit: bool,
        client: TransactionVersion,
    ) -> Result<Producer, ErrorCode> {
        match self.ask(TransactionRequest::End {
            transactional_id: id.into(),
            producer,
            commit,
            client,
        }) {
            TransactionResponse::End(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn describe(&mut self, id: &str) -> Result<Description, ErrorCode> {
        match self.ask(TransactionRequest::Describe {
            transactional_id: id.into(),
        }) {
            TransactionResponse::Describe(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn state(&mut self, id: &str) -> TransactionState {
        self.describe(id).expect("the id is known").state
    }

    pub(crate) fn list(&mut self, filter: ListFilter) -> Vec<Listed> {
        match self.ask(TransactionRequest::List(filter)) {
            TransactionResponse::List(answer) => answer.expect("listing does not fail"),
            other => panic!("{other:?}"),
        }
    }

    /// One marker of the first order is written.
    pub(crate) fn write_marker(&mut self, order: usize) -> bool {
        let Some(order) = self.orders.get_mut(order) else {
            return false;
        };
        let Some((topic, partition)) = order
            .partitions
            .iter()
            .map(|(topic, partition)| (topic.clone(), partition))
            .next()
        else {
            return false;
        };
        order.partitions.remove(&topic, partition);
        let written = MarkerWritten {
            order: order.order,
            transactional_id: order.transactional_id.clone(),
            topic,
            partition,
        };
        self.orders.retain(|order| !order.partitions.is_empty());
        let effects = self.shard.markers_written(&[written], self.now());
        assert!(self.carry_out(effects).is_empty(), "nobody has asked");
        true
    }

    pub(crate) fn write_markers(&mut self) {
        while self.write_marker(0) {}
    }

    fn now(&self) -> Now {
        let now = at(self.now_ms);
        Now {
            wall_ms: now.wall_ms + self.clock_step_ms,
            ..now
        }
    }

    /// Lets time pass, and what is due in it happen.
    pub(crate) fn wait(&mut self, ms: i64) {
        let until = self.now_ms + ms;
        while let Some(deadline) = self.shard.next_deadline()
            && START_MS + deadline.value() <= until
        {
            self.now_ms = self.now_ms.max(START_MS + deadline.value());
            let effects = self.shard.tick(self.now());
            assert!(self.carry_out(effects).is_empty(), "nobody has asked");
        }
        self.now_ms = until;
    }

    /// Another coordinator takes over from the log.
    pub(crate) fn reload(&mut self) {
        let mut shard = TransactionShard::new(self.config.clone());
        for record in &self.log {
            shard
                .replay(&record.key, record.value.as_ref())
                .expect("our own record");
        }
        self.orders = shard.loaded(self.now());
        self.shard = shard;
    }

    /// What the log says, in order.
    pub(crate) fn written(&self) -> Vec<(StrBytes, Option<Transaction>)> {
        self.log.iter().map(read).collect()
    }

    /// What the log says last of an id.
    pub(crate) fn last(&self, id: &str) -> Transaction {
        let found = self
            .written()
            .into_iter()
            .rev()
            .find(|(one, _)| one.as_str() == id);
        found.expect("a record").1.expect("no tombstone")
    }

    pub(crate) fn by_state(&self) -> BTreeMap<TransactionState, usize> {
        self.shard.counts()
    }
}

pub(crate) fn read(record: &CoordinatorRecord) -> (StrBytes, Option<Transaction>) {
    match records::decode(&record.key, record.value.as_ref()).expect("our own record") {
        TransactionRecord::Transaction {
            transactional_id,
            value,
        } => (transactional_id, value),
        TransactionRecord::Other { key_version } => panic!("key version {key_version}"),
    }
}

pub(crate) fn partitions(wanted: &[(&str, i32)]) -> Partitions {
    let mut partitions = Partitions::default();
    for (topic, partition) in wanted {
        partitions.insert(&StrBytes::from(*topic), *partition);
    }
    partitions
}

pub(crate) fn producer(id: i64, epoch: i16) -> Producer {
    Producer {
        id: ProducerId::new(id),
        epoch: ProducerEpoch::new(epoch),
    }
}
