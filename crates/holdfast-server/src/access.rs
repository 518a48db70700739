//! Who looks at a session: its owner, an administrator, or somebody with a share link. And when
//! that right is over while they look.

use std::time::Duration;

use axum::extract::FromRequestParts;
use holdfast_api::Code;
use holdfast_control::{ControlError, Live};
use holdfast_core::{SessionId, Timestamp};
use holdfast_store::ShareLink;
use http::request::Parts;

use crate::{
    auth::{self, Principal},
    problem::{ApiError, ApiResult},
    state::AppState,
};

/// Header that carries the secret of a share link. WebSockets, which take no header from a page,
/// carry it as `?share=`.
const SHARE_HEADER: &str = "x-holdfast-share";
/// Time between looks whether a right is still one. A stream outlives its right by this, and by
/// the time that a token is trusted.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Who may look at a session.
#[derive(Debug, Clone)]
pub(crate) enum Viewer {
    /// Somebody with an access token.
    Person {
        /// Who.
        who: Principal,
        /// The token itself, to see whether it goes on being valid.
        token: String,
    },
    /// Somebody with a link.
    Shown(ShareLink),
}

impl Viewer {
    /// The session, if it may be looked at.
    pub(crate) async fn visible(&self, state: &AppState, id: SessionId) -> ApiResult<Live> {
        match self {
            Self::Person { who, .. } => state.visible(who, id).await,
            Self::Shown(link) if link.session == id => {
                state.control.find(id).await?.ok_or_else(ApiError::not_found)
            }
            Self::Shown(_) => Err(ApiError::not_found()),
        }
    }

    /// The name of the session's owner; of no concern to one who has only a link.
    pub(crate) async fn owner_name(&self, state: &AppState, live: &Live) -> String {
        match self {
            Self::Person { who, .. } => state.owner_name(who, live.session.owner).await,
            Self::Shown(_) => String::new(),
        }
    }

    /// Waits until the right to look is over: expired or revoked. A store that does not answer
    /// takes no right away.
    pub(crate) async fn ended(&self, state: &AppState) {
        loop {
            let over = match self {
                Self::Person { token, .. } => {
                    matches!(auth::principal(state, token).await, Ok(None))
                }
                Self::Shown(link) => {
                    let now = Timestamp::now();
                    now >= link.expires_at
                        || matches!(
                            state.control.store().share_by_hash(&link.sha256, now).await,
                            Ok(None)
                        )
                }
            };
            if over {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl FromRequestParts<AppState> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        if let Some(secret) = share_secret(parts) {
            let sha256 = auth::token_sha256(&secret);
            let found = state.control.store().share_by_hash(&sha256, Timestamp::now()).await;
            return found.map_err(ControlError::from)?.map(Self::Shown).ok_or_else(|| {
                ApiError::new(
                    Code::Unauthorized,
                    "This link does not work: it has expired, was revoked, or was never made. Ask for another one.",
                )
            });
        }
        let who = Principal::from_request_parts(parts, state).await?;
        let token = auth::token_of(&parts.headers).unwrap_or_default();
        Ok(Self::Person { who, token })
    }
}

fn share_secret(parts: &Parts) -> Option<String> {
    if let Some(value) = parts.headers.get(SHARE_HEADER) {
        return value.to_str().ok().map(str::to_owned);
    }
    let mut pairs = parts.uri.query()?.split('&');
    pairs.find_map(|pair| pair.strip_prefix("share=")).map(str::to_owned)
}
