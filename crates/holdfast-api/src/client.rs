//! A typed client of the API, over plain HTTP.
//!
//! Every call has a deadline. An error answer is a [`Problem`], whole, in
//! [`ClientError::Refused`]; what went wrong on the way there is told apart from it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    Code, Console, CreateSession, CreateShare, CreateToken, Drain, DrainSessions, Event, EventList,
    Exec, ExecResult, Explanation, Heartbeat, HostList, NewShare, NewToken, Problem, ProviderList,
    Readiness, Session, SessionList, SessionVm, ShareList, StartDrain, TokenList, Version, VmList,
};

mod sign_in;
mod sse;

pub use sse::{EventStream, Update};

/// Deadline of a call that does not wait for anything.
const DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of making a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const ANSWER_LIMIT: usize = 16 << 20;
/// How much longer than a command its call may take.
const EXEC_MARGIN: Duration = Duration::from_secs(20);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is no http address.
    #[error(
        "`{url}` is not the address of a server: expected something like http://127.0.0.1:7070"
    )]
    Url {
        /// The address.
        url: String,
    },
    /// The token cannot be sent.
    #[error("the access token holds characters that no token has")]
    Token,
    /// Nobody answers there.
    #[error("no server answers at {url} ({why})")]
    Connect {
        /// The address.
        url: String,
        /// Why, in the words of the system.
        why: String,
    },
    /// The connection broke in the middle.
    #[error("the connection to the server broke")]
    Broken {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the server did not answer within {} s", after.as_secs())]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// The answer is not one of this API.
    #[error("the answer is not Holdfast's: {why}")]
    Protocol {
        /// What is wrong with it.
        why: String,
    },
    /// The server refused.
    #[error("{}", .0.error)]
    Refused(Box<Problem>),
}

impl ClientError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// Whether trying again can help: nobody answered, or could answer now.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } | Self::Timeout { .. } => true,
            Self::Refused(problem) => problem.code == Code::Unavailable,
            Self::Url { .. } | Self::Token | Self::Protocol { .. } => false,
        }
    }
}

