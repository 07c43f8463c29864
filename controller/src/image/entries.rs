//! What an entry of the metadata store changes in an image.
//!
//! A topic has its key and a key for each chunk of its partitions, in any order: which
//! topics are `touched` is gathered first, and those are put together at the end.

use std::{collections::BTreeSet, sync::Arc};

use yuxi_protocol::ids::{BrokerEpoch, ControllerEpoch, TopicId};

use super::{
    AdmissionImage, BrokerImage, ClusterImage, ConfigImage, ControllerImage, DaemonImage,
    DeletionImage, FeaturesImage, PartitionChunk, ProducerIdsImage, TopicImage, unified,
};
use crate::{
    keys::{
        ControllerValue, Key, PARTITIONS_PER_CHUNK, TopicValue, ValueError, parse_cluster,
        parse_partitions, parse_value,
    },
    store::{Entry, Revision},
};

impl ClusterImage {
    pub(super) fn put(
        &mut self,
        entry: &Entry,
        touched: &mut BTreeSet<TopicId>,
    ) -> Result<(), ValueError> {
        let mod_revision = entry.mod_revision;
        match Key::parse(&entry.key) {
            None => {}
            Some(Key::Cluster) => {
                let value = parse_cluster(&entry.key, &entry.value)?;
                self.cluster_id = Some(value.cluster_id.into());
            }
            Some(Key::Controller) => {
                let value: ControllerValue = parse_value(&entry.key, &entry.value)?;
                self.controller = Some(Arc::new(ControllerImage {
                    node_id: value.node_id,
                    epoch: ControllerEpoch::new(entry.create_revision.value()),
                    incarnation: value.incarnation,
                    session: entry.session,
                    endpoint: value.endpoint,
                }));
            }
            Some(Key::Broker(id)) => {
                let broker = BrokerImage {
                    id,
                    epoch: BrokerEpoch::new(mod_revision.value()),
                    registration: parse_value(&entry.key, &entry.value)?,
                    session: entry.session,
                };
                self.brokers.insert(id, Arc::new(broker));
            }
            Some(Key::Daemon(id)) => {
                let daemon = DaemonImage {
                    revision: mod_revision,
                    value: parse_value(&entry.key, &entry.value)?,
                    session: entry.session,
                };
                self.daemons.insert(id, Arc::new(daemon));
            }
            Some(Key::Admission(id)) => {
                let admission = AdmissionImage {
                    value: parse_value(&entry.key, &entry.value)?,
                    mod_revision,
                };
                self.admissions.insert(id, Arc::new(admission));
            }
            Some(Key::Topic(name)) => {
                let value: TopicValue = parse_value(&entry.key, &entry.value)?;
                self.forget_topic(&name);
                self.add_topic(name, value, mod_revision);
                touched.insert(value.topic_id);
            }
            Some(Key::Partitions(topic, chunk)) => {
                let states = parse_partitions(&entry.key, chunk, &entry.value)?;
                let states = PartitionChunk {
                    mod_revision,
                    states,
                };
                self.chunks.insert((topic, chunk), Arc::new(states));
                touched.insert(topic);
            }
            Some(Key::Deletion(topic)) => {
                let deletion = DeletionImage {
                    value: parse_value(&entry.key, &entry.value)?,
                    mod_revision,
                };
                self.deletions.insert(topic, Arc::new(deletion));
            }
            Some(Key::Config(scope)) => {
                let config = ConfigImage {
                    values: parse_value(&entry.key, &entry.value)?,
                    mod_revision,
                };
                self.configs.insert(scope, Arc::new(config));
            }
            Some(Key::Features) => {
                self.features = Some(Arc::new(FeaturesImage {
                    levels: parse_value(&entry.key, &entry.value)?,
                    mod_revision,
                }));
            }
            Some(Key::ProducerIds) => {
                self.producer_ids = Some(ProducerIdsImage {
                    value: parse_value(&entry.key, &entry.value)?,
                    mod_revision,
                });
            }
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, key: &str, touched: &mut BTreeSet<TopicId>) {
        match Key::parse(key) {
            None => {}
            Some(Key::Cluster) => self.cluster_id = None,
            Some(Key::Controller) => self.controller = None,
            Some(Key::Broker(id)) => {
                self.brokers.remove(&id);
            }
            Some(Key::Daemon(id)) => {
                self.daemons.remove(&id);
            }
            Some(Key::Admission(id)) => {
                self.admissions.remove(&id);
            }
            Some(Key::Topic(name)) => self.forget_topic(&name),
            Some(Key::Partitions(topic, chunk)) => {
                self.chunks.remove(&(topic, chunk));
                touched.insert(topic);
            }
            Some(Key::Deletion(topic)) => {
                self.deletions.remove(&topic);
            }
            Some(Key::Config(scope)) => {
                self.configs.remove(&scope);
            }
            Some(Key::ProducerIds) => self.producer_ids = None,
            Some(Key::Features) => self.features = None,
        }
    }

    fn add_topic(&mut self, name: Arc<str>, value: TopicValue, mod_revision: Revision) {
        if let Some(unified) = unified(&name) {
            self.collisions.insert(unified.into(), Arc::clone(&name));
        }
        let topic = Arc::new(TopicImage {
            name: Arc::clone(&name),
            id: value.topic_id,
            mod_revision,
            partition_count: value.partitions,
            chunks: Vec::new(),
        });
        self.topics_by_id.insert(topic.id, Arc::clone(&topic));
        self.topics.insert(name, topic);
    }

    fn forget_topic(&mut self, name: &str) {
        if let Some(old) = self.topics.remove(name) {
            self.topics_by_id.remove(&old.id);
            if let Some(unified) = unified(name) {
                self.collisions.remove(unified.as_str());
            }
        }
    }

    /// Puts together the topics whose own key or chunks have changed.
    pub(super) fn assemble(&mut self, touched: &BTreeSet<TopicId>) {
        for id in touched {
            let Some(old) = self.topics_by_id.get(id) else {
                continue;
            };
            let chunk_count = old.partition_count.div_ceil(PARTITIONS_PER_CHUNK as u32);
            // The count is another's word, so nothing is sized by it before the
            // chunks are there.
            let mut chunks = Vec::new();
            for (&(_, chunk), states) in self.chunks.range((*id, 0)..(*id, chunk_count)) {
                chunks.resize(chunk as usize, None);
                chunks.push(Some(Arc::clone(states)));
            }
            let topic = Arc::new(TopicImage {
                name: Arc::clone(&old.name),
                chunks,
                ..**old
            });
            self.topics
                .insert(Arc::clone(&topic.name), Arc::clone(&topic));
            self.topics_by_id.insert(*id, topic);
        }
    }
}
