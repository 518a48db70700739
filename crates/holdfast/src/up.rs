//! `holdfast up`: from nothing to a dashboard.

use anyhow::bail;
use holdfast_server::{DriverChoice, Server};

use crate::{
    cli::UpArgs,
    doctor::{self, Status},
    image, programs, serve, settings,
};

pub async fn run(args: UpArgs) -> anyhow::Result<()> {
    let (config, _) = settings::load(&args.config)?;
    let simulated = config.driver == DriverChoice::Sim;
    // What would fail later is said now. Drivers prove themselves when the server starts.
    let checks = doctor::before_up(&config);
    for check in checks.iter().filter(|check| check.status != Status::Ok) {
        eprintln!("{check}");
    }
    if checks.iter().any(|check| check.status == Status::Fail) {
        bail!("this machine is not ready: put right what is marked, or see `holdfast doctor`");
    }
    if !simulated && holdfast_image::Library::new(&config.cache_dir).current().is_none() {
        eprintln!("There is no image yet; building one takes some minutes, once.");
        image::build(&config.cache_dir, args.agent, false).await?;
    }
    serve::start_logging(&args.log)?;
    let server = Server::start(config).await?;
    serve::announce(&server, true);
    if args.open {
        let url = format!("{}/?token={}", server.url(), server.admin_token());
        if let Err(error) = programs::open_privately(&url) {
            tracing::warn!("{error:#}");
        }
    }
    serve::until_stopped(server).await
}
