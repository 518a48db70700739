//! Calls of the HTTP API, each on a connection of its own and with its status as it was sent, so
//! that tests see what any client would see.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use bytes::Bytes;
use holdfast_api as api;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::wait;

/// Limit of one call; a server that is slower has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// Calls one server with one token.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where the server listens.
    pub address: SocketAddr,
    /// The access token.
    pub token: String,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; an error when the status is not the expected one.
    pub fn json<T: DeserializeOwned>(&self, status: u16) -> Result<T> {
        let text = String::from_utf8_lossy(&self.body);
        ensure!(self.status == status, "{status} expected, but {} came: {text}", self.status);
        serde_json::from_slice(&self.body).with_context(|| format!("not understood: {text}"))
    }
}

/// What a command in a guest left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Api {
    /// Sends a request.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let exchange = async {
            let tcp = TcpStream::connect(self.address).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
            tokio::spawn(connection);
            let mut request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(header::HOST, self.address.to_string())
                .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .with_context(|| format!("{method} {path} was not answered within {DEADLINE:?}"))?
            .with_context(|| format!("{method} {path}"))
    }

    /// Sends JSON.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer> {
        let json = [("content-type", "application/json")];
        self.send(Method::POST, path, &json, serde_json::to_vec(body)?).await
    }

    /// Reads a path.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    /// Makes a session.
    pub async fn create(&self, request: &api::CreateSession) -> Result<api::Session> {
        self.post("/api/sessions", request).await?.json(201)
    }

    /// A session that has not ended.
    pub async fn session(&self, id: Uuid) -> Result<api::Session> {
        self.get(&format!("/api/sessions/{id}")).await?.json(200)
    }

    /// Ends a session.
    pub async fn end(&self, id: Uuid) -> Result<()> {
        let answer = self.send(Method::DELETE, &format!("/api/sessions/{id}"), &[], vec![]).await?;
        ensure!(matches!(answer.status, 200 | 202 | 204), "the end was answered {}", answer.status);
        Ok(())
    }

    /// The VM serving a session.
    pub async fn vm(&self, id: Uuid) -> Result<api::SessionVm> {
        self.get(&format!("/api/sessions/{id}/vm")).await?.json(200)
    }

    /// VMs that are not gone.
    pub async fn vms(&self) -> Result<Vec<api::Vm>> {
        Ok(self.get("/api/vms").await?.json::<api::VmList>(200)?.vms)
    }

    /// A session's timeline.
    pub async fn events(&self, id: Uuid) -> Result<Vec<api::Event>> {
        let path = format!("/api/sessions/{id}/events");
        Ok(self.get(&path).await?.json::<api::EventList>(200)?.events)
    }

    /// Runs a command in a session's guest as its user.
    pub async fn exec(&self, id: Uuid, command: &[&str]) -> Result<Ran> {
        self.exec_as(id, command, false).await
    }

    /// Runs a command in a session's guest, as root if so wished.
    pub async fn exec_as(&self, id: Uuid, command: &[&str], root: bool) -> Result<Ran> {
        let request = api::Exec {
            command: command.iter().map(ToString::to_string).collect(),
            timeout_ms: Some(20_000),
            stdin: None,
            root,
        };
        let answer = self.post(&format!("/api/sessions/{id}/exec"), &request).await?;
        let result: api::ExecResult = answer.json(200)?;
        let text = |encoded: &str| -> Result<String> {
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Ran {
            code: result.exit_code,
            stdout: text(&result.stdout)?,
            stderr: text(&result.stderr)?,
        })
    }

    /// Waits until a session is `ready`. One that fails or ends first is an error with its timeline.
    pub async fn ready(&self, id: Uuid, deadline: Duration) -> Result<api::Session> {
        let what = format!("session {id} is ready");
        let waited = wait::until(&what, deadline, async || {
            let session = self.session(id).await?;
            match session.state.as_str() {
                "ready" => Ok(Some(session)),
                "failed" | "ending" | "ended" => {
                    anyhow::bail!("session {id} is {}: {:?}", session.state, session.detail)
                }
                _ => Ok(None),
            }
        });
        self.explained(id, waited.await).await
    }

    /// Waits until a session has ended and answers 410.
    pub async fn gone(&self, id: Uuid, deadline: Duration) -> Result<api::Problem> {
        let what = format!("session {id} is gone");
        let waited = wait::until(&what, deadline, async || {
            let answer = self.get(&format!("/api/sessions/{id}")).await?;
            if answer.status == 410 { answer.json(410).map(Some) } else { Ok(None) }
        });
        self.explained(id, waited.await).await
    }

    /// Adds to what went wrong with a session its timeline, what its machine uses, and its console.
    pub async fn explained<T>(&self, id: Uuid, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let read = async |what: &str| match self.get(&format!("/api/sessions/{id}/{what}")).await {
            Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            Err(error) => format!("{error:#}"),
        };
        let (timeline, machine) = (self.timeline(id).await, read("vm?usage=true").await);
        let console = read("console").await;
        Err(error.context(format!("{timeline}\nits machine: {machine}\nits console: {console}")))
    }

    /// The timeline as text, for failures.
    pub async fn timeline(&self, id: Uuid) -> String {
        match self.events(id).await {
            Ok(events) => events.iter().fold("its timeline:".to_owned(), |text, event| {
                let to = event.to.as_deref().unwrap_or_default();
                format!("{text}\n  {} {} {to} {}", event.at, event.kind, event.why)
            }),
            Err(error) => format!("the timeline cannot be read: {error:#}"),
        }
    }

    /// Waits until the server can do its work.
    pub async fn server_ready(&self, deadline: Duration) -> Result<()> {
        let mut last = String::new();
        let waited = wait::until("the server is ready", deadline, async || {
            match self.get("/readyz").await {
                Ok(answer) if answer.status == 200 => return Ok(Some(())),
                Ok(answer) => last = String::from_utf8_lossy(&answer.body).into_owned(),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        });
        let waited = waited.await;
        waited.with_context(|| last)
    }
}
