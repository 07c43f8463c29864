//! The difference between two images.

use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::{ClusterImage, TopicImage};
use crate::keys::ConfigScope;

/// The difference between two images.
#[derive(Debug)]
pub struct ImageChanges<'a> {
    /// Topics that are new, gone or not as they were.
    pub topics: Vec<TopicChange<'a>>,
    /// Scopes whose overrides changed.
    pub configs: Vec<&'a ConfigScope>,
    /// Whether any broker came, went or changed.
    pub brokers: bool,
    /// Whether the controller is another, or none.
    pub controller: bool,
}

/// What happened to a topic.
#[derive(Debug)]
pub enum TopicChange<'a> {
    /// It was not there before.
    Created(&'a Arc<TopicImage>),
    /// It is no longer there. A topic made anew under the name of an old one is
    /// the one deleted, then the other created.
    Deleted(&'a Arc<TopicImage>),
    /// Some partitions, or their number, are not as they were.
    Changed {
        /// Before.
        old: &'a Arc<TopicImage>,
        /// After.
        new: &'a Arc<TopicImage>,
    },
}

impl ClusterImage {
    /// What is different from an `older` image. The cost is that of the difference.
    pub fn changes_since<'a>(&'a self, older: &'a Self) -> ImageChanges<'a> {
        let mut topics = Vec::new();
        for difference in older.topics.diff(&self.topics) {
            match difference {
                DiffItem::Add(_, new) => topics.push(TopicChange::Created(new)),
                DiffItem::Remove(_, old) => topics.push(TopicChange::Deleted(old)),
                DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } => {
                    if old.id == new.id {
                        topics.push(TopicChange::Changed { old, new });
                    } else {
                        topics.push(TopicChange::Deleted(old));
                        topics.push(TopicChange::Created(new));
                    }
                }
            }
        }
        ImageChanges {
            topics,
            configs: older
                .configs
                .diff(&self.configs)
                .map(|difference| match difference {
                    DiffItem::Add(scope, _)
                    | DiffItem::Remove(scope, _)
                    | DiffItem::Update {
                        new: (scope, _), ..
                    } => scope,
                })
                .collect(),
            brokers: older.brokers != self.brokers || older.admissions != self.admissions,
            controller: older.controller != self.controller,
        }
    }
}
