//! The HTTP agent that the host talks to. What the calls are stands in `holdfast-agent-api`.
//!
//! Answering a health call never waits for anything: the state of the services is kept by a task of
//! its own. Terminals and sign-in runs live in `hold`; their calls are passed on.

mod claim;
mod exec;
mod figures;
mod freeze;
mod held;
mod rebind;
mod rehearsal;
mod settle;
mod system;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::{any, get, post},
};
use holdfast_agent_api::{
    AssignRequest, ClaimAnswer, ClaimRequest, ClockAnswer, ClockShift, ExecAnswer, ExecRequest,
    Frozen, Health, Metrics, PROTOCOL, ServiceHealth, ServiceState, Settled,
};
use jiff::Timestamp;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    guest::Guest,
    init::keeper,
    supervise::{self, Board, uptime_ms},
    wire::{self, Refusal},
};

/// How long it may take to answer itself. With [`keeper::BEAT_EVERY`] less than [`keeper::HANG`]: on a host
/// that is short of processors an answer takes seconds, and is one.
const ANSWER: Duration = Duration::from_secs(10);
/// Largest request: standard input of a command, in base64.
const REQUEST_LIMIT: usize = 16 << 20;

/// What all calls share.
pub struct Agent {
    guest: Guest,
    board: Mutex<Board>,
    claim: claim::Claims,
    freezer: freeze::Freezer,
    /// Rises when another page shall be opened first; a page that still waits is then given up.
    start_page: Arc<AtomicU64>,
    /// A machine of the pool is being prepared.
    rehearses: AtomicBool,
    /// The browser of the warm image does not go on yet, or shows nothing yet.
    holds: AtomicBool,
    /// Somebody wants the browser now.
    browser_wanted: tokio::sync::Notify,
    started_ms: u64,
}

/// Answers the host until the process is killed.
pub async fn run(guest: Guest) -> anyhow::Result<()> {
    let listener = TcpListener::bind(guest.listen).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(wire::beat(move || is_well(port)));
    axum::serve(listener, router(Agent::start(guest))).await?;
    Ok(())
}

/// Asks itself for its health, the way the host does.
async fn is_well(port: u16) -> bool {
    let ask = async {
        let stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await?;
        wire::call(stream, Method::GET, "/v1/health", Vec::new()).await
    };
    matches!(tokio::time::timeout(ANSWER, ask).await, Ok(Ok((StatusCode::OK, _))))
}

