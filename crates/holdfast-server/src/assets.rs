//! The dashboard, embedded in the binary.

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use rust_embed::RustEmbed;

use crate::{auth, problem::ApiError, state::AppState};

#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../../web/dist"]
#[allow_missing = true]
struct Dashboard;

/// What the page may load: only what this server sends.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// Serves the dashboard's files, and its one page at `/`.
pub(crate) async fn serve(State(state): State<AppState>, request: Request) -> Response {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return ApiError::new(holdfast_api::Code::MethodNotAllowed, "Only GET is possible here.")
            .into_response();
    }
    let path = request.uri().path().trim_start_matches('/').to_owned();
    if path.is_empty() {
        let query = request.uri().query().unwrap_or_default();
        if let Some(visit) = auth::visit(&state, request.headers(), query).await {
            return visit;
        }
        return file("index.html", request.headers());
    }
    file(&path, request.headers())
}

fn file(path: &str, asked: &HeaderMap) -> Response {
    let Some(asset) = Dashboard::get(path) else {
        let text = if path == "index.html" {
            "The dashboard was not built into this binary: run `npm ci && npm run build` in web/ and build again. The API works."
        } else {
            "There is no such path."
        };
        return ApiError::new(holdfast_api::Code::NotFound, text).into_response();
    };
    let kind = mime_guess::from_path(path).first_or_octet_stream();
    let etag = format!("\"{}\"", crate::extract::hex(&asset.metadata.sha256_hash()[..12]));
    // Vite puts a digest of the content into the names of everything below assets/.
    let caching = if path.starts_with("assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let known =
        asked.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == etag.as_bytes());
    if known {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let mut response = asset.data.into_owned().into_response();
    let headers = response.headers_mut();
    let mut set = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, kind.as_ref());
    set(header::ETAG, &etag);
    set(header::CACHE_CONTROL, caching);
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    set(header::X_FRAME_OPTIONS, "DENY");
    response
}
