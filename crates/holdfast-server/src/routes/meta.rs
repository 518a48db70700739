//! VMs, hosts, providers, version, readiness, metrics, and signing in.

use axum::{
    Json as JsonAnswer,
    extract::State,
    response::{IntoResponse, Response},
};
use holdfast_api::{self as api, Code, Problem};
use holdfast_control::{ControlError, Live};
use holdfast_core::SessionState;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

use crate::{
    auth::{self, Admin, Principal},
    convert,
    extract::Json,
    metrics,
    problem::{ApiError, ApiResult},
    state::AppState,
};

/// How long readiness waits for the store.
const READY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);

/// VMs that are not gone.
#[utoipa::path(get, path = "/api/vms", tag = "host",
    responses((status = 200, body = api::VmList), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(crate) async fn vms(
    State(state): State<AppState>,
    _: Admin,
) -> ApiResult<JsonAnswer<api::VmList>> {
    let mut vms = Vec::new();
    for vm in state.control.store().live_vms().await.map_err(ControlError::from)? {
        let usage = state.control.driver().usage(vm.id).await.ok();
        vms.push(convert::vm(&vm, usage));
    }
    Ok(JsonAnswer(api::VmList { vms }))
}

/// Machines that run VMs.
#[utoipa::path(get, path = "/api/hosts", tag = "host",
    responses((status = 200, body = api::HostList), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(crate) async fn hosts(
    State(state): State<AppState>,
    _: Admin,
) -> ApiResult<JsonAnswer<api::HostList>> {
    let hosts = state.control.store().hosts().await.map_err(ControlError::from)?;
    let hosts = hosts
        .into_iter()
        .map(|host| api::Host {
            id: host.id.as_uuid(),
            name: host.name,
            driver: host.driver,
            driver_reason: host.driver_reason,
            cpus: host.cpus,
            memory_mib: host.memory_mib,
            version: host.version,
            seen_at: host.seen_at,
            draining_since: host.draining_since,
        })
        .collect();
    Ok(JsonAnswer(api::HostList { hosts }))
}

/// What a session can be made for.
#[utoipa::path(get, path = "/api/providers", tag = "sessions",
    responses((status = 200, body = api::ProviderList), (status = 401, body = Problem)))]
pub(crate) async fn providers(
    State(state): State<AppState>,
    _: Principal,
) -> JsonAnswer<api::ProviderList> {
    let providers = state.control.providers().iter().map(convert::provider).collect();
    JsonAnswer(api::ProviderList { providers })
}

/// Versions in use, and who is asking.
#[utoipa::path(get, path = "/api/version", tag = "host",
    responses((status = 200, body = api::Version), (status = 401, body = Problem)))]
pub(crate) async fn version(
    State(state): State<AppState>,
    who: Principal,
) -> JsonAnswer<api::Version> {
    JsonAnswer(api::Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        driver: state.control.driver().name().to_owned(),
        image: state.images.current().ok().map(|image| image.digest),
        store: state.control.store().kind().to_owned(),
        owner: who.name,
        admin: who.admin,
        features: ["hibernate", "fork", "share", "sign_in"].map(str::to_owned).to_vec(),
    })
}

/// An access token to be kept as a cookie.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// The token.
    token: String,
}

/// Keep an access token as a cookie of this browser.
#[utoipa::path(post, path = "/api/login", tag = "sessions", request_body = Login,
    responses((status = 204, description = "The cookie is set."), (status = 401, body = Problem)))]
pub(crate) async fn login(
    State(state): State<AppState>,
    headers: HeaderMap,
    Json { value, .. }: Json<Login>,
) -> ApiResult<Response> {
    let token = value.token.trim();
    let refused = || ApiError::new(Code::Unauthorized, "This access token is not valid.");
    auth::principal(&state, token).await?.ok_or_else(refused)?;
    let cookie = auth::cookie(&headers, token).ok_or_else(refused)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// The process runs.
#[utoipa::path(get, path = "/livez", tag = "host", responses((status = 200, description = "It runs.")))]
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// The server can do its work.
#[utoipa::path(get, path = "/readyz", tag = "host",
    responses((status = 200, body = api::Readiness), (status = 503, body = api::Readiness)))]
pub(crate) async fn readyz(State(state): State<AppState>) -> Response {
    let store = tokio::time::timeout(READY_DEADLINE, state.control.store().ping()).await;
    let store = match store {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(crate::error::chain(&error)),
        Err(_) => Err("it does not answer".to_owned()),
    };
    let verdict = state.verdict.borrow().clone();
    let image = state.images.current();
    let mut checks = vec![
        check("store", store.is_ok(), store.err().unwrap_or_else(|| "it answers".to_owned())),
        check("driver", verdict.usable == Some(true), verdict.reason),
        check("image", image.is_ok(), image.map_or_else(|why| why, |image| image.digest)),
        check(
            "reconciler",
            state.control.is_started(),
            if state.control.is_started() { "it runs" } else { "sessions are not taken over yet" }
                .to_owned(),
        ),
    ];
    // A drained host serves what it has: it is ready, and says why it takes nothing new.
    let drain = match state.drain.since() {
        Some(since) => {
            format!("no new sessions since {since}; `holdfast undrain` takes them again")
        }
        None => "new sessions are taken".to_owned(),
    };
    checks.push(check("drain", true, drain));
    // Without one sessions boot cold, which is slower and not wrong.
    checks.extend(state.images.warm_status().map(|status| check("warm image", true, status)));
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, JsonAnswer(api::Readiness { ready, checks })).into_response()
}

pub(crate) fn check(name: &str, ok: bool, detail: String) -> api::Check {
    api::Check { name: name.to_owned(), ok, detail }
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "host",
    responses((status = 200, description = "Text for Prometheus."), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(crate) async fn prometheus(State(state): State<AppState>, _: Admin) -> String {
    let mut by_state = std::collections::BTreeMap::new();
    for known in SessionState::ALL {
        by_state.insert(known.as_str(), 0_u32);
    }
    let now = state.control.now();
    let (mut protected, mut expired) = (0_u32, 0_u32);
    for Live { session, .. } in state.control.live() {
        *by_state.entry(session.state.as_str()).or_default() += 1;
        // Where it stands, no lease protects anything.
        if session.state.is_final()
            || matches!(
                session.state,
                SessionState::Ending | SessionState::Failed | SessionState::Hibernated
            )
        {
            continue;
        }
        *(if session.lease_expires_at > now { &mut protected } else { &mut expired }) += 1;
    }
    let handle = metrics::handle();
    for (name, count) in by_state {
        ::metrics::gauge!("holdfast_sessions", "state" => name).set(f64::from(count));
    }
    ::metrics::gauge!("holdfast_leases", "state" => "live").set(f64::from(protected));
    ::metrics::gauge!("holdfast_leases", "state" => "expired").set(f64::from(expired));
    handle.render()
}