impl Agent {
    /// Starts to follow the services. Has to be called within a runtime.
    pub fn start(guest: Guest) -> Arc<Self> {
        let held = held::Held::load(&guest);
        let agent = Arc::new(Self {
            claim: claim::Claims::load(&guest),
            board: Mutex::default(),
            freezer: freeze::Freezer::default(),
            guest,
            start_page: Arc::default(),
            rehearses: AtomicBool::new(false),
            holds: AtomicBool::new(held.is_some()),
            browser_wanted: tokio::sync::Notify::new(),
            started_ms: uptime_ms(),
        });
        if agent.claim.current().is_some_and(|claim| claim.complete) {
            // The process before this one may have died just before.
            match held {
                Some(held) => agent.wake_browser(held, Duration::ZERO),
                None => agent.start_browser(Duration::ZERO),
            }
        }
        let follower = Arc::downgrade(&agent);
        let socket = agent.guest.supervise_socket();
        tokio::spawn(async move {
            while let Some(agent) = follower.upgrade() {
                let after = agent.board().revision;
                drop(agent);
                let path = format!("/services?after={after}&waitMs=10000");
                let deadline = Duration::from_secs(14);
                let answer =
                    wire::call_unix(&socket, Method::GET, &path, Vec::new(), deadline).await;
                let board = answer.ok().and_then(|(_, body)| serde_json::from_slice(&body).ok());
                let Some(agent) = follower.upgrade() else { return };
                if let Some(board) = board {
                    agent.set_board(board);
                } else {
                    agent.supervisor_is_silent();
                    drop(agent);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
        agent
    }

    fn board(&self) -> Board {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_board(&self, board: Board) {
        let wanted = board.wanted("chromium");
        let mut kept = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *kept, board);
        drop(kept);
        if wanted > before.wanted("chromium") {
            self.browser_wanted.notify_waiters();
        }
    }

    fn supervisor_is_silent(&self) {
        let mut board = self.board();
        // A supervisor that was started again counts from one.
        board.revision = 0;
        for entry in &mut board.services {
            entry.state = ServiceState::Restarting;
            entry.pid = None;
            entry.last_error = Some("the supervisor of the services does not answer".to_owned());
        }
        self.set_board(board);
    }

    fn health(&self) -> Health {
        let board = self.board();
        let now = uptime_ms();
        let mut services: Vec<ServiceHealth> = board
            .services
            .iter()
            .map(|entry| ServiceHealth {
                name: entry.name.clone(),
                state: entry.state,
                pid: entry.pid,
                age_ms: now.saturating_sub(entry.started_ms),
                restarts: entry.restarts,
                last_error: entry.last_error.clone(),
            })
            .collect();
        services.push(self.own_health());
        Health {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            claimed: self.claim.current().is_some(),
            vm_id: self.claim.current().map(|claim| claim.request.vm_id),
            uptime_ms: now,
            time: Timestamp::now(),
            boot_id: system::boot_id(),
            desktop_ready: board.shows_desktop(),
            browser_ready: board.runs("chromium")
                && !self.rehearses.load(Ordering::SeqCst)
                && !self.holds.load(Ordering::SeqCst),
            services,
        }
    }

    fn own_health(&self) -> ServiceHealth {
        let variable = |name: &str| std::env::var(name).ok();
        ServiceHealth {
            name: "agent".to_owned(),
            state: ServiceState::Running,
            pid: Some(std::process::id()),
            age_ms: uptime_ms().saturating_sub(self.started_ms),
            restarts: variable(keeper::RESTARTS_VARIABLE)
                .and_then(|n| n.parse().ok())
                .unwrap_or_default(),
            last_error: variable(keeper::REASON_VARIABLE).filter(|reason| !reason.is_empty()),
        }
    }

    async fn order(&self, name: &str, order: &str) -> Result<(), Refusal> {
        self.tell_supervisor(&format!("/services/{name}/{order}")).await
    }

    async fn tell_supervisor(&self, path: &str) -> Result<(), Refusal> {
        supervise::tell(&self.guest, path).await
    }
}

/// The calls of the protocol.
pub fn router(agent: Arc<Agent>) -> Router {
    let guarded = Router::new()
        .route("/v1/assign", post(assign))
        .route("/v1/rebind", post(rebind))
        .route("/v1/clock", post(shift_clock))
        .route("/v1/freeze", post(freeze))
        .route("/v1/thaw", post(thaw))
        .route("/v1/exec", post(run_command))
        .route("/v1/services/{name}/restart", post(restart))
        .route("/v1/metrics", get(metrics))
        .route("/v1/shutdown", post(shutdown))
        .route("/v1/tool", any(pass_on))
        .route("/v1/tool/{call}", any(pass_on))
        .route("/v1/terminals/{name}", get(pass_on))
        .layer(middleware::from_fn_with_state(Arc::clone(&agent), guard));
    Router::new()
        .route(
            "/v1/health",
            get(|State(agent): State<Arc<Agent>>| async move { Json(agent.health()) }),
        )
        .route("/v1/claim", post(claim))
        .route("/v1/settle", post(settle))
        .route(rehearsal::PATH, get(rehearsal::page))
        .merge(guarded)
        .fallback(|| async { Refusal::missing("there is no such call") })
        .layer(DefaultBodyLimit::max(REQUEST_LIMIT))
        .with_state(agent)
}

async fn guard(
    State(agent): State<Arc<Agent>>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let unauthorized = |why: &str| Refusal(StatusCode::UNAUTHORIZED, why.to_owned());
    let Some(claim) = agent.claim.current() else {
        if request.uri().path() == "/v1/metrics" {
            return Ok(next.run(request).await);
        }
        return Err(unauthorized("this guest was not claimed yet"));
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    if bool::from(given.as_bytes().ct_eq(claim.request.secret.as_bytes())) {
        Ok(next.run(request).await)
    } else {
        Err(unauthorized("the secret is not that of this guest's claim"))
    }
}

async fn claim(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ClaimRequest>,
) -> Result<Json<ClaimAnswer>, Refusal> {
    // A host that hangs up does not leave a guest that is claimed by half.
    let work = tokio::spawn(async move { agent.claim(request).await });
    work.await.map_err(Refusal::failed)?.map(Json)
}

async fn assign(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<AssignRequest>,
) -> Result<Json<ClaimAnswer>, Refusal> {
    let work = tokio::spawn(async move { agent.assign(request).await });
    work.await.map_err(Refusal::failed)?.map(Json)
}

async fn rebind(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ClaimRequest>,
) -> Result<Json<ClaimAnswer>, Refusal> {
    let work = tokio::spawn(async move { agent.rebind(request).await });
    work.await.map_err(Refusal::failed)?.map(Json)
}

async fn shift_clock(
    State(agent): State<Arc<Agent>>,
    Json(shift): Json<ClockShift>,
) -> Result<Json<ClockAnswer>, Refusal> {
    if agent.guest.is_whole() {
        system::shift_clock(shift.by_us).map_err(Refusal::failed)?;
    }
    Ok(Json(ClockAnswer { time: Timestamp::now() }))
}

async fn freeze(State(agent): State<Arc<Agent>>) -> Result<Json<Frozen>, Refusal> {
    let work = tokio::spawn(agent.freeze());
    work.await.map_err(Refusal::failed)?.map(Json)
}

async fn thaw(State(agent): State<Arc<Agent>>) -> Json<Frozen> {
    Json(agent.thaw().await)
}

async fn settle(State(agent): State<Arc<Agent>>) -> Result<Json<Settled>, Refusal> {
    agent.settle().await.map(Json)
}

async fn run_command(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<ExecRequest>,
) -> Result<Json<ExecAnswer>, Refusal> {
    exec::run(&agent.guest, request).await.map(Json)
}

async fn metrics(State(agent): State<Arc<Agent>>) -> Result<Json<Metrics>, Refusal> {
    figures::read(&agent.guest).map(Json).map_err(Refusal::failed)
}

async fn restart(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
) -> Result<Json<ServiceHealth>, Refusal> {
    if name == "agent" {
        let health = agent.own_health();
        tokio::spawn(async {
            // The answer leaves first; PID 1 starts the next one.
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::process::exit(0);
        });
        return Ok(Json(health));
    }
    agent.order(&name, "restart").await?;
    let find = || agent.health().services.into_iter().find(|service| service.name == name);
    find().map(Json).ok_or_else(|| Refusal::missing(format!("there is no service `{name}`")))
}

async fn shutdown(State(agent): State<Arc<Agent>>) -> StatusCode {
    tokio::spawn(async move {
        if let Err(refusal) = agent.tell_supervisor("/stop").await {
            tracing::warn!("switching off although services still run: {}", refusal.1);
        }
        tokio::task::spawn_blocking(rustix::fs::sync).await.ok();
        if let Err(error) = wire::ask_power_off().await {
            tracing::error!("cannot ask for the power to be switched off: {error}");
        }
    });
    StatusCode::ACCEPTED
}

async fn pass_on(State(agent): State<Arc<Agent>>, request: Request) -> Result<Response, Refusal> {
    wire::forward(&agent.guest.hold_socket(), request).await
}
