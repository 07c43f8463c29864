//! Blocks of producer ids. No id is ever given out twice: the next free one is
//! moved on by compare-and-swap before the block is handed over (KIP-730).

use serde::{Deserialize, Serialize};
use yuxi_protocol::ids::ProducerId;

use super::ChangeSet;
use crate::{
    ControllerError,
    image::ClusterImage,
    keys::{Key, ProducerIdsValue, print_value},
};

/// How many producer ids a broker is given at a time.
pub const PRODUCER_ID_BLOCK_SIZE: i32 = 1000;

/// Consecutive producer ids that belong to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdBlock {
    /// The first of them.
    pub first: ProducerId,
    /// How many there are.
    pub count: i32,
}

/// Takes the next block.
pub fn allocate(image: &ClusterImage) -> Result<(ChangeSet, ProducerIdBlock), ControllerError> {
    let current = image.producer_ids();
    let first = current.map_or(ProducerId::new(0), |ids| ids.value.next_producer_id);
    let next = first
        .value()
        .checked_add(i64::from(PRODUCER_ID_BLOCK_SIZE))
        .ok_or(ControllerError::ProducerIdsExhausted)?;
    let block = ProducerIdBlock {
        first,
        count: PRODUCER_ID_BLOCK_SIZE,
    };
    Ok((begin_at(image, ProducerId::new(next)), block))
}

/// Has the next block begin after `last`, or later as it is.
pub fn pass_over(
    image: &ClusterImage,
    last: ProducerId,
) -> Result<Option<ChangeSet>, ControllerError> {
    let current = image.producer_ids();
    let first = current.map_or(ProducerId::new(0), |ids| ids.value.next_producer_id);
    if last < first {
        return Ok(None);
    }
    let next = last
        .value()
        .checked_add(1)
        .ok_or(ControllerError::ProducerIdsExhausted)?;
    Ok(Some(begin_at(image, ProducerId::new(next))))
}

fn begin_at(image: &ClusterImage, next_producer_id: ProducerId) -> ChangeSet {
    let seen = image.producer_ids().map(|ids| ids.mod_revision);
    let mut changes = ChangeSet::default();
    changes.require_as_seen(&Key::ProducerIds, seen);
    changes.put(
        &Key::ProducerIds,
        print_value(&ProducerIdsValue { next_producer_id }),
    );
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::Cluster;

    #[test]
    fn blocks_follow_one_another_without_overlap() {
        let mut cluster = Cluster::new();
        for first in [0, 1000, 2000] {
            let (changes, block) = allocate(&cluster.image).unwrap();
            assert_eq!((block.first.value(), block.count), (first, 1000));
            cluster.apply(&[changes]);
        }
    }

    #[test]
    fn two_that_saw_the_same_image_get_no_block_each() {
        let mut cluster = Cluster::new();
        let (first, _) = allocate(&cluster.image).unwrap();
        let (second, _) = allocate(&cluster.image).unwrap();
        cluster.apply(&[first]);
        assert!(!cluster.would_accept(&second));
    }

    #[test]
    fn no_block_holds_an_id_that_was_passed_over() {
        let mut cluster = Cluster::new();
        for (last, first) in [(2_500_000, 2_500_001), (7, 2_501_001)] {
            let changes = pass_over(&cluster.image, ProducerId::new(last)).unwrap();
            cluster.apply(changes.as_slice());
            let (changes, block) = allocate(&cluster.image).unwrap();
            assert_eq!(block.first.value(), first);
            cluster.apply(&[changes]);
        }
        let none = pass_over(&cluster.image, ProducerId::new(i64::MAX));
        assert_eq!(none, Err(ControllerError::ProducerIdsExhausted));
    }

    #[test]
    fn the_last_ids_are_refused_rather_than_wrapped() {
        let mut cluster = Cluster::new();
        cluster.put(
            &Key::ProducerIds,
            print_value(&ProducerIdsValue {
                next_producer_id: ProducerId::new(i64::MAX - 10),
            }),
        );
        assert_eq!(
            allocate(&cluster.image),
            Err(ControllerError::ProducerIdsExhausted)
        );
    }
}
