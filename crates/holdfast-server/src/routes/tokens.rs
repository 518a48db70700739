//! Access tokens, for administrators.

use axum::{
    Json as JsonAnswer,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use holdfast_api::{self as api, Code, Problem};
use holdfast_control::ControlError;
use holdfast_core::Timestamp;
use holdfast_store::{NewToken, StoreError, TokenRecord};
use http::StatusCode;
use uuid::Uuid;

use crate::{
    auth::{self, Admin},
    extract::Json,
    problem::{ApiError, ApiResult},
    state::AppState,
};

/// Longest life of a token in days.
const MOST_DAYS: u32 = 3650;

/// Make a token. It is shown in this answer and never again.
#[utoipa::path(post, path = "/api/tokens", tag = "tokens", request_body = api::CreateToken,
    responses((status = 201, body = api::NewToken), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    _: Admin,
    Json { value, .. }: Json<api::CreateToken>,
) -> ApiResult<Response> {
    let is_name = |text: &str| {
        (1..=100).contains(&text.chars().count())
            && text.trim() == text
            && !text.chars().any(char::is_control)
    };
    if !is_name(&value.owner) {
        return Err(ApiError::invalid(
            "owner",
            "An owner's name has 1 to 100 printable characters.",
        ));
    }
    let name = value.name.unwrap_or_else(|| value.owner.clone());
    if !is_name(&name) {
        return Err(ApiError::invalid("name", "A token's name has 1 to 100 printable characters."));
    }
    let now = Timestamp::now();
    let expires_at = match value.expires_in_days {
        None => None,
        Some(days) if (1..=MOST_DAYS).contains(&days) => {
            Some(now + std::time::Duration::from_secs(u64::from(days) * 86_400))
        }
        Some(_) => {
            let text = format!("A token lives 1 to {MOST_DAYS} days.");
            return Err(ApiError::invalid("expiresInDays", text));
        }
    };
    let store = state.control.store();
    let secret = auth::new_token().map_err(|_| {
        ApiError::new(Code::Internal, "The kernel gave no random bytes; try again.")
    })?;
    let failed = |error: StoreError| ApiError::from(ControlError::from(error));
    let owner = store.ensure_owner(&value.owner, now).await.map_err(failed)?;
    let token = NewToken {
        id: Uuid::now_v7(),
        owner,
        name,
        sha256: auth::token_sha256(&secret),
        admin: value.admin,
        created_at: now,
        expires_at,
    };
    let record = store.create_token(token).await.map_err(failed)?;
    let token = shown(&record, value.owner);
    Ok((StatusCode::CREATED, JsonAnswer(api::NewToken { secret, token })).into_response())
}

/// List tokens, newest first, revoked ones too. The tokens themselves are not known to anybody.
#[utoipa::path(get, path = "/api/tokens", tag = "tokens",
    responses((status = 200, body = api::TokenList), (status = 401, body = Problem), (status = 403, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    _: Admin,
) -> ApiResult<JsonAnswer<api::TokenList>> {
    let store = state.control.store();
    let mut tokens = Vec::new();
    for record in store.tokens().await.map_err(ControlError::from)? {
        let owner = store.owner_name(record.owner).await.map_err(ControlError::from)?;
        tokens.push(shown(&record, owner.unwrap_or_default()));
    }
    Ok(JsonAnswer(api::TokenList { tokens }))
}

/// Revoke a token. It stops working at once here, and within five seconds elsewhere.
#[utoipa::path(delete, path = "/api/tokens/{id}", tag = "tokens", params(("id" = String, Path)),
    responses((status = 204, description = "It is revoked."), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn revoke(
    State(state): State<AppState>,
    _: Admin,
    id: Result<Path<Uuid>, axum::extract::rejection::PathRejection>,
) -> ApiResult<StatusCode> {
    let not_found =
        || ApiError::new(Code::NotFound, "There is no such token; GET /api/tokens lists them.");
    let Path(id) = id.map_err(|_| not_found())?;
    let store = state.control.store();
    let revoked = store.revoke_token(id, Timestamp::now()).await.map_err(ControlError::from)?;
    state.tokens.revoked(id);
    if revoked { Ok(StatusCode::NO_CONTENT) } else { Err(not_found()) }
}

fn shown(record: &TokenRecord, owner: String) -> api::Token {
    api::Token {
        id: record.id,
        owner,
        name: record.name.clone(),
        admin: record.admin,
        created_at: record.created_at,
        expires_at: record.expires_at,
        revoked_at: record.revoked_at,
    }
}
