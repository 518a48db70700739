//! Warm images of one server: which one new VMs are cloned from, and making it when it is missing.
//!
//! It is made in the background, once nothing starts any more: sessions boot cold meanwhile. One that
//! fails is not tried again and again: a damaged one is removed and made anew, and one from which VMs
//! do not come up is left alone until the next start of the server.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_control::ImageSource;
use holdfast_core::{SessionState, VmId};
use holdfast_host::{
    bake::{self, BakeError, Baked, Shape, Stage},
    driver::{DriverError, ImageRef},
    snapshot::Fits,
    warm::WarmLibrary,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Config, ServerError, StateDir, config::DriverChoice, drivers, error::chain, state::AppState,
};

/// Nothing started for this long before a warm image is made beside sessions.
const QUIET: Duration = Duration::from_secs(15);
/// Time between looks whether there is another image.
const LOOK: Duration = Duration::from_secs(30);
/// Pause after a warm image could not be made, doubled up to the second value.
const PAUSES: (Duration, Duration) = (Duration::from_mins(2), Duration::from_hours(1));
/// VMs in a row that do not come up from a warm image before it is given up.
const FAILURES: u32 = 3;

#[derive(Default)]
struct State {
    /// What warm images of an image have to fit, by its digest; for VMs of the configured size.
    fits: HashMap<String, Fits>,
    failures: HashMap<PathBuf, u32>,
    given_up: HashSet<PathBuf>,
    status: String,
}

/// The images of a server, with their warm images.
pub struct WarmImages {
    images: Arc<dyn ImageSource>,
    library: WarmLibrary,
    state: Mutex<State>,
    wake: Notify,
}

