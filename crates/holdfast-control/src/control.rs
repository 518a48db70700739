//! [`Control`]: the handle that the server holds, and what all actors share.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use holdfast_core::{
    Actor, EndReason, Event, HostId, Session, SessionId, SessionState, SignIn, SnapshotId,
    Timestamp, Vm, VmId, VmState,
    health::Standing,
    provider::{Catalog, DESKTOP, Provider},
};
use holdfast_host::driver::{Driver, ImageRef, Observed};
use holdfast_store::{Change, SessionFilter, Store, StoreError};
use tokio::sync::{broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Clock, ControlConfig, ControlError, Live, Notice, SweepReport, actor,
    admission::{Admission, MemoryProbe},
    board::{Board, Entry},
    lease::LeaseBook,
    pool::{self, Pool},
    records::{Edit, event},
    signin, sweep,
};

/// Where new VMs get their image from.
pub trait ImageSource: Send + Sync + 'static {
    /// The image that new VMs boot, or why there is none.
    fn current(&self) -> Result<ImageRef, String>;
    /// The image of that digest, or why it cannot be used.
    fn by_digest(&self, digest: &str) -> Result<ImageRef, String>;
    /// The warm image of that image for VMs of this shape: a snapshot directory.
    fn warm(&self, _digest: &str, _memory_mib: u32, _vcpus: u8) -> Option<PathBuf> {
        None
    }
    /// No VM could be restored from this warm image. `damaged`: it is not what was written, so no
    /// further attempt makes sense.
    fn warm_failed(&self, _path: &Path, _damaged: bool, _why: &str) {}
    /// A VM was restored from this warm image and answered.
    fn warm_worked(&self, _path: &Path) {}
    /// What is to be said about warm images; `None` where there are none by design.
    fn warm_status(&self) -> Option<String> {
        None
    }
}

/// What control is made of.
pub struct Parts {
    /// The one truth.
    pub store: Arc<dyn Store>,
    /// Runs the VMs.
    pub driver: Arc<dyn Driver>,
    /// Images for new VMs.
    pub images: Arc<dyn ImageSource>,
    /// What sessions can be for.
    pub providers: Arc<Catalog>,
    /// Limits and durations.
    pub config: ControlConfig,
    /// The time.
    pub clock: Clock,
    /// Memory of this host that is available now.
    pub memory: MemoryProbe,
    /// This host.
    pub host: HostId,
    /// The store knew this host before. When it did not, VMs found on the machine may belong to
    /// another store: they are quarantined instead of removed.
    pub store_knows_host: bool,
}

pub(crate) struct Inner {
    pub store: Arc<dyn Store>,
    pub driver: Arc<dyn Driver>,
    pub images: Arc<dyn ImageSource>,
    pub providers: Arc<Catalog>,
    pub config: ControlConfig,
    pub clock: Clock,
    pub host: HostId,
    pub store_knows_host: bool,
    pub board: Board,
    pub admission: Admission,
    pub leases: LeaseBook,
    /// Counts the times that room may have appeared.
    pub room: watch::Sender<u64>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    /// Snapshots being written, whose rows do not name them yet.
    pub saving: Mutex<HashSet<SnapshotId>>,
    /// VMs that wait for a session.
    pub pool: Pool,
    /// Itself, for what outlives a borrow.
    pub this: Weak<Inner>,
    adopted: AtomicBool,
    pub draining: AtomicBool,
}

/// Drives every session of this host. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

impl Control {
    /// Puts the parts together. Nothing runs until [`Control::start`].
    pub fn new(parts: Parts) -> Self {
        let admission = Admission::new(&parts.config, parts.memory);
        let (room, _) = watch::channel(0);
        Self {
            inner: Arc::new_cyclic(|this| Inner {
                this: Weak::clone(this),
                saving: Mutex::default(),
                pool: Pool::default(),
                store: parts.store,
                driver: parts.driver,
                images: parts.images,
                providers: parts.providers,
                config: parts.config,
                clock: parts.clock,
                host: parts.host,
                store_knows_host: parts.store_knows_host,
                board: Board::new(),
                admission,
                leases: LeaseBook::default(),
                room,
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
                adopted: AtomicBool::new(false),
                draining: AtomicBool::new(false),
            }),
        }
    }

