//! Who calls: access tokens, the cookie that carries one, and the defence against other web pages.
//!
//! A token is shown once and stored only as its SHA-256. Host and Origin are checked on every
//! request, so that neither a page of another site nor a rebound host name can drive the server
//! with its user's cookie.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use holdfast_api::Code;
use holdfast_core::{OwnerId, Timestamp};
use holdfast_store::{NewToken, Store};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{ServerError, extract::hex, problem::ApiError, state::AppState};

/// Name of the owner that the first token belongs to.
pub const ADMIN_OWNER: &str = "admin";
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
    known: Mutex<HashMap<String, (Principal, Instant)>>,
}

impl TokenCache {
    fn get(&self, sha256: &str, trust: Duration) -> Option<Principal> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(sha256).filter(|(_, at)| at.elapsed() < trust).map(|(who, _)| who.clone())
    }

    fn put(&self, sha256: String, who: Principal) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(sha256, (who, Instant::now()));
    }

    fn forget(&self, sha256: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(sha256);
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

/// Reads the administrator's token, or makes one; the store knows it afterwards.
pub async fn ensure_admin_token(store: &dyn Store, file: &Path) -> Result<String, ServerError> {
    let failed =
        |source| ServerError::StateDir { path: file.to_path_buf(), source };
    let token = match fs::read_to_string(file) {
        Ok(text) if text.trim().len() >= 20 => text.trim().to_owned(),
        Ok(_) | Err(_) => {
            let token = new_token()?;
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(file)
                .map_err(failed)?;
            out.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
            writeln!(out, "{token}").and_then(|()| out.sync_all()).map_err(failed)?;
            token
        }
    };
    let now = Timestamp::now();
    let sha256 = token_sha256(&token);
    if store.token_by_hash(&sha256, now).await?.is_none() {
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
        store.create_token(token).await?;
    }
    Ok(token)
}

/// The principal of a token; `None` when there is no such token.
pub(crate) async fn principal(state: &AppState, token: &str) -> Result<Option<Principal>, ApiError> {
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
        Ok::<_, holdfast_store::StoreError>(Some(Principal {
            owner: record.owner,
            name,
            admin: record.admin,
        }))
    };
    match found.await {
        Ok(Some(who)) => {
            state.tokens.put(sha256, who.clone());
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
            refused("This access token is not valid: it was never made, was revoked, or has expired.")
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

fn token_of(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().ok()?;
        return value.strip_prefix("Bearer ").map(|token| token.trim().to_owned());
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
    // SameSite=Lax: a link from elsewhere may open a session's page; requests that change
    // anything are protected by the check of Origin.
    let name = cookie_name(headers);
    let secure = headers
        .get("x-forwarded-proto")
        .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={COOKIE_SECONDS}{secure}")
        .parse()
        .ok()
}

/// Refuses requests for another host name, and requests that another web page makes.
pub(crate) async fn same_site(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .or_else(|| request.uri().authority().map(http::uri::Authority::as_str))
        .unwrap_or_default()
        .to_owned();
    if !host_is_allowed(&host, &state.config.allowed_hosts) {
        return ApiError::new(
            Code::Forbidden,
            "This server does not answer for that host name. Add it to allowed_hosts in the configuration.",
        )
        .into_response();
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let same = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(&host));
        if !same {
            return ApiError::new(Code::Forbidden, "Requests from other web pages are refused.")
                .into_response();
        }
    }
    next.run(request).await
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
pub(crate) async fn visit(
    state: &AppState,
    headers: &HeaderMap,
    query: &str,
) -> Option<Response> {
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
        for good in
            ["127.0.0.1:7070", "localhost", "localhost:1", "[::1]:7070", "DESK.example:443", "10.0.0.8"]
        {
            assert!(host_is_allowed(good, &allowed), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io:7070"] {
            assert!(!host_is_allowed(bad, &allowed), "{bad}");
        }
    }
}
