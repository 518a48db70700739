//! What every handler shares.

use std::sync::Arc;

use holdfast_control::{Control, Live};
use holdfast_core::{OwnerId, SessionId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config,
    auth::{Principal, TokenCache},
    drain::Drain,
    problem::{ApiError, ApiResult},
    wiring::VerdictWatch,
};

/// What every handler shares. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// Drives the sessions.
    pub control: Control,
    /// The configuration.
    pub config: Arc<Config>,
    /// Tokens found valid lately.
    pub tokens: Arc<TokenCache>,
    /// Where images are found.
    pub images: Arc<dyn holdfast_control::ImageSource>,
    /// Whether the driver proved itself, and why it was chosen.
    pub(crate) verdict: VerdictWatch,
    /// Whether this host takes new sessions.
    pub(crate) drain: Arc<Drain>,
    /// Streams that are open: the end of the server waits for them to be closed properly.
    pub(crate) streams: TaskTracker,
    /// Cancelled when the server stops: long answers end.
    pub stop: CancellationToken,
}

impl AppState {
    /// The session if the caller may see it. Another owner's answers like one that never existed.
    pub(crate) async fn visible(&self, who: &Principal, id: SessionId) -> ApiResult<Live> {
        match self.control.find(id).await? {
            Some(live) if who.admin || live.session.owner == who.owner => Ok(live),
            _ => Err(ApiError::not_found()),
        }
    }

    /// The name of an owner, for display.
    pub(crate) async fn owner_name(&self, who: &Principal, owner: OwnerId) -> String {
        if who.owner == owner {
            return who.name.clone();
        }
        self.control.store().owner_name(owner).await.ok().flatten().unwrap_or_default()
    }
}
