//! The board: an in-memory cache of the sessions that have not ended.
//!
//! Written only after the store has accepted a write, never before. A session missing here says
//! nothing: the store is asked. While the store cannot be read, what is here goes on being served.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicUsize},
};

use crate::checkpoint::SaveRequest;
use holdfast_core::{
    Session, SessionId, SessionState, SignIn, Timestamp, Vm, VmId, VmState, health::Standing,
};
use holdfast_store::Change;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Says that a session, its VM or its timeline changed. Carries no data: readers read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// Which session.
    pub session: SessionId,
}

/// A session with its VM, as last written.
#[derive(Debug, Clone)]
pub struct Live {
    /// The session, with its lease as it is now.
    pub session: Session,
    /// The VM tied to it.
    pub vm: Vm,
}

/// What the board keeps for one session.
pub(crate) struct Entry {
    pub id: SessionId,
    live: Mutex<Live>,
    used_at: Mutex<Timestamp>,
    /// Makes the actor look again.
    pub wake: Notify,
    /// Cancelled when the session is to end: interrupts whatever its actor is doing.
    pub ending: CancellationToken,
    /// Streams open now.
    pub streams: AtomicUsize,
    /// Held by whatever changes the machine for this session, also past a deadline: two such
    /// operations never run at once.
    pub machine: Arc<tokio::sync::Mutex<()>>,
    route: watch::Sender<Option<Route>>,
    standing: Mutex<Option<Standing>>,
    sign_in: Mutex<Option<SignIn>>,
    /// Checkpoints asked for while the session goes on running.
    pub save_requests: Mutex<Vec<SaveRequest>>,
    /// Makes the task of the sign-in look again.
    pub sign_in_wake: Notify,
}

/// Where a session's streams lead now; `None` while they lead nowhere. A stream keeps the route
/// that it was opened on and ends when the route is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The VM.
    pub vm: VmId,
    /// Its incarnation.
    pub incarnation: u32,
}

impl Route {
    fn of(live: &Live) -> Option<Self> {
        let usable = matches!(live.session.state, SessionState::Ready | SessionState::Degraded)
            // A VM that is being saved stands still for a moment; its streams wait with it.
            && matches!(
                live.vm.state,
                VmState::Running | VmState::Unhealthy | VmState::Checkpointing | VmState::Paused
            );
        usable.then_some(Self { vm: live.vm.id, incarnation: live.vm.incarnation })
    }
}

impl Entry {
    pub(crate) fn live(&self) -> Live {
        self.lock().clone()
    }

    /// When somebody last did something in it, as far as this server knows.
    pub(crate) fn used_at(&self) -> Timestamp {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody does something in it.
    pub(crate) fn used(&self, at: Timestamp) {
        let mut used_at = self.used_at.lock().unwrap_or_else(PoisonError::into_inner);
        *used_at = at.max(*used_at);
    }

    pub(crate) fn session(&self) -> Session {
        self.lock().session.clone()
    }

    /// The sign-in of the session, as last written.
    pub(crate) fn sign_in(&self) -> Option<SignIn> {
        self.sign_in.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_sign_in(&self, sign_in: Option<SignIn>) {
        *self.sign_in.lock().unwrap_or_else(PoisonError::into_inner) = sign_in;
    }

    /// Where the VM stood on the ladder of repairs after its last probe.
    pub(crate) fn standing(&self) -> Option<Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_standing(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Some(standing);
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // A panic while holding it cannot leave a half-written record: writers only assign.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the store holds, keeping the later lease.
    pub(crate) fn replace(&self, session: Option<Session>, vm: Option<Vm>) {
        let mut live = self.lock();
        if let Some(mut session) = session
            && session.generation >= live.session.generation
        {
            session.lease_expires_at = session.lease_expires_at.max(live.session.lease_expires_at);
            session.last_heartbeat_at =
                session.last_heartbeat_at.max(live.session.last_heartbeat_at);
            live.session = session;
        }
        if let Some(vm) = vm
            && (vm.id != live.vm.id || vm.generation >= live.vm.generation)
        {
            live.vm = vm;
        }
        let route = Route::of(&live);
        drop(live);
        self.route.send_if_modified(|current| {
            let changed = *current != route;
            *current = route;
            changed
        });
    }

    /// Follows where streams lead.
    pub(crate) fn route(&self) -> watch::Receiver<Option<Route>> {
        self.route.subscribe()
    }

    /// Extends the lease in memory; answers until when it holds now.
    pub(crate) fn extend(&self, heartbeat_at: Timestamp, expires_at: Timestamp) -> Timestamp {
        let mut live = self.lock();
        live.session.lease_expires_at = live.session.lease_expires_at.max(expires_at);
        live.session.last_heartbeat_at = live.session.last_heartbeat_at.max(heartbeat_at);
        live.session.lease_expires_at
    }
}

pub(crate) struct Board {
    entries: RwLock<HashMap<SessionId, Arc<Entry>>>,
    notices: broadcast::Sender<Notice>,
}

impl Board {
    pub(crate) fn new() -> Self {
        // A reader that falls behind by more than this reads everything again.
        let (notices, _) = broadcast::channel(4096);
        Self { entries: RwLock::default(), notices }
    }

    /// Puts a session on the board; answers its entry and whether it is new there.
    pub(crate) fn insert(&self, session: Session, vm: Vm) -> (Arc<Entry>, bool) {
        let id = session.id;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&id) {
            let entry = Arc::clone(entry);
            drop(entries);
            entry.replace(Some(session), Some(vm));
            return (entry, false);
        }
        let live = Live { session, vm };
        let (route, _) = watch::channel(Route::of(&live));
        let used_at = Mutex::new(live.session.created_at);
        let entry = Arc::new(Entry {
            id,
            live: Mutex::new(live),
            used_at,
            wake: Notify::new(),
            ending: CancellationToken::new(),
            streams: AtomicUsize::new(0),
            machine: Arc::default(),
            route,
            standing: Mutex::default(),
            sign_in: Mutex::default(),
            save_requests: Mutex::default(),
            sign_in_wake: Notify::new(),
        });
        entries.insert(id, Arc::clone(&entry));
        drop(entries);
        self.notify(id);
        (entry, true)
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn remove(&self, id: SessionId) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.notify(id);
    }

    /// Takes over an accepted write and tells the readers.
    pub(crate) fn accepted(&self, entry: &Entry, change: Change) {
        entry.replace(change.session, change.vm);
        self.notify(entry.id);
    }

    pub(crate) fn notify(&self, session: SessionId) {
        // No receiver is no error: nobody is looking.
        let _ = self.notices.send(Notice { session });
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }
}
