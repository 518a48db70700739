//! The gateway: streams between a user's browser and a guest.
//!
//! Each connection is one task that copies both ways, with the other side's pace as its own:
//! nothing is queued beyond one buffer. The two directions do not wait for each other, so neither a
//! guest that is paused nor a viewer that went away can hide from the pulse. A stream that does not
//! answer pings is half-open and ends; one that does keeps its session's lease alive. A stream also
//! ends when the right that it was opened with does.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    extract::ws::{CloseFrame, Message, WebSocket},
};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use holdfast_control::Attached;
use holdfast_core::SessionState;
use holdfast_host::driver::GuestStream;

use crate::{access::Viewer, rfb, state::AppState};
use tokio_tungstenite::{WebSocketStream, tungstenite};
use tokio_util::{
    codec::{BytesCodec, FramedWrite},
    io::ReaderStream,
};

/// Size of the buffer from the guest; one WebSocket message holds at most this much.
const BUFFER: usize = 64 * 1024;
/// Time between pings.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Silence after which the other side is taken for gone: three pings without an answer.
const SILENCE: Duration = Duration::from_secs(16);
/// How long a guest may leave its input unread.
const GUEST_PATIENCE: Duration = Duration::from_mins(1);
/// Leases are extended at most this often by one stream.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the last message to a viewer may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a stream ended: a WebSocket close code and a text.
type End = (u16, &'static str);

const GUEST_CLOSED: End = (4502, "the session's machine closed the connection");
const SERVER_STOPS: End = (1012, "the server is restarting; the session goes on");
const ACCESS_OVER: End = (4401, "the right to see this session has expired or was revoked");
const NOT_ALLOWED: End = (4403, "this link may only be looked through");
const HALF_OPEN: End = (4408, "no answer to pings");
/// Never sent: there is nobody to send it to.
const BROKEN: End = (1006, "the connection broke");

/// Notices when the other side is not heard from any more.
struct Pulse {
    state: Mutex<Beat>,
}

struct Beat {
    heard_at: Instant,
    extended_at: Option<Instant>,
    /// Nothing is read from the viewer while the guest does not take what was read before.
    deaf: bool,
}

impl Pulse {
    fn new() -> Self {
        let beat = Beat { heard_at: Instant::now(), extended_at: None, deaf: false };
        Self { state: Mutex::new(beat) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Beat) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The viewer was heard: it is there, so its session is in use.
    fn heard(&self, attached: &Attached) {
        let now = Instant::now();
        let extend = self.with(|beat| {
            beat.heard_at = now;
            let due = beat.extended_at.is_none_or(|at| at.elapsed() >= LEASE_INTERVAL);
            if due {
                beat.extended_at = Some(now);
            }
            due
        });
        if extend {
            attached.alive();
        }
    }

    fn deaf(&self, deaf: bool) {
        self.with(|beat| {
            beat.deaf = deaf;
            beat.heard_at = Instant::now();
        });
    }

    /// Waits until the viewer was silent for too long.
    async fn stops(&self) {
        loop {
            let silent_for =
                self.with(|beat| if beat.deaf { Duration::ZERO } else { beat.heard_at.elapsed() });
            let Some(left) = SILENCE.checked_sub(silent_for).filter(|left| !left.is_zero()) else {
                return;
            };
            tokio::time::sleep(left).await;
        }
    }
}

/// Carries the desktop: bytes of RFB in binary messages.
pub(crate) async fn desktop(
    socket: WebSocket,
    guest: GuestStream,
    attached: Attached,
    (state, viewer): (AppState, Viewer),
) {
    let view_only = matches!(&viewer, Viewer::Shown(link) if link.view_only);
    let (from_guest, to_guest) = tokio::io::split(guest);
    let from_guest =
        ReaderStream::with_capacity(from_guest, BUFFER).map(|read| read.map(Message::Binary).ok());
    let to_guest = FramedWrite::new(to_guest, BytesCodec::new());
    let mut client = rfb::Client::new(view_only);
    let translate = |message| {
        // RFB knows no text.
        let Message::Binary(data) = message else { return Ok(Said::default()) };
        let mut passed = Vec::with_capacity(data.len());
        let used = client.take(&data, &mut passed).map_err(|_| NOT_ALLOWED)?;
        Ok(Said { message: (!passed.is_empty()).then(|| Bytes::from(passed)), used })
    };
    carry("desktop", socket, (from_guest, to_guest), translate, attached, (state, viewer)).await;
}

/// Carries a terminal: messages are passed on as they are.
pub(crate) async fn terminal(
    socket: WebSocket,
    guest: WebSocketStream<GuestStream>,
    attached: Attached,
    (state, viewer): (AppState, Viewer),
) {
    let (to_guest, from_guest) = guest.split();
    let from_guest = from_guest.filter_map(async |message| match message {
        Ok(tungstenite::Message::Binary(data)) => Some(Some(Message::Binary(data))),
        Ok(tungstenite::Message::Text(text)) => Some(Some(Message::Text(text.as_str().into()))),
        Ok(tungstenite::Message::Close(_)) | Err(_) => Some(None),
        Ok(_) => None,
    });
    let translate = |message| match message {
        Message::Binary(data) => {
            Ok(Said { message: Some(tungstenite::Message::Binary(data)), used: true })
        }
        // Its size changed: nobody typed.
        Message::Text(text) => {
            Ok(Said { message: Some(tungstenite::Message::text(text.as_str())), used: false })
        }
        _ => Ok(Said::default()),
    };
    carry("terminal", socket, (from_guest, to_guest), translate, attached, (state, viewer)).await;
}

/// What a viewer said, as the guest is told it.
struct Said<T> {
    message: Option<T>,
    /// It is something that a person does.
    used: bool,
}

impl<T> Default for Said<T> {
    fn default() -> Self {
        Self { message: None, used: false }
    }
}

/// Copies both ways until one side ends, the session's route changes, the viewer's right is over,
/// or the server stops.
async fn carry<T>(
    kind: &'static str,
    socket: WebSocket,
    guest: (impl Stream<Item = Option<Message>>, impl Sink<T> + Unpin),
    mut translate: impl FnMut(Message) -> Result<Said<T>, End>,
    attached: Attached,
    (state, viewer): (AppState, Viewer),
) {
    let (mut to_user, mut from_user) = socket.split();
    let (from_guest, mut to_guest) = guest;
    let mut from_guest = std::pin::pin!(from_guest);
    let pulse = Pulse::new();
    let mut watch = attached.watch();
    metrics::gauge!("holdfast_open_streams", "kind" => kind).increment(1.0);
    let end: Option<End> = {
        let down = async {
            let mut pings = tokio::time::interval(PING_INTERVAL);
            loop {
                let message = tokio::select! {
                    message = from_guest.next() => match message.flatten() {
                        Some(message) => message,
                        None => return Some(GUEST_CLOSED),
                    },
                    _ = pings.tick() => Message::Ping(Bytes::new()),
                };
                if to_user.send(message).await.is_err() {
                    // Whether the viewer said goodbye before is found out by who listens to it.
                    tokio::time::sleep(GOODBYE).await;
                    return Some(BROKEN);
                }
            }
        };
        let up = async {
            loop {
                let message = match from_user.next().await {
                    Some(Ok(Message::Close(_))) => return None,
                    Some(Err(_)) | None => return Some(BROKEN),
                    Some(Ok(message)) => message,
                };
                pulse.heard(&attached);
                let said = match translate(message) {
                    Ok(said) => said,
                    Err(end) => return Some(end),
                };
                if said.used {
                    attached.used();
                }
                let Some(message) = said.message else { continue };
                pulse.deaf(true);
                let sent = tokio::time::timeout(GUEST_PATIENCE, to_guest.send(message)).await;
                pulse.deaf(false);
                if !matches!(sent, Ok(Ok(()))) {
                    return Some(GUEST_CLOSED);
                }
            }
        };
        tokio::select! {
            end = down => end,
            end = up => end,
            () = pulse.stops() => Some(HALF_OPEN),
            () = state.stop.cancelled() => Some(SERVER_STOPS),
            () = viewer.ended(&state) => Some(ACCESS_OVER),
            state = watch.ended() => Some(route_changed(state)),
        }
    };
    metrics::gauge!("holdfast_open_streams", "kind" => kind).decrement(1.0);
    let Some(mut end) = end else { return };
    // A machine that is taken down closes its connections first.
    if end == GUEST_CLOSED
        && let Ok(state) = tokio::time::timeout(GOODBYE, watch.ended()).await
    {
        end = route_changed(state);
    }
    let (code, reason) = end;
    metrics::counter!("holdfast_stream_drops_total", "code" => code.to_string()).increment(1);
    if end == BROKEN {
        return;
    }
    let frame = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    // A viewer that takes nothing any more needs no reason.
    let _ = tokio::time::timeout(GOODBYE, to_user.send(frame)).await;
}

const fn route_changed(state: SessionState) -> End {
    match state {
        SessionState::Ending | SessionState::Ended => (4410, "the session ended"),
        SessionState::Failed => (4410, "the session failed"),
        _ => (4409, "the session's machine is being started again"),
    }
}
