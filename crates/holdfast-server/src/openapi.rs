//! The OpenAPI document, generated from the handlers. A copy is checked in as
//! `docs/openapi.json`; a test fails when the two differ.

use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{routes, state::AppState};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast",
        description = "Disposable desktops in virtual machines. Errors are application/problem+json with a stable `code`."
    ),
    tags(
        (name = "sessions", description = "Sessions and their timelines"),
        (name = "sign-in", description = "Sign-ins and their credentials"),
        (name = "streams", description = "WebSockets into a session's machine"),
        (name = "host", description = "Machines, versions, readiness"),
    )
)]
struct Document;

/// Every documented route with its handler.
pub(crate) fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(routes::sessions::create, routes::sessions::list))
        .routes(routes!(routes::sessions::read, routes::sessions::end))
        .routes(routes!(routes::sessions::heartbeat))
        .routes(routes!(routes::sessions::vm))
        .routes(routes!(routes::sessions::exec))
        .routes(routes!(routes::sessions::console))
        .routes(routes!(routes::checkpoints::hibernate))
        .routes(routes!(routes::checkpoints::resume))
        .routes(routes!(routes::checkpoints::fork))
        .routes(routes!(routes::signin::read))
        .routes(routes!(routes::signin::oauth_url))
        .routes(routes!(routes::signin::code))
        .routes(routes!(routes::signin::open))
        .routes(routes!(routes::signin::retry))
        .routes(routes!(routes::signin::credentials))
        .routes(routes!(routes::signin::owner_key, routes::signin::set_owner_key))
        .routes(routes!(routes::explain::explain))
        .routes(routes!(routes::events::of_session))
        .routes(routes!(routes::events::of_all))
        .routes(routes!(routes::shares::create, routes::shares::list))
        .routes(routes!(routes::shares::revoke))
        .routes(routes!(routes::streams::desktop))
        .routes(routes!(routes::streams::terminal))
        .routes(routes!(routes::meta::vms))
        .routes(routes!(routes::meta::hosts))
        .routes(routes!(routes::meta::providers))
        .routes(routes!(routes::meta::version))
        .routes(routes!(routes::meta::login))
        .routes(routes!(routes::tokens::create, routes::tokens::list))
        .routes(routes!(routes::tokens::revoke))
        .routes(routes!(routes::drain::start, routes::drain::stop))
        .routes(routes!(routes::meta::livez))
        .routes(routes!(routes::meta::readyz))
        .routes(routes!(routes::meta::prometheus))
}

/// The document as JSON.
pub fn json() -> String {
    let (_, document) = documented().split_for_parts();
    // Plain data always becomes JSON.
    document.to_pretty_json().unwrap_or_default() + "\n"
}
