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
    ChangeSet, PartitionEdits, allows_unclean_election, is_current,
    leaders::{Circumstances, Target, next_state},
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
            let keeps_data = keeps_data(image, broker);
            (broker.id, Arrival { broker, keeps_data })
        })
        .collect();
    let registered: BTreeSet<BrokerId> = image.registrations().map(|broker| broker.id).collect();
    let mut edits = PartitionEdits::new(image);
    for topic in image.topics() {
        for (partition, state) in topic.partitions() {
            let restarted = arrivals.contains_key(&state.leader);
            let unaffected = state.leader != BrokerId::NONE
                && !restarted
                && state
                    .isr
                    .iter()
                    .chain(&state.elr)
                    .all(|id| registered.contains(id) && !arrivals.contains_key(id));
            if unaffected {
                continue;
            }
            let lost = |id| arrivals.get(&id).is_some_and(|arrival| !arrival.keeps_data);
            let target = Target {
                isr: without(&state.isr, |id| !registered.contains(&id) || lost(id)),
                lost: &lost,
                leader_restarted: restarted,
                leader_recovery: state.leader_recovery,
            };
            let circumstances = Circumstances {
                is_active: &|id| arrivals.contains_key(&id) || image.is_active(id),
                is_alive: &|id| registered.contains(&id),
                min_isr: min_isr(image, settings, &topic.name, state.replicas.len()),
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
            let isr = without(&state.isr, |id| id == broker);
            let circumstances = Circumstances {
                is_active: &is_active,
                is_alive: &|id| id != broker && image.broker(id).is_some(),
                min_isr: min_isr(image, settings, &topic.name, state.replicas.len()),
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
    keeps_data: bool,
}

/// Whether a new incarnation still has all that the last one had (I8): it stopped
/// cleanly, or the page cache survived it, on the same disks.
fn keeps_data(image: &ClusterImage, broker: &BrokerImage) -> bool {
    let registration = &broker.registration;
    let Some(last) = image.admission(broker.id).map(|admission| &admission.value) else {
        // It was never here, so nothing was ever assigned to it.
        return true;
    };
    let clean = registration.clean_shutdown_epoch == Some(last.broker_epoch);
    let same_boot = !last.boot_id.is_empty() && registration.boot_id == last.boot_id;
    let same_disks = last
        .directories
        .iter()
        .all(|directory| registration.directories.contains(directory));
    !registration.damaged && same_disks && (clean || same_boot)
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
            boot_id: broker.registration.boot_id.clone(),
            directories: broker.registration.directories.clone(),
            shutting_down: false,
        }),
    );
    changes
}

fn without(isr: &[BrokerId], leaves: impl Fn(BrokerId) -> bool) -> Vec<BrokerId> {
    isr.iter().copied().filter(|&id| !leaves(id)).collect()
}

/// Whether [`reconcile`] could have something to do: a broker came or went.
pub fn membership_changed(old: &ClusterImage, new: &ClusterImage) -> bool {
    let epochs = |image: &ClusterImage| -> Vec<(BrokerId, BrokerEpoch, bool)> {
        image
            .registrations()
            .map(|broker| (broker.id, broker.epoch, image.is_admitted(broker)))
            .collect()
    };
    epochs(old) != epochs(new)
}

#[cfg(test)]
#[path = "brokers_tests.rs"]
mod tests;
