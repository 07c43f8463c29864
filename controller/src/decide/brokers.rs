//! Brokers that come, go and ask to shut down.
//!
//! [`reconcile`] looks at the whole image rather than at what happened last, so it
//! is the answer to a registration that came, to one that went, and to the taking over
//! of a new controller alike (I11), and doing it twice does nothing. What it
//! keeps: a broker is let in only after its earlier incarnation is out of every ISR and
//! ELR that it may not stay in (I7, I8).

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::ids::{BrokerEpoch, BrokerId};

use super::{
    ChangeSet, PartitionEdits, UNCLEAN_ELECTION, allows_unclean_election, deletions, is_current,
    leaders::{Circumstances, Loss, Target, next_state},
    min_isr,
};
use crate::{
    ControllerError,
    image::{BrokerImage, ClusterImage},
    keys::{AdmissionValue, Key, print_value},
    settings::ServerSettings,
    store::Revision,
};

/// Brings every partition into line with the brokers that are registered now, then
/// lets in those that have come.
pub fn reconcile(image: &ClusterImage, settings: &ServerSettings) -> Vec<ChangeSet> {
    let arrivals: BTreeMap<BrokerId, Arrival<'_>> = image
        .registrations()
        .filter(|broker| !image.is_admitted(broker))
        .map(|broker| {
            let loss = loss(image, broker);
            (broker.id, Arrival { broker, loss })
        })
        .collect();
    let registered: BTreeSet<BrokerId> = image.registrations().map(|broker| broker.id).collect();
    let loss = |id| {
        let arrival: Option<&Arrival<'_>> = arrivals.get(&id);
        arrival.map_or(Loss::Nothing, |arrival| arrival.loss)
    };
    let without_data: Vec<BrokerId> = arrivals
        .values()
        .filter(|arrival| arrival.loss == Loss::Data)
        .map(|arrival| arrival.broker.id)
        .collect();
    let mut edits = PartitionEdits::new(image);
    for topic in image.topics() {
        for (partition, state) in topic.partitions() {
            let restarted = arrivals.contains_key(&state.leader);
            let mut members = state.isr.iter().chain(&state.elr);
            let unaffected = state.leader != BrokerId::NONE
                && members.all(|id| registered.contains(id) && !arrivals.contains_key(id))
                && !without_data.iter().any(|id| state.replicas.contains(id));
            if unaffected {
                continue;
            }
            let stays = |&id: &BrokerId| registered.contains(&id) && loss(id) == Loss::Nothing;
            let target = Target {
                isr: state.isr.iter().copied().filter(stays).collect(),
                loss: &loss,
                leader_restarted: restarted,
                ..Target::same(state)
            };
            let circumstances = Circumstances {
                is_active: &|id| arrivals.contains_key(&id) || image.is_active(id),
                is_alive: &|id| registered.contains(&id),
                min_isr: min_isr(image, settings, &topic.name),
                unclean_election: allows_unclean_election(image, settings, &topic.name),
            };
            if let Some(next) = next_state(state, target, &circumstances) {
                edits.set(topic, partition, next);
            }
        }
    }
    let mut changes = edits.into_changes();
    changes.extend(
        arrivals
            .values()
            .map(|arrival| admit(image, arrival.broker)),
    );
    changes
}

/// Forgets a broker that is gone for good: it is no longer eligible anywhere, and should
/// it come back, nothing that it holds is relied on. Kafka lets a live one be
/// unregistered, only to see it register again; here that would cost it its place in
/// every ISR, so it is refused.
pub fn unregister(
    image: &ClusterImage,
    settings: &ServerSettings,
    broker: BrokerId,
) -> Result<Vec<ChangeSet>, ControllerError> {
    if image.registration(broker).is_some() {
        return Err(ControllerError::BrokerIsAlive(broker.value()));
    }
    let admission = image
        .admission(broker)
        .ok_or(ControllerError::BrokerIdNotRegistered(broker.value()))?;
    let mut edits = PartitionEdits::new(image);
    for topic in image.topics() {
        for (partition, state) in topic.partitions() {
            if !state.replicas.contains(&broker) {
                continue;
            }
            let target = Target {
                isr: without(&state.isr, broker),
                loss: &|id| {
                    if id == broker {
                        Loss::Data
                    } else {
                        Loss::Nothing
                    }
                },
                ..Target::same(state)
            };
            let circumstances = Circumstances {
                is_active: &|id| image.is_active(id),
                is_alive: &|id| image.broker(id).is_some(),
                min_isr: min_isr(image, settings, &topic.name),
                unclean_election: allows_unclean_election(image, settings, &topic.name),
            };
            if let Some(next) = next_state(state, target, &circumstances) {
                edits.set(topic, partition, next);
            }
        }
    }
    let key = Key::Admission(broker);
    let mut forgetting = ChangeSet::default();
    forgetting.require_absent(&Key::Broker(broker));
    forgetting.require_modified(&key, admission.mod_revision);
    forgetting.delete(&key);
    let mut changes = edits.into_changes();
    changes.push(forgetting);
    changes.extend(deletions::forget_broker(image, broker));
    Ok(changes)
}

/// As [`reconcile`], when some brokers are dead though they are registered, and others
/// alive though they are not. The dead lose their registrations with the first of the
/// changes, so that what is left undone is done by the next reconciling.
pub fn fence(
    image: &ClusterImage,
    settings: &ServerSettings,
    dead: &[BrokerId],
    spared: &[BrokerImage],
) -> Vec<ChangeSet> {
    let mut changes: Vec<ChangeSet> = dead
        .iter()
        .filter_map(|&id| image.registration(id))
        .map(|broker| {
            let key = Key::Broker(broker.id);
            let mut deletion = ChangeSet::default();
            deletion.require_modified(&key, Revision::new(broker.epoch.value()));
            deletion.delete(&key);
            deletion
        })
        .collect();
    changes.extend(reconcile(&image.supposing(dead, spared), settings));
    changes
}

