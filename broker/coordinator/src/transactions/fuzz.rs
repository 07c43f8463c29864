//! The body of the fuzz target for records of `__transaction_state`.

use bytes::Bytes;

use crate::time::{Monotonic, Now};

use super::{
    MarkerWritten, TransactionConfig, TransactionShard, TransactionVersion,
    records::{self, TransactionRecord},
};

/// Takes any bytes as one record, its key's length first: it must be read or refused,
/// what was read must be written and read back the same, and a shard that loads it must
/// live with it. Panics only if one of these does not hold.
pub fn fuzz_record(bytes: &[u8]) {
    let (key, value) = match bytes.split_first() {
        Some((&split, rest)) => rest.split_at(usize::from(split).min(rest.len())),
        None => (bytes, bytes),
    };
    let key = Bytes::copy_from_slice(key);
    let value = Bytes::copy_from_slice(value);
    if let Ok(TransactionRecord::Transaction {
        transactional_id,
        value: Some(said),
    }) = records::decode(&key, Some(&value))
    {
        let written = records::transaction(&transactional_id, &said, TransactionVersion::V2);
        assert_eq!(
            records::decode(&written.key, written.value.as_ref()),
            Ok(TransactionRecord::Transaction {
                transactional_id,
                value: Some(said)
            })
        );
    }
    let mut shard = TransactionShard::new(TransactionConfig::default());
    // A refusal must leave the shard as usable as it was.
    let _ = shard.replay(&key, Some(&Bytes::new()));
    let _ = shard.replay(&key, Some(&value));
    for order in shard.loaded(at(Monotonic::new(0))) {
        let written: Vec<_> = order
            .partitions
            .iter()
            .map(|(topic, partition)| MarkerWritten {
                order: order.order,
                transactional_id: order.transactional_id.clone(),
                topic: topic.clone(),
                partition,
            })
            .collect();
        let effects = shard.markers_written(&written, at(Monotonic::new(0)));
        assert_eq!(effects.records.len(), 1, "the order is complete");
        let released = shard.written(effects, at(Monotonic::new(0)));
        assert!(released.replies.is_empty(), "nobody has asked");
    }
    for _ in 0..8 {
        let Some(deadline) = shard.next_deadline() else {
            break;
        };
        let effects = shard.tick(at(deadline));
        if !effects.records.is_empty() {
            let released = shard.written(effects, at(deadline));
            assert!(released.replies.is_empty(), "nobody has asked");
        }
    }
}

fn at(monotonic: Monotonic) -> Now {
    Now {
        monotonic,
        wall_ms: 0,
    }
}
