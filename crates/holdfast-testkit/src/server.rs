//! A server inside this process, on the simulated driver unless another is given: for tests of the
//! API that need no VM.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_server::{Config, DriverChoice, Replaced, Server, ServerError};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;

/// How long a server without VMs may take until it is ready.
const READY: Duration = Duration::from_secs(30);

/// A server of this process, with directories of its own.
pub struct TestServer {
    /// Calls it as administrator.
    pub api: Api,
    /// What it was started with.
    pub config: Config,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
    dir: TempDir,
}

impl TestServer {
    /// Starts a server with defaults.
    pub async fn start() -> Result<Self> {
        Self::start_with(|_| {}, Replaced::default()).await
    }

    /// Starts a server with a changed configuration and with some parts given.
    pub async fn start_with(change: impl FnOnce(&mut Config), replaced: Replaced) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        let mut config = Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            state_dir: dir.path().join("state"),
            cache_dir: dir.path().join("cache"),
            driver: DriverChoice::Sim,
            ..Config::default()
        };
        change(&mut config);
        Self::run(config, replaced, dir).await
    }

    /// Stops it and starts another on the same directories, as after an upgrade.
    pub async fn restart(self, replaced: Replaced) -> Result<Self> {
        let config = self.config.clone();
        let dir = self.stop().await?;
        Self::run(config, replaced, dir).await
    }

    /// Stops it; answers its directories, which vanish when that is dropped.
    pub async fn stop(self) -> Result<TempDir> {
        self.stop.cancel();
        self.task.await.context("the server panicked")??;
        Ok(self.dir)
    }

    async fn run(config: Config, replaced: Replaced, dir: TempDir) -> Result<Self> {
        let server = Server::start_with(config.clone(), replaced).await?;
        let api = Api { address: server.address(), token: server.admin_token().to_owned() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        api.server_ready(READY).await?;
        Ok(Self { api, config, stop, task, dir })
    }
}
