//! The guest of a simulated VM: the agent's protocol over HTTP, without anything behind it. Commands
//! answer with their own words, terminals with what is typed.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use holdfast_agent_api::{
    AgentError, AssignRequest, ClaimAnswer, ClaimRequest, ClockAnswer, ExecAnswer, ExecRequest,
    Frozen, Health, Metrics, PROTOCOL, ServiceHealth, ServiceState, Settled, terminal::FromAgent,
    tool::OpenRequest,
};
use holdfast_core::Timestamp;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{broadcast, watch},
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use super::tool::SimTool;

const SERVICES: [&str; 5] = ["xvnc", "openbox", "chromium", "terminal", "agent"];
/// As much as the real agent keeps.
const SCROLLBACK: usize = 256 * 1024;

type Answer = Response<Full<Bytes>>;

/// What a guest must not forget when the server restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) boot_id: String,
    pub(super) claim: Option<ClaimRequest>,
    #[serde(default)]
    pub(super) tool: Option<super::tool::Run>,
}

struct Terminal {
    scrollback: Vec<u8>,
    live: broadcast::Sender<Vec<u8>>,
}

/// A running guest.
pub(super) struct Guest {
    memory: Arc<Mutex<Memory>>,
    pub(super) tool: SimTool,
    started: Instant,
    /// When its desktop is up.
    ready: Instant,
    restarts: Mutex<HashMap<String, u32>>,
    terminals: Mutex<HashMap<String, Terminal>>,
    /// It is neither paused nor silenced.
    pub(super) answers: watch::Sender<bool>,
    /// Called when memory changes.
    keep: Arc<dyn Fn(&Memory) + Send + Sync>,
    /// Called when it is to power off.
    power_off: Box<dyn Fn() + Send + Sync>,
}

impl Guest {
    pub(super) fn new(
        memory: Memory,
        boot: std::time::Duration,
        hold_tools: bool,
        keep: Arc<dyn Fn(&Memory) + Send + Sync>,
        power_off: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let run = memory.tool.clone();
        let memory = Arc::new(Mutex::new(memory));
        let (kept, keeper) = (Arc::clone(&memory), Arc::clone(&keep));
        let tool = SimTool::new(run, hold_tools, move |run| {
            let mut memory = locked(&kept);
            memory.tool = run;
            keeper(&memory);
        });
        Self {
            memory,
            tool,
            started: Instant::now(),
            ready: Instant::now() + boot,
            restarts: Mutex::default(),
            terminals: Mutex::default(),
            answers: watch::Sender::new(true),
            keep,
            power_off,
        }
    }

    pub(super) fn memory(&self) -> Memory {
        locked(&self.memory).clone()
    }

