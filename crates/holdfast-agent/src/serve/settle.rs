//! Makes an unclaimed guest ready to be snapshotted: a new browser that is held still, no shell, nothing
//! to write, nothing to do.

use std::time::Duration;

use holdfast_agent_api::Settled;
use tokio::time::{Instant, sleep};

use super::{Agent, figures, rehearsal};
use crate::{
    browser, census, installation, shell,
    spawn::{self, Launch},
    wire::Refusal,
};

/// The guest is quiet when it used no more than this over a second, in thousandths of a processor.
const QUIET_PERMILLE: u64 = 40;
/// How long it may take to become quiet.
const DEADLINE: Duration = Duration::from_mins(2);
/// A browser that wrote no settings for this long has none to write.
const WRITTEN: Duration = Duration::from_secs(11);
/// How long the browser may take until it is there again.
const BROWSER_DEADLINE: Duration = Duration::from_mins(1);
/// See [`Agent::rehearse_programs`].
const PROGRAMS: &str = "etc/holdfast/rehearse";
/// How long each of them may take.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(250);

impl Agent {
    pub(super) async fn settle(&self) -> Result<Settled, Refusal> {
        if self.claim.current().is_some() {
            return Err(Refusal::conflict("this guest was claimed and serves a session"));
        }
        let start = Instant::now();
        self.rehearse_programs().await;
        // The window stays, its shell comes with the claim.
        shell::close_gate(&self.guest).map_err(Refusal::failed)?;
        self.order("terminal", "restart").await?;
        // Its first start has filled the cache of files; this one leaves a profile that nobody used.
        self.discard_browser().await?;
        self.order("chromium", "start").await?;
        let started = Instant::now();
        while !browser::is_ready(&self.guest).await {
            if started.elapsed() > BROWSER_DEADLINE {
                return Err(Refusal::failed("the browser does not come up"));
            }
            sleep(LOOK).await;
        }
        browser::rehearse(&self.guest, &rehearsal::url(&self.guest), BROWSER_DEADLINE)
            .await
            .map_err(Refusal::failed)?;
        let busy_permille = self.rest().await?;
        self.hold_browser().await?;
        tokio::task::spawn_blocking(rustix::fs::sync).await.map_err(Refusal::failed)?;
        Ok(Settled { busy_permille, took_ms: start.elapsed().as_millis() as u64 })
    }

    /// Runs the programs of [`PROGRAMS`], so that what they read from the disk is in memory. What they
    /// answer does not matter, and nothing of them stays.
    async fn rehearse_programs(&self) {
        let list = std::fs::read_to_string(self.guest.root.join(PROGRAMS)).unwrap_or_default();
        let lines = list.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let command: Vec<_> = line.split_ascii_whitespace().map(str::to_owned).collect();
            if let Err(error) = self.rehearse_program(command).await {
                tracing::warn!("`{line}` was not rehearsed: {error}");
            }
        }
    }

    async fn rehearse_program(&self, command: Vec<String>) -> std::io::Result<()> {
        let home = self.guest.home.join(".rehearsal");
        std::fs::create_dir_all(&home)?;
        if let Some(user) = self.guest.user {
            std::os::unix::fs::chown(&home, Some(user.uid), Some(user.gid))?;
        }
        let mark = self.guest.mark("rehearsal");
        let launch = Launch {
            command,
            env: vec![
                ("HOME".to_owned(), home.display().to_string()),
                ("DISABLE_AUTOUPDATER".to_owned(), "1".to_owned()),
            ],
            cwd: Some(home.clone()),
            mark: Some(mark.clone()),
            ..Launch::default()
        };
        let ran = spawn::command(&self.guest, &launch).and_then(|mut command| {
            let null = std::process::Stdio::null;
            command.stdin(null()).stdout(null()).stderr(null()).process_group(0).spawn()
        });
        let waited = match ran {
            Ok(mut child) => {
                let leader = child.id();
                let waited = tokio::time::timeout(PROGRAM_DEADLINE, child.wait()).await;
                tokio::join!(census::end(&mark, leader, Duration::ZERO), child.wait()).1.ok();
                waited.map_err(std::io::Error::other).map(drop)
            }
            Err(error) => Err(error),
        };
        std::fs::remove_dir_all(&home)?;
        waited
    }

    /// Waits until the guest is quiet.
    async fn rest(&self) -> Result<u32, Refusal> {
        let start = Instant::now();
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
