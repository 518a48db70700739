//! The gateway: streams between a user's browser and a guest.
//!
//! Each connection is one task that copies both ways, with the other side's pace as its own:
//! nothing is queued beyond one buffer. A stream that does not answer pings is half-open and ends;
//! one that does keeps its session's lease alive.

use std::time::{Duration, Instant};

use axum::{
    body::Bytes,
    extract::ws::{CloseFrame, Message, WebSocket},
};
use futures::{SinkExt as _, StreamExt as _};
use holdfast_control::Attached;
use holdfast_core::SessionState;
use holdfast_host::driver::GuestStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::{WebSocketStream, tungstenite};
use tokio_util::sync::CancellationToken;

/// Size of the buffer from the guest; one WebSocket message holds at most this much.
const BUFFER: usize = 64 * 1024;
/// Time between pings.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Silence after which the other side is taken for gone: three pings without an answer.
const SILENCE: Duration = Duration::from_secs(16);
/// Leases are extended at most this often by one stream.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);

/// Why a stream ended: a WebSocket close code and a text.
type End = (u16, &'static str);

const GUEST_CLOSED: End = (4502, "the session's machine closed the connection");
const SERVER_STOPS: End = (1012, "the server is restarting; the session goes on");
const HALF_OPEN: End = (4408, "no answer to pings");

/// Extends the lease when the other side is heard from, and notices when it is not.
struct Pulse {
    heard_at: Instant,
    extended_at: Option<Instant>,
}

impl Pulse {
    fn new() -> Self {
        Self { heard_at: Instant::now(), extended_at: None }
    }

    fn heard(&mut self, attached: &Attached) {
        self.heard_at = Instant::now();
        if self.extended_at.is_none_or(|at| at.elapsed() >= LEASE_INTERVAL) {
            self.extended_at = Some(self.heard_at);
            attached.alive();
        }
    }

    fn is_silent(&self) -> bool {
        self.heard_at.elapsed() >= SILENCE
    }
}

/// Carries the desktop: bytes of RFB in binary messages.
pub(crate) async fn desktop(
    socket: WebSocket,
    guest: GuestStream,
    mut attached: Attached,
    stop: CancellationToken,
) {
    let (mut to_user, mut from_user) = socket.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let mut buffer = vec![0_u8; BUFFER];
    let mut pulse = Pulse::new();
    let mut pings = tokio::time::interval(PING_INTERVAL);
    metrics::gauge!("holdfast_open_streams", "kind" => "desktop").increment(1.0);
    let end: Option<End> = loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break Some(GUEST_CLOSED),
                Ok(n) => {
                    let message = Message::Binary(Bytes::copy_from_slice(&buffer[..n]));
                    if to_user.send(message).await.is_err() {
                        break None;
                    }
                }
            },
            message = from_user.next() => match message {
                Some(Ok(Message::Binary(data))) => {
                    pulse.heard(&attached);
                    if to_guest.write_all(&data).await.is_err() {
                        break Some(GUEST_CLOSED);
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break None,
                Some(Ok(_)) => pulse.heard(&attached),
            },
            _ = pings.tick() => {
                if pulse.is_silent() {
                    break Some(HALF_OPEN);
                }
                if to_user.send(Message::Ping(Bytes::new())).await.is_err() {
                    break None;
                }
            }
            state = attached.ended() => break Some(route_changed(state)),
            () = stop.cancelled() => break Some(SERVER_STOPS),
        }
    };
    metrics::gauge!("holdfast_open_streams", "kind" => "desktop").decrement(1.0);
    if let Some((code, reason)) = end {
        metrics::counter!("holdfast_stream_drops_total", "code" => code.to_string()).increment(1);
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = to_user.send(Message::Close(Some(frame))).await;
    }
}

/// Carries a terminal: messages are passed on as they are.
pub(crate) async fn terminal(
    socket: WebSocket,
    guest: WebSocketStream<GuestStream>,
    mut attached: Attached,
    stop: CancellationToken,
) {
    let (mut to_user, mut from_user) = socket.split();
    let (mut to_guest, mut from_guest) = guest.split();
    let mut pulse = Pulse::new();
    let mut pings = tokio::time::interval(PING_INTERVAL);
    metrics::gauge!("holdfast_open_streams", "kind" => "terminal").increment(1.0);
    let end: Option<End> = loop {
        tokio::select! {
            message = from_guest.next() => {
                let message = match message {
                    Some(Ok(tungstenite::Message::Binary(data))) => Message::Binary(data),
                    Some(Ok(tungstenite::Message::Text(text))) => {
                        Message::Text(text.as_str().into())
                    }
                    Some(Ok(tungstenite::Message::Close(_)) | Err(_)) | None => {
                        break Some(GUEST_CLOSED);
                    }
                    Some(Ok(_)) => continue,
                };
                if to_user.send(message).await.is_err() {
                    break None;
                }
            }
            message = from_user.next() => {
                let message = match message {
                    Some(Ok(Message::Binary(data))) => tungstenite::Message::Binary(data),
                    Some(Ok(Message::Text(text))) => tungstenite::Message::text(text.as_str()),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break None,
                    Some(Ok(_)) => {
                        pulse.heard(&attached);
                        continue;
                    }
                };
                pulse.heard(&attached);
                if to_guest.send(message).await.is_err() {
                    break Some(GUEST_CLOSED);
                }
            }
            _ = pings.tick() => {
                if pulse.is_silent() {
                    break Some(HALF_OPEN);
                }
                if to_user.send(Message::Ping(Bytes::new())).await.is_err() {
                    break None;
                }
            }
            state = attached.ended() => break Some(route_changed(state)),
            () = stop.cancelled() => break Some(SERVER_STOPS),
        }
    };
    metrics::gauge!("holdfast_open_streams", "kind" => "terminal").decrement(1.0);
    if let Some((code, reason)) = end {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = to_user.send(Message::Close(Some(frame))).await;
    }
}

const fn route_changed(state: SessionState) -> End {
    match state {
        SessionState::Ending | SessionState::Ended => (4410, "the session ended"),
        SessionState::Failed => (4410, "the session failed"),
        _ => (4409, "the session's machine is being started again"),
    }
}
