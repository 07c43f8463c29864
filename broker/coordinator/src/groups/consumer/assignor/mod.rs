//! Who is to read what: the assignors that members can choose from.
//!
//! Pure functions. Invariants: every partition of a topic that somebody is subscribed to
//! has exactly one reader, who is subscribed to it; the same input gives the same output.

mod range;
mod uniform;

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::{codec::StrBytes, ids::TopicId};

use super::Partitions;

/// A way to divide partitions among members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Assignor {
    /// As evenly as can be over all topics together, and each keeps what it can.
    Uniform,
    /// Each topic by itself, in ranges of neighbours, so that partitions of the same number
    /// of several topics have one reader.
    Range,
}

impl Assignor {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Range];

    /// The name that members choose it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// The assignor of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|assignor| assignor.name() == name)
    }

    pub(super) fn assign(self, group: &Subscribers<'_>) -> BTreeMap<StrBytes, Partitions> {
        match self {
            Self::Uniform => uniform::assign(group),
            Self::Range => range::assign(group),
        }
    }
}

/// A group as an assignor sees it.
pub(super) struct Subscribers<'a> {
    pub(super) members: Vec<Subscriber<'a>>,
    /// How many partitions each topic has; every subscribed topic is there.
    pub(super) topics: BTreeMap<TopicId, i32>,
    /// The racks that have a replica of a partition. Asked only where members have one.
    pub(super) racks: &'a dyn Fn(TopicId, i32) -> Vec<StrBytes>,
}

pub(super) struct Subscriber<'a> {
    pub(super) id: &'a StrBytes,
    pub(super) instance_id: Option<&'a StrBytes>,
    pub(super) rack_id: Option<&'a StrBytes>,
    pub(super) topics: BTreeSet<TopicId>,
    /// What it was to have before.
    pub(super) before: Option<&'a Partitions>,
}

impl Subscriber<'_> {
    fn reads(&self, topic: TopicId) -> bool {
        self.topics.contains(&topic)
    }
}

#[cfg(test)]
mod tests;
