//! Errors of handlers, and how they become `application/problem+json`.

use axum::response::{IntoResponse, Response};
use holdfast_api::{Code, Problem};
use holdfast_control::ControlError;
use holdfast_store::StoreError;
use http::{HeaderValue, StatusCode, header};

tokio::task_local! {
    /// Names the request that is being answered, in its log and in its problem.
    pub(crate) static REQUEST_ID: String;
}

/// An error answer in the making.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    error: String,
    reason: Option<String>,
    field: Option<String>,
    retry_after: Option<u64>,
}

/// Result of a handler.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(code: Code, error: impl Into<String>) -> Self {
        Self { code, error: error.into(), reason: None, field: None, retry_after: None }
    }

    pub(crate) fn invalid(field: &str, error: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(Code::Invalid, error) }
    }

    pub(crate) fn not_found() -> Self {
        Self::new(
            Code::NotFound,
            "There is no such session: it never existed, it was forgotten, or it belongs to somebody else.",
        )
    }

    pub(crate) fn gone(reason: Option<&str>, error: impl Into<String>) -> Self {
        Self { reason: reason.map(str::to_owned), ..Self::new(Code::Gone, error) }
    }

    pub(crate) fn unavailable(error: impl Into<String>) -> Self {
        Self { retry_after: Some(2), ..Self::new(Code::Unavailable, error) }
    }

    /// The code and sentence of a WebSocket's close frame.
    pub(crate) fn close_frame(&self) -> (u16, String) {
        let code = match self.code {
            Code::Unauthorized => 4401,
            Code::Forbidden => 4403,
            Code::NotFound => 4404,
            Code::Gone => 4410,
            Code::Conflict => 4409,
            Code::VmUnreachable => 4502,
            Code::Unavailable => 4503,
            _ => 1011,
        };
        // A close frame holds 123 bytes of text.
        let mut text = self.error.clone();
        while text.len() > 123 {
            text.pop();
        }
        (code, text)
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match &error {
            ControlError::NotFound(_) => Self::not_found(),
            ControlError::Gone { reason, .. } => {
                Self::gone(Some(reason.as_str()), reason.sentence())
            }
            ControlError::Elsewhere(_) => Self::unavailable(
                "The session is there, but no server drives it now; try again in a moment.",
            ),
            ControlError::State { state, why } => {
                Self::new(Code::Conflict, format!("The session is {state}: {why}."))
            }
            ControlError::SignIn { step, why } => {
                Self::new(Code::Conflict, format!("The sign-in is at the step {step}: {why}."))
            }
            ControlError::Checkpoint(why) => {
                Self::unavailable(format!("No checkpoint could be taken: {why}."))
            }
            ControlError::Refused(why) => Self::new(Code::Conflict, sentence(why)),
            ControlError::TooLarge(why) => Self::invalid("memoryMib", sentence(why)),
            ControlError::Full(why) => {
                Self { retry_after: Some(10), ..Self::new(Code::Full, sentence(why)) }
            }
            ControlError::NoImage(why) => Self::unavailable(format!(
                "No image can be used: {why}. Build one with `holdfast image build`."
            )),
            ControlError::Draining(why) => {
                Self::unavailable(format!("This host takes no new sessions now: {why}."))
            }
            ControlError::Store(StoreError::KeyReused) => Self::new(
                Code::IdempotencyKeyReused,
                "This Idempotency-Key was used before with another request. Use a new key for a new request.",
            ),
            ControlError::Store(StoreError::Unavailable { .. }) => {
                log(&error, "the store did not answer a request");
                Self::unavailable(
                    "The store does not answer. Sessions go on working; try again in a moment.",
                )
            }
            ControlError::Guest(why) => Self::new(Code::VmUnreachable, sentence(why)),
            ControlError::Driver(_) => {
                log(&error, "the host could not serve a request");
                Self::new(Code::VmUnreachable, "The session's machine did not answer.")
            }
            ControlError::Store(_) | ControlError::Random(_) => {
                log(&error, "a request failed");
                Self::new(Code::Internal, "Something went wrong in the server; its log says what.")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem {
            code: self.code,
            status: status.as_u16(),
            error: self.error,
            reason: self.reason,
            field: self.field,
            request_id: REQUEST_ID.try_with(Clone::clone).ok(),
            retry_after: self.retry_after,
        };
        let mut response = (status, axum::Json(&problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn log(error: &ControlError, what: &str) {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}");
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(char::to_uppercase);
    let mut text: String = first.into_iter().flatten().chain(chars).collect();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}
