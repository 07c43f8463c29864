//! `yuxi`: produce, consume and administer from the command line.
//!
//! This file reads the arguments, makes the client settings of them and turns
//! every failure into one line on stderr and an exit code; each command has a
//! file of its own. A closed stdout ends any command quietly.

mod bench;
mod cluster;
mod config;
mod consume;
mod failure;
mod format;
mod group;
mod output;
mod overview;
mod placement;
mod produce;
mod topic;
mod tx;
mod verify;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use yuxi_client::ClientConfig;

use failure::{Failure, Outcome};
use output::OutputFormat;

/// Talk to a Kafka-protocol cluster.
#[derive(Debug, Parser)]
#[command(name = "yuxi", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Brokers to begin with: HOST:PORT, separated by commas.
    #[arg(
        short,
        long,
        global = true,
        env = "YUXI_BOOTSTRAP",
        default_value = "localhost:9092",
        value_name = "HOST:PORT"
    )]
    bootstrap: String,
    /// A client setting by librdkafka's name; may be repeated.
    #[arg(short = 'X', global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// How lists and descriptions are printed.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send lines from stdin to a topic.
    Produce(produce::Args),
    /// Print a topic's records.
    Consume(consume::Args),
    /// Create, list, describe, alter, trim and delete topics.
    #[command(subcommand)]
    Topic(topic::Command),
    /// List, describe, seek and delete consumer groups.
    #[command(subcommand)]
    Group(group::Command),
    /// List, describe and abort transactions.
    #[command(subcommand)]
    Tx(tx::Command),
    /// Show the brokers and whether all is well.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Show and change settings of topics, brokers and groups.
    #[command(subcommand)]
    Config(config::Command),
    /// Measure throughput and latency.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Send and read numbered records, and check that nothing acknowledged is lost.
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("YUXI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Io {
            what: "starting".to_owned(),
            source,
        })
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(cli));
            // A reader blocked on a terminal's stdin must not hold up the exit.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Outcome {
    let config = client_config(&cli.global)?;
    let format = cli.global.output;
    match cli.command {
        // These two end in order when interrupted: delivered, committed. The others
        // are ended by the signal itself.
        Command::Produce(args) => produce::run(config, args).await,
        Command::Consume(args) => consume::run(config, args).await,
        Command::Topic(command) => topic::run(config, command, format).await,
        Command::Group(command) => group::run(config, command, format).await,
        Command::Tx(command) => tx::run(config, command, format).await,
        Command::Cluster(command) => cluster::run(config, command, format).await,
        Command::Config(command) => config::run(config, command, format).await,
        Command::Bench(command) => bench::run(config, command, format).await,
        Command::Verify(args) => verify::run(config, args, format).await,
    }
}

/// Defaults, then `-b`, then every `-X`.
fn client_config(global: &Global) -> Outcome<ClientConfig> {
    let mut config = ClientConfig::new(&global.bootstrap)?;
    for setting in &global.settings {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("-X {setting}: expected KEY=VALUE")))?;
        config.set(name.trim(), value)?;
    }
    Ok(config)
}

/// Resolves at the first SIGINT or SIGTERM; a second one ends the process at once.
/// `timeout` and some shells send each signal twice, which counts as once.
async fn interrupted() {
    const TWICE_IS_ONCE: Duration = Duration::from_millis(300);
    one_signal().await;
    tokio::spawn(async {
        tokio::time::sleep(TWICE_IS_ONCE).await;
        one_signal().await;
        std::process::exit(failure::INTERRUPTED);
    });
}

async fn one_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_declared_without_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_misspelt_setting_is_refused_with_the_nearest_name() {
        let cli = Cli::try_parse_from(["yuxi", "-X", "linger_ms=3", "produce", "t"])
            .expect("well-formed arguments");
        let failure = client_config(&cli.global).expect_err("no such setting");
        assert_eq!(
            failure.to_string(),
            "there is no setting 'linger_ms'; did you mean 'linger.ms'?"
        );
    }
}
