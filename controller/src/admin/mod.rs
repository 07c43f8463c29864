//! What an operator sees of a daemon from outside, the same of both: the HTTP listener of
//! `admin.listener`, Prometheus' text format, and what the system knows of the process.
//!
//! Nothing here knows what is measured: a daemon says how far it is and writes its page
//! ([`Observed`]), and every metric is declared where it is counted.

mod exposition;
mod histogram;
mod http;
mod process;

pub use exposition::{Kind, Metric, Page};
pub use histogram::Histogram;
pub use http::serve;
pub use process::render as render_process;

/// How far a daemon is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// It comes up; nobody is served yet.
    #[default]
    Starting,
    /// It comes up as soon as the metadata store can be used, which it can't now for
    /// this reason.
    Waiting(String),
    /// It serves.
    Ready,
    /// A controlled shutdown is under way.
    Stopping,
    /// Something is broken that a restart or an operator must mend, in words.
    Failed(String),
}

/// A daemon as the admin listener tells of it, asked anew for each request.
pub trait Observed: Send + Sync + 'static {
    /// How far it is.
    fn readiness(&self) -> Readiness;

    /// Its metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}
