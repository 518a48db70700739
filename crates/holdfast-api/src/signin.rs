//! Requests and answers of sign-ins, their credentials, and share links.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Where the end of a sign-in is announced, as Standard Webhooks (<https://www.standardwebhooks.com>)
/// describes: a POST with `webhook-id`, `webhook-timestamp` and `webhook-signature`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// An http or https address, public unless the server's configuration admits it.
    pub url: String,
    /// Key of the signature: 16 to 256 characters, or `whsec_` and base64.
    pub secret: String,
}

// The secret must not reach a log through `{:?}`.
impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignIn {
    /// The session that it belongs to.
    pub session_id: Uuid,
    /// Name of the provider.
    pub provider: String,
    /// `loopback`, `paste_code` or `device_code`.
    pub flow: String,
    /// Number of the current run of the tool; 0 before the first. Link, code and outcome belong to it.
    pub run: u32,
    /// `machine`, `tool`, `link`, `sign_in`, `credentials` or `done`.
    pub step: String,
    /// When the step began.
    #[schema(value_type = String, format = DateTime)]
    pub step_since: Timestamp,
    /// The link of the current run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Code to be typed on the provider's page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_code: Option<String>,
    /// The tool waits for a code from the provider's page.
    pub wants_input: bool,
    /// `succeeded`, `refused`, `expired` or `failed`, once done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The end of the tool's output, without credentials; empty once it succeeded.
    pub output: String,
    /// Until when the person is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// age public keys that the credentials are sealed to.
    pub recipients: Vec<String>,
    /// The sealed credentials, once there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SealedCredentials>,
}

/// Sealed credentials, without their content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SealedCredentials {
    /// The files in them.
    pub files: Vec<SealedFile>,
    /// They were handed over, or destroyed when their time was over.
    pub fetched: bool,
    /// When they are destroyed if nobody fetches them.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// A file in sealed credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SealedFile {
    /// Path relative to the home directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// File mode, as a number.
    pub mode: u32,
}

/// A sign-in's link: answer 200 to `GET /api/sessions/{id}/oauth-url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OauthUrl {
    /// The link, exactly as the tool made it.
    pub url: String,
    /// `loopback`, `paste_code` or `device_code`.
    pub flow: String,
    /// Number of the run that it belongs to.
    pub run: u32,
    /// Code to be typed on the provider's page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_code: Option<String>,
    /// Until when the person is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// No link yet: answer 202 to `GET /api/sessions/{id}/oauth-url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OauthPending {
    /// What is being done: `machine`, `tool` or `link`.
    pub step: String,
    /// Number of the current run.
    pub run: u32,
    /// Ask again after this many seconds; also in `Retry-After`.
    pub retry_after: u64,
}

/// Body of `POST /api/sessions/{id}/sign-in/code`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignInCode {
    /// The code as the provider showed it: 1 to 4,096 characters.
    pub text: String,
}

/// Body and answer of `/api/owner/key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnerKey {
    /// The age public key (`age1...`) that credentials are sealed to when a session names none.
    pub recipient: Option<String>,
}

/// What is inside the age file that `POST /api/sessions/{id}/credentials` answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The files.
    pub files: Vec<CredentialFile>,
}

/// A file of opened credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialFile {
    /// Path relative to the home directory.
    pub path: String,
    /// Mode, such as 0o600.
    pub mode: u32,
    /// Content, base64.
    pub content: String,
}
