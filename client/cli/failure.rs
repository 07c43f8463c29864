//! Why a command ended without success, and the exit code for it.

use std::io;
use std::process::ExitCode;

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// The exit code after SIGINT, as shells have it.
pub(crate) const INTERRUPTED: i32 = 130;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(#[from] yuxi_client::Error),
    /// Arguments that do not make sense together.
    #[error("{0}")]
    Usage(String),
    /// The command ran, and what it found or did is not what was asked for.
    #[error("{0}")]
    Unsuccessful(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// Whoever read our stdout has gone; there is nobody left to tell.
    #[error("stdout was closed")]
    StdoutClosed,
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// A failed write to stdout.
    pub(crate) fn stdout(source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            Self::StdoutClosed
        } else {
            Self::Io {
                what: "writing to stdout".to_owned(),
                source,
            }
        }
    }

    /// Prints the failure, if there is anyone to read it, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::StdoutClosed => ExitCode::SUCCESS,
            Self::Interrupted => ExitCode::from(INTERRUPTED as u8),
            Self::Usage(_) => self.print(2),
            Self::Client(_) | Self::Unsuccessful(_) | Self::Io { .. } => self.print(1),
        }
    }

    fn print(&self, code: u8) -> ExitCode {
        use std::io::Write as _;
        // A closed stderr is no reason to panic.
        let _ = writeln!(io::stderr(), "yuxi: {self}");
        ExitCode::from(code)
    }
}
