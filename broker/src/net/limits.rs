//! How much clients may take: connections in all and by address, and the bytes of
//! requests that are being read or handled. Owned by the broker, shared by all
//! listeners; a permit gives back what it took when it is dropped.

use crate::sync::lock;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Frames up to this size are read without asking the budget: they are bounded by
/// the number of connections, and heartbeats must pass when produces fill it.
const FREE_BYTES: usize = 16 * 1024;

/// The budget counts in units of this many bytes, so that a permit fits in 32 bits.
const UNIT_BYTES: usize = 1024;

/// Bytes of request frames that may be in memory over all connections.
#[derive(Clone, Debug)]
pub(crate) struct ByteBudget {
    units: Arc<Semaphore>,
    total_units: u32,
}

impl ByteBudget {
    pub(crate) fn new(total_bytes: usize) -> Self {
        let total_units = (total_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS >> 4) as u32;
        Self {
            units: Arc::new(Semaphore::new(total_units as usize)),
            total_units,
        }
    }

    /// Waits until `bytes` are free. A frame larger than the whole budget takes all of
    /// it. `None` for small frames, which pass free.
    pub(crate) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = self.units_of(bytes)?;
        Arc::clone(&self.units).acquire_many_owned(units).await.ok()
    }

    /// As [`ByteBudget::take`], unless that would wait.
    pub(crate) fn try_take(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Spent> {
        let Some(units) = self.units_of(bytes) else {
            return Ok(None);
        };
        Arc::clone(&self.units)
            .try_acquire_many_owned(units)
            .map(Some)
            .map_err(|_| Spent)
    }

    fn units_of(&self, bytes: usize) -> Option<u32> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        (bytes > FREE_BYTES).then(|| units.min(self.total_units))
    }
}

/// The byte budget has no room now.
#[derive(Debug)]
pub(crate) struct Spent;

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Refusal {
    #[error("max.connections={0} is reached")]
    Connections(usize),
    #[error("max.connections.per.ip={0} is reached for {1}")]
    ConnectionsPerIp(usize, IpAddr),
}

/// Counts open connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectionCounts {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

impl ConnectionCounts {
    /// Admits one more connection from `ip`, or says which limit forbids it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        ip: IpAddr,
        max: usize,
        max_per_ip: usize,
    ) -> Result<Admission, Refusal> {
        let mut open = self.open();
        if open.total >= max {
            return Err(Refusal::Connections(max));
        }
        if open.by_ip.get(&ip).copied().unwrap_or(0) >= max_per_ip {
            return Err(Refusal::ConnectionsPerIp(max_per_ip, ip));
        }
        open.total += 1;
        *open.by_ip.entry(ip).or_default() += 1;
        Ok(Admission {
            counts: Arc::clone(self),
            ip,
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

/// One open connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    counts: Arc<ConnectionCounts>,
    ip: IpAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.counts.open();
        open.total -= 1;
        if let Some(count) = open.by_ip.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                open.by_ip.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_connection_gives_its_place_back() {
        let counts = Arc::new(ConnectionCounts::default());
        let (a, b) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let first = counts.admit(a, 2, 1).expect("room for one");
        assert_eq!(
            counts.admit(a, 2, 1).err(),
            Some(Refusal::ConnectionsPerIp(1, a))
        );
        let _second = counts.admit(b, 2, 1).expect("room for another");
        assert_eq!(
            counts.admit([127, 0, 0, 3].into(), 2, 1).err(),
            Some(Refusal::Connections(2))
        );
        drop(first);
        counts.admit(a, 2, 1).expect("the place is free again");
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_budget_waits_for_all_of_it() {
        let budget = ByteBudget::new(64 * 1024);
        assert!(budget.take(100).await.is_none(), "small frames pass free");
        let half = budget.take(32 * 1024).await;
        let whole = budget.take(1 << 30);
        tokio::pin!(whole);
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(10), &mut whole)
                .await
                .is_err(),
            "half is still taken"
        );
        drop(half);
        assert!(whole.await.is_some());
    }
}
