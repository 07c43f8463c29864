//! Which partition a key belongs to, as Kafka's default partitioner has it, so that keys
//! land where Java clients and librdkafka with `partitioner=murmur2` put them.

use crate::ids::PartitionId;

/// The seed that Kafka's clients use.
const SEED: u32 = 0x9747_b28c;
/// The multiplier of MurmurHash2 (Austin Appleby, public domain).
const M: u32 = 0x5bd1_e995;

/// The partition of a record with this key among `partitions`, `None` if there are none.
pub fn partition_for_key(key: &[u8], partitions: u32) -> Option<PartitionId> {
    let positive = murmur2(key) & 0x7fff_ffff;
    let partition = positive.checked_rem(partitions)?;
    Some(PartitionId::new(partition as i32))
}

/// The 32-bit MurmurHash2 with Kafka's seed.
pub fn murmur2(data: &[u8]) -> u32 {
    let (words, tail) = data.as_chunks::<4>();
    let mut hash = SEED ^ data.len() as u32;
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !tail.is_empty() {
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_in_kafka() {
        // The values that Kafka's own UtilsTest expects.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_partition_is_the_positive_hash_modulo_the_count() {
        // (-790332482 & 0x7fffffff) % 12
        assert_eq!(
            partition_for_key(b"foobar", 12),
            Some(PartitionId::new(1_357_151_166 % 12))
        );
        assert_eq!(partition_for_key(b"foobar", 1), Some(PartitionId::new(0)));
        assert_eq!(partition_for_key(b"foobar", 0), None);
    }
}
