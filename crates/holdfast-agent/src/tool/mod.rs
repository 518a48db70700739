//! Sign-in runs.
use crate::{guest::Guest, wire::Refusal};
use axum::Router;
use std::sync::Arc;

/// Sign-in runs.
pub struct Tools {}
/// What became of a link.
pub enum Taken {
    /// A run took it.
    ByRun,
    /// It is not opened.
    Refused(String),
    /// Nobody's.
    NotTheirs,
}
impl Tools {
    /// None yet.
    pub fn new(_: Guest) -> Arc<Self> {
        Arc::new(Self {})
    }
    /// A link was handed over.
    pub fn caught(&self, _: Option<&str>, url: &str) -> Taken {
        if url.starts_with("https://") || url.starts_with("http://") {
            Taken::NotTheirs
        } else {
            Taken::Refused("only web links are opened".into())
        }
    }
}
/// Calls.
pub fn router(_: Arc<Tools>) -> Router {
    Router::new().fallback(|| async { Refusal::missing("no run yet") })
}
