//! The whole broker in this process, driven over sockets.

mod adoption;
mod client_groups;
mod compaction;
mod consumer_groups;
mod deletions;
mod etcd;
mod fetching;
mod groups;
mod hostile;
mod isolation;
mod pipelining;
mod placement;
mod records;
mod support;
mod transactional_offsets;
mod transactions;
mod versions;
