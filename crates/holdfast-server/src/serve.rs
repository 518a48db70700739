//! One server: its listener, its start and its end.
//!
//! It listens first. Until store, driver and control are there, `/livez` answers, `/readyz` says
//! what is missing, the API answers 503 and a browser gets a page that loads itself again.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, ServerError, auth,
    config::{ADDRESS_FILE, DriverChoice},
    router,
    state::AppState,
    state_dir::StateDir,
    wiring::{self, Progress, Replaced},
};

/// How long open answers and streams may take to end when the server stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long a client may take to send the head of a request; also how long an idle connection is kept.
const HEADER_DEADLINE: Duration = Duration::from_mins(1);
/// Pause after a connection could not be accepted, such as for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the listener serves from: empty until everything is wired.
#[derive(Clone)]
pub(crate) struct Boot {
    pub progress: Progress,
    pub ready: Arc<OnceLock<(AppState, Router)>>,
}

/// A server that listens.
pub struct Server {
    config: Arc<Config>,
    replaced: Replaced,
    dir: Arc<StateDir>,
    listener: TcpListener,
    address: SocketAddr,
    admin_token: String,
    boot: Boot,
}

impl Server {
    /// Locks the state directory and listens; port 0 picks a free one.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        Self::start_with(config, Replaced::default()).await
    }

    /// Like [`Server::start`], with some parts given.
    pub async fn start_with(config: Config, replaced: Replaced) -> Result<Self, ServerError> {
        config.check()?;
        let needs_root = config.driver != DriverChoice::Sim && replaced.driver.is_none();
        if needs_root && !rustix::process::geteuid().is_root() {
            return Err(ServerError::NotRoot);
        }
        // Listening first: a taken port is found before anything else is touched.
        let listen_failed = |why: std::io::Error| match why.kind() {
            std::io::ErrorKind::AddrInUse => ServerError::AddressInUse(config.listen),
            _ => ServerError::Listen { address: config.listen, why },
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_failed)?;
        let address = listener.local_addr().map_err(listen_failed)?;
        let dir = Arc::new(StateDir::lock(&config.state_dir)?);
        let admin_token = auth::admin_token(&dir)?;
        dir.write(ADDRESS_FILE, &format!("{}\n", url_of(address)))?;
        let boot = Boot { progress: Progress::new(), ready: Arc::default() };
        Ok(Self { config: Arc::new(config), replaced, dir, listener, address, admin_token, boot })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's access token.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The address of its dashboard, for a browser on this machine.
    pub fn url(&self) -> String {
        url_of(self.address)
    }

    /// Serves until `stop` is cancelled. No session is ended by that.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { config, replaced, dir, listener, admin_token, boot, .. } = self;
        let front = router::front(Arc::clone(&config), boot.clone());
        let closing = CancellationToken::new();
        let serving = tokio::spawn(accept(listener, front, closing.clone()));
        let work = async {
            let state = wiring::open(
                config,
                replaced,
                &dir,
                &admin_token,
                &boot.progress,
                closing.child_token(),
            )
            .await?;
            let inner = router::inner(state.clone());
            // Set once only: nobody else has this cell for writing.
            let _ = boot.ready.set((state.clone(), inner));
            take_over(&state).await;
            crate::webhook::deliver_loop(state).await;
            std::future::pending::<Result<(), ServerError>>().await
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = stop.cancelled() => Ok(()),
            () = crate::metrics::keep_short() => Ok(()),
        };
        closing.cancel();
        if let Some((state, _)) = boot.ready.get() {
            state.streams.close();
            let closed = tokio::time::timeout(STOP_DEADLINE, state.streams.wait()).await;
            if closed.is_err() {
                tracing::warn!("some streams did not end in time; their viewers will reconnect");
            }
            state.control.stop().await;
        }
        // Commands fall back to the configured address; a leftover would only mislead them.
        let _ = dir.remove(ADDRESS_FILE);
        if tokio::time::timeout(STOP_DEADLINE, serving).await.is_err() {
            tracing::warn!("some answers did not end in time");
        }
        ended
    }
}

fn url_of(address: SocketAddr) -> String {
    let ip = address.ip();
    let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("http://{host}:{}", address.port())
}

/// Accepts connections until told to stop, and waits for answers that are under way.
async fn accept(listener: TcpListener, app: Router, closing: CancellationToken) {
    let open = TaskTracker::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Frames of a desktop are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(app.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let closing = closing.clone();
        open.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    open.close();
    open.wait().await;
}

/// Adopts the sessions in the store, as soon as it can be read.
async fn take_over(state: &AppState) {
    let mut pause = Duration::from_millis(200);
    loop {
        match state.control.start().await {
            Ok(_) => return,
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!(error, "sessions could not be taken over yet; trying again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}
