//! The supervisor of the desktop's services: starts them in the order of their needs, knows when they
//! are ready, starts them again when they end, and leaves nothing of them behind.
//!
//! It answers `serve` on a Unix socket: `GET /services?after=&waitMs=` ([`Board`]), and
//! `POST /services/{name}/{start|stop|restart}` and `POST /stop` (204 or 404).

mod chromium;
mod service;
mod table;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{Method, StatusCode},
    routing::{get, post},
};
use holdfast_agent_api::{AgentError, ServiceState};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::{
    service::{Order, Service},
    table::{Spec, desktop},
};
use crate::{
    census,
    guest::{Guest, write_atomically},
    wire::{self, Refusal},
    x11,
};

/// Longest wait for an order to the supervisor.
const ORDER_DEADLINE: Duration = Duration::from_secs(20);

/// State of all services.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Board {
    /// Rises with every change.
    pub revision: u64,
    /// The services in the order of the table.
    pub services: Vec<Entry>,
}

impl Board {
    /// Whether the service of that name does its work.
    pub fn runs(&self, name: &str) -> bool {
        self.is(name, ServiceState::Running)
    }

    /// Whether it was told to stop, and did.
    pub fn is_stopped(&self, name: &str) -> bool {
        self.is(name, ServiceState::Stopped)
    }

    /// Process id of the service of that name, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.entry(name)?.pid
    }

    /// How often the service of that name was wanted while it ran already.
    pub fn wanted(&self, name: &str) -> u32 {
        self.entry(name).map_or(0, |entry| entry.wanted)
    }

    /// Whether a desktop is there to be looked at, with or without a browser.
    pub fn shows_desktop(&self) -> bool {
        self.runs("xvnc") && self.runs("openbox")
    }

    fn is(&self, name: &str, state: ServiceState) -> bool {
        self.entry(name).is_some_and(|entry| entry.state == state)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.services.iter().find(|entry| entry.name == name)
    }
}

/// State of a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: ServiceState,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// When it was last started, in ms since the kernel started.
    pub started_ms: u64,
    /// How often it was started again after it ended by itself.
    pub restarts: u32,
    /// How often it was told to start while it ran already: it is wanted now.
    pub wanted: u32,
    /// Why it last ended.
    pub last_error: Option<String>,
}

/// Milliseconds since the kernel started.
pub fn uptime_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// The services that run, and what was ordered of them.
pub struct Supervisor {
    guest: Guest,
    services: Vec<Service>,
    board: watch::Receiver<Board>,
}

impl Supervisor {
    /// Ends what an earlier supervisor left behind, and starts `specs`.
    pub async fn start(guest: Guest, specs: Vec<Spec>) -> Arc<Self> {
        let left = census::end(&guest.mark("service-*"), None, Duration::ZERO).await;
        if left > 0 {
            tracing::error!("{left} processes of services of before cannot be killed");
        }
        let stopped = stopped(&guest);
        let entry = |spec: &Spec| Entry {
            name: spec.name.to_owned(),
            state: if stopped.iter().any(|name| name == spec.name) {
                ServiceState::Stopped
            } else {
                ServiceState::Waiting
            },
            pid: None,
            started_ms: 0,
            restarts: 0,
            wanted: 0,
            last_error: None,
        };
        let board = Board { revision: 1, services: specs.iter().map(entry).collect() };
        let (sender, receiver) = watch::channel(board);
        let sender = Arc::new(sender);
        let services = specs
            .into_iter()
            .map(|spec| {
                let runs = !stopped.iter().any(|name| name == spec.name);
                Service::start(guest.clone(), spec, Arc::clone(&sender), runs)
            })
            .collect();
        Arc::new(Self { guest, services, board: receiver })
    }

    /// State of all services.
    pub fn board(&self) -> watch::Receiver<Board> {
        self.board.clone()
    }

