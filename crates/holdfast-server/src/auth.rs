//! Who calls: access tokens, the cookie that carries one, and the defence against other web pages.
//!
//! A token is shown once and stored only as its SHA-256. Host and Origin are checked on every
//! request, so that neither a page of another site nor a rebound host name can drive the server
//! with its user's cookie.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use holdfast_api::Code;
use holdfast_core::{OwnerId, Timestamp};
use holdfast_store::{NewToken, Store, TokenRecord};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    Config, ServerError, extract::hex, problem::ApiError, state::AppState, state_dir::StateDir,
};

/// Name of the owner that the first token belongs to.
pub const ADMIN_OWNER: &str = "admin";
/// File of the state directory that holds the first token in clear.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";
/// A file that holds less than this is no token but damage.
const SHORTEST_TOKEN: usize = 20;
/// How long a token that was found valid is trusted without asking the store again; also the longest
/// time that a revoked one goes on working.
const TRUST: Duration = Duration::from_secs(5);
/// How long it is trusted while the store cannot be read.
const TRUST_WITHOUT_STORE: Duration = Duration::from_hours(24);
/// A year: the cookie is only a place to keep the token.
const COOKIE_SECONDS: u32 = 31_536_000;

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The owner.
    pub owner: OwnerId,
    /// The owner's name.
    pub name: String,
    /// May do everything for every owner.
    pub admin: bool,
}

/// Tokens that were found valid lately.
#[derive(Default)]
pub struct TokenCache {
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    who: Principal,
    token: Uuid,
    checked_at: Instant,
    expires_at: Option<Timestamp>,
}

impl TokenCache {
    fn get(&self, sha256: &str, trust: Duration) -> Option<Principal> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(sha256)
            .filter(|known| known.checked_at.elapsed() < trust)
            .filter(|known| known.expires_at.is_none_or(|at| Timestamp::now() < at))
            .map(|known| known.who.clone())
    }

    fn put(&self, sha256: String, token: &TokenRecord, who: Principal) {
        let known = Known {
            who,
            token: token.id,
            checked_at: Instant::now(),
            expires_at: token.expires_at,
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(sha256, known);
    }

    fn forget(&self, sha256: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(sha256);
    }

    /// Forgets a token that was revoked, so that it stops working at once.
    pub(crate) fn revoked(&self, token: Uuid) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| known.token != token);
    }
}

/// SHA-256 of a token, as the store keeps it.
pub fn token_sha256(token: &str) -> String {
    hex(&Sha256::digest(token.as_bytes()))
}

/// A new token.
pub fn new_token() -> Result<String, ServerError> {
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes).map_err(ServerError::Random)?;
    Ok(format!("hf_{}", hex(&bytes)))
}

/// Reads the administrator's token, or makes one.
pub(crate) fn admin_token(dir: &StateDir) -> Result<String, ServerError> {
    if let Some(text) = dir.read(ADMIN_TOKEN_FILE)? {
        let token = text.trim();
        if token.len() >= SHORTEST_TOKEN && token.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(token.to_owned());
        }
    }
    let token = new_token()?;
    dir.write(ADMIN_TOKEN_FILE, &format!("{token}\n"))?;
    Ok(token)
}

/// Makes the store know the administrator's token.
pub(crate) async fn register_admin(
    store: &dyn Store,
    token: &str,
) -> Result<(), holdfast_store::StoreError> {
    let now = Timestamp::now();
    let sha256 = token_sha256(token);
    if store.token_by_hash(&sha256, now).await?.is_some() {
        return Ok(());
    }
    let owner = store.ensure_owner(ADMIN_OWNER, now).await?;
    let token = NewToken {
        id: Uuid::now_v7(),
        owner,
        name: "first administrator".to_owned(),
        sha256,
        admin: true,
        created_at: now,
        expires_at: None,
    };
    store.create_token(token).await.map(|_| ())
}

