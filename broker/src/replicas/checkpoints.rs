//! The checkpoint files of the log directory, and the cutting of logs, which has to keep them
//! true: the recovery point on disk is never beyond the end of a log.

use super::found::{Offsets, offset_of};
use crate::{
    partition::{Cut, Partition, Position},
    sync::lock,
    time,
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use yuxi_log::OffsetCheckpoint;
use yuxi_protocol::ids::{Offset, TopicPartition};

/// Which checkpoint files to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkpoints {
    /// Up to where logs are known to be on disk.
    RecoveryPoints,
    /// Up to where records are known to be committed.
    HighWatermarks,
    /// Where logs begin.
    LogStarts,
    /// Up to where logs have been compacted.
    Cleaned,
}

impl Checkpoints {
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::RecoveryPoints => OffsetCheckpoint::RECOVERY_POINT,
            Self::HighWatermarks => OffsetCheckpoint::HIGH_WATERMARK,
            Self::LogStarts => OffsetCheckpoint::LOG_START,
            Self::Cleaned => OffsetCheckpoint::CLEANER,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct CheckpointFiles {
    directory: PathBuf,
    /// What stands in recovery-point-offset-checkpoint. Whoever writes that file holds it.
    recovery_points: Mutex<Offsets>,
    /// What stands in replication-offset-checkpoint.
    high_watermarks: Mutex<Offsets>,
    /// Whoever writes one of the other files holds it.
    others: Mutex<()>,
}

impl CheckpointFiles {
    /// Of `directory`, in which these stand now.
    pub(super) fn new(
        directory: PathBuf,
        recovery_points: Offsets,
        high_watermarks: Offsets,
    ) -> Self {
        Self {
            directory,
            recovery_points: Mutex::new(recovery_points),
            high_watermarks: Mutex::new(high_watermarks),
            others: Mutex::default(),
        }
    }

    /// Writes what holds for the partitions here.
    pub(super) fn write(&self, which: Checkpoints, all: &[Arc<Partition>]) -> std::io::Result<()> {
        let write = |offset: &dyn Fn(&Partition) -> Option<Offset>| {
            let _held = lock(&self.others);
            let offsets: Vec<_> = all
                .iter()
                .filter_map(|partition| Some((partition.id(), offset(partition)?)))
                .collect();
            self.file(which).write(offsets)
        };
        match which {
            Checkpoints::RecoveryPoints => {
                let mut stored = lock(&self.recovery_points);
                let points = all
                    .iter()
                    .filter_map(|partition| {
                        let point = partition.with_log(|log, _| log.recovery_point())?;
                        Some((partition.id().clone(), point))
                    })
                    .collect();
                self.write_recovery_points(&mut stored, points)
            }
            Checkpoints::HighWatermarks => {
                let now: BTreeMap<_, _> = all
                    .iter()
                    .map(|partition| (partition.id().clone(), partition.offsets().high_watermark))
                    .collect();
                let mut stored = lock(&self.high_watermarks);
                // An idle broker leaves its disk alone.
                if *stored != now {
                    self.file(which)
                        .write(now.iter().map(|(id, &offset)| (id, offset)))?;
                    *stored = now;
                }
                Ok(())
            }
            Checkpoints::LogStarts => write(&|partition| {
                Some(partition.offsets().log_start).filter(|&start| start > Offset::ZERO)
            }),
            Checkpoints::Cleaned => {
                write(&|partition| partition.with_log(|log, _| log.cleaned_to())?)
            }
        }
    }

    /// Forgets partitions whose logs are about to begin anew: what stands in the files holds for
    /// others that had their names.
    pub(super) fn forget(&self, anew: &[TopicPartition]) -> std::io::Result<()> {
        let without = |offsets: &Offsets| {
            let mut rest = offsets.clone();
            rest.retain(|id, _| !anew.contains(id));
            (rest.len() < offsets.len()).then_some(rest)
        };
        if anew.is_empty() {
            return Ok(());
        }
        let mut stored = lock(&self.recovery_points);
        if let Some(rest) = without(&stored) {
            self.write_recovery_points(&mut stored, rest)?;
        }
        drop(stored);
        let mut stored = lock(&self.high_watermarks);
        if let Some(rest) = without(&stored) {
            let offsets = rest.iter().map(|(id, &offset)| (id, offset));
            self.file(Checkpoints::HighWatermarks).write(offsets)?;
            *stored = rest;
        }
        drop(stored);
        let _held = lock(&self.others);
        for which in [Checkpoints::LogStarts, Checkpoints::Cleaned] {
            let file = self.file(which);
            if let Some(rest) = without(&file.read()?) {
                file.write(rest.iter().map(|(id, &offset)| (id, offset)))?;
            }
        }
        Ok(())
    }

    /// Writes these recovery points instead of those that stand there.
    pub(super) fn replace_recovery_points(&self, points: Offsets) -> std::io::Result<()> {
        self.write_recovery_points(&mut lock(&self.recovery_points), points)
    }

    /// Cuts logs. First the recovery points on disk are lowered where they are beyond a
    /// cut, or a crash in between would look like lost data. `all` are the partitions here. Must
    /// run where blocking is allowed.
    pub(super) fn cut(
        &self,
        cuts: &[(Arc<Partition>, Position, Cut)],
        all: impl FnOnce() -> Vec<Arc<Partition>>,
    ) -> std::io::Result<()> {
        let mut stored = lock(&self.recovery_points);
        let lowered: Vec<_> = cuts
            .iter()
            .map(|(partition, _, cut)| (partition.id(), cut.offset()))
            .filter(|(id, to)| offset_of(&stored, id) > *to)
            .collect();
        if !lowered.is_empty() {
            let mut points = stored.clone();
            for (id, to) in lowered {
                points.insert(id.clone(), to);
            }
            self.write_recovery_points(&mut stored, points)?;
        }
        let cleaned_to = |partition: &Partition| partition.with_log(|log, _| log.cleaned_to())?;
        let was_cleaned = cuts
            .iter()
            .any(|(partition, _, cut)| cleaned_to(partition) > Some(cut.offset()));
        // Still holding the file, so that it is not raised again meanwhile.
        for (partition, position, cut) in cuts {
            if let Err(error) = partition.cut(position, *cut, time::wall_ms()) {
                tracing::error!(partition = %partition.id(), %error, "the log could not be cut");
            }
        }
        drop(stored);
        if was_cleaned {
            // What comes there instead has not been compacted.
            self.write(Checkpoints::Cleaned, &all())?;
        }
        Ok(())
    }

    fn write_recovery_points(&self, stored: &mut Offsets, points: Offsets) -> std::io::Result<()> {
        self.file(Checkpoints::RecoveryPoints)
            .write(points.iter().map(|(id, &point)| (id, point)))?;
        *stored = points;
        Ok(())
    }

    fn file(&self, which: Checkpoints) -> OffsetCheckpoint {
        OffsetCheckpoint::new(&self.directory, which.file_name())
    }
}
