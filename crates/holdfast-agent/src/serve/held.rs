//! The browser of a warm image. It is held still before the snapshot; each clone's claim lets it go on.
//!
//! ```text
//! settle: runs -> at rest -> held (stopped)                             in the snapshot
//! claim:  held -> told that it is a copy -> goes on -> shows a tab of a new renderer
//!                    \-> (another language, or it does not answer) replaced whole
//! ```
//!
//! Of a held browser no renderer runs another instruction: the generators of its scripts are its own. What
//! goes on (the browser's own process, the network's, the storage's, the GPU's and the zygotes) is told
//! first that its memory is a copy ([`fork_detection`]). It must never go on before that.

use std::{
    fs, io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Agent, claim::failed_at};
use crate::{
    browser::{self, START_PAGE},
    census,
    fork_detection::{self, Region},
    guest::{Guest, remove_if_there, write_atomically},
    installation::{self, Place},
    wire::Refusal,
};

/// How long each answer of the browser may take once it goes on, before it is replaced whole.
const WAKE_DEADLINE: Duration = Duration::from_mins(1);
/// How long its first page may take before it counts as there anyway.
const PAGE_DEADLINE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(500);

/// What becomes of a process in a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Fate {
    /// It goes on.
    GoesOn,
    /// It shows a page: it is ended once another one does.
    Replaced,
    /// A service that comes back when it is needed: it is ended before the snapshot.
    Ended,
}

/// Chromium names the kind of each of its processes (`content/public/common/content_switches.cc`); all but
/// the first have their arguments in one piece.
fn fate(command_line: &[u8]) -> Fate {
    let mut arguments = command_line.split(|byte| matches!(byte, 0 | b' '));
    let mut value = |name: &[u8]| arguments.find_map(|argument| argument.strip_prefix(name));
    match value(b"--type=") {
        None | Some(b"zygote" | b"gpu-process" | b"broker") => Fate::GoesOn,
        Some(b"renderer") => Fate::Replaced,
        Some(b"utility") => match value(b"--utility-sub-type=") {
            // They are there for as long as the browser is; starting them takes a translated guest seconds.
            Some(b"network.mojom.NetworkService" | b"storage.mojom.StorageService") => Fate::GoesOn,
            _ => Fate::Ended,
        },
        Some(_) => Fate::Ended,
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Process {
    pid: u32,
    fate: Fate,
    regions: Vec<Region>,
}

/// A browser that is held still.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Held {
    processes: Vec<Process>,
    /// The browser's own process.
    main: u32,
    /// Ids of the installation.
    ids: Vec<String>,
    /// Where the browser's own process has them.
    places: Vec<Place>,
}

impl Held {
    /// The browser that is held, if there is one.
    pub(super) fn load(guest: &Guest) -> Option<Self> {
        let kept =
            fs::read(browser::held_file(guest)).or_else(|_| fs::read(browser::waking_file(guest)));
        serde_json::from_slice(&kept.ok()?).ok()
    }

    fn of(&self, fate: Fate) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |process| process.fate == fate)
    }

    fn signal(&self, fate: Fate, signal: Signal) {
        for process in self.of(fate) {
            census::signal(process.pid, signal);
        }
    }

    /// Tells what goes on that its memory is a copy, and what the browser's ids are in this one.
    fn tell(&self, guest: &Guest) -> io::Result<()> {
        // The kernel was reseeded before: what they seed themselves from is this guest's own.
        for process in self.of(Fate::GoesOn) {
            fork_detection::trigger(process.pid, &process.regions)?;
        }
        let ids = self.ids.iter().map(|id| Ok((id.clone(), installation::another(id)?)));
        let ids = ids.collect::<io::Result<Vec<_>>>()?;
        installation::replace_in_memory(self.main, &self.places, &ids)?;
        installation::replace_in_files(guest, &ids)?;
        browser::own_profile(guest)
    }
}

/// A browser that was replaced is not held.
pub(super) fn forget(guest: &Guest) {
    for file in [browser::held_file(guest), browser::waking_file(guest)] {
        if let Err(error) = remove_if_there(&file) {
            tracing::warn!("the browser still counts as held: {error}");
        }
    }
}