/// The principal of a token; `None` when there is no such token.
pub(crate) async fn principal(
    state: &AppState,
    token: &str,
) -> Result<Option<Principal>, ApiError> {
    let sha256 = token_sha256(token);
    if let Some(who) = state.tokens.get(&sha256, TRUST) {
        return Ok(Some(who));
    }
    let store = state.control.store();
    let found = async {
        let Some(record) = store.token_by_hash(&sha256, Timestamp::now()).await? else {
            return Ok(None);
        };
        let name = store.owner_name(record.owner).await?.unwrap_or_default();
        let who = Principal { owner: record.owner, name, admin: record.admin };
        Ok::<_, holdfast_store::StoreError>(Some((record, who)))
    };
    match found.await {
        Ok(Some((record, who))) => {
            state.tokens.put(sha256, &record, who.clone());
            Ok(Some(who))
        }
        Ok(None) => {
            state.tokens.forget(&sha256);
            Ok(None)
        }
        Err(error) => match state.tokens.get(&sha256, TRUST_WITHOUT_STORE) {
            Some(who) => Ok(Some(who)),
            None => Err(holdfast_control::ControlError::Store(error).into()),
        },
    }
}

impl FromRequestParts<AppState> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let refused = |why: &str| ApiError::new(Code::Unauthorized, why);
        let Some(token) = token_of(&parts.headers) else {
            return Err(refused(
                "An access token is needed: open the URL that the server printed at its start, or send `Authorization: Bearer <token>`.",
            ));
        };
        principal(state, &token).await?.ok_or_else(|| {
            refused(
                "This access token is not valid: it was never made, was revoked, or has expired.",
            )
        })
    }
}

/// A principal that may do everything.
pub(crate) struct Admin;

impl FromRequestParts<AppState> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        if Principal::from_request_parts(parts, state).await?.admin {
            return Ok(Self);
        }
        Err(ApiError::new(Code::Forbidden, "Only an administrator may do this."))
    }
}

pub(crate) fn token_of(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    let name = cookie_name(headers);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
}

/// Cookies do not tell ports apart, so the port is part of the name: two servers on one machine
/// keep their users signed in.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let port: String = port.chars().filter(char::is_ascii_digit).collect();
    format!("holdfast_{port}")
}

/// The `Set-Cookie` that keeps a token in a browser.
pub(crate) fn cookie(headers: &HeaderMap, token: &str) -> Option<HeaderValue> {
    // SameSite=Strict: a link from elsewhere still opens a session's page, because the page itself
    // needs no token and what it then asks for comes from this site.
    let name = cookie_name(headers);
    let secure = headers
        .get("x-forwarded-proto")
        .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECONDS}{secure}")
        .parse()
        .ok()
}

/// Refuses requests for another host name, and requests that another web page makes. Holds for
/// WebSockets too, which browsers open across sites without asking.
pub(crate) async fn same_site(
    State(config): State<Arc<Config>>,
    request: Request,
    next: Next,
) -> Response {
    match check_site(request.headers(), &config.allowed_hosts) {
        Ok(()) => next.run(request).await,
        Err(why) => ApiError::new(Code::Forbidden, why).into_response(),
    }
}

fn check_site(headers: &HeaderMap, allowed: &[String]) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
    if hosts.next().is_some() || !host_is_allowed(host, allowed) {
        return Err(
            "This server does not answer for that host name. Add it to allowed_hosts in the configuration.",
        );
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let same = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host));
        if !same {
            return Err("Requests from other web pages are refused.");
        }
    }
    Ok(())
}

/// An IP address cannot be rebound, so it is always fine; names have to be known.
fn host_is_allowed(host: &str, allowed: &[String]) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        rest.split(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    let name = name.to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || allowed.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

/// Answers `/?token=...`: keeps the token as a cookie and leads to the same page without it.
pub(crate) async fn visit(state: &AppState, headers: &HeaderMap, query: &str) -> Option<Response> {
    let mut rest = Vec::new();
    let mut token = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("token=") {
            Some(value) => token = Some(value.to_owned()),
            None => rest.push(pair),
        }
    }
    let token = token?;
    let to = if rest.is_empty() { "/".to_owned() } else { format!("/?{}", rest.join("&")) };
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(header::LOCATION, to.parse().ok()?);
    if let Ok(Some(_)) = principal(state, &token).await {
        response.headers_mut().insert(header::SET_COOKIE, cookie(headers, &token)?);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_names_are_answered_for() {
        let allowed = ["desk.example".to_owned()];
        for good in [
            "127.0.0.1:7070",
            "localhost",
            "localhost:1",
            "[::1]:7070",
            "DESK.example:443",
            "10.0.0.8",
        ] {
            assert!(host_is_allowed(good, &allowed), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io:7070"] {
            assert!(!host_is_allowed(bad, &allowed), "{bad}");
        }
    }
}
