//! Measures a server with real VMs, and its gateway against raw TCP and websockify, in one run.
//!
//! `cargo xtask bench` builds and runs it. Every figure is printed with machine and method, and is
//! written as JSON and as `docs/benchmarks.md`.

mod gateway;
mod report;
mod sessions;

use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    let machine = report::machine();
    eprintln!("{machine:#}");
    let sessions = sessions::measure().await?;
    eprintln!("{sessions:#}");
    let gateway = gateway::measure().await?;
    eprintln!("{gateway:#}");
    report::write(&serde_json::json!({
        "machine": machine,
        "sessions": sessions,
        "gateway": gateway,
    }))
}
