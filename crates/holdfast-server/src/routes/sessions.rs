//! Sessions: create, list, read, end, heartbeat, their VM, commands and console.

use std::time::Duration;

use axum::{
    Json as JsonAnswer,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use holdfast_agent_api::ExecRequest;
use holdfast_api as api;
use holdfast_api::{Code, CreateSession, Problem};
use holdfast_control::{CreateRequest, Live, guest_error};
use holdfast_core::{
    Actor, EndReason, Screen, SessionSpec, SessionState, VmState,
    provider::{self, Provider},
};
use holdfast_host::guest::GuestError;
use holdfast_store::{IdempotencyKey, SessionFilter};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;

use crate::{
    access::Viewer,
    auth::Principal,
    convert,
    extract::{Id, Json},
    problem::{ApiError, ApiResult},
    state::AppState,
};

/// Most sessions that one list holds.
const LIST_LIMIT: u32 = 500;
/// How much of a console is shown.
const CONSOLE_BYTES: usize = 64 * 1024;

/// Make a session. It can be read from the moment this answers; its timeline tells the rest.
#[utoipa::path(post, path = "/api/sessions", tag = "sessions", request_body = CreateSession,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request harmless: the same key answers the same session. At most 255 visible ASCII characters.")),
    responses((status = 201, body = api::Session), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    who: Principal,
    headers: HeaderMap,
    Json { value, sha256 }: Json<CreateSession>,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, sha256)?;
    let (recipient, webhook) = (value.recipient.clone(), value.webhook.clone());
    let (spec, provider) = check(&state, value)?;
    let sign_in = super::signin::wanted(&state, &who, &provider, recipient, webhook).await?;
    let request = CreateRequest { owner: who.owner, spec, sign_in, key };
    let (live, replayed) = state.control.create(request).await?;
    let body = convert::session(&live.session, who.name, state.control.limits(&live.session));
    let location = format!("/api/sessions/{}", live.session.id);
    let mut response = (StatusCode::CREATED, JsonAnswer(body)).into_response();
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    if replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn idempotency_key(headers: &HeaderMap, sha256: String) -> ApiResult<Option<IdempotencyKey>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) => {
            Ok(Some(IdempotencyKey { key: key.to_owned(), request_sha256: sha256 }))
        }
        _ => Err(ApiError::invalid(
            "Idempotency-Key",
            "An Idempotency-Key has 1 to 255 visible ASCII characters.",
        )),
    }
}

/// Checks what was asked for, and fills in what was not.
fn check(state: &AppState, asked: CreateSession) -> ApiResult<(SessionSpec, Provider)> {
    let provider = asked.provider.as_deref().unwrap_or(provider::DESKTOP);
    let Some(provider) = state.control.provider(provider).cloned() else {
        let known: Vec<_> = state.control.providers().iter().map(|p| p.name.as_str()).collect();
        return Err(ApiError::invalid(
            "provider",
            format!("There is no such provider; there are {}.", known.join(", ")),
        ));
    };
    let name = asked.name.unwrap_or_default();
    if name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(ApiError::invalid("name", "A name has at most 100 printable characters."));
    }
    let screen =
        asked.screen.map_or(Screen::DEFAULT, |s| Screen { width: s.width, height: s.height });
    if !screen.is_valid() {
        return Err(ApiError::invalid(
            "screen",
            "A screen is 320 to 7680 pixels wide and 240 to 4320 high.",
        ));
    }
    let start_url = asked.start_url.filter(|url| !url.is_empty());
    if let Some(url) = &start_url {
        let fine = url.len() <= 2048
            && (url.starts_with("http://") || url.starts_with("https://"))
            && url.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some_and(|h| !h.is_empty()));
        if !fine {
            return Err(ApiError::invalid(
                "startUrl",
                "A start page is an http or https address of at most 2,048 characters.",
            ));
        }
    }
    let locale = asked.locale.unwrap_or_else(|| "en-US".to_owned());
    if !is_tag(&locale, 35, "-") {
        return Err(ApiError::invalid("locale", "A language is written like en-US or de-DE."));
    }
    let timezone = asked.timezone.unwrap_or_else(|| "Etc/UTC".to_owned());
    if !is_tag(&timezone, 64, "/_-+") {
        return Err(ApiError::invalid("timezone", "A time zone is written like Europe/Berlin."));
    }
    let vm = &state.config.vm;
    let memory_mib = asked.memory_mib.unwrap_or(vm.memory_mib);
    if !(1024..=vm.max_memory_mib).contains(&memory_mib) && asked.memory_mib.is_some() {
        let text = format!("Memory is 1024 to {} MiB on this host.", vm.max_memory_mib);
        return Err(ApiError::invalid("memoryMib", text));
    }
    let vcpus = asked.vcpus.unwrap_or(vm.vcpus);
    if !(1..=vm.max_vcpus).contains(&vcpus) {
        let text = format!("A VM has 1 to {} processors on this host.", vm.max_vcpus);
        return Err(ApiError::invalid("vcpus", text));
    }
    let spec = SessionSpec {
        provider: provider.name.clone(),
        name,
        screen,
        start_url,
        locale,
        timezone,
        memory_mib,
        vcpus,
    };
    Ok((spec, provider))
}

