//! Errors of the API: `application/problem+json` (RFC 9457) with a stable `code`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Stable names of errors; programs decide by these, people read `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// 400: the request cannot be understood.
    BadRequest,
    /// 401: no valid access token.
    Unauthorized,
    /// 403: the request came from another web page, for another host name, or needs more rights.
    Forbidden,
    /// 404: it never existed, or it is not yours.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 409: the state does not allow it.
    Conflict,
    /// 410: it ended; `error` and `reason` say why.
    Gone,
    /// 413: the body is too large.
    TooLarge,
    /// 415: the body is not JSON.
    UnsupportedMediaType,
    /// 422: a value is not acceptable; `error` names it.
    Invalid,
    /// 422: the idempotency key was used before with another request.
    IdempotencyKeyReused,
    /// 424: the tool ended without a link.
    ToolFailed,
    /// 426: a WebSocket was expected.
    UpgradeRequired,
    /// 429: this host can run no more sessions now.
    Full,
    /// 500: a defect in Holdfast; the log has it under `requestId`.
    Internal,
    /// 502: the VM did not answer.
    VmUnreachable,
    /// 503: the store, or this host, cannot serve it now; try again after `Retry-After`.
    Unavailable,
}

impl Code {
    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::Gone => 410,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid | Self::IdempotencyKeyReused => 422,
            Self::ToolFailed => 424,
            Self::UpgradeRequired => 426,
            Self::Full => 429,
            Self::Internal => 500,
            Self::VmUnreachable => 502,
            Self::Unavailable => 503,
        }
    }
}

/// Body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What programs decide by.
    pub code: Code,
    /// The HTTP status again.
    pub status: u16,
    /// A sentence that says what is wrong and what to do.
    pub error: String,
    /// For `gone`: why the session ended, such as `user_request` or `lease_expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For `invalid`: the field, such as `screen.width`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Names this request in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Seconds after which to try again; also in the `Retry-After` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}
