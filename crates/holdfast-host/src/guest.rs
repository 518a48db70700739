//! A client of the guest's agent, over the driver's `dial`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_agent_api::{
    AGENT_PORT, AgentError, AssignRequest, ClaimAnswer, ClaimRequest, ClockAnswer, ClockShift,
    ExecAnswer, ExecRequest, Frozen, Health, Metrics, ServiceHealth, Settled,
    tool::{CollectRequest, Collected, OpenRequest, ToolInput, ToolRequest, ToolStatus},
};
use holdfast_core::VmId;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio_tungstenite::{WebSocketStream, tungstenite};

use crate::driver::{Driver, DriverError, GuestStream};

/// Largest answer that is read: two outputs of 1 MiB in base64, and room for the rest.
const ANSWER_LIMIT: usize = 4 << 20;

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest could not be reached.
    #[error("the guest cannot be reached")]
    Dial(#[from] DriverError),
    /// The connection broke.
    #[error("the connection to the agent broke")]
    Http(#[source] hyper::Error),
    /// The answer is not what the protocol says.
    #[error("the agent's answer cannot be understood: {0}")]
    Protocol(String),
    /// The agent refused.
    #[error("the agent refused with {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its sentence.
        message: String,
    },
    /// No answer in time.
    #[error("the agent did not answer {call} within {after:?}")]
    Timeout {
        /// Path of the call.
        call: String,
        /// The deadline.
        after: Duration,
    },
    /// The terminal's handshake failed.
    #[error("the terminal could not be opened")]
    Terminal(#[source] Box<tungstenite::Error>),
}

/// Calls the agent of one VM. Every call opens a connection of its own, so a hung call never
/// blocks another.
#[derive(Clone)]
pub struct AgentClient {
    driver: Arc<dyn Driver>,
    vm: VmId,
    secret: String,
}

impl AgentClient {
    /// A client for the agent of `vm`, claimed with `secret`.
    pub fn new(driver: Arc<dyn Driver>, vm: VmId, secret: String) -> Self {
        Self { driver, vm, secret }
    }

    /// State of the guest.
    pub async fn health(&self, deadline: Duration) -> Result<Health, GuestError> {
        self.call(Method::GET, "/v1/health", None::<&()>, deadline).await
    }

    /// Gives the guest its identity.
    pub async fn claim(
        &self,
        request: &ClaimRequest,
        deadline: Duration,
    ) -> Result<ClaimAnswer, GuestError> {
        self.call(Method::POST, "/v1/claim", Some(request), deadline).await
    }

    /// Replaces the identity of a guest that was restored from a checkpoint. This client carries the
    /// secret of before; the request has the new one.
    pub async fn rebind(
        &self,
        request: &ClaimRequest,
        deadline: Duration,
    ) -> Result<ClaimAnswer, GuestError> {
        self.call(Method::POST, "/v1/rebind", Some(request), deadline).await
    }

    /// Gives a claimed guest to a session.
    pub async fn assign(
        &self,
        request: &AssignRequest,
        deadline: Duration,
    ) -> Result<ClaimAnswer, GuestError> {
        self.call(Method::POST, "/v1/assign", Some(request), deadline).await
    }

    /// Sets the guest's clock forward or back by this much.
    pub async fn shift_clock(
        &self,
        shift: &ClockShift,
        deadline: Duration,
    ) -> Result<ClockAnswer, GuestError> {
        self.call(Method::POST, "/v1/clock", Some(shift), deadline).await
    }

    /// Holds the browser still, for a snapshot.
    pub async fn freeze(&self, deadline: Duration) -> Result<Frozen, GuestError> {
        self.call(Method::POST, "/v1/freeze", None::<&()>, deadline).await
    }

    /// Lets the browser go on after a snapshot.
    pub async fn thaw(&self, deadline: Duration) -> Result<Frozen, GuestError> {
        self.call(Method::POST, "/v1/thaw", None::<&()>, deadline).await
    }

    /// Brings an unclaimed guest to rest before a warm image is made of it.
    pub async fn settle(&self, deadline: Duration) -> Result<Settled, GuestError> {
        self.call(Method::POST, "/v1/settle", None::<&()>, deadline).await
    }

    /// Runs a command. Waits for its own time limit and ten seconds more.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecAnswer, GuestError> {
        let deadline = Duration::from_millis(request.timeout_ms) + Duration::from_secs(10);
        self.call(Method::POST, "/v1/exec", Some(request), deadline).await
    }

    /// Restarts a service.
    pub async fn restart_service(
        &self,
        name: &str,
        deadline: Duration,
    ) -> Result<ServiceHealth, GuestError> {
        self.call(Method::POST, &format!("/v1/services/{name}/restart"), None::<&()>, deadline)
            .await
    }

    /// Figures of the guest.
    pub async fn metrics(&self, deadline: Duration) -> Result<Metrics, GuestError> {
        self.call(Method::GET, "/v1/metrics", None::<&()>, deadline).await
    }

    /// Starts a run of a sign-in tool; a run of the same number is left alone.
    pub async fn start_tool(
        &self,
        request: &ToolRequest,
        deadline: Duration,
    ) -> Result<ToolStatus, GuestError> {
        self.call(Method::POST, "/v1/tool", Some(request), deadline).await
    }

    /// State of the current run, once its revision is above `after` or `wait` (at most 30 s) is over.
    pub async fn tool_status(&self, after: u64, wait: Duration) -> Result<ToolStatus, GuestError> {
        let path = format!("/v1/tool?after={after}&waitMs={}", wait.as_millis());
        self.call(Method::GET, &path, None::<&()>, wait + Duration::from_secs(10)).await
    }

    /// Types text for the tool.
    pub async fn tool_input(
        &self,
        input: &ToolInput,
        deadline: Duration,
    ) -> Result<ToolStatus, GuestError> {
        self.call(Method::POST, "/v1/tool/input", Some(input), deadline).await
    }

    /// Opens the run's link in the guest's browser again.
    pub async fn tool_open(
        &self,
        request: &OpenRequest,
        deadline: Duration,
    ) -> Result<ToolStatus, GuestError> {
        self.call(Method::POST, "/v1/tool/open", Some(request), deadline).await
    }

    /// Has the credentials of a run that succeeded sealed to their recipients.
    pub async fn collect(
        &self,
        request: &CollectRequest,
        deadline: Duration,
    ) -> Result<Collected, GuestError> {
        self.call(Method::POST, "/v1/tool/collect", Some(request), deadline).await
    }

    /// Attaches to a terminal, which is made when there is none of that name.
    pub async fn terminal(
        &self,
        name: &str,
        cols: u16,
        rows: u16,
        deadline: Duration,
    ) -> Result<WebSocketStream<GuestStream>, GuestError> {
        let path = format!("/v1/terminals/{name}?cols={cols}&rows={rows}");
        let attach = async {
            let stream = self.driver.dial(self.vm, AGENT_PORT).await?;
            let request = http::Request::builder()
                .uri(format!("ws://guest:{AGENT_PORT}{path}"))
                .header(header::HOST, "guest")
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_VERSION, "13")
                .header(header::SEC_WEBSOCKET_KEY, tungstenite::handshake::client::generate_key())
                .header(header::AUTHORIZATION, format!("Bearer {}", self.secret))
                .body(())
                .map_err(|error| GuestError::Protocol(error.to_string()))?;
            tokio_tungstenite::client_async(request, stream)
                .await
                .map(|(socket, _)| socket)
                .map_err(|error| GuestError::Terminal(Box::new(error)))
        };
        within(&path, deadline, attach).await
    }

    async fn call<B: Serialize + Sync, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        deadline: Duration,
    ) -> Result<A, GuestError> {
        within(path, deadline, self.exchange(method, path, body)).await
    }

    async fn exchange<B: Serialize + Sync, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<A, GuestError> {
        let protocol = |error: &dyn std::fmt::Display| GuestError::Protocol(error.to_string());
        let body = match body {
            Some(value) => serde_json::to_vec(value).map_err(|e| protocol(&e))?,
            None => Vec::new(),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "guest")
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.secret))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| protocol(&e))?;
        let stream = self.driver.dial(self.vm, AGENT_PORT).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(GuestError::Http)?;
        // Driven beside the request and dropped with it, so no task outlives the call.
        let exchange = async {
            let response = sender.send_request(request).await.map_err(GuestError::Http)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| GuestError::Protocol(error.to_string()))?
                .to_bytes();
            Ok::<_, GuestError>((status, body))
        };
        tokio::pin!(exchange, connection);
        let (status, body) = tokio::select! {
            answer = &mut exchange => answer?,
            broken = &mut connection => {
                broken.map_err(GuestError::Http)?;
                exchange.await?
            }
        };
        answer(status, &body)
    }
}

fn answer<A: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<A, GuestError> {
    if !status.is_success() {
        let message = serde_json::from_slice::<AgentError>(body).map_or_else(
            |_| String::from_utf8_lossy(body).chars().take(200).collect(),
            |e| e.error,
        );
        return Err(GuestError::Refused { status: status.as_u16(), message });
    }
    serde_json::from_slice(body).map_err(|error| GuestError::Protocol(error.to_string()))
}

async fn within<T>(
    call: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(GuestError::Timeout { call: call.to_owned(), after: deadline }))
}