/// What an interrupted creation or deletion of a topic left behind, to be deleted.
pub fn remove_orphans(image: &ClusterImage) -> Vec<ChangeSet> {
    image
        .orphaned_chunks()
        .map(|(topic, chunk, mod_revision)| {
            let key = Key::Partitions(topic, chunk);
            let mut changes = ChangeSet::default();
            changes.require_modified(&key, mod_revision);
            changes.delete(&key);
            changes
        })
        .collect()
}

/// Moves leadership away from a broker that asks to shut down and takes it out of the
/// in-sync replica sets of others, wherever somebody else can take over. The second
/// value is the number of partitions that it still leads, since nobody can.
pub fn shut_down(
    image: &ClusterImage,
    settings: &ServerSettings,
    broker: BrokerId,
    epoch: BrokerEpoch,
) -> Result<(Vec<ChangeSet>, usize), ControllerError> {
    let admission = image
        .admission(broker)
        .filter(|_| is_current(image, broker, epoch))
        .ok_or(ControllerError::StaleBrokerEpoch)?;
    let is_active = |id| id != broker && image.is_active(id);
    let mut edits = PartitionEdits::new(image);
    let mut still_led = 0;
    for topic in image.topics() {
        for (partition, state) in topic.partitions() {
            let stays = state.isr.iter().any(|&id| is_active(id));
            if !state.isr.contains(&broker) || !stays {
                still_led += usize::from(state.leader == broker);
                continue;
            }
            let isr = without(&state.isr, broker);
            let circumstances = Circumstances {
                is_active: &is_active,
                is_alive: &|id| id != broker && image.broker(id).is_some(),
                min_isr: min_isr(image, settings, &topic.name),
                unclean_election: false,
            };
            let target = Target::isr(isr, state.leader_recovery);
            if let Some(next) = next_state(state, target, &circumstances) {
                edits.set(topic, partition, next);
            }
        }
    }
    // First nothing new may come to it, then it loses what it has.
    let key = Key::Admission(broker);
    let mut closing = ChangeSet::default();
    closing.require_modified(&key, admission.mod_revision);
    closing.put(
        &key,
        print_value(&AdmissionValue {
            shutting_down: true,
            ..admission.value.clone()
        }),
    );
    let mut changes = vec![closing];
    changes.extend(edits.into_changes());
    Ok((changes, still_led))
}

struct Arrival<'a> {
    broker: &'a BrokerImage,
    loss: Loss,
}

/// What a new incarnation may lack of what the last one had (I8). It has all if it is the
/// same life, whose session had ended, or if that one stopped cleanly or the page cache
/// survived it, on the same disks as that one left them.
fn loss(image: &ClusterImage, broker: &BrokerImage) -> Loss {
    let registration = &broker.registration;
    let Some(last) = image.admission(broker.id).map(|admission| &admission.value) else {
        // It was never here, or was unregistered: what its disks hold nobody knows.
        return Loss::Data;
    };
    if !last.incarnation.is_empty() && registration.incarnation == last.incarnation {
        return Loss::Nothing;
    }
    let same_disks = last
        .directories
        .iter()
        .all(|directory| registration.directories.contains(directory));
    let clean = registration.clean_shutdown_epoch == Some(last.broker_epoch);
    let same_boot = !last.boot_id.is_empty() && registration.boot_id == last.boot_id;
    let former = &registration.former_incarnations;
    let put_back = !former.is_empty() && !former.contains(&last.incarnation);
    if registration.damaged || !same_disks || put_back {
        Loss::Data
    } else if clean || (same_boot && !former.is_empty()) {
        Loss::Nothing
    } else {
        Loss::Tail
    }
}

fn admit(image: &ClusterImage, broker: &BrokerImage) -> ChangeSet {
    let key = Key::Admission(broker.id);
    let mut changes = ChangeSet::default();
    changes.require_modified(&Key::Broker(broker.id), Revision::new(broker.epoch.value()));
    changes.require_as_seen(
        &key,
        image.admission(broker.id).map(|last| last.mod_revision),
    );
    changes.put(
        &key,
        print_value(&AdmissionValue {
            broker_epoch: broker.epoch,
            incarnation: broker.registration.incarnation.clone(),
            boot_id: broker.registration.boot_id.clone(),
            directories: broker.registration.directories.clone(),
            shutting_down: false,
        }),
    );
    changes
}

fn without(isr: &[BrokerId], broker: BrokerId) -> Vec<BrokerId> {
    isr.iter().copied().filter(|&id| id != broker).collect()
}

/// Whether [`reconcile`] could have something to do: a broker came or went, or unclean
/// elections were allowed where there is no leader.
pub fn asks_for_reconciling(old: &ClusterImage, new: &ClusterImage) -> bool {
    let epochs = |image: &ClusterImage| -> Vec<(BrokerId, BrokerEpoch, bool)> {
        image
            .registrations()
            .map(|broker| (broker.id, broker.epoch, image.is_admitted(broker)))
            .collect()
    };
    let unclean = |image: &ClusterImage, scope| {
        let value = image.config_value(scope, UNCLEAN_ELECTION);
        value.is_some_and(|value| value.trim() == "true")
    };
    let changed = || new.changes_since(old).configs;
    epochs(old) != epochs(new)
        || changed()
            .into_iter()
            .any(|scope| unclean(new, scope) && !unclean(old, scope))
}

#[cfg(test)]
#[path = "brokers_tests.rs"]
mod tests;
