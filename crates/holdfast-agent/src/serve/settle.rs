//! Makes an unclaimed guest ready to be snapshotted: no browser, no shell, nothing to write, nothing
//! to do. What stays is the kernel, these programs, the display, the window manager and an empty terminal.

use std::time::Duration;

use holdfast_agent_api::Settled;
use tokio::time::{Instant, sleep};

use super::{Agent, figures};
use crate::{shell, wire::Refusal};

/// The guest is quiet when it used no more than this over a second, in thousandths of a processor.
const QUIET_PERMILLE: u64 = 40;
/// How long it may take to become quiet.
const DEADLINE: Duration = Duration::from_secs(90);

impl Agent {
    pub(super) async fn settle(&self) -> Result<Settled, Refusal> {
        if self.claim.current().is_some() {
            return Err(Refusal::conflict("this guest was claimed and serves a session"));
        }
        let start = Instant::now();
        self.order("chromium", "stop").await?;
        // The window stays, its shell comes with the claim.
        shell::close_gate(&self.guest).map_err(Refusal::failed)?;
        self.order("terminal", "restart").await?;
        self.wipe_browser().await.map_err(Refusal::failed)?;
        tokio::task::spawn_blocking(rustix::fs::sync).await.map_err(Refusal::failed)?;
        loop {
            let (since, before) = (Instant::now(), figures::busy_ms().map_err(Refusal::failed)?);
            sleep(Duration::from_secs(1)).await;
            let used = figures::busy_ms().map_err(Refusal::failed)?.saturating_sub(before);
            let permille = used * 1000 / since.elapsed().as_millis().max(1) as u64;
            if permille <= QUIET_PERMILLE && self.board().runs("terminal") {
                return Ok(Settled {
                    busy_permille: permille as u32,
                    took_ms: start.elapsed().as_millis() as u64,
                });
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
