//! WebSockets: the desktop and the terminal.
//!
//! A browser cannot see the status of a refused handshake, so for a browser (a request with an
//! `Origin`) the handshake is accepted and closed with a code of its own; other clients get the
//! HTTP status.

use std::time::Duration;

use axum::{
    extract::{
        Query, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse as _, Response},
};
use holdfast_api::{Code, Problem};
use holdfast_control::{GuestPort, guest_error};
use http::{HeaderMap, header};
use serde::Deserialize;

use crate::{access::Viewer, extract::Id, gateway, problem::ApiError, state::AppState};

/// Largest message from a viewer: a pasted clipboard, not a file.
const MAX_MESSAGE: usize = 4 << 20;
/// Deadline of opening a terminal in the guest.
const TERMINAL_DEADLINE: Duration = Duration::from_secs(10);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// The desktop, as RFB in binary messages.
#[utoipa::path(get, path = "/api/sessions/{id}/desktop", tag = "streams", params(("id" = String, Path)),
    responses((status = 101, description = "RFB 3.8 in binary messages. Close codes: 4401, 4404, 4409, 4410, 4502, 4503 as the HTTP statuses; 4408 no answer to pings; 1012 the server restarts."),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 410, body = Problem), (status = 426, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn desktop(
    State(state): State<AppState>,
    viewer: Result<Viewer, ApiError>,
    Id(id): Id,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Response {
    let upgrade = match checked(upgrade) {
        Ok(upgrade) => upgrade.protocols(["binary"]),
        Err(error) => return error.into_response(),
    };
    let opened = async {
        let viewer = viewer?;
        viewer.visible(&state, id).await?;
        let (guest, attached) = match &viewer {
            Viewer::Person { .. } => state.control.open(id, GuestPort::Desktop).await?,
            Viewer::Shown(_) => state.control.open_shown(id).await?,
        };
        Ok((guest, attached, viewer))
    };
    match opened.await {
        Ok((guest, attached, viewer)) => {
            let streams = state.streams.token();
            upgrade.on_upgrade(async move |socket| {
                gateway::desktop(socket, guest, attached, (state, viewer)).await;
                drop(streams);
            })
        }
        Err(error) => refuse(upgrade, &headers, error),
    }
}

/// Size of a terminal.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TerminalQuery {
    /// Columns, 1 to 1000; 80 when absent.
    #[serde(default = "eighty")]
    cols: u16,
    /// Rows, 1 to 1000; 24 when absent.
    #[serde(default = "twenty_four")]
    rows: u16,
}

const fn eighty() -> u16 {
    80
}

const fn twenty_four() -> u16 {
    24
}

/// The terminal: bytes in binary messages, JSON in text messages.
#[utoipa::path(get, path = "/api/sessions/{id}/terminal", tag = "streams", params(("id" = String, Path), TerminalQuery),
    responses((status = 101, description = "Binary messages are bytes of the PTY. Text messages are JSON: {\"type\":\"resize\",\"cols\":80,\"rows\":24} to the server; {\"type\":\"ready\"} (scrollback is complete) and {\"type\":\"exit\",\"code\":0} from it. Close codes as for the desktop."),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 410, body = Problem), (status = 426, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn terminal(
    State(state): State<AppState>,
    viewer: Result<Viewer, ApiError>,
    Id(id): Id,
    headers: HeaderMap,
    query: Result<Query<TerminalQuery>, axum::extract::rejection::QueryRejection>,
    upgrade: Upgrade,
) -> Response {
    let size = match query {
        Ok(Query(size)) if (1..=1000).contains(&size.cols) && (1..=1000).contains(&size.rows) => {
            size
        }
        _ => {
            return ApiError::invalid("cols", "A terminal has 1 to 1,000 columns and rows.")
                .into_response();
        }
    };
    let upgrade = match checked(upgrade) {
        Ok(upgrade) => upgrade,
        Err(error) => return error.into_response(),
    };
    let opened = async {
        // A link shows the desktop alone: what it carries is no right here.
        let viewer = viewer?;
        let Viewer::Person { .. } = &viewer else {
            return Err(ApiError::new(Code::Forbidden, "A share link shows the desktop alone."));
        };
        viewer.visible(&state, id).await?;
        let (agent, attached) = state.control.agent(id).await?;
        let guest = agent
            .terminal("main", size.cols, size.rows, TERMINAL_DEADLINE)
            .await
            .map_err(|error| guest_error(&error))?;
        Ok((guest, attached, viewer))
    };
    match opened.await {
        Ok((guest, attached, viewer)) => {
            let streams = state.streams.token();
            upgrade.on_upgrade(async move |socket| {
                gateway::terminal(socket, guest, attached, (state, viewer)).await;
                drop(streams);
            })
        }
        Err(error) => refuse(upgrade, &headers, error),
    }
}

fn checked(upgrade: Upgrade) -> Result<WebSocketUpgrade, ApiError> {
    upgrade.map(|upgrade| upgrade.max_message_size(MAX_MESSAGE)).map_err(|_| {
        ApiError::new(Code::UpgradeRequired, "This address is for WebSockets (version 13) only.")
    })
}

fn refuse(upgrade: WebSocketUpgrade, headers: &HeaderMap, error: ApiError) -> Response {
    if !headers.contains_key(header::ORIGIN) {
        return error.into_response();
    }
    let (code, reason) = error.close_frame();
    upgrade.on_upgrade(async move |mut socket| {
        let frame = CloseFrame { code, reason: reason.into() };
        // A browser that left already needs no reason.
        let _ = socket.send(Message::Close(Some(frame))).await;
    })
}
