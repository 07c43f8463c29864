//! The accumulator between a caller and two brokers that take turns in leading.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, LeaderEpoch};
use yuxi_protocol::record::batch::advance_sequence;

use super::super::batch::Stamp;
use super::super::delivery::Written;
use super::*;

/// How many batches a leader remembers of a producer.
const REMEMBERED: usize = 5;
/// More than any of the drawn histories needs to come to its end.
const ROUNDS: usize = 1000;

#[derive(Clone, Copy, Debug)]
enum Step {
    Append,
    /// The client sends what it may to the broker that it takes for the leader.
    Drain,
    /// A broker looks at the oldest request that it has not looked at.
    Serve(usize),
    /// A broker's oldest answer arrives.
    Answer(usize),
    /// A connection breaks with all that is on it.
    Disconnect(usize),
    /// The other broker leads; it has every record that this one wrote.
    Elect,
    /// The client hears who leads.
    Learn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let broker = 0..2_usize;
    let step = prop_oneof![
        4 => Just(Step::Append),
        6 => Just(Step::Drain),
        5 => broker.clone().prop_map(Step::Serve),
        4 => broker.clone().prop_map(Step::Answer),
        1 => broker.prop_map(Step::Disconnect),
        1 => Just(Step::Elect),
        1 => Just(Step::Learn),
    ];
    proptest::collection::vec(step, 1..200)
}

struct Request {
    batch: Batch,
    /// What the broker found, once it has looked.
    found: Option<Result<(), ErrorCode>>,
}

/// One partition, its two replicas, and the client.
struct World {
    accumulator: Accumulator,
    topic: usize,
    now: Instant,
    appended: u32,
    /// The first number and the count of each batch, in the order of the log.
    log: Vec<(Stamp, u32)>,
    connections: [VecDeque<Request>; 2],
    leader: usize,
    /// The leader by the client's belief.
    believed: usize,
}

impl World {
    fn new() -> Self {
        let mut accumulator = Accumulator::new(Settings {
            batch_bytes: 1000,
            message_max_bytes: 1000,
            compression: Compression::None,
            compression_level: None,
            linger: Duration::ZERO,
            delivery_timeout: Duration::from_hours(1),
            buffer_bytes: 1 << 20,
            idempotent: true,
            transactional: false,
            retry_backoff: Duration::from_millis(1),
            retry_backoff_max: Duration::from_millis(1),
            retries: u32::MAX,
        });
        let name: Arc<str> = "t".into();
        accumulator.learn_topic(&name, &[led_by(0, 0)]);
        accumulator.set_identity(Identity {
            producer_id: 1,
            epoch: 0,
        });
        Self {
            topic: accumulator.topic(&name).unwrap(),
            accumulator,
            now: Instant::now(),
            appended: 0,
            log: Vec::new(),
            connections: [VecDeque::new(), VecDeque::new()],
            leader: 0,
            believed: 0,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append => self.append(),
            Step::Drain => self.drain(),
            Step::Serve(broker) => self.serve(broker),
            Step::Answer(broker) => self.answer(broker),
            Step::Disconnect(broker) => {
                while let Some(request) = self.connections[broker].pop_front() {
                    self.accumulator.retry(request.batch, lost(), self.now);
                }
            }
            Step::Elect => self.leader = 1 - self.leader,
            Step::Learn => self.believed = self.leader,
        }
    }

    fn append(&mut self) {
        let record = RecordRef {
            partition: Some(0),
            key: None,
            value: Some(b"value"),
            headers: &[],
            timestamp_ms: None,
        };
        let append = self.accumulator.append(self.topic, &record, 0, self.now);
        assert!(matches!(append, Append::Queued { .. }), "{append:?}");
        self.appended += 1;
    }

    fn drain(&mut self) {
        self.now += Duration::from_millis(2);
        let connection = &mut self.connections[self.believed];
        self.accumulator.drain(
            self.now,
            |_, _, _| Route::To(()),
            |(), batch| connection.push_back(Request { batch, found: None }),
        );
    }

