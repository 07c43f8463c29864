//! The last offset of every key, in 24 bytes a key whatever its length.
//!
//! ```text
//! +----------------+----------------+------------+
//! | hash of the key, twice 64 bits  | offset + 1 |   0 for an empty place
//! +----------------+----------------+------------+
//! ```
//!
//! A key is known by its hash alone, so two keys of the same hash would lose records. The
//! hash is SipHash under two random keys of this map: 128 bits that nobody who chooses keys
//! can foresee. Places are probed in a row from where the hash points to.

use std::hash::{BuildHasher, Hasher, RandomState};

use yuxi_protocol::ids::Offset;

/// What one key takes.
pub(super) const ENTRY_BYTES: u64 = 24;

#[derive(Debug)]
pub(super) struct OffsetMap {
    places: Vec<[u64; 3]>,
    entries: usize,
    /// Always less than there are places, so that a search ends.
    max_entries: usize,
    hashers: [RandomState; 2],
}

impl OffsetMap {
    /// A map of at most `max_bytes`, no larger than `keys` keys need, to be filled up to
    /// `load_factor`.
    pub(super) fn new(max_bytes: u64, load_factor: f64, keys: u64) -> Self {
        let load_factor = load_factor.clamp(0.01, 1.0);
        let needed = (keys as f64 / load_factor).ceil() + 2.0;
        let places = (max_bytes / ENTRY_BYTES).min(needed as u64).max(2) as usize;
        let max_entries = ((places as f64 * load_factor) as usize).clamp(1, places - 1);
        Self {
            places: vec![[0; 3]; places],
            entries: 0,
            max_entries,
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    /// Notes the offset of a key; later ones take the place of earlier ones. False if the
    /// key is new and there is no room for it.
    pub(super) fn put(&mut self, key: &[u8], offset: Offset) -> bool {
        let (at, [first, second]) = self.place(key);
        if self.places[at][2] == 0 {
            if self.entries == self.max_entries {
                return false;
            }
            self.entries += 1;
        }
        self.places[at] = [first, second, offset.value() as u64 + 1];
        true
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Offset> {
        let (at, _) = self.place(key);
        match self.places[at][2] {
            0 => None,
            stored => Some(Offset::new((stored - 1) as i64)),
        }
    }

    /// How much of what it may hold it does, from 0 to 1.
    pub(super) fn utilization(&self) -> f64 {
        self.entries as f64 / self.max_entries as f64
    }

    /// The place that has the key, or the empty one where it would go.
    fn place(&self, key: &[u8]) -> (usize, [u64; 2]) {
        let hash = [0, 1].map(|which| {
            let mut hasher = self.hashers[which].build_hasher();
            hasher.write(key);
            hasher.finish()
        });
        let count = self.places.len();
        let mut at = ((u128::from(hash[0]) * count as u128) >> 64) as usize;
        loop {
            let [first, second, stored] = self.places[at];
            if stored == 0 || [first, second] == hash {
                return (at, hash);
            }
            at += 1;
            if at == count {
                at = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_offset_of_every_key_is_known_until_the_map_is_full() {
        let mut map = OffsetMap::new(24 * 1000, 0.9, u64::MAX);
        let key = |number: i64| number.to_string().into_bytes();
        for round in 0..3 {
            for number in 0..900 {
                assert!(map.put(&key(number), Offset::new(round * 1000 + number)));
            }
        }
        for number in 0..900 {
            assert_eq!(map.get(&key(number)), Some(Offset::new(2000 + number)));
        }
        assert_eq!(map.get(&key(900)), None);
        assert!(!map.put(&key(900), Offset::new(1)), "no room for a new key");
        assert!(
            map.put(&key(7), Offset::new(9000)),
            "one that is known has its place"
        );
        assert_eq!(map.get(&key(7)), Some(Offset::new(9000)));
        assert!((map.utilization() - 1.0).abs() < f64::EPSILON);
        let mut empty = OffsetMap::new(24 * 1000, 0.9, 10);
        assert!(empty.put(b"", Offset::ZERO));
        assert_eq!(empty.get(b""), Some(Offset::ZERO));
    }

    #[test]
    fn it_takes_no_more_memory_than_it_may_nor_than_it_needs() {
        let places = |max_bytes, load, keys| OffsetMap::new(max_bytes, load, keys).places.len();
        assert_eq!(places(24_000, 0.9, u64::MAX), 1000);
        assert_eq!(places(24_000, 0.5, 100), 202);
        assert_eq!(places(1 << 40, 1.0, 0), 2);
        assert_eq!(places(0, 1.0, 100), 2);
        for (load, keys) in [(0.9, 100), (1.0, 1000), (0.01, 5)] {
            let mut map = OffsetMap::new(1 << 30, load, keys);
            for number in 0..keys {
                assert!(
                    map.put(&number.to_be_bytes(), Offset::ZERO),
                    "{load} {keys}"
                );
            }
        }
    }
}