    /// Adopts every session in the store that has not ended, and starts the background work.
    /// Answers how many sessions were adopted. After an error nothing runs and it can be called again.
    pub async fn start(&self) -> Result<usize, ControlError> {
        let inner = &self.inner;
        fail::fail_point!("adopt.read");
        let began = std::time::Instant::now();
        let states = SessionState::ALL.into_iter().filter(|s| !s.is_final()).collect();
        let filter = SessionFilter { states, ..SessionFilter::default() };
        let sessions = inner.store.sessions(filter).await?;
        // All at once: one by one, a thousand sessions are two thousand questions.
        let vms = inner.store.live_vms().await?.into_iter();
        let mut vms: HashMap<VmId, Vm> = vms.map(|vm| (vm.id, vm)).collect();
        let mut adopted = Vec::with_capacity(sessions.len());
        for session in sessions {
            let live = match session.vm.and_then(|id| vms.remove(&id)) {
                Some(vm) => Some(Live { session, vm }),
                None => read_vm(inner, session).await?,
            };
            if let Some(live) = live
                && live.vm.host == inner.host
            {
                adopted.push(live);
            }
        }
        let count = adopted.len();
        let mut sign_ins: HashMap<SessionId, SignIn> = HashMap::new();
        for live in adopted.iter().filter(|live| live.session.spec.provider != DESKTOP) {
            if let Some(sign_in) = inner.store.sign_in(live.session.id).await? {
                sign_ins.insert(live.session.id, sign_in);
            }
        }
        pool::adopt(inner).await?;
        let now = inner.clock.now();
        for Live { session, vm } in adopted {
            let holds_room = session.state != SessionState::Requested
                && !matches!(vm.state, VmState::Planned | VmState::Gone);
            if holds_room {
                let starting =
                    matches!(session.state, SessionState::Starting | SessionState::Resuming);
                inner.admission.adopt(&session, starting);
            } else if session.state == SessionState::Requested {
                inner.admission.enter_again(&session);
            }
            let (entry, _) = inner.board.insert(session, vm);
            entry.set_sign_in(sign_ins.remove(&entry.id));
            // Nobody could send a heartbeat while the server was away: every lease starts afresh.
            inner.leases.extend(&entry, now, now + inner.config.lease);
            entry.used(now);
            fail::fail_point!("adopt.spawn");
            self.spawn_actor(entry);
        }
        inner.tasks.spawn(crate::lease::flush_loop(Arc::clone(inner)));
        inner.tasks.spawn(sweep::sweep_loop(Arc::clone(inner)));
        inner.tasks.spawn(pool::run(Arc::clone(inner)));
        inner.adopted.store(true, Ordering::Release);
        metrics::counter!("holdfast_adopted_sessions_total").increment(count as u64);
        metrics::gauge!("holdfast_adoption_seconds").set(began.elapsed().as_secs_f64());
        tracing::info!(sessions = count, "adopted the sessions in the store");
        Ok(count)
    }

    /// Whether the sessions in the store were adopted.
    pub fn is_started(&self) -> bool {
        self.inner.adopted.load(Ordering::Acquire)
    }

