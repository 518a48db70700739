//! The guest program. What it does is decided by the name it is called by, or by its first argument.

use std::{path::Path, process::ExitCode};

use holdfast_agent::{guest::Guest, hold, init, initramfs, serve, shell, shim, supervise};

const USAGE: &str = "\
usage: agent COMMAND
  initramfs   mount the root file system and start `init` (as /init of the initramfs)
  init        start the guest (as PID 1)
  serve       answer the host over HTTP
  supervise   run the desktop's services
  hold        keep terminals and sign-in runs
  shell       be the shell of the desktop's terminal, once this guest was claimed
  open-url    open links in the guest's browser (also called xdg-open and the like)";

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    match name {
        "init" => return initramfs::main(),
        "open-url" | "xdg-open" | "x-www-browser" | "sensible-browser" | "www-browser" => {
            return shim::main(arguments.collect());
        }
        _ => {}
    }
    match arguments.next().as_deref() {
        Some("initramfs") => initramfs::main(),
        Some("init") => init::main(),
        Some("serve") => server(serve::run),
        Some("supervise") => server(supervise::run),
        Some("hold") => server(hold::run),
        Some("shell") => shell::main(),
        Some("open-url") => shim::main(arguments.collect()),
        Some("version" | "--version") => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Runs one of the long-lived parts until it fails.
fn server<F>(part: fn(Guest) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let outcome = Guest::from_env().map_err(anyhow::Error::from).and_then(|guest| {
        // Two workers: one busy handler never holds up the answer to a health call.
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(16)
            .enable_all()
            .build()?
            .block_on(part(guest))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}
