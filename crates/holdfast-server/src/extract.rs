//! Extractors that answer with problems instead of axum's plain texts.

use std::time::Duration;

use axum::extract::{
    FromRequest, FromRequestParts, Path, Request,
    rejection::{BytesRejection, FailedToBufferBody},
};
use bytes::Bytes;
use holdfast_api::Code;
use holdfast_core::SessionId;
use http::{header, request::Parts};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::problem::ApiError;

/// How long the body of a request may take, from the end of its head.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A JSON body with the digest of its bytes. An empty body is an empty object.
pub(crate) struct Json<T> {
    pub value: T,
    pub sha256: String,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|value| value.to_str().unwrap_or_default().to_ascii_lowercase());
        let body = tokio::time::timeout(BODY_DEADLINE, Bytes::from_request(request, state));
        let body = body.await.map_err(|_| {
            let text = format!("The body did not arrive within {} s.", BODY_DEADLINE.as_secs());
            ApiError::new(Code::BadRequest, text)
        })?;
        let body = body.map_err(|error| match error {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                ApiError::new(Code::TooLarge, "The body is too large: at most 64 KiB are accepted.")
            }
            _ => ApiError::new(Code::BadRequest, "The body could not be read."),
        })?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        let declared = is_json.as_deref().unwrap_or("");
        let acceptable = declared.split(';').next().is_some_and(|t| t.trim() == "application/json");
        if !body.is_empty() && !acceptable {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "The body has to be JSON, with `Content-Type: application/json`.",
            ));
        }
        // serde takes a list for a struct whose fields have defaults.
        if text.trim_ascii_start().starts_with(b"[") {
            return Err(ApiError::new(Code::Invalid, "The body has to be a JSON object."));
        }
        let value = serde_json::from_slice(text).map_err(|error| {
            let code = if error.is_data() { Code::Invalid } else { Code::BadRequest };
            ApiError::new(code, format!("The body is not what was expected: {error}."))
        })?;
        let sha256 = hex(&Sha256::digest(text));
        Ok(Self { value, sha256 })
    }
}

/// A session's id from the path. What is no id cannot be a session's: 404.
pub(crate) struct Id(pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::not_found())?;
        text.parse().map(Self).map_err(|error: holdfast_core::id::ParseIdError| {
            ApiError::new(Code::NotFound, format!("There is no such session: {error}."))
        })
    }
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