    /// Stops the background work. No VM is touched: the next server adopts them.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        crate::lease::flush(&self.inner).await;
    }

    /// Refuses new sessions from now on, or takes them again.
    pub fn set_draining(&self, draining: bool) {
        self.inner.draining.store(draining, Ordering::Release);
        self.inner.pool.wake.notify_one();
    }

    /// A session by id: from memory where it lives, otherwise from the store. `None`: it never
    /// existed, or its retention ended.
    pub async fn find(&self, id: SessionId) -> Result<Option<Live>, ControlError> {
        if let Some(entry) = self.inner.board.get(id) {
            return Ok(Some(entry.live()));
        }
        match self.inner.store.session(id).await? {
            Some(session) => read_vm(&self.inner, session).await,
            None => Ok(None),
        }
    }

    /// Sessions, newest first. Those that live here come from memory, ended ones from the store.
    pub async fn list(&self, filter: SessionFilter) -> Result<Vec<Session>, ControlError> {
        let mut sessions = self.inner.store.sessions(filter).await?;
        for session in &mut sessions {
            if let Some(entry) = self.inner.board.get(session.id) {
                *session = entry.session();
            }
        }
        Ok(sessions)
    }

    /// Sessions that have not ended, from memory: also while the store cannot be read.
    pub fn live(&self) -> Vec<Live> {
        self.inner.board.all().iter().map(|entry| entry.live()).collect()
    }

    /// Events of a session after `after`, oldest first.
    pub async fn events(
        &self,
        id: SessionId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, ControlError> {
        Ok(self.inner.store.events(id, after, limit).await?)
    }

    /// Says when sessions change. A receiver that lags has to read everything again.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.inner.board.subscribe()
    }

    /// Ends a session, whatever it is doing. Repeating it is harmless.
    pub async fn end(
        &self,
        id: SessionId,
        reason: EndReason,
        by: Actor,
    ) -> Result<Live, ControlError> {
        let Some(entry) = self.inner.board.get(id) else {
            return match self.find(id).await? {
                Some(live) if live.session.state.is_final() => Ok(live),
                Some(live) => Err(absent(&live.session)),
                None => Err(ControlError::NotFound(id)),
            };
        };
        end_entry(&self.inner, &entry, reason, by).await?;
        Ok(entry.live())
    }

    /// Extends a session's lease; answers until when it is protected.
    pub async fn heartbeat(&self, id: SessionId) -> Result<Timestamp, ControlError> {
        let entry = self.entry(id).await?;
        let now = self.inner.clock.now();
        metrics::counter!("holdfast_heartbeats_total").increment(1);
        Ok(self.inner.leases.extend(&entry, now, now + self.inner.config.lease))
    }

    /// Compares the machine with the records once, now.
    pub async fn sweep(&self) -> Result<SweepReport, ControlError> {
        sweep::sweep(&self.inner).await
    }

    /// Lets a session's actor look again.
    pub fn wake(&self, id: SessionId) {
        if let Some(entry) = self.inner.board.get(id) {
            entry.wake.notify_one();
        }
    }

    /// How many VMs of the pool wait for a session.
    pub fn waiting(&self) -> usize {
        self.inner.pool.len()
    }

    /// Lets the pool look again whether it can make VMs.
    pub fn wake_pool(&self) {
        self.inner.pool.wake.notify_one();
    }

    /// What the machine holds of a session's VM now; `None` where this server does not drive it.
    pub async fn observe(&self, id: SessionId) -> Option<Result<Observed, ControlError>> {
        let entry = self.inner.board.get(id)?;
        let vm = entry.live().vm.id;
        Some(self.inner.driver.inspect(vm).await.map_err(ControlError::from))
    }

    /// Where a session's VM stood on the ladder of repairs after its last probe; `None` where this
    /// server did not probe it.
    pub fn standing(&self, id: SessionId) -> Option<Standing> {
        self.inner.board.get(id)?.standing()
    }

    /// How many streams are open to a session now.
    pub fn streams(&self, id: SessionId) -> usize {
        self.inner.board.get(id).map_or(0, |entry| entry.streams.load(Ordering::Acquire))
    }

    /// Limits and durations in force.
    pub fn config(&self) -> &ControlConfig {
        &self.inner.config
    }

    /// What sessions can be for.
    pub fn providers(&self) -> &[Provider] {
        self.inner.providers.all()
    }

    /// The provider of that name or alias.
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.inner.providers.find(name)
    }

    /// The driver of this host.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.inner.driver
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// The time as control reads it.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// The entry of a session that this server drives, in whatever state, or why there is none: the
    /// one place that decides between gone, elsewhere and never existed.
    pub(crate) async fn here(&self, id: SessionId) -> Result<Arc<Entry>, ControlError> {
        if let Some(entry) = self.inner.board.get(id) {
            return Ok(entry);
        }
        match self.find(id).await? {
            Some(live) => Err(absent(&live.session)),
            None => Err(ControlError::NotFound(id)),
        }
    }

    /// The same, of a session that is not ending.
    pub(crate) async fn entry(&self, id: SessionId) -> Result<Arc<Entry>, ControlError> {
        let entry = self.here(id).await?;
        let session = entry.session();
        if matches!(session.state, SessionState::Ending | SessionState::Ended) {
            return Err(gone(&session));
        }
        Ok(entry)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn spawn_actor(&self, entry: Arc<Entry>) {
        if entry.sign_in().is_some() {
            self.inner.tasks.spawn(signin::run(Arc::clone(&self.inner), Arc::clone(&entry)));
        }
        self.inner.tasks.spawn(actor::run(Arc::clone(&self.inner), entry));
    }
}

