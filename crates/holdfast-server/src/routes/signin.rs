//! Sign-ins: link, code, retry, and the credentials that are handed over once.

use std::str::FromStr as _;

use axum::{
    Json as JsonAnswer,
    extract::State,
    response::{IntoResponse as _, Response},
};
use holdfast_api::{self as api, Code, Problem};
use holdfast_control::{ControlError, Live, NewSignIn};
use holdfast_core::{
    SignIn, SignInOutcome, SignInStep,
    provider::Provider,
    signin::{SealedInfo, Webhook},
};
use holdfast_store::Taken;
use http::{HeaderValue, StatusCode, header};

use crate::{
    auth::Principal,
    extract::{Id, Json},
    problem::{ApiError, ApiResult},
    state::AppState,
    webhook,
};

/// Seconds after which a client asks for the link again.
const RETRY_AFTER: u64 = 1;

/// What a session for `provider` needs for its sign-in; `None` for a plain desktop.
pub(super) async fn wanted(
    state: &AppState,
    who: &Principal,
    provider: &Provider,
    recipient: Option<String>,
    hook: Option<api::Webhook>,
) -> ApiResult<Option<NewSignIn>> {
    let Some(tool) = &provider.tool else {
        return match (recipient, hook) {
            (None, None) => Ok(None),
            (Some(_), _) => {
                Err(ApiError::invalid("recipient", "A plain desktop has no credentials to seal."))
            }
            (None, Some(_)) => {
                Err(ApiError::invalid("webhook", "A plain desktop has no sign-in to announce."))
            }
        };
    };
    let mut recipients = Vec::new();
    if let Some(key) = recipient {
        recipients.push(checked_key(key, "recipient")?);
    } else if let Some(key) =
        state.control.store().owner_key(who.owner).await.map_err(ControlError::from)?
    {
        recipients.push(key);
    }
    if recipients.is_empty() && !tool.credentials.is_empty() {
        return Err(ApiError::invalid(
            "recipient",
            "Credentials are sealed to an age public key: give one as `recipient`, or set the owner's with PUT /api/owner/key.",
        ));
    }
    let webhook = match hook {
        None => None,
        Some(hook) => {
            webhook::check(&hook.url, &state.config.webhooks)
                .map_err(|why| ApiError::invalid("webhook.url", why))?;
            if !(16..=256).contains(&hook.secret.len()) || !hook.secret.is_ascii() {
                return Err(ApiError::invalid(
                    "webhook.secret",
                    "A webhook's secret has 16 to 256 ASCII characters.",
                ));
            }
            Some(Webhook { url: hook.url, secret: hook.secret })
        }
    };
    Ok(Some(NewSignIn { recipients, webhook }))
}

fn checked_key(key: String, field: &str) -> ApiResult<String> {
    match age::x25519::Recipient::from_str(key.trim()) {
        Ok(recipient) => Ok(recipient.to_string()),
        Err(_) => Err(ApiError::invalid(
            field,
            "An age public key begins with `age1`; make one with `age-keygen`.",
        )),
    }
}

/// The sign-in of a session, also of one that ended.
#[utoipa::path(get, path = "/api/sessions/{id}/sign-in", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = api::SignIn), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "It is not for a sign-in."), (status = 503, body = Problem)))]
pub(crate) async fn read(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<JsonAnswer<api::SignIn>> {
    let live = state.visible(&who, id).await?;
    let sign_in = sign_in_of(&state, &live).await?;
    let sealed = state.control.sealed_info(id).await?;
    Ok(JsonAnswer(convert(sign_in, sealed)))
}

/// The link of a sign-in.
#[utoipa::path(get, path = "/api/sessions/{id}/oauth-url", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = api::OauthUrl), (status = 202, body = api::OauthPending, description = "The tool works on it; see Retry-After."),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem, description = "It is not for a sign-in."),
        (status = 410, body = Problem), (status = 424, body = Problem, description = "The tool ended without a link; `error` has its last output."), (status = 503, body = Problem)))]
