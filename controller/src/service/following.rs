//! The cluster image and the watch that moves it.
//!
//! Invariants: the image is changed by the store alone, in the order of its revisions; an
//! image of another cluster, or of none, is never shown once there was one.

use std::{future::pending, sync::Arc};

use futures_util::StreamExt as _;
use tokio::sync::watch;

use crate::{
    ControllerError,
    image::ClusterImage,
    store::{Batch, MetadataStore, Revision, Snapshot, StoreError, Watch, WatchEvent},
};

/// See the module.
pub(super) struct Following {
    image: watch::Sender<Arc<ClusterImage>>,
    /// `None` when the image has to be read anew.
    batches: Option<Watch>,
    /// The last revision that this process committed.
    committed: Revision,
}

impl Following {
    /// Reads the image and follows it from there.
    pub(super) async fn start(store: &impl MetadataStore) -> Result<Self, ControllerError> {
        let (snapshot, batches) = read(store.clone()).await?;
        let image = ClusterImage::from_snapshot(&snapshot)?;
        Ok(Self {
            image: watch::Sender::new(Arc::new(image)),
            batches: Some(batches),
            committed: Revision::ZERO,
        })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.image.subscribe()
    }

    /// The newest image.
    pub(super) fn image(&self) -> Arc<ClusterImage> {
        Arc::clone(&self.image.borrow())
    }

    /// This process has committed something, which the image will have in time.
    pub(super) fn committed(&mut self, revision: Revision) {
        self.committed = self.committed.max(revision);
    }

    /// Whether the image has all that was committed here, and goes on.
    pub(super) fn is_current(&self) -> bool {
        !self.is_lost() && self.image.borrow().revision() >= self.committed
    }

    /// Whether everything has to be read anew.
    pub(super) fn is_lost(&self) -> bool {
        self.batches.is_none()
    }

    /// Something is not as the image has it.
    pub(super) fn lose(&mut self) {
        self.batches = None;
    }

    /// What the watch says next; dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<WatchEvent, StoreError>> {
        match &mut self.batches {
            Some(batches) => batches.next().await,
            None => pending().await,
        }
    }

    /// Everything was read anew; returns the image before.
    pub(super) fn read_anew(
        &mut self,
        snapshot: &Snapshot,
        batches: Watch,
    ) -> Result<Arc<ClusterImage>, ControllerError> {
        let image = ClusterImage::from_snapshot(snapshot)?;
        let image = self.of_this_cluster(image)?;
        self.batches = Some(batches);
        // A store that was put back from a backup may be behind what it once said.
        self.committed = self.committed.min(snapshot.revision);
        Ok(self.image.send_replace(Arc::new(image)))
    }

    /// Takes a batch in; returns the image before, unless that had it already.
    pub(super) fn advance(
        &mut self,
        batch: &Batch,
    ) -> Result<Option<Arc<ClusterImage>>, ControllerError> {
        let image = self.image();
        if batch.revision <= image.revision() {
            return Ok(None);
        }
        let next = image.advanced_by(batch).map_err(ControllerError::from);
        match next.and_then(|image| self.of_this_cluster(image)) {
            Ok(next) => Ok(Some(self.image.send_replace(Arc::new(next)))),
            Err(error) => {
                self.lose();
                Err(error)
            }
        }
    }

    /// Refuses an image of another cluster, or of none: in a store that was emptied, every
    /// topic would seem to be deleted.
    fn of_this_cluster(&self, image: ClusterImage) -> Result<ClusterImage, ControllerError> {
        let known = self.image.borrow().cluster_id().cloned();
        match known {
            Some(known) if image.cluster_id() != Some(&known) => {
                let why = format!("it no longer holds cluster {known}: put its data back");
                Err(StoreError::Damaged(why).into())
            }
            _ => Ok(image),
        }
    }
}

/// Reads everything, and watches from there on.
pub(super) async fn read(store: impl MetadataStore) -> Result<(Snapshot, Watch), StoreError> {
    let snapshot = store.read("").await?;
    let batches = store.watch("", snapshot.revision).await?;
    Ok((snapshot, batches))
}
