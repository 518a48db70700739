//! Taking a host out of use, and back.

use axum::{Json as JsonAnswer, extract::State};
use holdfast_api::{self as api, Code, Problem};
use holdfast_core::{Actor, EndReason, SessionState};
use http::StatusCode;

use crate::{
    auth::Admin,
    extract::Json,
    problem::{ApiError, ApiResult},
    state::AppState,
};

/// Take no new sessions on this server's host, also after a restart. What runs goes on, or is put
/// away, or is ended. Repeat it to see how many are left.
#[utoipa::path(post, path = "/api/drain", tag = "host", request_body = api::StartDrain,
    responses((status = 200, body = api::Drain), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn start(
    State(state): State<AppState>,
    _: Admin,
    Json { value, .. }: Json<api::StartDrain>,
) -> ApiResult<JsonAnswer<api::Drain>> {
    state.drain.set(&state.control, true).map_err(|error| failed(&error))?;
    for live in state.control.live() {
        let id = live.session.id;
        let done = match value.sessions {
            api::DrainSessions::End => {
                state.control.end(id, EndReason::UserRequest, Actor::User).await.map(|_| ())
            }
            api::DrainSessions::Hibernate if live.session.state == SessionState::Ready => {
                state.control.hibernate(id, Actor::User).await.map(|_| ())
            }
            // One that is starting can be put away once it is ready.
            api::DrainSessions::Keep | api::DrainSessions::Hibernate => Ok(()),
        };
        if let Err(error) = done {
            let error = crate::error::chain(&error);
            tracing::warn!(session = %id, error, "a session could not be put away");
        }
    }
    Ok(JsonAnswer(now(&state)))
}

/// Take sessions again.
#[utoipa::path(delete, path = "/api/drain", tag = "host",
    responses((status = 204, description = "It takes sessions."), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(crate) async fn stop(State(state): State<AppState>, _: Admin) -> ApiResult<StatusCode> {
    state.drain.set(&state.control, false).map_err(|error| failed(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn now(state: &AppState) -> api::Drain {
    let uses_the_host = |state: &SessionState| {
        !matches!(state, SessionState::Hibernated | SessionState::Failed | SessionState::Ended)
    };
    let left = state.control.live();
    let left = left.iter().filter(|live| uses_the_host(&live.session.state));
    api::Drain {
        since: state.drain.since(),
        left: left.map(|live| live.session.id.as_uuid()).collect(),
    }
}

fn failed(error: &crate::ServerError) -> ApiError {
    tracing::error!(error = crate::error::chain(error), "draining could not be written down");
    ApiError::new(
        Code::Internal,
        "It could not be written down, so nothing was changed; the server's log says why.",
    )
}