fn is_tag(text: &str, most: usize, also: &str) -> bool {
    (1..=most).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.contains("..")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

/// Which sessions to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Only in these states, separated by commas.
    state: Option<String>,
    /// Only this owner's, by name; for administrators.
    owner: Option<String>,
}

/// List sessions, newest first: one's own, or everybody's for an administrator.
#[utoipa::path(get, path = "/api/sessions", tag = "sessions", params(ListQuery),
    responses((status = 200, body = api::SessionList), (status = 401, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    who: Principal,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<JsonAnswer<api::SessionList>> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let mut states = Vec::new();
    for name in query.state.iter().flat_map(|s| s.split(',')) {
        states.push(SessionState::from_name(name).ok_or_else(|| {
            let all: Vec<_> = SessionState::ALL.iter().map(|s| s.as_str()).collect();
            ApiError::invalid("state", format!("A state is one of {}.", all.join(", ")))
        })?);
    }
    let owner = if who.admin { None } else { Some(who.owner) };
    // Names are compared after reading, so a limit before would lose matches.
    let limit = query.owner.is_none().then_some(LIST_LIMIT);
    let filter = SessionFilter { owner, states, limit };
    let found = state.control.list(filter).await?;
    let mut sessions = Vec::with_capacity(found.len());
    for session in &found {
        let name = state.owner_name(&who, session.owner).await;
        if query.owner.as_ref().is_none_or(|wanted| *wanted == name) {
            sessions.push(convert::session(session, name, state.control.limits(session)));
        }
    }
    Ok(JsonAnswer(api::SessionList { sessions }))
}

/// Read a session.
#[utoipa::path(get, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = api::Session), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn read(
    State(state): State<AppState>,
    viewer: Viewer,
    Id(id): Id,
) -> ApiResult<JsonAnswer<api::Session>> {
    let live = viewer.visible(&state, id).await?;
    refuse_ended(&live)?;
    let owner = viewer.owner_name(&state, &live).await;
    Ok(JsonAnswer(convert::session(&live.session, owner, state.control.limits(&live.session))))
}

fn refuse_ended(live: &Live) -> ApiResult<()> {
    if live.session.state != SessionState::Ended {
        return Ok(());
    }
    let reason = live.session.end_reason.unwrap_or(EndReason::Failed);
    let error = live.session.detail.clone().unwrap_or_else(|| reason.sentence().to_owned());
    Err(ApiError::gone(Some(reason.as_str()), error))
}

/// Refuses a session that ended or is ending: nothing of it can be used any more.
pub(super) fn refuse_over(live: &Live) -> ApiResult<()> {
    refuse_ended(live)?;
    if live.session.state == SessionState::Ending {
        let reason = live.session.end_reason.unwrap_or(EndReason::UserRequest);
        return Err(ApiError::gone(Some(reason.as_str()), reason.sentence()));
    }
    Ok(())
}

/// End a session, whatever it is doing. Repeating it is harmless.
#[utoipa::path(delete, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 202, body = api::Session, description = "It is being taken down."), (status = 204, description = "It ended before."),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn end(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<Response> {
    state.visible(&who, id).await?;
    let live = state.control.end(id, EndReason::UserRequest, Actor::User).await?;
    if live.session.state == SessionState::Ended {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let owner = state.owner_name(&who, live.session.owner).await;
    Ok((
        StatusCode::ACCEPTED,
        JsonAnswer(convert::session(&live.session, owner, state.control.limits(&live.session))),
    )
        .into_response())
}

/// What a heartbeat says besides.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HeartbeatQuery {
    /// Somebody asks for the session to be kept: its idle time starts afresh, as by a key or a click.
    #[serde(default)]
    used: bool,
}