    /// Has `order` carried out on a service; false when there is none of that name.
    pub async fn order(&self, name: &str, order: Order) -> io::Result<bool> {
        let Some(service) = self.services.iter().find(|service| service.name == name) else {
            return Ok(false);
        };
        // Kept first: a supervisor that dies in between carries it out when it starts.
        let mut stopped = stopped(&self.guest);
        stopped.retain(|other| other != name);
        if order == Order::Stop {
            stopped.push(name.to_owned());
        }
        write_atomically(&stopped_file(&self.guest), &serde_json::to_vec(&stopped)?, 0o600)?;
        service.order(order).await;
        Ok(true)
    }

    /// Stops everything, clients before what they need.
    pub async fn stop(&self) {
        for service in self.services.iter().rev() {
            service.order(Order::Stop).await;
        }
    }
}

fn stopped_file(guest: &Guest) -> std::path::PathBuf {
    guest.run.join("stopped.json")
}

fn stopped(guest: &Guest) -> Vec<String> {
    let bytes = std::fs::read(stopped_file(guest)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Supervises the desktop until the process is killed.
pub async fn run(guest: Guest) -> anyhow::Result<()> {
    tokio::spawn(wire::beat(|| std::future::ready(true)));
    std::fs::create_dir_all(guest.run.join("log"))?;
    let supervisor = Supervisor::start(guest.clone(), desktop()).await;
    let display = guest.display.clone();
    std::thread::Builder::new().name("arrange".to_owned()).spawn(move || arrange(&display))?;
    tokio::spawn(trim_logs(guest.clone()));
    wire::serve_unix(&guest.supervise_socket(), 0o600, router(supervisor)).await?;
    Ok(())
}

/// Calls the supervisor from another of the agent's processes.
pub async fn tell(guest: &Guest, path: &str) -> Result<(), Refusal> {
    let socket = guest.supervise_socket();
    let answer = wire::call_unix(&socket, Method::POST, path, Vec::new(), ORDER_DEADLINE).await;
    let (status, body) = answer.map_err(|error| {
        Refusal::failed(format!("the supervisor of the services does not answer: {error}"))
    })?;
    if status.is_success() {
        return Ok(());
    }
    let why = serde_json::from_slice::<AgentError>(&body);
    Err(Refusal(status, why.map_or_else(|_| format!("status {status}"), |e| e.error)))
}

/// Keeps browser and terminal in their places for as long as there is a display.
fn arrange(display: &str) {
    loop {
        if let Ok(display) = x11::Display::open(display) {
            let _ = display.arrange();
            let _ = display.watch(|display| {
                let _ = display.arrange();
            });
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Logs are in memory: each starts again at a MiB.
async fn trim_logs(guest: Guest) {
    loop {
        tokio::time::sleep(Duration::from_mins(1)).await;
        for entry in std::fs::read_dir(guest.run.join("log")).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|meta| meta.len() > 1 << 20) {
                let _ = std::fs::File::create(entry.path());
            }
        }
    }
}

/// The calls of the supervisor.
pub fn router(supervisor: Arc<Supervisor>) -> Router {
    Router::new()
        .route("/services", get(services))
        .route("/services/{name}/{order}", post(order))
        .route("/stop", post(stop))
        .with_state(supervisor)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct After {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

async fn services(
    State(supervisor): State<Arc<Supervisor>>,
    Query(query): Query<After>,
) -> Json<Board> {
    let mut board = supervisor.board();
    let wait = Duration::from_millis(query.wait_ms.min(30_000));
    let newer = board.wait_for(|board| board.revision > query.after);
    let _ = tokio::time::timeout(wait, newer).await;
    let now = supervisor.board.borrow().clone();
    Json(now)
}

async fn order(
    State(supervisor): State<Arc<Supervisor>>,
    Path((name, order)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let order = match order.as_str() {
        "start" => Order::Start,
        "stop" => Order::Stop,
        "restart" => Order::Restart,
        other => return Err(Refusal::missing(format!("there is no order `{other}`"))),
    };
    match supervisor.order(&name, order).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Refusal::missing(format!("there is no service `{name}`"))),
        Err(error) => Err(Refusal::failed(error)),
    }
}

async fn stop(State(supervisor): State<Arc<Supervisor>>) -> StatusCode {
    supervisor.stop().await;
    StatusCode::NO_CONTENT
}
