//! Metadata store, cluster image, election and decisions of a Yuxi cluster

pub mod settings;
