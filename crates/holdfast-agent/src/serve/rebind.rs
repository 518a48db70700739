//! A restored guest becomes another VM: the same session on a new VM, or a fork of it.
//!
//! A fork keeps what the person made (files, terminals, open pages, cookies) and shares no randomness
//! with its twin: the kernel is reseeded before anything else, then the browser is replaced whole and
//! opens its tabs again; it was held still before the snapshot and runs no further. Programs that the person started in a terminal go on as they were.

use std::{sync::Arc, time::Duration};

use holdfast_agent_api::{ClaimAnswer, ClaimRequest};
use subtle::ConstantTimeEq;

use super::{
    Agent,
    claim::{Claim, check, failed_at},
    held,
};
use crate::{browser, installation, wire::Refusal};

/// How long the browser may take until its tabs are looked at.
const TABS_DEADLINE: Duration = Duration::from_mins(2);
/// Time between looks at it.
const LOOK: Duration = Duration::from_millis(250);

impl Agent {
    /// The caller has shown the secret of before.
    pub(super) async fn rebind(
        self: Arc<Self>,
        request: ClaimRequest,
    ) -> Result<ClaimAnswer, Refusal> {
        let entropy = check(&request)?;
        let _turn = self.claim.turn.lock().await;
        let Some(before) = self.claim.current() else {
            return Err(Refusal::conflict("this guest was not claimed yet"));
        };
        let same = bool::from(before.request.secret.as_bytes().ct_eq(request.secret.as_bytes()));
        if same && before.complete {
            return Ok(self.answer());
        }
        self.claim.keep(&self.guest, Claim { request: request.clone(), complete: false })?;
        let language_or_zone_changed = self.take_identity(&request, &entropy, false)?;
        if request.cloned {
            self.replace_browser().await?;
        } else {
            self.let_go();
            if language_or_zone_changed {
                self.order("chromium", "restart").await?;
            }
        }
        self.claim.keep(&self.guest, Claim { request, complete: true })?;
        Ok(self.answer())
    }

    /// Ends every process of the browser and starts it again with the tabs that it had.
    async fn replace_browser(self: &Arc<Self>) -> Result<(), Refusal> {
        let kept = |error| failed_at("the browser's tabs")(error);
        // Those of an attempt of before count: the browser may have been ended by it.
        let tabs = match browser::kept_tabs(&self.guest).map_err(kept)? {
            Some(tabs) => tabs,
            None => {
                let tabs = match self.freezer.tabs() {
                    Some(tabs) => tabs,
                    None => browser::tabs(&self.guest).await.unwrap_or_default(),
                };
                browser::keep_tabs(&self.guest, &tabs).map_err(kept)?;
                tabs
            }
        };
        self.end_frozen().await?;
        self.order("chromium", "stop").await?;
        held::forget(&self.guest);
        installation::renew(&self.guest).map_err(failed_at("the browser's profile"))?;
        self.order("chromium", "start").await?;
        let agent = Arc::clone(self);
        tokio::spawn(async move { agent.reopen(tabs).await });
        Ok(())
    }

    /// Opens what the browser did not bring back by itself.
    async fn reopen(&self, tabs: Vec<String>) {
        let started = tokio::time::Instant::now();
        let mut open = loop {
            match browser::tabs(&self.guest).await {
                Ok(open) if browser::is_ready(&self.guest).await => break open,
                _ if started.elapsed() > TABS_DEADLINE => break Vec::new(),
                _ => tokio::time::sleep(LOOK).await,
            }
        };
        for url in tabs {
            if let Some(index) = open.iter().position(|other| *other == url) {
                open.swap_remove(index);
            } else if let Err(error) = browser::open(&self.guest, &url).await {
                tracing::warn!("a tab could not be opened again: {error}");
            }
        }
        if let Err(error) = browser::drop_tabs(&self.guest) {
            tracing::warn!("the list of tabs could not be removed: {error}");
        }
    }
}
