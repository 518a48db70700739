//! Makes an unclaimed guest ready to be snapshotted: a new browser that is held still, no shell, nothing
//! to write, nothing to do.

use std::time::Duration;

use holdfast_agent_api::Settled;
use tokio::time::{Instant, sleep};

use super::{Agent, figures, rehearsal};
use crate::{browser, installation, shell, wire::Refusal};

/// The guest is quiet when it used no more than this over a second, in thousandths of a processor.
const QUIET_PERMILLE: u64 = 40;
/// How long it may take to become quiet.
const DEADLINE: Duration = Duration::from_secs(110);
/// A browser that wrote no settings for this long has none to write.
const WRITTEN: Duration = Duration::from_secs(11);
/// How long the browser may take until it is there again.
const BROWSER_DEADLINE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(250);

impl Agent {
    pub(super) async fn settle(&self) -> Result<Settled, Refusal> {
        if self.claim.current().is_some() {
            return Err(Refusal::conflict("this guest was claimed and serves a session"));
        }
        let start = Instant::now();
        // The window stays, its shell comes with the claim.
        shell::close_gate(&self.guest).map_err(Refusal::failed)?;
        self.order("terminal", "restart").await?;
        // Its first start has filled the cache of files; this one leaves a profile that nobody used.
        self.discard_browser().await?;
        self.order("chromium", "start").await?;
        while !browser::is_ready(&self.guest).await {
            if start.elapsed() > BROWSER_DEADLINE {
                return Err(Refusal::failed("the browser does not come up"));
            }
            sleep(LOOK).await;
        }
        browser::rehearse(&self.guest, &rehearsal::url(&self.guest), BROWSER_DEADLINE)
            .await
            .map_err(Refusal::failed)?;
        let busy_permille = self.rest(start).await?;
        self.hold_browser().await?;
        tokio::task::spawn_blocking(rustix::fs::sync).await.map_err(Refusal::failed)?;
        Ok(Settled { busy_permille, took_ms: start.elapsed().as_millis() as u64 })
    }

    /// Waits until the guest is quiet.
    async fn rest(&self, start: Instant) -> Result<u32, Refusal> {
        loop {
            let (since, before) = (Instant::now(), figures::busy_ms().map_err(Refusal::failed)?);
            sleep(Duration::from_secs(1)).await;
            let used = figures::busy_ms().map_err(Refusal::failed)?.saturating_sub(before);
            let permille = used * 1000 / since.elapsed().as_millis().max(1) as u64;
            let written = installation::written_since(&self.guest) >= Some(WRITTEN);
            if permille <= QUIET_PERMILLE && written && self.board().runs("terminal") {
                return Ok(permille as u32);
            }
            if start.elapsed() > DEADLINE {
                return Err(Refusal::failed(format!(
                    "the guest is still busy after {} s: {permille} thousandths of a processor",
                    DEADLINE.as_secs()
                )));
            }
        }
    }
}
