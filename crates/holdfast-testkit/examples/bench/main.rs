//! Measures Holdfast: what a user waits for, what a VM costs, what the server adds.
//!
//! `cargo xtask bench` builds this and runs it with all that it needs. Both sides of every comparison
//! are measured in one run. Nothing is left behind, and no address but this machine's own is used.

mod control;
mod density;
mod gateway;
mod http;
mod links;
mod pages;
mod report;
mod start;
mod usage;
mod visit;
mod vmm;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::report::Report;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
    /// Put the tables into `docs/benchmarks.md` too.
    #[arg(long, global = true)]
    docs: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// The server without VMs: requests, heartbeats, reconciling, recovery.
    Control(control::Args),
    /// From the request to the desktop: cold, cloned, from the pool.
    Start(start::Args),
    /// A stream through the gateway, raw, and through websockify.
    Gateway(gateway::Args),
    /// The drivers' operations over the raw calls to the same VMMs.
    Vmm(vmm::Args),
    /// Idle desktops, and putting them away.
    Density(density::Args),
    /// From the request to a tool's sign-in link: cloned, from the pool, cold.
    Links(links::Args),
    /// A server that streams lead through; run by `gateway` itself.
    #[command(hide = true)]
    WiredServer {
        /// Where desktops are.
        source: std::net::SocketAddr,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let name = match &cli.bench {
        Bench::Control(_) => "control",
        Bench::Start(_) => "start",
        Bench::Gateway(_) => "gateway",
        Bench::Vmm(_) => "vmm",
        Bench::Density(_) => "density",
        Bench::Links(_) => "links",
        Bench::WiredServer { source } => return gateway::serve(*source).await,
    };
    let mut report = Report::begin(name);
    let measured = async {
        match &cli.bench {
            Bench::Control(args) => control::measure(args, &mut report).await,
            Bench::Start(args) => start::measure(args, &mut report).await,
            Bench::Gateway(args) => gateway::measure(args, &mut report).await,
            Bench::Vmm(args) => vmm::measure(args, &mut report).await,
            Bench::Density(args) => density::measure(args, &mut report).await,
            Bench::Links(args) => links::measure(args, &mut report).await,
            Bench::WiredServer { .. } => Ok(()),
        }
    };
    let mut ended = signal(SignalKind::terminate())?;
    // Whatever was started is removed when it is dropped, also here.
    tokio::select! {
        measured = measured => measured?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = ended.recv() => bail!("interrupted"),
    }
    report.write(cli.docs)
}
