//! Who holds the seal, for clients that want to know it exactly.
//!
//! Kafka's DescribeCluster names one of the brokers as the controller. It cannot name a
//! controller that is no broker, nor say which of its terms this is. A tagged field of ours
//! in that answer does; clients that do not know it pass over it (KIP-482).

use crate::{
    codec::{Bytes, TaggedFields},
    ids::{BrokerId, ControllerEpoch},
    tags,
};

/// The controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealHolder {
    /// The process that is the controller: a broker, or a daemon that is nothing else.
    pub node: BrokerId,
    /// Its term: what every write of the controller is guarded by.
    pub epoch: ControllerEpoch,
}

impl SealHolder {
    /// As a tagged field: the node in four bytes and the epoch in eight, big-endian.
    #[must_use]
    pub fn to_tags(self) -> TaggedFields {
        let mut data = self.node.value().to_be_bytes().to_vec();
        data.extend_from_slice(&self.epoch.value().to_be_bytes());
        tags::one(tags::SEAL_HOLDER, Bytes::from(data))
    }

    /// What an answer says; none where the broker is not ours, or knows of no controller.
    #[must_use]
    pub fn from_tags(fields: &TaggedFields) -> Option<Self> {
        let data = tags::find(fields, tags::SEAL_HOLDER)?;
        let (node, epoch) = data.split_first_chunk()?;
        Some(Self {
            node: BrokerId::new(i32::from_be_bytes(*node)),
            epoch: ControllerEpoch::new(i64::from_be_bytes(epoch.try_into().ok()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood_and_nothing_else() {
        let holder = SealHolder {
            node: BrokerId::new(70_000),
            epoch: ControllerEpoch::new(1 << 40),
        };
        assert_eq!(SealHolder::from_tags(&holder.to_tags()), Some(holder));
        assert_eq!(SealHolder::from_tags(&TaggedFields::default()), None);
        for data in [&[0; 3][..], &[0; 11], &[0; 13]] {
            let fields = tags::one(tags::SEAL_HOLDER, Bytes::copy_from_slice(data));
            assert_eq!(SealHolder::from_tags(&fields), None);
        }
    }
}
