//! One server: its router, its start and its end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware,
    response::{IntoResponse as _, Response},
    routing::get,
    serve::ListenerExt as _,
};
use holdfast_api::Code;
use holdfast_control::ImageSource;
use http::{HeaderName, HeaderValue, header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{Config, ServerError, assets, auth, openapi, problem::ApiError, routes, state::AppState, wiring};

/// Largest body of a request.
const BODY_LIMIT: usize = 64 * 1024;
/// How long open answers may take to end when the server stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A server that listens.
pub struct Server {
    state: AppState,
    listener: TcpListener,
    address: SocketAddr,
    admin_token: String,
    _lock: wiring::StateLock,
}

impl Server {
    /// Opens store and driver, takes over the sessions, and listens; port 0 picks a free one.
    pub async fn start(config: Config, images: Arc<dyn ImageSource>) -> Result<Self, ServerError> {
        // Listening first: a taken port is found before anything else is touched.
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| ServerError::Listen { address: config.listen, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| ServerError::Listen { address: config.listen, source })?;
        let lock = wiring::lock_state_dir(&config.state_dir)?;
        let (state, admin_token) = wiring::open(config, images).await?;
        Ok(Self { state, listener, address, admin_token, _lock: lock })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's access token.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// What its handlers share.
    pub fn state(&self) -> &AppState {
        &self.state
    }

    /// Serves until `stop` is cancelled. No session is ended by that.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let takeover = tokio::spawn(take_over(self.state.clone()));
        let deliveries = tokio::spawn(crate::webhook::deliver_loop(self.state.clone()));
        let state = self.state.clone();
        let app = router(self.state.clone());
        // Frames of a desktop are small and wanted at once.
        let listener = self.listener.tap_io(|io| {
            let _ = io.set_nodelay(true);
        });
        let ended = {
            let (stop, inner) = (stop.clone(), state.stop.clone());
            async move {
                stop.cancelled().await;
                inner.cancel();
            }
        };
        let serving = axum::serve(listener, app).with_graceful_shutdown(ended).into_future();
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = async { stop.cancelled().await; tokio::time::sleep(STOP_DEADLINE).await } => Ok(()),
        };
        state.stop.cancel();
        takeover.abort();
        deliveries.abort();
        state.control.stop().await;
        served.map_err(ServerError::Http)
    }
}

/// Adopts the sessions in the store, as soon as it can be read.
async fn take_over(state: AppState) {
    let mut pause = Duration::from_millis(200);
    loop {
        match state.control.start().await {
            Ok(_) => return,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "sessions could not be taken over yet; trying again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Every route of the server.
pub fn router(state: AppState) -> Router {
    crate::metrics::handle();
    let (documented, document) = openapi::documented().split_for_parts();
    let document = document.to_json().unwrap_or_default();
    let aliases = Router::new()
        .route("/api/auth/session/{id}/vm", get(routes::sessions::vm))
        .route("/api/vm/auth/session/{id}/oauth-url", get(routes::signin::oauth_url))
        .route(
            "/api/auth/session/{id}/heartbeat",
            axum::routing::post(routes::sessions::heartbeat),
        );
    documented
        .merge(aliases)
        .route(
            "/openapi.json",
            get(move || async move {
                ([(header::CONTENT_TYPE, "application/json")], document.clone())
            }),
        )
        .route("/api/{*rest}", axum::routing::any(no_such_path))
        .method_not_allowed_fallback(no_such_method)
        .fallback(assets::serve)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(state.clone(), auth::same_site))
        .layer(fixed_header("x-content-type-options", "nosniff"))
        .layer(fixed_header("referrer-policy", "no-referrer"))
        .layer(middleware::from_fn(traced))
        .with_state(state)
}

fn fixed_header(
    name: &'static str,
    value: &'static str,
) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::overriding(
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

async fn no_such_path() -> Response {
    ApiError::new(Code::NotFound, "There is no such path; /openapi.json lists them.").into_response()
}

async fn no_such_method() -> Response {
    ApiError::new(Code::MethodNotAllowed, "This path does not answer to that method.").into_response()
}

/// Gives every request an id, logs it, and keeps access tokens out of the log: the path is logged
/// without its query.
async fn traced(request: Request, next: middleware::Next) -> Response {
    let id = Uuid::new_v4().simple().to_string();
    let span = tracing::debug_span!("request", id, method = %request.method(), path = request.uri().path());
    let began = std::time::Instant::now();
    let path = request.uri().path().starts_with("/api/");
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ms = began.elapsed().as_millis(), "answered"));
    if path {
        ::metrics::histogram!("holdfast_http_seconds").record(began.elapsed().as_secs_f64());
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
