//! The controller daemon: a candidate for the seal that holds no data.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use yuxi_controller::{
    daemon::Daemon,
    settings::{LogFormat, ServerSettings, parse_override},
};

/// Competes to be the controller of a Yuxi cluster, and holds no data.
///
/// It needs the etcd that holds the cluster: --etcd, or etcd.endpoints in the file.
#[derive(Debug, Parser)]
#[command(name = "yuxi-controller", version)]
struct Options {
    /// A .properties file with Kafka's names; docs/SETTINGS.md lists them. The settings of
    /// data and clients, which a broker's file may hold, have no effect here.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting that takes precedence over the file. Repeatable.
    #[arg(long = "override", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// The same as --override node.id=N. No broker may have the same number.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    node_id: Option<i32>,
    /// The same as --override listeners=PLAINTEXT://HOST:PORT. Port 0 picks a free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The same as --override etcd.endpoints=URL[,URL...].
    #[arg(long, value_name = "URL")]
    etcd: Option<String>,
}

impl Options {
    fn settings(&self) -> anyhow::Result<ServerSettings> {
        let text = match &self.config {
            Some(file) => std::fs::read_to_string(file)
                .with_context(|| format!("--config {}", file.display()))?,
            None => String::new(),
        };
        let mut overrides = Vec::new();
        let mut set = |key: &str, value: String| overrides.push((key.to_owned(), value));
        if let Some(id) = self.node_id {
            set("node.id", id.to_string());
        }
        if let Some(address) = &self.listen {
            set("listeners", format!("PLAINTEXT://{address}"));
        }
        if let Some(urls) = &self.etcd {
            set("etcd.endpoints", urls.clone());
        }
        for text in &self.overrides {
            overrides.push(parse_override(text)?);
        }
        Ok(ServerSettings::from_properties(&text, &overrides)?)
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("yuxi-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let settings = options.settings()?;
    start_logging(&settings);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: ServerSettings) -> anyhow::Result<()> {
    // Installed first, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let daemon = tokio::select! {
        started = Daemon::start(settings) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    // Whoever started us may have closed its end; that is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "listening on {}", daemon.address());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    daemon.stop().await;
    Ok(())
}

fn start_logging(settings: &ServerSettings) {
    let filter = tracing_subscriber::EnvFilter::new(settings.log_level.to_string());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
