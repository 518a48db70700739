//! Putting sessions away, bringing them back, and forking them.

use axum::{
    Json as JsonAnswer,
    extract::State,
    response::{IntoResponse as _, Response},
};
use holdfast_api::{self as api, Problem};
use holdfast_control::CreateRequest;
use holdfast_core::Actor;
use http::StatusCode;

use crate::{auth::Principal, convert, extract::Id, problem::ApiResult, state::AppState};

/// Put a session away: its machine is saved and its memory given back. Repeating it is harmless.
#[utoipa::path(post, path = "/api/sessions/{id}/hibernate", tag = "sessions", params(("id" = String, Path)),
    responses((status = 202, body = api::Session), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn hibernate(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<Response> {
    state.visible(&who, id).await?;
    let live = state.control.hibernate(id, Actor::User).await?;
    let owner = state.owner_name(&who, live.session.owner).await;
    Ok((
        StatusCode::ACCEPTED,
        JsonAnswer(convert::session(&live.session, owner, state.control.limits(&live.session))),
    )
        .into_response())
}

/// Bring a session back as it was. Repeating it is harmless.
#[utoipa::path(post, path = "/api/sessions/{id}/resume", tag = "sessions", params(("id" = String, Path)),
    responses((status = 202, body = api::Session), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn resume(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<Response> {
    state.visible(&who, id).await?;
    let live = state.control.resume(id, Actor::User).await?;
    let owner = state.owner_name(&who, live.session.owner).await;
    Ok((
        StatusCode::ACCEPTED,
        JsonAnswer(convert::session(&live.session, owner, state.control.limits(&live.session))),
    )
        .into_response())
}

/// Make another session with the same state and a new identity; the first one goes on.
#[utoipa::path(post, path = "/api/sessions/{id}/fork", tag = "sessions", params(("id" = String, Path)),
    responses((status = 201, body = api::Session), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn fork(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<Response> {
    let source = state.visible(&who, id).await?;
    let request = CreateRequest {
        owner: source.session.owner,
        spec: source.session.spec,
        sign_in: None,
        key: None,
    };
    let (live, _) = state.control.fork(id, request).await?;
    let owner = state.owner_name(&who, live.session.owner).await;
    Ok((
        StatusCode::CREATED,
        JsonAnswer(convert::session(&live.session, owner, state.control.limits(&live.session))),
    )
        .into_response())
}