impl Agent {
    /// Stops the browser for the snapshot. Nobody but a claim lets it go on.
    pub(super) async fn hold_browser(&self) -> Result<(), Refusal> {
        let failed = failed_at("the browser's rest");
        let address = browser::address(&self.guest).await.map_err(&failed)?;
        let pids = self.stop_browser().await?;
        let main =
            self.board().pid("chromium").ok_or_else(|| Refusal::failed("there is no browser"))?;
        let mut ids = installation::ids(&self.guest);
        ids.extend(address.rsplit('/').next().map(str::to_owned));
        let sought = ids.clone();
        let search = move || installation::find_in_memory(main, &sought);
        let places = tokio::task::spawn_blocking(search).await.map_err(Refusal::failed)?;
        let places = places.map_err(&failed)?;
        let mut processes = Vec::new();
        for pid in pids {
            let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let fate = fate(&command_line);
            let regions = match fate {
                Fate::GoesOn => fork_detection::regions(pid).map_err(&failed)?,
                Fate::Replaced | Fate::Ended => Vec::new(),
            };
            processes.push(Process { pid, fate, regions });
        }
        let held = Held { processes, main, ids, places };
        held.signal(Fate::Ended, Signal::KILL);
        let bytes = serde_json::to_vec(&held).map_err(Refusal::failed)?;
        write_atomically(&browser::held_file(&self.guest), &bytes, 0o600).map_err(&failed)?;
        self.holds.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Lets the browser go on after a while, or once it is wanted, with its first page in its only tab. The
    /// answer to the claim does not wait for it.
    pub(super) fn wake_browser(self: &Arc<Self>, held: Held, after: Duration) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = sleep(after) => {}
                () = agent.browser_wanted.notified() => {}
            }
            // A snapshot waits for its end.
            let turn = agent.claim.turn.lock().await;
            // From here on nobody sets another first page.
            let waking = browser::waking_file(&agent.guest);
            if fs::rename(browser::held_file(&agent.guest), &waking).is_err() && !waking.exists() {
                // It was replaced meanwhile.
                agent.holds.store(false, Ordering::SeqCst);
                return;
            }
            let url = browser::first_page(&agent.guest).unwrap_or_else(|| START_PAGE.to_owned());
            if let Err(error) = agent.wake(&held, &url).await {
                tracing::warn!("the browser of the warm image is replaced: {error}");
                agent.replace_held().await;
            }
            forget(&agent.guest);
            drop(turn);
            let started = Instant::now();
            while !browser::is_ready(&agent.guest).await && started.elapsed() < PAGE_DEADLINE {
                sleep(LOOK).await;
            }
            agent.holds.store(false, Ordering::SeqCst);
        });
    }

    async fn wake(&self, held: &Held, url: &str) -> io::Result<()> {
        held.tell(&self.guest)?;
        held.signal(Fate::GoesOn, Signal::CONT);
        let end_old = || held.signal(Fate::Replaced, Signal::KILL);
        browser::begin_anew(&self.guest, url, WAKE_DEADLINE, end_old).await
    }

    async fn replace_held(self: &Arc<Self>) {
        if let Err(refusal) = self.discard_browser().await {
            tracing::error!("the browser cannot be replaced: {}", refusal.1);
        }
        self.start_browser(Duration::ZERO);
    }

    /// Ends a browser that is held, and everything of it.
    pub(super) async fn discard_browser(&self) -> Result<(), Refusal> {
        // After settling without one there is none, and nothing of it.
        if !self.board().is_stopped("chromium") {
            self.order("chromium", "stop").await?;
        }
        self.wipe_browser().await.map_err(failed_at("the browser's profile"))?;
        forget(&self.guest);
        self.holds.store(false, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_scripts_does_not_go_on() {
        let fate = |line: &str| fate(line.replace(' ', "\0").as_bytes());
        assert_eq!(fate("/usr/lib/chromium/chromium --lang=en-US about:blank"), Fate::GoesOn);
        assert_eq!(
            fate("/usr/lib/chromium/chromium --type=zygote --no-zygote-sandbox"),
            Fate::GoesOn
        );
        assert_eq!(fate("/usr/lib/chromium/chromium --type=gpu-process --x"), Fate::GoesOn);
        assert_eq!(fate("/usr/lib/chromium/chromium --type=renderer --x"), Fate::Replaced);
        let network = "chromium --type=utility --utility-sub-type=network.mojom.NetworkService --x";
        assert_eq!(fate(network), Fate::GoesOn);
        let decoder =
            "chromium --type=utility --utility-sub-type=data_decoder.mojom.DataDecoderService";
        assert_eq!(fate(decoder), Fate::Ended);
        let in_one_piece = b"/usr/lib/chromium/chromium --type=renderer --lang=en";
        assert_eq!(super::fate(in_one_piece), Fate::Replaced);
        assert_eq!(fate("chromium --type=something-new"), Fate::Ended);
    }
}
