//! What is said of a new image: in the log, and in the counters.

use std::sync::Arc;

use crate::{
    ControllerOptions, decide::configs, image::ClusterImage, keys::ConfigScope,
    metrics::ControllerMetrics,
};

/// See the module.
pub(super) struct Notices {
    /// This process's, as a candidate.
    incarnation: String,
    /// The min.insync.replicas that it was started with.
    min_isr: String,
    /// There will never be another process.
    is_alone: bool,
    metrics: Arc<ControllerMetrics>,
}

impl Notices {
    pub(super) fn new(
        incarnation: &str,
        options: &ControllerOptions,
        metrics: &Arc<ControllerMetrics>,
    ) -> Self {
        Self {
            incarnation: incarnation.to_owned(),
            min_isr: options.settings.min_insync_replicas.to_string(),
            is_alone: options.is_alone,
            metrics: Arc::clone(metrics),
        }
    }

    /// The image has gone from `old` to `new`.
    pub(super) fn image(&self, old: &ClusterImage, new: &ClusterImage) {
        let reign = |image: &ClusterImage| image.controller().map(|holder| holder.epoch);
        if reign(new).is_some() && reign(new) != reign(old) {
            self.metrics.reign_began();
        }
        let controller = new.controller().map(|holder| &holder.incarnation);
        if controller == Some(&self.incarnation) {
            self.metrics.decided(old, new);
        }
        self.compare_min_isr(old, new);
    }

    /// Says so where what this process was started with is not what holds in the cluster.
    fn compare_min_isr(&self, old: &ClusterImage, new: &ClusterImage) {
        let of = |image: &ClusterImage| {
            let value = image.config_value(&ConfigScope::Cluster, configs::MIN_ISR);
            value.map(ToOwned::to_owned)
        };
        if let Some(cluster) = of(new)
            && cluster != self.min_isr
            && of(old).as_ref() != Some(&cluster)
            && !self.is_alone
        {
            tracing::warn!(
                %cluster,
                given = %self.min_isr,
                "the min.insync.replicas that this process was started with is not the cluster's, \
                 which holds: it is changed as a default of all brokers, in one place"
            );
        }
    }
}
