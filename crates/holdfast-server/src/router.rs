//! Every route, and what is done to each request before and after its handler.

use std::{any::Any, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use holdfast_api::{Code, Readiness};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tower::ServiceExt as _;
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{
    Config, assets, auth, openapi,
    problem::{ApiError, REQUEST_ID},
    routes,
    serve::Boot,
    state::AppState,
};

/// Largest body of a request.
const BODY_LIMIT: usize = 64 * 1024;
/// Calls below `/api/` that need no session and so work while sessions are being taken over.
const WITHOUT_SESSIONS: [&str; 3] = ["/api/login", "/api/version", "/api/providers"];

/// What the listener serves, from before anything is wired.
pub(crate) fn front(config: Arc<Config>, boot: Boot) -> Router {
    // What is counted before somebody installed the recorder is lost.
    crate::metrics::handle();
    Router::new()
        .fallback(dispatch)
        .with_state(boot)
        .layer(middleware::from_fn_with_state(config, auth::same_site))
        .layer(fixed_header("x-content-type-options", "nosniff"))
        .layer(fixed_header("referrer-policy", "no-referrer"))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(traced))
}

async fn dispatch(State(boot): State<Boot>, request: Request) -> Response {
    match boot.ready.get() {
        Some((_, router)) => match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        None => starting(&boot, request.uri().path()),
    }
}

/// Answers while the server is starting.
fn starting(boot: &Boot, path: &str) -> Response {
    let (part, why) = boot.progress.now();
    match path {
        "/livez" => "ok\n".into_response(),
        "/readyz" => {
            let checks = ["store", "driver", "image", "reconciler"]
                .map(|name| {
                    let detail = if name == part { why.clone() } else { "not checked yet".into() };
                    routes::meta::check(name, false, detail)
                })
                .to_vec();
            let body = Json(Readiness { ready: false, checks });
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
        path if path.starts_with("/api/") || path == "/metrics" || path == "/openapi.json" => {
            ApiError::unavailable(format!("The server is starting ({part}: {why}).")).into_response()
        }
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::RETRY_AFTER, "1"),
                (header::CACHE_CONTROL, "no-store"),
            ],
            // Plain text of this program, without anything that a client sent.
            "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=1><title>Holdfast</title><p>Holdfast is starting…\n",
        )
            .into_response(),
    }
}

/// Every route of a server that is wired.
pub(crate) fn inner(state: AppState) -> Router {
    crate::metrics::count_from_zero(state.control.providers());
    let (documented, document) = openapi::documented().split_for_parts();
    let document = document.to_json().unwrap_or_default();
    let document = move || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    // Paths of the prototype, served by the same handlers.
    let aliases = Router::new()
        .route("/api/auth/session/{id}/vm", get(routes::sessions::vm))
        .route("/api/auth/session/{id}/heartbeat", post(routes::sessions::heartbeat))
        .route("/api/vm/auth/session/{id}/oauth-url", get(routes::signin::oauth_url));
    documented
        .merge(aliases)
        .route("/openapi.json", get(document))
        .route("/api/{*rest}", any(no_such_path))
        .method_not_allowed_fallback(no_such_method)
        .fallback(assets::serve)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(name_route))
        .layer(middleware::from_fn_with_state(state.clone(), taken_over))
        .with_state(state)
}

/// Tells those who count answers which route one came from.
async fn name_route(request: Request, next: middleware::Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

/// Sessions are answered for only once they were taken over: before that, one that lives could
/// not be told from one that ended.
async fn taken_over(
    State(state): State<AppState>,
    request: Request,
    next: middleware::Next,
) -> Response {
    let path = request.uri().path();
    let needs = path.starts_with("/api/") && !WITHOUT_SESSIONS.contains(&path);
    if needs && !state.control.is_started() {
        return ApiError::unavailable(
            "The server is starting: sessions are being taken over. They go on working; try again in a moment.",
        )
        .into_response();
    }
    next.run(request).await
}

fn fixed_header(name: &'static str, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::overriding(
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

async fn no_such_path() -> Response {
    ApiError::new(Code::NotFound, "There is no such path; /openapi.json lists them.")
        .into_response()
}

async fn no_such_method() -> Response {
    ApiError::new(Code::MethodNotAllowed, "This path does not answer to that method.")
        .into_response()
}

/// A defect in a handler ends one request and nothing else. The message goes to the log through
/// the panic hook.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::new(Code::Internal, "Something went wrong in the server; its log says what.")
        .into_response()
}

/// Gives every request an id, logs it, and keeps access tokens out of the log: the path is logged
/// without its query.
async fn traced(request: Request, next: middleware::Next) -> Response {
    let id = Uuid::new_v4().simple().to_string();
    let span =
        tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let began = std::time::Instant::now();
    let is_api = request.uri().path().starts_with("/api/");
    let answer = REQUEST_ID.scope(id.clone(), next.run(request));
    let mut response = answer.instrument(span.clone()).await;
    let status = response.status().as_u16();
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::debug!(status, ms, "answered"));
    if is_api {
        // Never the path itself: ids would make a series for each session.
        let route = response.extensions().get::<MatchedPath>();
        let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
        let status = response.status().as_str().to_owned();
        metrics::histogram!("holdfast_http_seconds", "route" => route, "status" => status)
            .record(began.elapsed().as_secs_f64());
        response
            .headers_mut()
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}
