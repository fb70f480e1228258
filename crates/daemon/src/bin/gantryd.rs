//! The daemon program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use gantry_daemon::args::{Args, Command, ConfigCommand, Global};
use gantry_daemon::config::{Config, Flavour};
use gantry_daemon::{Daemon, logging, memory, oci_hook, publish, runtime};
use gantry_errdefs::{Error, Result, ResultExt as _};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

fn main() -> ExitCode {
    let flavour = std::env::args_os().next().map_or(Flavour::Gantry, |a| Flavour::of_program(&a));
    let args = Args::parse();
    match run(&args, flavour) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Logging may not be up; this line is the one an operator looks for.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "gantryd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, flavour: Flavour) -> Result<()> {
    match &args.command {
        None => serve(&args.global, flavour),
        Some(Command::Config { which }) => config(&args.global, flavour, *which),
        Some(Command::Publish { namespace, topic }) => {
            let address = args.global.client_address(flavour)?;
            runtime::build_small()?.block_on(publish::run(&address, namespace, topic))
        }
        Some(Command::OciHook { command }) => match oci_hook::run(command)? {},
    }
}

fn config(global: &Global, flavour: Flavour, which: ConfigCommand) -> Result<()> {
    use std::io::Write as _;
    let text = match which {
        ConfigCommand::Default => Config::defaults(flavour).to_toml()?,
        ConfigCommand::Dump => global.load(flavour)?.config.to_toml()?,
        ConfigCommand::Migrate => {
            Config::load(global.config.as_deref(), flavour)?.config.to_toml()?
        }
    };
    std::io::stdout().write_all(text.as_bytes()).context(|| "standard output")
}

fn serve(global: &Global, flavour: Flavour) -> Result<()> {
    memory::tune();
    let loaded = global.load(flavour)?;
    logging::init(&loaded.config.debug)?;
    for warning in &loaded.warnings {
        warn!("config: {warning}");
    }
    runtime::build()?.block_on(async {
        let mut stop = signal(SignalKind::terminate())
            .and_then(|term| Ok((term, signal(SignalKind::interrupt())?)))
            .map_err(|e| Error::io("signals", e))?;
        let running = Daemon::start(loaded.config).await?;
        info!(address = running.address(), "serving");
        notify(&[NotifyState::Ready]);
        tokio::spawn(memory::keep_low());
        let result = tokio::select! {
            _ = stop.0.recv() => Ok("SIGTERM"),
            _ = stop.1.recv() => Ok("SIGINT"),
            end = running.failed() => Err(end),
        };
        notify(&[NotifyState::Stopping]);
        if let Ok(signal) = result {
            info!(signal, "stopping, containers stay");
        }
        running.shutdown().await;
        result.map(drop)
    })
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        warn!(error = %e, "the service manager could not be told");
    }
}