/// Say that somebody is attached.
#[utoipa::path(post, path = "/api/sessions/{id}/heartbeat", tag = "sessions", params(("id" = String, Path), HeartbeatQuery),
    responses((status = 200, body = api::Heartbeat), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn heartbeat(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
    query: Result<Query<HeartbeatQuery>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<JsonAnswer<api::Heartbeat>> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let live = state.visible(&who, id).await?;
    if query.used {
        // Somebody who asks for the agent uses the session.
        state.control.agent(id).await?;
    }
    let expires_at = state.control.heartbeat(id).await?;
    let idle_at = state.control.idle_soon(&live.session);
    Ok(JsonAnswer(api::Heartbeat { expires_at, idle_at }))
}

/// What to tell of a VM.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct VmQuery {
    /// Also what it costs the host. Finding that out takes milliseconds, the rest is in memory.
    #[serde(default)]
    usage: bool,
}

/// The VM now serving a session.
#[utoipa::path(get, path = "/api/sessions/{id}/vm", tag = "sessions", params(("id" = String, Path), VmQuery),
    responses((status = 200, body = api::SessionVm), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 410, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn vm(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
    query: Result<Query<VmQuery>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<JsonAnswer<api::SessionVm>> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let live = state.visible(&who, id).await?;
    refuse_over(&live)?;
    if live.vm.state == VmState::Gone {
        let error = live.session.detail.clone().unwrap_or_else(|| "The VM is gone.".to_owned());
        return Err(ApiError::gone(Some("vm_gone"), error));
    }
    let usage =
        if query.usage { state.control.driver().usage(live.vm.id).await.ok() } else { None };
    Ok(JsonAnswer(convert::session_vm(&live, usage)))
}

/// Run a command in the session's machine and wait for its end.
#[utoipa::path(post, path = "/api/sessions/{id}/exec", tag = "sessions", params(("id" = String, Path)), request_body = api::Exec,
    responses((status = 200, body = api::ExecResult), (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 410, body = Problem), (status = 422, body = Problem), (status = 502, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn exec(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
    Json { value, .. }: Json<api::Exec>,
) -> ApiResult<JsonAnswer<api::ExecResult>> {
    state.visible(&who, id).await?;
    let timeout_ms = value.timeout_ms.unwrap_or(60_000);
    if value.command.is_empty() || value.command[0].is_empty() {
        return Err(ApiError::invalid("command", "A command needs at least a program."));
    }
    if !(1..=600_000).contains(&timeout_ms) {
        return Err(ApiError::invalid("timeoutMs", "A time limit is 1 to 600,000 ms."));
    }
    let is_base64 = |text: &String| base64::engine::general_purpose::STANDARD.decode(text).is_ok();
    if !value.stdin.as_ref().is_none_or(is_base64) {
        return Err(ApiError::invalid("stdin", "Standard input has to be base64."));
    }
    let (agent, attached) = state.control.agent(id).await?;
    let request = ExecRequest {
        command: value.command,
        env: Vec::new(),
        cwd: None,
        stdin: value.stdin,
        timeout_ms,
        root: value.root,
    };
    let mut route = attached.watch();
    let answer = tokio::select! {
        answer = agent.exec(&request) => answer,
        state_now = route.ended() => return Err(interrupted(state_now)),
        () = state.stop.cancelled() => {
            return Err(ApiError::unavailable("The server is restarting; the command goes on without it."));
        }
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(GuestError::Refused { status: 400, message }) => {
            return Err(ApiError::invalid("command", message));
        }
        Err(other) => {
            // A machine that is taken down closes its connections first.
            return match tokio::time::timeout(Duration::from_secs(1), route.ended()).await {
                Ok(state_now) => Err(interrupted(state_now)),
                Err(_) => Err(guest_error(&other).into()),
            };
        }
    };
    Ok(JsonAnswer(api::ExecResult {
        exit_code: answer.exit_code,
        stdout: answer.stdout,
        stderr: answer.stderr,
        truncated: answer.truncated,
        timed_out: answer.timed_out,
    }))
}

fn interrupted(state: SessionState) -> ApiError {
    match state {
        SessionState::Ending | SessionState::Ended => {
            ApiError::gone(None, "The session ended while the command was running.")
        }
        state => ApiError::new(
            Code::Conflict,
            format!("The session is {state}: its machine went away while the command was running."),
        ),
    }
}

/// The end of the serial console of the session's machine.
#[utoipa::path(get, path = "/api/sessions/{id}/console", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = api::Console), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 410, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn console(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<JsonAnswer<api::Console>> {
    state.visible(&who, id).await?;
    let text = state.control.console(id, CONSOLE_BYTES).await?;
    Ok(JsonAnswer(api::Console { text }))
}