    fn serve(&mut self, broker: usize) {
        let leads = broker == self.leader;
        let mut unseen = self.connections[broker].iter_mut();
        let Some(request) = unseen.find(|request| request.found.is_none()) else {
            return;
        };
        let (stamp, records) = (request.batch.stamp.unwrap(), request.batch.records);
        request.found = Some(if leads {
            write(&mut self.log, stamp, records)
        } else {
            Err(ErrorCode::NotLeaderOrFollower)
        });
    }

    fn answer(&mut self, broker: usize) {
        let served = self.connections[broker].pop_front_if(|request| request.found.is_some());
        match served.map(|request| (request.batch, request.found)) {
            Some((batch, Some(Ok(())))) => self.accumulator.complete(batch, WRITTEN),
            Some((batch, Some(Err(code)))) => {
                self.accumulator.refuse(batch, code, lost(), self.now);
            }
            Some((_, None)) | None => {}
        }
    }

    /// Nothing fails any more.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            if self.accumulator.is_idle() {
                return;
            }
            self.believed = self.leader;
            for step in [Step::Drain, Step::Serve(0), Step::Serve(1)] {
                self.take(step);
            }
            self.answer(0);
            self.answer(1);
        }
        panic!("the producer stands still: {:?}", self.accumulator);
    }
}

const WRITTEN: Written = Written {
    base_offset: None,
    append_time_ms: None,
};

fn lost() -> Error {
    Error::Disconnected {
        address: String::from("broker"),
        reason: "the test says so".into(),
    }
}

fn led_by(broker: i32, epoch: i32) -> Partition {
    Partition {
        index: 0,
        leader: Some(BrokerId::new(broker)),
        leader_epoch: LeaderEpoch::new(epoch),
        replicas: Vec::new(),
        isr: Vec::new(),
        offline: Vec::new(),
    }
}

/// What a leader does with a batch of an idempotent producer (KIP-98).
fn write(log: &mut Vec<(Stamp, u32)>, stamp: Stamp, records: u32) -> Result<(), ErrorCode> {
    let remembered = &log[log.len().saturating_sub(REMEMBERED)..];
    if remembered.contains(&(stamp, records)) {
        return Ok(());
    }
    let next = match log.last() {
        Some((last, _)) if last.identity.epoch > stamp.identity.epoch => {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        Some((last, records)) if last.identity == stamp.identity => {
            advance_sequence(last.base_sequence, *records as i32)
        }
        Some(_) | None => 0,
    };
    if stamp.base_sequence != next {
        return Err(ErrorCode::OutOfOrderSequenceNumber);
    }
    log.push((stamp, records));
    Ok(())
}

#[test]
fn numbers_are_given_anew_only_when_nothing_is_in_flight() {
    let mut world = World::new();
    for _ in 0..2 {
        world.append();
        world.drain();
    }
    // The broker may have the first of the two.
    let first = world.connections[0].pop_front().unwrap();
    world.accumulator.give_up(first.batch, lost());
    world.append();
    world.drain();
    assert_eq!(world.connections[0].len(), 1, "the second is under way");
    let second = world.connections[0].pop_front().unwrap();
    world.accumulator.give_up(second.batch, lost());
    world.drain();
    let third = world.connections[0].pop_front().unwrap().batch.stamp;
    let third = third.map(|stamp| (stamp.identity.epoch, stamp.base_sequence));
    assert_eq!(third, Some((1, 0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// Whatever is lost on the way, every record is written once and in order, under one
    /// epoch, and the producer comes to its end.
    #[test]
    fn every_record_is_written_once(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.settle();
        prop_assert_eq!(world.accumulator.delivered, u64::from(world.appended));
        prop_assert_eq!(world.accumulator.failed, 0);
        let mut next = 0;
        for (stamp, records) in world.log {
            prop_assert_eq!(stamp.identity.epoch, 0);
            prop_assert_eq!(stamp.base_sequence, next);
            next += records as i32;
        }
        prop_assert_eq!(next, world.appended as i32);
    }
}
