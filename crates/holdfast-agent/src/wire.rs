//! HTTP between the agent's own processes (Unix sockets) and to Chromium's DevTools.

use std::{io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use holdfast_agent_api::AgentError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
};

use crate::init::keeper;

/// Largest answer that is read from another process.
const ANSWER_LIMIT: usize = 8 << 20;

/// An error of the protocol: a status and a sentence.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

impl Refusal {
    /// The request itself is wrong.
    pub fn bad(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }

    /// The state does not allow it.
    pub fn conflict(why: impl Into<String>) -> Self {
        Self(StatusCode::CONFLICT, why.into())
    }

    /// There is no such thing.
    pub fn missing(why: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, why.into())
    }

    /// Something in the guest failed.
    pub fn failed(why: impl std::fmt::Display) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, why.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(AgentError { error: self.1 })).into_response()
    }
}

/// Answers `router` on a Unix socket that only `mode` may reach; replaces a socket left behind.
pub async fn serve_unix(path: &Path, mode: u32, router: Router) -> io::Result<()> {
    axum::serve(listen_unix(path, mode)?, router).await
}

/// Listens on a Unix socket; replaces a socket left behind.
pub fn listen_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// One call over a stream that was opened for it.
pub async fn call(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> io::Result<(StatusCode, Bytes)> {
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        Ok((status, body.map_err(io::Error::other)?.to_bytes()))
    };
    // The connection is driven beside the request and dropped with it.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        broken = &mut connection => {
            broken.map_err(io::Error::other)?;
            exchange.await
        }
    }
}

/// One call to another of the agent's processes.
pub async fn call_unix(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
    deadline: Duration,
) -> io::Result<(StatusCode, Bytes)> {
    let exchange = async { call(UnixStream::connect(socket).await?, method, path, body).await };
    tokio::time::timeout(deadline, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

/// Passes a request on to another of the agent's processes, upgrades (WebSocket) included.
pub async fn forward(socket: &Path, mut request: Request) -> Result<Response, Refusal> {
    let gone = |error: &dyn std::fmt::Display| {
        Refusal::failed(format!(
            "a part of the agent does not answer, it is started again: {error}"
        ))
    };
    let stream = UnixStream::connect(socket).await.map_err(|e| gone(&e))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| gone(&e))?;
    tokio::spawn(connection.with_upgrades());
    let wants_upgrade = request.headers().contains_key(header::UPGRADE);
    let from_host = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    request.headers_mut().remove(header::AUTHORIZATION);
    let mut response = sender.send_request(request).await.map_err(|e| gone(&e))?;
    if let Some(from_host) = from_host
        && response.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        let to_part = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(host), Ok(part)) = tokio::join!(from_host, to_part) {
                let (mut host, mut part) = (TokioIo::new(host), TokioIo::new(part));
                // Its end is the end of a viewer, whatever the reason.
                let _ = tokio::io::copy_bidirectional(&mut host, &mut part).await;
            }
        });
    }
    Ok(response.map(Body::new))
}

/// Tells PID 1 that this process is well, for as long as its runtime turns tasks and `check` succeeds.
pub async fn beat<C: Future<Output = bool>>(check: impl Fn() -> C) {
    loop {
        if check().await && tell(keeper::BEAT).await.is_err() {
            // Not a child of PID 1, or PID 1 is gone with the rest of the guest.
            return;
        }
        tokio::time::sleep(keeper::BEAT_EVERY).await;
    }
}

/// Asks PID 1 to switch the guest off.
pub async fn ask_power_off() -> io::Result<()> {
    tell(keeper::POWER_OFF).await
}

async fn tell(byte: u8) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut out = tokio::io::stdout();
    out.write_all(&[byte]).await?;
    out.flush().await
}
