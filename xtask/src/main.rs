//! Development tasks: `cargo xtask up | test | lint | bench`.
//!
//! Each task sets up what it needs by itself, starting from a bare Debian 12 with a C compiler,
//! Cargo, Node, npm and Python. It must never leave anything in the source tree but ignored files:
//! tools and images go to the cache directory, logs and stamps to `target/xtask`.

mod bench;
mod build;
mod cache;
mod census;
mod debian;
mod firecracker;
mod image;
mod lint;
mod root;
mod sh;
mod stamp;
mod system;
mod tally;
mod test;
mod tools;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and measures Holdfast.")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything, make the image and run a server on this machine.
    Up(up::Args),
    /// Run every check and test, also in real VMs.
    Test(test::Args),
    /// Check formatting, lints, dependencies and the dashboard's sources.
    Lint,
    /// Measure a release build: what a user waits for, what a VM costs, what the server adds.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Up(args) => up::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Lint => lint::run_alone(),
        Task::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain on one line: a sentence for people, not a stack trace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
