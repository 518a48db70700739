//! The `holdfast` command.
//!
//! Exit codes: 0 done, 1 it failed, 2 the command line is wrong. `session exec` exits with the
//! code of the command that it ran. Errors are one sentence and what to do, on standard error.

mod cli;
mod connect;
mod doctor;
mod image;
mod inventory;
mod login;
mod output;
mod programs;
mod provider;
mod serve;
mod session;
mod settings;
mod terminal;
mod token;
mod up;
mod wait;

use std::{process::ExitCode, time::Duration};

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};

/// How long what a server does beside its work may take to end, such as a machine that it was trying.
const END_DEADLINE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // A reader that went away (`holdfast session ls | head`) ends the command silently.
    output::die_on_closed_pipe();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let serves = matches!(cli.command, Command::Up(_) | Command::Serve(_));
    let outcome = runtime.block_on(run(cli));
    // Elsewhere a thread that still waits for standard input must not hold up the end.
    runtime.shutdown_timeout(if serves { END_DEADLINE } else { Duration::ZERO });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Up(args) => up::run(args).await?,
        Command::Serve(args) => serve::run(args).await?,
        Command::Doctor(args) => return doctor::run(&global, args).await,
        Command::Image(command) => image::run(&global, command).await?,
        Command::Session(command) => return session::run(&global, command).await,
        Command::Login(args) => return login::run(&global, args).await,
        Command::Provider(command) => provider::run(&global, command).await?,
        Command::Vm(cli::VmCommand::Ls) => inventory::vms(&global).await?,
        Command::Host(cli::HostCommand::Ls) => inventory::hosts(&global).await?,
        Command::Drain { hibernate, end } => inventory::drain(&global, hibernate, end).await?,
        Command::Undrain => inventory::undrain(&global).await?,
        Command::Token(command) => token::run(&global, command).await?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut std::io::stdout());
        }
        Command::Version => inventory::version(&global).await?,
    }
    Ok(ExitCode::SUCCESS)
}