/// Result of a call.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// A client of one server. Cheap to clone; connections are reused.
#[derive(Clone)]
pub struct Client {
    base: String,
    token: Option<HeaderValue>,
    http: Http<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:7070`.
    pub fn new(base: &str, token: Option<&str>) -> Result<Self> {
        let wrong = || ClientError::Url { url: base.to_owned() };
        let base = base.trim().trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        let token = match token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                    .map_err(|_| ClientError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_DEADLINE));
        let http = Http::builder(TokioExecutor::new()).build(connector);
        Ok(Self { base: base.to_owned(), token, http })
    }

    /// The server's address, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The `Authorization` header that is sent.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    /// Makes a session. The key makes a repetition harmless.
    pub async fn create_session(&self, body: &CreateSession, key: &str) -> Result<Session> {
        let key = HeaderValue::from_str(key)
            .map_err(|_| ClientError::Protocol { why: "unusable idempotency key".to_owned() })?;
        let headers = [(HeaderName::from_static("idempotency-key"), key)];
        self.call(Method::POST, "/api/sessions", Some(body), &headers, DEADLINE).await
    }

    /// Sessions, newest first, of these states (separated by commas) or all.
    pub async fn sessions(&self, states: Option<&str>) -> Result<SessionList> {
        let query = states.map(|states| format!("?state={states}")).unwrap_or_default();
        self.get(&format!("/api/sessions{query}")).await
    }

    /// A session that has not ended.
    pub async fn session(&self, id: Uuid) -> Result<Session> {
        self.get(&format!("/api/sessions/{id}")).await
    }

    /// Ends a session. `None`: it had ended before.
    pub async fn end_session(&self, id: Uuid) -> Result<Option<Session>> {
        let path = format!("/api/sessions/{id}");
        let (status, body) =
            self.exchange(Method::DELETE, &path, None::<&()>, &[], DEADLINE).await?;
        if status == StatusCode::NO_CONTENT { Ok(None) } else { parse(&body).map(Some) }
    }

    /// Says that somebody is attached.
    pub async fn heartbeat(&self, id: Uuid) -> Result<Heartbeat> {
        self.post(&format!("/api/sessions/{id}/heartbeat"), None::<&()>).await
    }

    /// Says that somebody is attached and wants the session kept: its idle time starts afresh.
    pub async fn keep(&self, id: Uuid) -> Result<Heartbeat> {
        self.post(&format!("/api/sessions/{id}/heartbeat?used=true"), None::<&()>).await
    }

    /// The VM now serving a session.
    pub async fn session_vm(&self, id: Uuid) -> Result<SessionVm> {
        self.get(&format!("/api/sessions/{id}/vm")).await
    }

    /// Runs a command in a session's machine and waits for its end.
    pub async fn exec(&self, id: Uuid, body: &Exec) -> Result<ExecResult> {
        let deadline = Duration::from_millis(body.timeout_ms.unwrap_or(60_000)) + EXEC_MARGIN;
        let path = format!("/api/sessions/{id}/exec");
        self.call(Method::POST, &path, Some(body), &[], deadline).await
    }

    /// The end of a machine's console.
    pub async fn console(&self, id: Uuid) -> Result<Console> {
        self.get(&format!("/api/sessions/{id}/console")).await
    }

    /// A session's timeline after the event `after`; at most 500 events at once.
    pub async fn events(&self, id: Uuid, after: i64) -> Result<Vec<Event>> {
        let list: EventList = self.get(&format!("/api/sessions/{id}/events?after={after}")).await?;
        Ok(list.events)
    }

    /// Follows a session's timeline from after the event `after`.
    pub async fn follow(&self, id: Uuid, after: i64) -> Result<EventStream> {
        let path = format!("/api/sessions/{id}/events");
        let headers = [
            (header::ACCEPT, HeaderValue::from_static("text/event-stream")),
            (HeaderName::from_static("last-event-id"), HeaderValue::from(after)),
        ];
        let response = self.send(Method::GET, &path, None::<&()>, &headers, DEADLINE).await?;
        if !response.status().is_success() {
            let (status, body) = collect(response).await?;
            return Err(refusal(status, &body));
        }
        Ok(EventStream::new(response.into_body(), after))
    }

    /// Why a session is alive or dead.
    pub async fn explain(&self, id: Uuid) -> Result<Explanation> {
        self.get(&format!("/api/sessions/{id}/explain")).await
    }

    /// VMs that are not gone; for administrators.
    pub async fn vms(&self) -> Result<VmList> {
        self.get("/api/vms").await
    }

    /// Machines that run VMs; for administrators.
    pub async fn hosts(&self) -> Result<HostList> {
        self.get("/api/hosts").await
    }

    /// What sessions can be made for.
    pub async fn providers(&self) -> Result<ProviderList> {
        self.get("/api/providers").await
    }

    /// Versions in use, and who is asking.
    pub async fn version(&self) -> Result<Version> {
        self.get("/api/version").await
    }

    /// Whether the server can do its work, and what is missing.
    pub async fn readiness(&self) -> Result<Readiness> {
        let sent = self.send(Method::GET, "/readyz", None::<&()>, &[], DEADLINE).await?;
        let (_, body) = collect(sent).await?;
        parse(&body)
    }

    /// Makes an access token; for administrators.
    pub async fn create_token(&self, body: &CreateToken) -> Result<NewToken> {
        self.post("/api/tokens", Some(body)).await
    }

    /// Makes a link by which somebody without a token sees a session.
    pub async fn share(&self, id: Uuid, body: &CreateShare) -> Result<NewShare> {
        self.post(&format!("/api/sessions/{id}/shares"), Some(body)).await
    }

    /// Links to a session that work now.
    pub async fn shares(&self, id: Uuid) -> Result<ShareList> {
        self.get(&format!("/api/sessions/{id}/shares")).await
    }

    /// Revokes a link to a session.
    pub async fn revoke_share(&self, id: Uuid, share: Uuid) -> Result<()> {
        let path = format!("/api/sessions/{id}/shares/{share}");
        self.exchange(Method::DELETE, &path, None::<&()>, &[], DEADLINE).await.map(|_| ())
    }

    /// Takes the server's host out of use; for administrators.
    pub async fn drain(&self, sessions: DrainSessions) -> Result<Drain> {
        self.post("/api/drain", Some(&StartDrain { sessions })).await
    }

    /// Lets the server's host take sessions again; for administrators.
    pub async fn undrain(&self) -> Result<()> {
        self.exchange(Method::DELETE, "/api/drain", None::<&()>, &[], DEADLINE).await.map(|_| ())
    }

    /// All access tokens; for administrators.
    pub async fn tokens(&self) -> Result<TokenList> {
        self.get("/api/tokens").await
    }

    /// Revokes an access token; for administrators.
    pub async fn revoke_token(&self, id: Uuid) -> Result<()> {
        let path = format!("/api/tokens/{id}");
        self.exchange(Method::DELETE, &path, None::<&()>, &[], DEADLINE).await.map(|_| ())
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.call(Method::GET, path, None::<&()>, &[], DEADLINE).await
    }

    async fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A> {
        self.call(Method::POST, path, body, &[], DEADLINE).await
    }

    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        headers: &[(HeaderName, HeaderValue)],
        deadline: Duration,
    ) -> Result<A> {
        let (_, body) = self.exchange(method, path, body, headers, deadline).await?;
        parse(&body)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        headers: &[(HeaderName, HeaderValue)],
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let work = async {
            let response = self.send(method, path, body, headers, deadline).await?;
            collect(response).await
        };
        let (status, body) = within(deadline, work).await?;
        if status.is_success() { Ok((status, body)) } else { Err(refusal(status, &body)) }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        headers: &[(HeaderName, HeaderValue)],
        deadline: Duration,
    ) -> Result<Response<Incoming>> {
        let protocol =
            |error: &dyn std::fmt::Display| ClientError::Protocol { why: error.to_string() };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let bytes = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body).map_err(|e| protocol(&e))?.into()
            }
        };
        let request = request.body(Full::new(bytes)).map_err(|e| protocol(&e))?;
        let sending = async {
            self.http.request(request).await.map_err(|error| {
                if error.is_connect() {
                    ClientError::Connect { url: self.base.clone(), why: root_cause(&error) }
                } else {
                    ClientError::Broken { source: Box::new(error) }
                }
            })
        };
        within(deadline, sending).await
    }
}

/// What an error comes from in the end; what is above that is this client's inside.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or(Err(ClientError::Timeout { after: deadline }))
}

async fn collect(response: Response<Incoming>) -> Result<(StatusCode, Bytes)> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect();
    let body =
        within(DEADLINE, async { body.await.map_err(|source| ClientError::Broken { source }) })
            .await?;
    Ok((status, body.to_bytes()))
}

fn parse<A: DeserializeOwned>(body: &[u8]) -> Result<A> {
    serde_json::from_slice(body).map_err(|error| ClientError::Protocol { why: error.to_string() })
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Protocol { why: format!("status {status} without an explanation") },
    }
}
