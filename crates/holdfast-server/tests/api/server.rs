//! A server of this process with directories of its own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use holdfast_api::{
    CreateSession, CreateToken, Session,
    client::{Client, Update},
};
use holdfast_server::{Config, DriverChoice, Replaced, Server, ServerError};
use holdfast_store::Store;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Far above what anything here takes, so that only what never happens runs into it.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct TestServer {
    pub address: SocketAddr,
    pub token: String,
    /// As administrator.
    pub client: Client,
    pub config: Config,
    pub stop: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
    dir: TempDir,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(|_| {}, Replaced::default()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config), replaced: Replaced) -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-api-").tempdir().unwrap();
        let mut config = config(&dir);
        change(&mut config);
        let server = Self::listen(config, replaced, dir).await;
        server.ready().await;
        server
    }

    /// Listens, without waiting for anything.
    pub async fn listen(config: Config, replaced: Replaced, dir: TempDir) -> Self {
        let server = Server::start_with(config.clone(), replaced).await.unwrap();
        let (address, token) = (server.address(), server.admin_token().to_owned());
        let client = Client::new(&format!("http://{address}"), Some(&token)).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        Self { address, token, client, config, stop, task, dir }
    }

    pub async fn ready(&self) {
        until("the server is ready", async || self.client.readiness().await.unwrap().ready).await;
    }

    /// Stops it; answers its directories.
    pub async fn stop(self) -> (Config, TempDir) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("it stops").unwrap().unwrap();
        (self.config, self.dir)
    }

    /// A client of somebody who is no administrator.
    pub async fn owner(&self, name: &str) -> Client {
        let body = CreateToken { owner: name.to_owned(), ..CreateToken::default() };
        let made = self.client.create_token(&body).await.unwrap();
        self.with_token(&made.secret)
    }

    pub fn with_token(&self, token: &str) -> Client {
        Client::new(&format!("http://{}", self.address), Some(token)).unwrap()
    }

    pub async fn create(&self) -> Session {
        create(&self.client).await
    }

    pub async fn create_ready(&self) -> Session {
        let session = self.create().await;
        until_state(&self.client, session.id, "ready").await
    }
}

pub fn config(dir: &TempDir) -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: dir.path().join("state"),
        cache_dir: dir.path().join("cache"),
        driver: DriverChoice::Sim,
        ..Config::default()
    }
}

pub async fn create(client: &Client) -> Session {
    let key = Uuid::new_v4().to_string();
    client.create_session(&CreateSession::default(), &key).await.unwrap()
}

/// Waits until the session is in this state; fails at once when it can never be.
pub async fn until_state(client: &Client, id: Uuid, state: &str) -> Session {
    let following = async {
        let mut stream = client.follow(id, 0).await.unwrap();
        loop {
            match stream.next().await.unwrap().expect("the stream goes on") {
                Update::Session(session) if session.state == state => return *session,
                Update::Session(session) => {
                    let over = ["failed", "ended"].contains(&session.state.as_str());
                    assert!(!over, "{} instead of {state}: {:?}", session.state, session.detail);
                }
                Update::Event(_) => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, following).await.unwrap_or_else(|_| panic!("never {state}"))
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A SQLite store in a directory.
pub async fn store(dir: &TempDir) -> Arc<dyn Store> {
    let url = format!("sqlite:{}", dir.path().join("test.db").display());
    holdfast_store::open(&url).await.unwrap()
}