pub(crate) async fn oauth_url(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<Response> {
    let live = state.visible(&who, id).await?;
    super::sessions::refuse_over(&live)?;
    let sign_in = sign_in_of(&state, &live).await?;
    if sign_in.is_done() && sign_in.outcome != Some(SignInOutcome::Succeeded) {
        let why = sign_in.why.unwrap_or_else(|| "The tool ended.".to_owned());
        let output = sign_in.output.trim();
        let shown =
            if output.is_empty() { why } else { format!("{why} Its last output: {output}") };
        return Err(ApiError::new(Code::ToolFailed, shown));
    }
    if let Some(url) = sign_in.url {
        return Ok(JsonAnswer(api::OauthUrl {
            url,
            flow: sign_in.flow.as_str().to_owned(),
            run: sign_in.run,
            user_code: sign_in.user_code,
            expires_at: sign_in.expires_at,
        })
        .into_response());
    }
    let pending = api::OauthPending {
        step: sign_in.step.as_str().to_owned(),
        run: sign_in.run,
        retry_after: RETRY_AFTER,
    };
    let mut response = (StatusCode::ACCEPTED, JsonAnswer(pending)).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
    Ok(response)
}

/// Type the code that the provider showed.
#[utoipa::path(post, path = "/api/sessions/{id}/sign-in/code", tag = "sign-in", params(("id" = String, Path)), request_body = api::SignInCode,
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 410, body = Problem), (status = 422, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn code(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
    Json { value, .. }: Json<api::SignInCode>,
) -> ApiResult<StatusCode> {
    state.visible(&who, id).await?;
    let text = value.text.trim().to_owned();
    if text.is_empty() || text.chars().count() > 4096 || text.chars().any(char::is_control) {
        return Err(ApiError::invalid("text", "A code has 1 to 4,096 characters on one line."));
    }
    state.control.sign_in_input(id, text).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Open the link in the VM's browser again.
#[utoipa::path(post, path = "/api/sessions/{id}/sign-in/open", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 410, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn open(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<StatusCode> {
    state.visible(&who, id).await?;
    state.control.sign_in_open(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Start the tool again in the same machine, as a new run.
#[utoipa::path(post, path = "/api/sessions/{id}/sign-in/retry", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = api::SignIn), (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn retry(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<JsonAnswer<api::SignIn>> {
    state.visible(&who, id).await?;
    let sign_in = state.control.sign_in_retry(id).await?;
    Ok(JsonAnswer(convert(sign_in, None)))
}

/// Fetch the sealed credentials, once: they are destroyed here by that. Works after the session ended.
#[utoipa::path(post, path = "/api/sessions/{id}/credentials", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream", description = "An age file; its plaintext is JSON: {files: [{path, mode, content (base64)}]}."),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem, description = "There are none yet."),
        (status = 410, body = Problem, description = "They were fetched, or destroyed when their time was over."), (status = 503, body = Problem)))]
pub(crate) async fn credentials(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<Response> {
    let live = state.visible(&who, id).await?;
    // Not even an administrator fetches what belongs to somebody else.
    if live.session.owner != who.owner {
        return Err(ApiError::not_found());
    }
    sign_in_of(&state, &live).await?;
    match state.control.take_sealed(id).await? {
        Taken::Now(sealed) => {
            let name = format!("attachment; filename=\"{}.age\"", live.session.spec.provider);
            let mut response = sealed.ciphertext.into_response();
            let headers = response.headers_mut();
            headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            if let Ok(value) = HeaderValue::from_str(&name) {
                headers.insert(header::CONTENT_DISPOSITION, value);
            }
            Ok(response)
        }
        Taken::Before(info) => {
            let (reason, error) = if info.fetched_at.is_some() {
                ("fetched", "The credentials were fetched before; they are handed over once.")
            } else {
                ("expired", "Nobody fetched the credentials in time; they were destroyed.")
            };
            Err(ApiError::gone(Some(reason), error))
        }
        Taken::Never => Err(ApiError::new(
            Code::Conflict,
            "There are no credentials: the sign-in has not succeeded.",
        )),
    }
}

/// The age public key that the caller's credentials are sealed to by default.
#[utoipa::path(get, path = "/api/owner/key", tag = "sign-in",
    responses((status = 200, body = api::OwnerKey), (status = 401, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn owner_key(
    State(state): State<AppState>,
    who: Principal,
) -> ApiResult<JsonAnswer<api::OwnerKey>> {
    let recipient = state.control.store().owner_key(who.owner).await.map_err(ControlError::from)?;
    Ok(JsonAnswer(api::OwnerKey { recipient }))
}

/// Set or remove that key.
#[utoipa::path(put, path = "/api/owner/key", tag = "sign-in", request_body = api::OwnerKey,
    responses((status = 200, body = api::OwnerKey), (status = 401, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn set_owner_key(
    State(state): State<AppState>,
    who: Principal,
    Json { value, .. }: Json<api::OwnerKey>,
) -> ApiResult<JsonAnswer<api::OwnerKey>> {
    let recipient = value.recipient.map(|key| checked_key(key, "recipient")).transpose()?;
    let store = state.control.store();
    store.set_owner_key(who.owner, recipient.clone()).await.map_err(ControlError::from)?;
    Ok(JsonAnswer(api::OwnerKey { recipient }))
}

async fn sign_in_of(state: &AppState, live: &Live) -> ApiResult<SignIn> {
    state.control.sign_in(live.session.id).await?.ok_or_else(|| {
        ApiError::new(Code::Conflict, "This session is a plain desktop, not a sign-in.")
    })
}

fn convert(sign_in: SignIn, sealed: Option<SealedInfo>) -> api::SignIn {
    // A link is of use only while the person is waited for.
    let url = sign_in.url.filter(|_| sign_in.step != SignInStep::Done);
    api::SignIn {
        session_id: sign_in.session.as_uuid(),
        provider: sign_in.provider,
        flow: sign_in.flow.as_str().to_owned(),
        run: sign_in.run,
        step: sign_in.step.as_str().to_owned(),
        step_since: sign_in.step_since,
        url,
        user_code: sign_in.user_code,
        wants_input: sign_in.wants_input,
        outcome: sign_in.outcome.map(|outcome| outcome.as_str().to_owned()),
        why: sign_in.why,
        output: sign_in.output,
        expires_at: sign_in.expires_at,
        recipients: sign_in.recipients,
        credentials: sealed.map(|info| api::SealedCredentials {
            files: info
                .files
                .into_iter()
                .map(|file| api::SealedFile { path: file.path, size: file.size, mode: file.mode })
                .collect(),
            fetched: info.fetched_at.is_some()
                || info.expires_at <= holdfast_core::Timestamp::now(),
            expires_at: info.expires_at,
        }),
    }
}
