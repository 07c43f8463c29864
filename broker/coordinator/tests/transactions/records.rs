//! The records of `__transaction_state`, byte for byte.

use proptest::prelude::*;
use yuxi_coordinator::transactions::{
    Transaction, TransactionRecord, TransactionRecordError, TransactionState, TransactionVersion,
    fuzz_record, records,
};
use yuxi_protocol::{
    codec::{Bytes, StrBytes},
    ids::{ProducerEpoch, ProducerId},
};

use crate::support::*;

fn sample() -> Transaction {
    Transaction {
        producer: producer(0x0102, 3),
        previous_producer_id: ProducerId::new(7),
        next_producer_id: ProducerId::new(9),
        last_epoch: ProducerEpoch::NONE,
        timeout_ms: 60_000,
        state: TransactionState::PrepareCommit,
        partitions: partitions(&[("t", 1), ("t", 4)]),
        start_ms: 5,
        last_update_ms: 6,
        client: TransactionVersion::V2,
    }
}

fn bytes(parts: &[&[u8]]) -> Bytes {
    Bytes::from(parts.concat())
}

#[test]
fn a_value_of_version_0_has_kafkas_bytes() {
    let value = Transaction {
        previous_producer_id: ProducerId::NONE,
        next_producer_id: ProducerId::NONE,
        client: TransactionVersion::V0,
        ..sample()
    };
    let record = records::transaction(&"id".into(), &value, TransactionVersion::V0);
    assert_eq!(record.key, bytes(&[&[0, 0], &[0, 2], b"id"]));
    let expected = bytes(&[
        &[0, 0],
        &[0, 0, 0, 0, 0, 0, 1, 2],
        &[0, 3],
        &[0, 0, 0xea, 0x60],
        &[2],
        &[0, 0, 0, 1, 0, 1],
        b"t",
        &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4],
        &[0, 0, 0, 0, 0, 0, 0, 6],
        &[0, 0, 0, 0, 0, 0, 0, 5],
    ]);
    assert_eq!(record.value, Some(expected));
}

#[test]
fn a_value_of_version_1_has_kafkas_bytes() {
    let record = records::transaction(&"id".into(), &sample(), TransactionVersion::V1);
    let expected = bytes(&[
        &[0, 1],
        &[0, 0, 0, 0, 0, 0, 1, 2],
        &[0, 3],
        &[0, 0, 0xea, 0x60],
        &[2],
        &[2, 2],
        b"t",
        &[3, 0, 0, 0, 1, 0, 0, 0, 4, 0],
        &[0, 0, 0, 0, 0, 0, 0, 6],
        &[0, 0, 0, 0, 0, 0, 0, 5],
        &[3],
        &[0, 8, 0, 0, 0, 0, 0, 0, 0, 7],
        &[1, 8, 0, 0, 0, 0, 0, 0, 0, 9],
        &[2, 2, 0, 2],
    ]);
    assert_eq!(record.value, Some(expected));
}

#[test]
fn an_empty_transaction_has_no_list_of_partitions() {
    let value = Transaction {
        state: TransactionState::Empty,
        partitions: partitions(&[]),
        next_producer_id: ProducerId::NONE,
        ..sample()
    };
    let old = records::transaction(&"id".into(), &value, TransactionVersion::V0);
    assert_eq!(old.value.unwrap()[17..21], [0xff; 4]);
    let new = records::transaction(&"id".into(), &value, TransactionVersion::V2);
    assert_eq!(new.value.unwrap()[17], 0);
}

#[test]
fn what_kafka_does_not_write_is_refused() {
    let written = records::transaction(&"id".into(), &sample(), TransactionVersion::V2);
    let key = written.key.clone();
    let value = written.value.unwrap();
    let with = |at: usize, byte: u8| {
        let mut changed = value.to_vec();
        changed[at] = byte;
        records::decode(&key, Some(&Bytes::from(changed)))
    };
    assert_eq!(
        with(1, 2),
        Err(TransactionRecordError::UnknownValueVersion(2))
    );
    assert_eq!(with(16, 6), Err(TransactionRecordError::UnknownState(6)));
    assert!(matches!(
        with(2, 0xff),
        Err(TransactionRecordError::NoProducer { .. })
    ));
    for cut in 0..value.len() {
        assert!(records::decode(&key, Some(&value.slice(..cut))).is_err());
    }
    let future = Bytes::from_static(&[0, 1, 0, 0]);
    assert_eq!(
        records::decode(&future, Some(&value)),
        Ok(TransactionRecord::Other { key_version: 1 })
    );
}

#[test]
fn a_record_without_a_value_forgets_the_id() {
    let id = StrBytes::from("id");
    let record = records::tombstone(&id);
    assert_eq!(record.value, None);
    assert_eq!(
        records::decode(&record.key, None),
        Ok(TransactionRecord::Transaction {
            transactional_id: id,
            value: None
        })
    );
}

proptest! {
    #[test]
    fn no_bytes_of_a_record_make_a_shard_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        state in 0_i8..6,
        version in 0_i16..3,
        at in 0_usize..80,
        byte in any::<u8>(),
    ) {
        fuzz_record(&noise);
        let value = Transaction {
            state: TransactionState::from_code(state).unwrap(),
            ..sample()
        };
        let record = records::transaction(&"id".into(), &value, TransactionVersion::new(version));
        let mut all = vec![record.key.len() as u8];
        all.extend_from_slice(&record.key);
        all.extend_from_slice(record.value.as_ref().unwrap());
        fuzz_record(&all);
        if let Some(one) = all.get_mut(at) {
            *one = byte;
        }
        fuzz_record(&all);
    }
}
