//! Which calls of a shard may come next.
//!
//! Owned by the shard, of groups or of transactions. A shard is loaded once; from then on
//! it has at most one write whose outcome is not known, and takes in nothing else until
//! it is.

/// Where a shard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Ready,
    /// Records are out and their fate is not known.
    Writing,
}

impl Phase {
    pub(crate) fn assert_loading(self) {
        assert_eq!(self, Self::Loading, "the shard is loaded");
    }

    pub(crate) fn assert_ready(self) {
        assert_eq!(
            self,
            Self::Ready,
            "the shard is loaded and no write is under way"
        );
    }

    pub(crate) fn assert_nothing_is_written(self) {
        assert_ne!(self, Self::Writing, "no write is under way");
    }

    pub(crate) fn loaded(&mut self) {
        assert_eq!(*self, Self::Loading, "the shard is loaded once");
        *self = Self::Ready;
    }

    /// These records, if any, are to be written before anything else happens.
    pub(crate) fn handed_out<R>(&mut self, records: &[R]) {
        if !records.is_empty() {
            *self = Self::Writing;
        }
    }

    pub(crate) fn outcome_known(&mut self) {
        assert_eq!(
            *self,
            Self::Writing,
            "there are records to know the outcome of"
        );
        *self = Self::Ready;
    }
}
