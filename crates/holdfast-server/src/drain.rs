//! Draining: this host takes no new sessions, also after a restart, until it is told to.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use holdfast_control::Control;
use holdfast_core::Timestamp;

use crate::{ServerError, state_dir::StateDir};

/// File of the state directory that says since when the host is drained.
const FILE: &str = "draining";

/// Whether this host is drained.
pub(crate) struct Drain {
    /// Its lock belongs to the server alone, so that another can start when this one ends.
    dir: Weak<StateDir>,
    since: Mutex<Option<Timestamp>>,
}

impl Drain {
    /// Takes over what was said before a restart.
    pub(crate) fn open(dir: &Arc<StateDir>, control: &Control) -> Result<Self, ServerError> {
        let text = dir.read(FILE)?;
        // A file that cannot be understood still says that somebody drained the host.
        let since = text.map(|text| text.trim().parse().unwrap_or_else(|_| Timestamp::now()));
        control.set_draining(since.is_some());
        Ok(Self { dir: Arc::downgrade(dir), since: Mutex::new(since) })
    }

    /// Since when; `None`: it takes sessions.
    pub(crate) fn since(&self) -> Option<Timestamp> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drains the host, or lets it take sessions again. Written down before it is so.
    pub(crate) fn set(&self, control: &Control, drained: bool) -> Result<(), ServerError> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if drained == since.is_some() {
            return Ok(());
        }
        let now = Timestamp::now();
        let dir = self.dir.upgrade().ok_or(ServerError::Stopping)?;
        if drained {
            dir.write(FILE, &format!("{now}\n"))?;
        } else {
            dir.remove(FILE)?;
        }
        control.set_draining(drained);
        *since = drained.then_some(now);
        Ok(())
    }
}