    /// Serves one connection to the agent.
    pub(super) async fn serve(
        self: Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) {
        let service = service_fn(move |request| {
            let guest = Arc::clone(&self);
            async move {
                // A guest that does not answer still holds the connection.
                let _ = guest.answers.subscribe().wait_for(|answers| *answers).await;
                Ok::<_, Infallible>(guest.answer(request).await)
            }
        });
        // How a connection ends is its client's affair.
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let secret = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .unwrap_or_default()
            .to_owned();
        let claimed = self.memory().claim;
        let open = matches!(path.as_str(), "/v1/health" | "/v1/claim")
            || claimed.is_none() && matches!(path.as_str(), "/v1/metrics" | "/v1/settle");
        if !open && claimed.as_ref().is_none_or(|claim| claim.secret != secret) {
            return refuse(StatusCode::UNAUTHORIZED, "the secret of the first claim is needed");
        }
        match (&method, path.as_str()) {
            (&Method::GET, "/v1/health") => json(&self.health()),
            (&Method::GET, "/v1/metrics") => json(&metrics()),
            (&Method::POST, "/v1/claim") => self.claim(request).await,
            (&Method::POST, "/v1/settle") if claimed.is_some() => {
                refuse(StatusCode::CONFLICT, "the guest is claimed")
            }
            (&Method::POST, "/v1/settle") => json(&Settled { busy_permille: 0, took_ms: 0 }),
            (&Method::POST, "/v1/freeze" | "/v1/thaw") => json(&Frozen { processes: 0 }),
            (&Method::POST, "/v1/clock") => json(&ClockAnswer { time: Timestamp::now() }),
            (&Method::POST, "/v1/assign") => match read::<AssignRequest>(request).await {
                Ok(assign) => {
                    self.remember(|claim| claim.session_id = Some(assign.session_id));
                    json(&self.claimed())
                }
                Err(refusal) => refusal,
            },
            (&Method::POST, "/v1/rebind") => match read::<ClaimRequest>(request).await {
                Ok(new) if claimed.is_none_or(|claim| claim.secret != new.secret) => {
                    self.renew_boot_id(&new);
                    self.remember(|claim| *claim = new);
                    json(&self.claimed())
                }
                Ok(_) => json(&self.claimed()),
                Err(refusal) => refusal,
            },
            (&Method::POST, "/v1/exec") => match read::<ExecRequest>(request).await {
                Ok(exec) => json(&echo(&exec)),
                Err(refusal) => refusal,
            },
            (_, "/v1/tool" | "/v1/tool/input" | "/v1/tool/open" | "/v1/tool/collect") => {
                self.call_tool(request).await.unwrap_or_else(|refusal| refusal)
            }
            (&Method::POST, "/v1/shutdown") => {
                (self.power_off)();
                with_status(StatusCode::ACCEPTED, Bytes::new())
            }
            (&Method::POST, other) => match service_of(other) {
                Some(name) => {
                    *locked(&self.restarts).entry(name.to_owned()).or_default() += 1;
                    json(&self.service(name))
                }
                None => refuse(StatusCode::NOT_FOUND, "there is no such call"),
            },
            (&Method::GET, other) => match other.strip_prefix("/v1/terminals/") {
                Some(name) => self.terminal(name.to_owned(), request),
                None => refuse(StatusCode::NOT_FOUND, "there is no such call"),
            },
            _ => refuse(StatusCode::NOT_FOUND, "there is no such call"),
        }
    }

    fn health(&self) -> Health {
        let memory = self.memory();
        let ready = Instant::now() >= self.ready;
        Health {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            claimed: memory.claim.is_some(),
            vm_id: memory.claim.map(|claim| claim.vm_id),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            time: Timestamp::now(),
            boot_id: memory.boot_id,
            services: SERVICES.iter().map(|name| self.service(name)).collect(),
            desktop_ready: ready,
            browser_ready: ready,
        }
    }

    fn service(&self, name: &str) -> ServiceHealth {
        ServiceHealth {
            name: name.to_owned(),
            state: ServiceState::Running,
            pid: Some(1),
            age_ms: self.started.elapsed().as_millis() as u64,
            restarts: locked(&self.restarts).get(name).copied().unwrap_or_default(),
            last_error: None,
        }
    }

    async fn claim(&self, request: Request<Incoming>) -> Answer {
        let claim: ClaimRequest = match read(request).await {
            Ok(claim) => claim,
            Err(refusal) => return refusal,
        };
        if claim.secret.len() < 32 || claim.entropy.len() < 128 {
            return refuse(StatusCode::BAD_REQUEST, "secret or entropy is too short");
        }
        {
            let mut memory = locked(&self.memory);
            match &memory.claim {
                Some(first) if first.secret != claim.secret => {
                    return refuse(
                        StatusCode::CONFLICT,
                        "the guest is claimed with another secret",
                    );
                }
                Some(_) => {}
                None => {
                    if claim.cloned {
                        memory.boot_id = uuid::Uuid::new_v4().to_string();
                    }
                    memory.claim = Some(claim);
                    (self.keep)(&memory);
                }
            }
        }
        json(&self.claimed())
    }

