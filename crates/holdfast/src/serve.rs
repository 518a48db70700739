//! `holdfast serve`

use std::io::IsTerminal as _;

use anyhow::Context as _;
use holdfast_server::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{LogArgs, LogFormat, ServeArgs},
    settings,
};

pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let (config, file) = settings::load(&args.config)?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    start_logging(&args.log)?;
    if let Some(file) = file {
        tracing::info!(file = %file.display(), "configuration read");
    }
    let server = Server::start(config).await?;
    announce(&server, args.show_token);
    until_stopped(server).await
}

/// Serves until SIGTERM or Ctrl-C. No session is ended by that.
pub async fn until_stopped(server: Server) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let signals = stop.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; sessions go on and are taken over by the next server");
        signals.cancel();
        // A second Ctrl-C does not wait.
        interrupt.recv().await;
        std::process::exit(130);
    });
    server.run(stop).await.map_err(Into::into)
}

/// Prints where the dashboard is. The token is shown to a person, or when asked for, never to a log.
pub fn announce(server: &Server, show_token: bool) {
    let url = server.url();
    if show_token || std::io::stdout().is_terminal() {
        println!("\n  Dashboard: {url}/?token={}\n", server.admin_token());
    } else {
        tracing::info!(
            url,
            token_file = %server.config().token_file().display(),
            "the dashboard is at this address; its access token is in the file"
        );
    }
}

pub fn start_logging(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log)
        .with_context(|| format!("`{}` is not a log filter, such as info or debug", args.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Human => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