impl WarmImages {
    /// Adds the warm images of a cache directory to what `images` has.
    pub fn new(images: Arc<dyn ImageSource>, cache_dir: &Path) -> Self {
        let state = State { status: "not looked at yet".to_owned(), ..State::default() };
        Self {
            images,
            library: WarmLibrary::new(cache_dir),
            state: Mutex::new(state),
            wake: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, status: impl Into<String>) {
        let status = status.into();
        let mut state = self.lock();
        if state.status != status {
            tracing::info!(status, "warm image");
            state.status = status;
        }
    }

    /// Finds the warm image of the current image, and makes it when it is missing. Until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, state: AppState, stop: CancellationToken) {
        let mut pause = PAUSES.0;
        loop {
            let wait = match self.look(&state, &stop).await {
                Ok(()) => {
                    pause = PAUSES.0;
                    LOOK
                }
                Err(ServerError::Bake(BakeError::Stopped)) => return,
                Err(ServerError::Bake(error @ BakeError::Unsupported(_))) => {
                    self.say(chain(&error));
                    return;
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::warn!(why, "the warm image could not be made; sessions boot cold");
                    self.say(format!("it could not be made, sessions boot cold: {why}"));
                    let now = pause;
                    pause = (pause * 2).min(PAUSES.1);
                    now
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn look(&self, state: &AppState, stop: &CancellationToken) -> Result<(), ServerError> {
        let Ok(image) = self.images.current() else {
            self.say("there is no image yet");
            return Ok(());
        };
        let shape = shape(&state.config, image);
        let driver = state.control.driver();
        let fits = driver.fits(&shape.spec(VmId::from_uuid(Uuid::nil()))).await?;
        let Some(fits) = fits else { return Err(BakeError::Unsupported(driver.name()).into()) };
        self.lock().fits.insert(shape.image.digest.clone(), fits.clone());
        if let Some(path) = self.library.find(&fits) {
            if self.lock().given_up.contains(&path) {
                self.say("given up until the server is started again: VMs did not come up from it");
                return Ok(());
            }
            let spec = shape.spec(VmId::from_uuid(Uuid::nil()));
            if let Err(error) = driver.preload(&spec, &path).await {
                let damaged = matches!(error, DriverError::Snapshot { .. });
                self.warm_failed(&path, damaged, &chain(&error));
            } else {
                self.say("ready: new sessions are cloned from it");
            }
            return Ok(());
        }
        self.say("missing: it is made once nothing starts; sessions boot cold until then");
        if !quiet(state, stop).await {
            return Err(BakeError::Stopped.into());
        }
        let driver = drivers::open_driver(&working(&state.config), driver.name())?;
        let say = |stage: Stage| self.say(format!("being made: {stage}"));
        let began = std::time::Instant::now();
        let baked = bake::bake(&driver, &self.library, &shape, &say, stop).await?;
        let seconds = began.elapsed().as_secs();
        tracing::info!(seconds, bytes = baked.image.bytes, "the warm image is there");
        // The next look, at once, loads it.
        self.wake.notify_one();
        // The pool may have waited for it.
        state.control.wake_pool();
        Ok(())
    }
}

impl ImageSource for WarmImages {
    fn current(&self) -> Result<ImageRef, String> {
        self.images.current()
    }

    fn by_digest(&self, digest: &str) -> Result<ImageRef, String> {
        self.images.by_digest(digest)
    }

    fn warm(&self, digest: &str, memory_mib: u32, vcpus: u8) -> Option<PathBuf> {
        let state = self.lock();
        let fits = Fits { memory_mib, vcpus, ..state.fits.get(digest)?.clone() };
        self.library.find(&fits).filter(|path| !state.given_up.contains(path))
    }

    fn warm_failed(&self, path: &Path, damaged: bool, why: &str) {
        metrics::counter!("holdfast_warm_failures_total").increment(1);
        let mut state = self.lock();
        if damaged {
            state.given_up.insert(path.to_owned());
            drop(state);
            tracing::error!(path = %path.display(), why, "the warm image is damaged; it is made anew");
            match self.library.remove(path) {
                Ok(()) => {
                    self.lock().given_up.remove(path);
                    self.wake.notify_one();
                }
                Err(error) => self.say(format!("it is damaged: {}", chain(&error))),
            }
            return;
        }
        let failures = state.failures.entry(path.to_owned()).or_default();
        *failures += 1;
        if *failures >= FAILURES {
            tracing::error!(path = %path.display(), why, "VMs do not come up from the warm image; they boot cold from now on");
            state.given_up.insert(path.to_owned());
            state.status = format!("given up: VMs did not come up from it ({why})");
        }
    }

    fn warm_worked(&self, path: &Path) {
        self.lock().failures.remove(path);
    }

    fn warm_status(&self) -> Option<String> {
        Some(self.lock().status.clone())
    }
}

/// Makes the warm image for a configuration, unless it is there, whether a server runs or not.
///
/// # Errors
/// There is no image, no driver works or can, or the guest did not come up.
pub async fn bake_now(
    config: &Config,
    size: (u32, u8),
    progress: &(dyn Fn(Stage) + Send + Sync),
    stop: &CancellationToken,
) -> Result<Baked, ServerError> {
    let images = crate::ImageLibrary::new(&config.cache_dir);
    let image = images.current().map_err(ServerError::NoImage)?;
    let config = working(config);
    let library = WarmLibrary::new(&config.cache_dir);
    let dir = StateDir::lock(&config.state_dir)?;
    let (driver, _) = drivers::choose(&config, &dir, &BTreeSet::new(), &mut |_| {}).await?;
    let shape = Shape { memory_mib: size.0, vcpus: size.1, ..shape(&config, image) };
    Ok(bake::bake(&driver, &library, &shape, progress, stop).await?)
}

/// The configuration for the driver that bakes: it has a state directory of its own.
fn working(config: &Config) -> Config {
    let state_dir = WarmLibrary::new(&config.cache_dir).work_dir();
    Config { state_dir, ..config.clone() }
}

fn shape(config: &Config, image: ImageRef) -> Shape {
    let vm = &config.vm;
    Shape { image, memory_mib: vm.memory_mib, vcpus: vm.vcpus, disk_mib: vm.disk_mib }
}

/// Waits until nothing has been starting for a while; false when the server stops.
async fn quiet(state: &AppState, stop: &CancellationToken) -> bool {
    let mut notices = state.control.notices();
    loop {
        let starting = |s| {
            matches!(s, SessionState::Requested | SessionState::Starting | SessionState::Resuming)
        };
        let busy = !state.control.is_started()
            || state.control.live().iter().any(|live| starting(live.session.state));
        let changed = async {
            // One that lags or is closed has seen a change too.
            let _ = notices.recv().await;
        };
        tokio::select! {
            () = stop.cancelled() => return false,
            () = changed => {}
            () = tokio::time::sleep(QUIET) => if !busy { return true },
        }
    }
}

/// Whether a configuration asks for warm images.
pub(crate) fn wanted(config: &Config) -> bool {
    config.vm.warm && config.driver != DriverChoice::Sim
}
