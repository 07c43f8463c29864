//! The identifiers and counters of the protocol, one type each, so that an
//! offset is never taken for an epoch nor a broker id for a partition.
//!
//! Each is the plain integer that stands on the wire; `-1` keeps the meaning
//! that Kafka gives it and is named where one is defined. Only the arithmetic
//! that makes sense is offered. In JSON each is its number, a topic's id its text.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the number as it stands on the wire.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The number as it stands on the wire.
            pub const fn value(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id! {
    /// The position of a record in its partition's log.
    Offset(i64)
}
id! {
    /// How many times a partition has been given a leader; it fences old leaders (KIP-101).
    LeaderEpoch(i32)
}
id! {
    /// A broker's configured number, `node.id`.
    BrokerId(i32)
}
id! {
    /// One process life of a broker: the store revision of its registration (KIP-380).
    BrokerEpoch(i64)
}
id! {
    /// One reign of a controller: the store revision at which it took the seal.
    ControllerEpoch(i64)
}
id! {
    /// The number of a partition within its topic, from 0.
    PartitionId(i32)
}
id! {
    /// A producer's number, given out once by the cluster (KIP-98).
    ProducerId(i64)
}
id! {
    /// One life of a producer under its number; a later epoch fences earlier ones.
    ProducerEpoch(i16)
}

impl Offset {
    /// The first offset of every log.
    pub const ZERO: Self = Self(0);

    /// The offset `count` records after this one.
    #[must_use]
    pub const fn plus(self, count: i64) -> Self {
        Self(self.0 + count)
    }

    /// How many offsets lie from `earlier` up to this one; negative if it is later.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0 - earlier.0
    }
}

impl LeaderEpoch {
    /// What a client sends that does not know the epoch.
    pub const NONE: Self = Self(-1);
}

impl BrokerId {
    /// No broker: a partition without a leader, an ordinary consumer's replica id.
    pub const NONE: Self = Self(-1);
}

impl ProducerId {
    /// A batch that was not written by an idempotent producer.
    pub const NONE: Self = Self(-1);
}

impl ProducerEpoch {
    /// The epoch that goes with [`ProducerId::NONE`].
    pub const NONE: Self = Self(-1);
}

/// A topic's universally unique id (KIP-516). It outlives nothing: a topic that is
/// deleted and made again under the same name has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// No id: requests that name the topic instead.
    pub const ZERO: Self = Self([0; 16]);

    /// Wraps the 16 bytes as they stand on the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes as they stand on the wire.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether this is [`TopicId::ZERO`].
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Kafka's own spelling: URL-safe base64 without padding, 22 characters.
impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from_be_bytes(self.0);
        for sextet in 0..22 {
            // 22 sextets are 132 bits; the 4 that the id lacks are zero at the end.
            let value = match 122_u32.checked_sub(6 * sextet) {
                Some(shift) => bits >> shift,
                None => bits << (6 * sextet - 122),
            };
            f.write_str(
                std::str::from_utf8(&BASE64_URL[(value & 63) as usize..][..1])
                    .map_err(|_| fmt::Error)?,
            )?;
        }
        Ok(())
    }
}

/// Why a text is not a topic id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a topic id: 22 characters of URL-safe base64 are expected")]
pub struct TopicIdError(String);

impl std::str::FromStr for TopicId {
    type Err = TopicIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || TopicIdError(text.to_owned());
        if text.len() != 22 {
            return Err(refuse());
        }
        let mut bits: u128 = 0;
        for (at, character) in text.bytes().enumerate() {
            let sextet = BASE64_URL
                .iter()
                .position(|&c| c == character)
                .ok_or_else(refuse)? as u128;
            if at == 21 {
                if sextet & 0xf != 0 {
                    return Err(refuse());
                }
                bits = bits << 2 | sextet >> 4;
            } else {
                bits = bits << 6 | sextet;
            }
        }
        Ok(Self(bits.to_be_bytes()))
    }
}

impl Serialize for TopicId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TopicId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl From<kafka_wire_core::Uuid> for TopicId {
    fn from(id: kafka_wire_core::Uuid) -> Self {
        Self(id.to_bytes())
    }
}

impl From<TopicId> for kafka_wire_core::Uuid {
    fn from(id: TopicId) -> Self {
        Self::from_bytes(id.0)
    }
}

/// One partition, by its topic's name. The name is shared, so a clone is cheap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number within the topic.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Names partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition: PartitionId::new(partition),
        }
    }
}

/// As directories are named: `topic-0`.
impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_id_is_spelled_as_kafka_spells_it() {
        // Kafka's Uuid.METADATA_TOPIC_ID, whose bytes are 0…01.
        let mut bytes = [0; 16];
        bytes[15] = 1;
        let id = TopicId::from_bytes(bytes);
        assert_eq!(id.to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAQ".parse(), Ok(id));
        let all = TopicId::from_bytes([0xff; 16]);
        assert_eq!(all.to_string(), "_____________________w");
        assert_eq!("_____________________w".parse(), Ok(all));
    }

    #[test]
    fn a_text_that_is_no_topic_id_is_refused() {
        for text in [
            "",
            "short",
            "AAAAAAAAAAAAAAAAAAAAA!",
            "AAAAAAAAAAAAAAAAAAAAAB",
        ] {
            assert!(text.parse::<TopicId>().is_err(), "{text}");
        }
    }
}
