//! When the controller looks whether leaders should go back to their preferred replicas
//! (`auto.leader.rebalance.enable`). The timer runs only while this process holds the seal,
//! from a whole interval after it was won: brokers that come back with it find their
//! place first.

use std::time::Duration;

use tokio::time::Instant;

use crate::settings::ServerSettings;

/// See the module.
pub(crate) struct RebalanceTimer {
    /// `None` if leaders are left where they are.
    interval: Option<Duration>,
    next: Option<Instant>,
}

impl RebalanceTimer {
    pub(crate) fn new(settings: &ServerSettings) -> Self {
        let seconds = u64::try_from(settings.leader_imbalance_check_interval_seconds);
        Self {
            interval: seconds
                .ok()
                .filter(|_| settings.auto_leader_rebalance_enable)
                .map(Duration::from_secs),
            next: None,
        }
    }

    /// When to look next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Whether to look now; starts the timer if it does not run.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        if let Some(next) = self.next {
            return next <= now;
        }
        self.looked(now, false);
        false
    }

    /// Sets the timer again after a look: to now, if that did not see everything.
    pub(crate) fn looked(&mut self, now: Instant, more: bool) {
        self.next = self
            .interval
            .and_then(|interval| now.checked_add(if more { Duration::ZERO } else { interval }));
    }

    /// The seal is lost.
    pub(crate) fn stop(&mut self) {
        self.next = None;
    }
}
