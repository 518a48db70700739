//! Links by which somebody without a token may look at one session.

use axum::{
    Json as JsonAnswer,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse as _, Response},
};
use holdfast_api::{self as api, Code, Problem};
use holdfast_control::ControlError;
use holdfast_core::Timestamp;
use holdfast_store::{ShareLink, StoreError};
use http::StatusCode;
use uuid::Uuid;

use crate::{
    auth::{self, Principal},
    extract::{Id, Json},
    problem::{ApiError, ApiResult},
    routes::sessions::refuse_over,
    state::AppState,
};

/// Longest life of a link: a week.
const MOST_MINUTES: u32 = 10_080;

/// Make a link to a session. Whoever has it sees the desktop, without a token, until it expires or
/// is revoked. Its secret is shown in this answer and never again.
#[utoipa::path(post, path = "/api/sessions/{id}/shares", tag = "sessions", params(("id" = String, Path)), request_body = api::CreateShare,
    responses((status = 201, body = api::NewShare), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 410, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
    Json { value, .. }: Json<api::CreateShare>,
) -> ApiResult<Response> {
    refuse_over(&state.visible(&who, id).await?)?;
    if !(1..=MOST_MINUTES).contains(&value.minutes) {
        let text = format!("A link works for 1 to {MOST_MINUTES} minutes.");
        return Err(ApiError::invalid("minutes", text));
    }
    let secret = auth::new_token().map_err(|_| {
        ApiError::new(Code::Internal, "The kernel gave no random bytes; try again.")
    })?;
    let now = state.control.now();
    let link = ShareLink {
        id: Uuid::now_v7(),
        session: id,
        sha256: auth::token_sha256(&secret),
        view_only: value.view_only,
        created_at: now,
        expires_at: now + std::time::Duration::from_secs(u64::from(value.minutes) * 60),
        revoked_at: None,
    };
    state.control.store().create_share(link.clone()).await.map_err(failed)?;
    // For the page alone: what a link may do is decided at the gateway, whatever its address says.
    let control = if link.view_only { "" } else { "&control=1" };
    let url = format!("/?session={id}&share={secret}{control}");
    let share = api::NewShare { url, share: shown(&link) };
    Ok((StatusCode::CREATED, JsonAnswer(share)).into_response())
}

/// Links to a session that work now.
#[utoipa::path(get, path = "/api/sessions/{id}/shares", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = api::ShareList), (status = 401, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<JsonAnswer<api::ShareList>> {
    state.visible(&who, id).await?;
    let links = state.control.store().shares(id, Timestamp::now()).await.map_err(failed)?;
    Ok(JsonAnswer(api::ShareList { shares: links.iter().map(shown).collect() }))
}

/// Revoke a link. Streams that were opened with it end within seconds.
#[utoipa::path(delete, path = "/api/sessions/{id}/shares/{share}", tag = "sessions", params(("id" = String, Path), ("share" = String, Path)),
    responses((status = 204, description = "It works no more."), (status = 401, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn revoke(
    State(state): State<AppState>,
    who: Principal,
    ids: Result<Path<(String, String)>, PathRejection>,
) -> ApiResult<StatusCode> {
    let Path((id, share)) = ids.map_err(|_| ApiError::not_found())?;
    let id = id.parse().map_err(|_| ApiError::not_found())?;
    state.visible(&who, id).await?;
    let missing = || ApiError::new(Code::NotFound, "There is no such link.");
    let share: Uuid = share.parse().map_err(|_| missing())?;
    let store = state.control.store();
    let revoked = store.revoke_share(id, share, Timestamp::now()).await.map_err(failed)?;
    if revoked { Ok(StatusCode::NO_CONTENT) } else { Err(missing()) }
}

fn shown(link: &ShareLink) -> api::Share {
    api::Share {
        id: link.id,
        view_only: link.view_only,
        created_at: link.created_at,
        expires_at: link.expires_at,
    }
}

fn failed(error: StoreError) -> ApiError {
    ControlError::from(error).into()
}
