//! Admission: which requested sessions may begin, within this host's real means.
//!
//! Oldest first, but owners take turns: of two waiting sessions, the one whose owner has fewer
//! VMs goes first, so nobody can fill the host by asking often.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use holdfast_core::{OwnerId, Session, SessionId, Timestamp};

use crate::config::ControlConfig;

#[derive(Debug, Clone, Copy)]
struct Ticket {
    owner: OwnerId,
    memory_mib: u64,
    created_at: Timestamp,
}

#[derive(Default)]
struct State {
    waiting: HashMap<SessionId, Ticket>,
    admitted: HashMap<SessionId, Ticket>,
    starting: HashSet<SessionId>,
}

/// What admission answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may begin.
    Admitted,
    /// It waits: its place in the queue, from 1, and for what.
    Queued { position: usize, why: String },
}

pub(crate) struct Admission {
    max_vms: usize,
    max_starting: usize,
    memory_mib: u64,
    state: Mutex<State>,
}

impl Admission {
    pub(crate) fn new(config: &ControlConfig) -> Self {
        Self {
            max_vms: config.max_vms,
            max_starting: config.max_starting,
            memory_mib: config.memory_budget_mib,
            state: Mutex::default(),
        }
    }

    /// Whether a VM of this size could ever run here.
    pub(crate) fn could_fit(&self, memory_mib: u32) -> Result<(), String> {
        if u64::from(memory_mib) > self.memory_mib {
            return Err(format!(
                "a VM of {memory_mib} MiB does not fit: this host gives {} MiB to all VMs together",
                self.memory_mib
            ));
        }
        Ok(())
    }

    /// Counts a session that exists already, such as one adopted after a restart of the server.
    pub(crate) fn adopt(&self, session: &Session, starting: bool) {
        let mut state = self.lock();
        state.admitted.insert(session.id, ticket(session));
        if starting {
            state.starting.insert(session.id);
        }
    }

    /// Counts a VM that waits for a session.
    pub(crate) fn hold(
        &self,
        id: SessionId,
        owner: OwnerId,
        memory_mib: u32,
        created_at: Timestamp,
    ) {
        let ticket = Ticket { owner, memory_mib: u64::from(memory_mib), created_at };
        self.lock().admitted.insert(id, ticket);
    }

    /// Whether a session waits for room.
    pub(crate) fn somebody_waits(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Whether a VM of this size fits besides what is admitted, with room for another of its size.
    pub(crate) fn room_beside(&self, memory_mib: u32) -> bool {
        let state = self.lock();
        let used: u64 = state.admitted.values().map(|t| t.memory_mib).sum();
        state.admitted.len() + 1 < self.max_vms
            && used + 2 * u64::from(memory_mib) <= self.memory_mib
    }

    /// Asks for room; called again whenever room may have appeared.
    pub(crate) fn ask(&self, session: &Session) -> Verdict {
        let mut state = self.lock();
        if state.admitted.contains_key(&session.id) {
            return Verdict::Admitted;
        }
        state.waiting.insert(session.id, ticket(session));
        let position = position(&state, session.id);
        let used: u64 = state.admitted.values().map(|t| t.memory_mib).sum();
        let why = if state.admitted.len() >= self.max_vms {
            format!("all {} places for VMs are taken", self.max_vms)
        } else if used + u64::from(session.spec.memory_mib) > self.memory_mib {
            format!("{used} of {} MiB for VMs are taken", self.memory_mib)
        } else if state.starting.len() >= self.max_starting {
            format!("{} VMs are starting now", state.starting.len())
        } else if position > 1 {
            "others came first".to_owned()
        } else {
            if let Some(ticket) = state.waiting.remove(&session.id) {
                state.admitted.insert(session.id, ticket);
                state.starting.insert(session.id);
            }
            return Verdict::Admitted;
        };
        Verdict::Queued { position, why }
    }

    /// The session's VM is up: another may start.
    pub(crate) fn started(&self, id: SessionId) {
        self.lock().starting.remove(&id);
    }

    /// Sessions whose VMs are coming up, or wait to.
    pub(crate) fn coming_up(&self) -> usize {
        let state = self.lock();
        state.starting.len() + state.waiting.len()
    }

    /// The session holds nothing any more.
    pub(crate) fn release(&self, id: SessionId) {
        let mut state = self.lock();
        state.waiting.remove(&id);
        state.admitted.remove(&id);
        state.starting.remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ticket(session: &Session) -> Ticket {
    Ticket {
        owner: session.owner,
        memory_mib: u64::from(session.spec.memory_mib),
        created_at: session.created_at,
    }
}

fn position(state: &State, id: SessionId) -> usize {
    let held = |owner: OwnerId| state.admitted.values().filter(|t| t.owner == owner).count();
    let key = |id: &SessionId, t: &Ticket| (held(t.owner), t.created_at, *id);
    let mut order: Vec<_> = state.waiting.iter().map(|(id, t)| key(id, t)).collect();
    order.sort_unstable();
    order.iter().position(|(_, _, other)| *other == id).map_or(1, |index| index + 1)
}
