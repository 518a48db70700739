//! Holds the browser still while the guest is snapshotted. A copy of the guest then runs none of its
//! processes, which share their randomness with those of the original, before it knows that it is one.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_agent_api::Frozen;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::Agent;
use crate::{browser, census, wire::Refusal};

/// How long the browser may take to say what its tabs are.
const TABS_DEADLINE: Duration = Duration::from_secs(2);
/// How long its processes may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Time between looks at them.
const LOOK: Duration = Duration::from_millis(5);
/// Time of the guest, which stands still during a snapshot, after which the browser goes on by itself:
/// nobody is left with a dead desktop by a host that died. Longer than a copy may take to come up.
const LIMIT: Duration = Duration::from_mins(2);

/// What is known of a browser that is held still.
#[derive(Default)]
pub(super) struct Freezer {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Rises with each freeze and thaw.
    turn: u64,
    /// Links of the tabs, while it is held.
    tabs: Option<Vec<String>>,
}

impl Freezer {
    fn set(&self, tabs: Option<Vec<String>>) -> u64 {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.turn += 1;
        held.tabs = tabs;
        held.turn
    }

    /// Links of the tabs of a browser that is held still.
    pub(super) fn tabs(&self) -> Option<Vec<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).tabs.clone()
    }

    fn turn(&self) -> u64 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).turn
    }
}

impl Agent {
    /// Stops every process of the browser. Repeating it is harmless.
    pub(super) async fn freeze(self: Arc<Self>) -> Result<Frozen, Refusal> {
        let _turn = self.claim.turn.lock().await;
        let tabs = match self.freezer.tabs() {
            Some(tabs) => tabs,
            // A browser that does not answer in time is brought back from its own list of tabs.
            None => match timeout(TABS_DEADLINE, browser::tabs(&self.guest)).await {
                Ok(Ok(tabs)) => tabs,
                _ => Vec::new(),
            },
        };
        let turn = self.freezer.set(Some(tabs));
        let processes = match self.stop_browser().await {
            Ok(found) => found.len() as u32,
            Err(refusal) => {
                self.let_go();
                return Err(refusal);
            }
        };
        let agent = Arc::clone(&self);
        tokio::spawn(async move {
            sleep(LIMIT).await;
            let _turn = agent.claim.turn.lock().await;
            if agent.freezer.turn() == turn {
                tracing::warn!("nobody let the browser go on; it does so by itself");
                agent.let_go();
            }
        });
        Ok(Frozen { processes })
    }

    /// Stops every process of the browser; says which these are.
    pub(super) async fn stop_browser(&self) -> Result<Vec<u32>, Refusal> {
        let start = Instant::now();
        let mut told = BTreeSet::new();
        loop {
            let found = self.browser_processes();
            let mut runs = false;
            for pid in &found {
                if told.insert(*pid) {
                    census::signal(*pid, Signal::STOP);
                }
                runs |= !has_stopped(*pid);
            }
            if !runs {
                return Ok(found);
            }
            if start.elapsed() > STOP_DEADLINE {
                return Err(Refusal::failed("the browser's processes do not stop"));
            }
            sleep(LOOK).await;
        }
    }

    /// Lets the browser go on. Repeating it is harmless.
    pub(super) async fn thaw(&self) -> Frozen {
        let _turn = self.claim.turn.lock().await;
        Frozen { processes: self.let_go() }
    }

    /// The same, for who has the turn already.
    pub(super) fn let_go(&self) -> u32 {
        self.freezer.set(None);
        if browser::is_held(&self.guest) {
            // It was not told yet that its memory is a copy.
            return 0;
        }
        let found = self.browser_processes();
        for pid in &found {
            census::signal(*pid, Signal::CONT);
        }
        found.len() as u32
    }

    /// Ends a browser that is held still: none of its processes runs another instruction.
    pub(super) async fn end_frozen(&self) -> Result<(), Refusal> {
        let leader = self.board().pid("chromium");
        let left = census::end(&self.browser_mark(), leader, Duration::ZERO).await;
        self.freezer.set(None);
        if left > 0 {
            return Err(Refusal::failed(format!("{left} processes of the browser do not end")));
        }
        Ok(())
    }

    fn browser_processes(&self) -> Vec<u32> {
        census::find(&self.browser_mark(), self.board().pid("chromium"))
    }

    fn browser_mark(&self) -> String {
        self.guest.mark("service-chromium")
    }
}

/// Whether all threads of a process that was told to stop stand still, or it has ended. One that waits
/// in the kernel (`D`) stops before its next own instruction, and may wait for a child of a `vfork` that
/// was stopped first.
fn has_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { return true };
        let state = census::after_name(&stat).and_then(|mut fields| fields.next());
        matches!(state, Some("T" | "t" | "D" | "Z" | "X") | None)
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::guest::Guest;

    async fn until(what: &str, is: impl Fn() -> bool) {
        let start = Instant::now();
        while !is() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_frozen_browser_goes_on_or_ends_without_another_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = dir.path().join(format!("run-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&run).expect("a directory");
        let guest = Guest { run, ..Guest::image() };
        let agent = Agent::start(guest);
        let steps = dir.path().join("steps");
        // It ends by itself where the test fails.
        let script = format!("while echo x 2>&- >>{}; do sleep 0.01; done", steps.display());
        let mut browser = Command::new("/bin/sh")
            .args(["-c", &script])
            .env(census::MARK, agent.browser_mark())
            .stdin(Stdio::null())
            .spawn()
            .expect("a shell");
        let len = || fs::metadata(&steps).map(|file| file.len()).unwrap_or_default();
        until("it does not start", || len() > 0).await;
        let frozen = Arc::clone(&agent).freeze().await.expect("frozen");
        assert!(frozen.processes >= 1, "{frozen:?}");
        assert!(has_stopped(browser.id()));
        let before = len();
        agent.thaw().await;
        until("it does not go on", || len() > before).await;
        Arc::clone(&agent).freeze().await.expect("frozen again");
        let before = len();
        let reaper = std::thread::spawn(move || browser.wait());
        agent.end_frozen().await.expect("ended");
        assert_eq!(len(), before, "it ran on");
        reaper.join().expect("no panic").expect("it ended");
    }
}