    async fn call_tool(&self, request: Request<Incoming>) -> Result<Answer, Answer> {
        let answered = |(status, why): (u16, String)| {
            refuse(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), &why)
        };
        let get = request.method() == Method::GET;
        let path = request.uri().path().to_owned();
        let status = match path.as_str() {
            "/v1/tool" if get => {
                let query = request.uri().query().unwrap_or_default();
                let number = |name: &str| -> u64 {
                    let found = query.split('&').find_map(|pair| pair.strip_prefix(name));
                    found.and_then(|text| text.parse().ok()).unwrap_or_default()
                };
                let wait = std::time::Duration::from_millis(number("waitMs=").min(30_000));
                self.tool.newer_than(number("after="), wait).await
            }
            "/v1/tool" => self.tool.start(read(request).await?),
            "/v1/tool/input" => self.tool.input(&read(request).await?),
            "/v1/tool/open" => self.tool.open(read::<OpenRequest>(request).await?.run),
            _ => {
                let collected = self.tool.collect(&read(request).await?);
                return Ok(json(&collected.map_err(answered)?));
            }
        };
        Ok(json(&status.map_err(answered)?))
    }

    fn remember(&self, change: impl FnOnce(&mut ClaimRequest)) {
        let mut memory = locked(&self.memory);
        if let Some(claim) = &mut memory.claim {
            change(claim);
        }
        (self.keep)(&memory);
    }

    /// Clones were booted once, together.
    fn renew_boot_id(&self, claim: &ClaimRequest) {
        if claim.cloned {
            locked(&self.memory).boot_id = uuid::Uuid::new_v4().to_string();
        }
    }

    fn claimed(&self) -> ClaimAnswer {
        let health = self.health();
        ClaimAnswer {
            boot_id: health.boot_id,
            time: health.time,
            uptime_ms: health.uptime_ms,
            desktop_ready: health.desktop_ready,
        }
    }

    fn terminal(self: &Arc<Self>, name: String, mut request: Request<Incoming>) -> Answer {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
            return refuse(StatusCode::BAD_REQUEST, "a terminal is a WebSocket");
        };
        let accept = derive_accept_key(key.as_bytes());
        let upgrade = hyper::upgrade::on(&mut request);
        let guest = Arc::clone(self);
        tokio::spawn(async move {
            if let Ok(io) = upgrade.await {
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
                guest.attach(&name, socket).await;
            }
        });
        let mut response = with_status(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        if let Ok(accept) = accept.parse() {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }

    /// One viewer of a terminal that repeats what is typed.
    async fn attach<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: &str,
        mut socket: WebSocketStream<S>,
    ) {
        let (scrollback, mut live) = {
            let mut terminals = locked(&self.terminals);
            let terminal = terminals.entry(name.to_owned()).or_insert_with(|| Terminal {
                scrollback: b"simulated$ ".to_vec(),
                live: broadcast::Sender::new(256),
            });
            (terminal.scrollback.clone(), terminal.live.subscribe())
        };
        let ready = serde_json::to_string(&FromAgent::Ready).unwrap_or_default();
        if socket.send(Message::binary(scrollback)).await.is_err()
            || socket.send(Message::text(ready)).await.is_err()
        {
            return;
        }
        loop {
            tokio::select! {
                typed = socket.next() => match typed {
                    Some(Ok(Message::Binary(bytes))) => self.type_in(name, &bytes),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
                shown = live.recv() => match shown {
                    Ok(bytes) => if socket.send(Message::binary(bytes)).await.is_err() { return },
                    // A viewer that cannot follow attaches again and gets the scrollback.
                    Err(_) => return,
                },
            }
        }
    }

    fn type_in(&self, name: &str, bytes: &[u8]) {
        if let Some(terminal) = locked(&self.terminals).get_mut(name) {
            terminal.scrollback.extend_from_slice(bytes);
            let surplus = terminal.scrollback.len().saturating_sub(SCROLLBACK);
            terminal.scrollback.drain(..surplus);
            // Nobody may be watching.
            let _ = terminal.live.send(bytes.to_vec());
        }
    }
}

fn service_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/v1/services/")?.strip_suffix("/restart")?;
    SERVICES.contains(&name).then_some(name)
}

fn metrics() -> Metrics {
    Metrics {
        memory_total_kib: 2 << 20,
        memory_available_kib: 1 << 20,
        disk_total_bytes: 8 << 30,
        disk_free_bytes: 7 << 30,
        ..Metrics::default()
    }
}

/// The words of the command, as `echo` would print them.
fn echo(request: &ExecRequest) -> ExecAnswer {
    let words = match request.command.split_first() {
        Some((program, words)) if program == "echo" => words.join(" "),
        _ => request.command.join(" "),
    };
    ExecAnswer {
        exit_code: 0,
        stdout: base64(format!("{words}\n").as_bytes()),
        stderr: String::new(),
        truncated: false,
        timed_out: false,
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let body = request.into_body().collect().await;
    let bytes = body.map_err(|e| refuse(StatusCode::BAD_REQUEST, &e.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| refuse(StatusCode::BAD_REQUEST, &e.to_string()))
}

fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_status(StatusCode::OK, body.into()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    let body = serde_json::to_vec(&AgentError { error: why.to_owned() }).unwrap_or_default();
    with_status(status, body.into())
}

fn with_status(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
