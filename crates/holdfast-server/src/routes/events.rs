//! Timelines, as lists and as Server-Sent Events.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event as Sent, KeepAlive},
    },
};
use futures::Stream;
use holdfast_api::{self as api, Code, Problem};
use holdfast_control::Notice;
use holdfast_core::{Generation, SessionId};
use http::{HeaderMap, header};
use serde::Deserialize;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    access::Viewer,
    auth::Principal,
    convert,
    extract::Id,
    problem::{ApiError, ApiResult},
    state::AppState,
};

/// Events read at once.
const PAGE: u32 = 500;
/// Comments that keep proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// When a store that could not be read is asked again.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// Messages that a slow reader may be behind before the sender waits for it.
const BEHIND: usize = 64;

/// From where to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// Only events with a higher number.
    after: Option<i64>,
}

/// A session's timeline; also of one that ended. With `Accept: text/event-stream` it goes on live,
/// from after `Last-Event-ID`, with an additional event `session` whenever the session changes.
#[utoipa::path(get, path = "/api/sessions/{id}/events", tag = "sessions", params(("id" = String, Path), EventsQuery),
    responses((status = 200, body = api::EventList), (status = 401, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn of_session(
    State(state): State<AppState>,
    viewer: Viewer,
    Id(id): Id,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<Response> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    viewer.visible(&state, id).await?;
    let resumed = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
    let after = resumed.or(query.after).unwrap_or(0);
    if wants_stream(&headers) {
        return Ok(follow(state, viewer, id, after).into_response());
    }
    let events = state.control.events(id, after, PAGE).await?;
    let events = events.iter().map(convert::event).collect();
    Ok(Json(api::EventList { events }).into_response())
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"))
}

type Stopped = ();

fn follow(
    state: AppState,
    viewer: Viewer,
    id: SessionId,
    mut after: i64,
) -> Sse<impl Stream<Item = Result<Sent, Infallible>>> {
    let (sender, receiver) = mpsc::channel(BEHIND);
    tokio::spawn(async move {
        // Subscribed before the first read, so nothing falls between the two.
        let mut notices = state.control.notices();
        let mut shown = None;
        let following = async {
            loop {
                let sent = send_new(&state, &viewer, id, &mut after, &mut shown, &sender).await;
                let Ok(complete) = sent else { return };
                let next = next_notice(&state, &mut notices, Some(id), &sender);
                let next = if complete {
                    next.await
                } else {
                    // The store could not be read: what was missed is not announced again.
                    tokio::time::timeout(READ_AGAIN, next).await.unwrap_or(Ok(None))
                };
                if next.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = viewer.ended(&state) => {}
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// Sends what is new. Answers whether everything could be read.
async fn send_new(
    state: &AppState,
    viewer: &Viewer,
    id: SessionId,
    after: &mut i64,
    shown: &mut Option<Generation>,
    sender: &mpsc::Sender<Result<Sent, Infallible>>,
) -> Result<bool, Stopped> {
    loop {
        let Ok(events) = state.control.events(id, *after, PAGE).await else { return Ok(false) };
        for event in &events {
            *after = event.seq;
            let message = Sent::default()
                .id(event.seq.to_string())
                .event(event.body.kind.as_str())
                .json_data(convert::event(event));
            send(sender, message).await?;
        }
        if events.len() < PAGE as usize {
            break;
        }
    }
    let Ok(Some(live)) = state.control.find(id).await else { return Ok(false) };
    // A heartbeat changes no generation and is not worth a message.
    if *shown != Some(live.session.generation) {
        let owner = viewer.owner_name(state, &live).await;
        let limits = state.control.limits(&live.session);
        let message = Sent::default().event("session").json_data(convert::session(
            &live.session,
            owner,
            limits,
        ));
        send(sender, message).await?;
        *shown = Some(live.session.generation);
    }
    Ok(true)
}

/// Changes of every session that the caller may see: an event `session` with the session, or
/// `resync` when the reader was too slow and has to list again.
#[utoipa::path(get, path = "/api/events", tag = "sessions",
    responses((status = 200, description = "Server-Sent Events."), (status = 401, body = Problem)))]
pub(crate) async fn of_all(
    State(state): State<AppState>,
    who: Principal,
) -> Sse<impl Stream<Item = Result<Sent, Infallible>>> {
    let (sender, receiver) = mpsc::channel(BEHIND);
    tokio::spawn(async move {
        let mut notices = state.control.notices();
        loop {
            let Ok(notice) = next_notice(&state, &mut notices, None, &sender).await else {
                return;
            };
            let message = match notice {
                None => Ok(Sent::default().event("resync").data("{}")),
                Some(notice) => match state.visible(&who, notice.session).await {
                    Ok(live) => {
                        let owner = state.owner_name(&who, live.session.owner).await;
                        Sent::default().event("session").json_data(convert::session(
                            &live.session,
                            owner,
                            state.control.limits(&live.session),
                        ))
                    }
                    Err(_) => continue,
                },
            };
            if send(&sender, message).await.is_err() {
                return;
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// The next notice about a session, or about any. `None`: some were missed.
async fn next_notice(
    state: &AppState,
    notices: &mut tokio::sync::broadcast::Receiver<Notice>,
    about: Option<SessionId>,
    sender: &mpsc::Sender<Result<Sent, Infallible>>,
) -> Result<Option<Notice>, Stopped> {
    loop {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            () = sender.closed() => return Err(()),
            () = state.stop.cancelled() => return Err(()),
        };
        match notice {
            Ok(notice) if about.is_none_or(|id| id == notice.session) => return Ok(Some(notice)),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return Ok(None),
            Err(RecvError::Closed) => return Err(()),
        }
    }
}

async fn send(
    sender: &mpsc::Sender<Result<Sent, Infallible>>,
    message: Result<Sent, axum::Error>,
) -> Result<(), Stopped> {
    // Types of the API always become JSON.
    let message = message.map_err(|_| ())?;
    sender.send(Ok(message)).await.map_err(|_| ())
}