/// The error for a session that ended.
pub(crate) fn gone(session: &Session) -> ControlError {
    ControlError::Gone {
        reason: session.end_reason.unwrap_or(EndReason::Failed),
        at: session.ended_at,
    }
}

/// The error for a session that no actor of this server drives: it ended, or it lives and was not
/// taken over (yet). A session that lives is never called gone.
fn absent(session: &Session) -> ControlError {
    if matches!(session.state, SessionState::Ending | SessionState::Ended) {
        gone(session)
    } else {
        ControlError::Elsewhere(session.id)
    }
}

/// Writes `ending`, and wakes the actor that takes the session down.
pub(crate) async fn end_entry(
    inner: &Inner,
    entry: &Entry,
    reason: EndReason,
    by: Actor,
) -> Result<(), ControlError> {
    loop {
        let Live { session, vm } = entry.live();
        if matches!(session.state, SessionState::Ending | SessionState::Ended) {
            entry.ending.cancel();
            return Ok(());
        }
        fail::fail_point!("step.end");
        let edit = Edit::new(&session, &vm, inner.clock.now())
            .reason(reason)
            .detail(Some(reason.sentence().to_owned()))
            .session_to(SessionState::Ending, reason.sentence(), by);
        match commit(inner, entry, edit).await {
            Ok(()) => {
                tracing::info!(session = %entry.id, %reason, "session is ending");
                entry.ending.cancel();
                entry.wake.notify_one();
                return Ok(());
            }
            // The actor wrote first: what it wrote has been read again.
            Err(ControlError::Store(StoreError::Stale { .. })) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes a change under the generations it carries and takes it over in memory. When it is stale,
/// the records are read again before the error is returned, so the caller can plan afresh.
pub(crate) async fn commit(inner: &Inner, entry: &Entry, edit: Edit) -> Result<(), ControlError> {
    fail::fail_point!("commit.before");
    match inner.store.apply(edit.into_change()).await {
        Ok(change) => {
            fail::fail_point!("commit.after");
            inner.board.accepted(entry, change);
            Ok(())
        }
        Err(error @ StoreError::Stale { .. }) => {
            reread(inner, entry).await?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads session and VM again into memory.
pub(crate) async fn reread(inner: &Inner, entry: &Entry) -> Result<(), ControlError> {
    let session = inner.store.session(entry.id).await?;
    let vm = match session.as_ref().and_then(|s| s.vm) {
        Some(id) => inner.store.vm(id).await?,
        None => None,
    };
    inner.board.accepted(entry, Change { session, vm, ..Change::default() });
    Ok(())
}

/// Appends an event that is no transition. An event that cannot be written does not stop the work
/// it describes.
pub(crate) async fn note(inner: &Inner, entry: &Entry, kind: &str, why: &str, by: Actor) {
    let mut body = event(kind, why, by, inner.clock.now());
    body.vm = entry.session().vm;
    match inner.store.append_events(entry.id, vec![body]).await {
        Ok(()) => inner.board.notify(entry.id),
        Err(error) => {
            tracing::warn!(session = %entry.id, kind, why, error = &error as &dyn std::error::Error, "an event could not be written");
        }
    }
}

async fn read_vm(inner: &Inner, session: Session) -> Result<Option<Live>, ControlError> {
    let Some(id) = session.vm else { return Ok(None) };
    let vm = inner.store.vm(id).await?.ok_or_else(|| StoreError::Corrupt {
        what: "session",
        why: format!("session {} is tied to VM {id}, which has no row", session.id),
    })?;
    Ok(Some(Live { session, vm }))
}

/// `N` bytes from the kernel's generator, as hex.
pub(crate) fn random_hex<const N: usize>() -> Result<String, ControlError> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes).map_err(ControlError::Random)?;
    Ok(bytes.iter().fold(String::with_capacity(2 * N), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
