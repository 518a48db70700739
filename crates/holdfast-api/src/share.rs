//! Share links, and draining a host.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Body of `POST /api/sessions/{id}/shares`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateShare {
    /// Nothing can be typed, clicked or pasted through it.
    pub view_only: bool,
    /// How long it works, 1 to 10080 (a week).
    pub minutes: u32,
}

impl Default for CreateShare {
    fn default() -> Self {
        Self { view_only: true, minutes: 60 }
    }
}

/// A link by which somebody without a token sees one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Its id.
    pub id: Uuid,
    /// Nothing can be typed, clicked or pasted through it.
    pub view_only: bool,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it stops working.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// Answer to `POST /api/sessions/{id}/shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewShare {
    /// The page with its secret, relative to the server; shown here and never again.
    pub url: String,
    /// The link.
    #[serde(flatten)]
    pub share: Share,
}

/// Answer to `GET /api/sessions/{id}/shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShareList {
    /// Those that work now.
    pub shares: Vec<Share>,
}

/// What happens to sessions of a host that is drained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainSessions {
    /// They go on.
    #[default]
    Keep,
    /// They are put away, as soon as they are ready.
    Hibernate,
    /// They end.
    End,
}

/// Body of `POST /api/drain`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartDrain {
    /// What happens to sessions; `keep` when absent.
    pub sessions: DrainSessions,
}

/// Answer to `POST /api/drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// Since when the host takes no new sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Sessions that still use it.
    pub left: Vec<Uuid>,
}
