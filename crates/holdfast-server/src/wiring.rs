//! Puts one server together: store, driver, images, control.
//!
//! The server listens before any of this has happened. What takes long or may be away for a while
//! (a store on the network, the proof that a driver works) is waited for here, and
//! [`Progress`] says for what.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_control::{Clock, Control, ImageSource, MemoryProbe, Parts};
use holdfast_core::{HostId, Timestamp};
use holdfast_host::driver::Driver;
use holdfast_store::{HostRecord, Store, StoreError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, ImageLibrary, ServerError, WarmImages, auth,
    auth::TokenCache,
    config::DriverChoice,
    drain::Drain,
    drivers::{self, Verdict},
    images::SimulatedImages,
    state::AppState,
    state_dir::StateDir,
};

/// Time between what a host says of itself.
const HOST_INTERVAL: Duration = Duration::from_secs(30);
/// Longest pause between attempts at a store that does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Marks that VMs were found here that the store of then did not know, while it did not know this
/// host either.
const QUARANTINE: &str = "quarantine";

/// Parts that replace what the configuration would choose.
#[derive(Default)]
pub struct Replaced {
    /// Instead of the store that the configuration names.
    pub store: Option<Arc<dyn Store>>,
    /// Instead of a driver that is chosen.
    pub driver: Option<Arc<dyn Driver>>,
    /// Instead of the image library in the cache directory.
    pub images: Option<Arc<dyn ImageSource>>,
}

/// What the start is waiting for; shown by readiness.
#[derive(Clone)]
pub(crate) struct Progress {
    waits_for: Arc<Mutex<(&'static str, String)>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { waits_for: Arc::new(Mutex::new(("store", "it is being opened".to_owned()))) }
    }

    fn say(&self, part: &'static str, text: impl Into<String>) {
        let text = text.into();
        tracing::debug!(part, text, "starting");
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = (part, text);
    }

    /// The part (`store`, `driver` or `reconciler`) and a sentence.
    pub(crate) fn now(&self) -> (&'static str, String) {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens everything. Waits for a store that does not answer; every other failure is final.
pub(crate) async fn open(
    config: Arc<Config>,
    replaced: Replaced,
    dir: &Arc<StateDir>,
    admin_token: &str,
    progress: &Progress,
    stop: CancellationToken,
) -> Result<AppState, ServerError> {
    let host = dir.host_id()?;
    let store = if let Some(store) = replaced.store {
        store
    } else {
        let url = config.store_url();
        patiently(progress, || holdfast_store::open(&url)).await?
    };
    progress.say("store", "it is being read");
    let hosts = patiently(progress, || store.hosts()).await?;
    let vms = patiently(progress, || store.live_vms()).await?;
    patiently(progress, || auth::register_admin(store.as_ref(), admin_token)).await?;

    let in_use: BTreeSet<String> =
        vms.iter().filter(|vm| vm.host == host).map(|vm| vm.driver.clone()).collect();
    let (driver, verdict) = if let Some(driver) = replaced.driver {
        (driver, drivers::settled("It was given to this server."))
    } else {
        let mut say = |text: String| progress.say("driver", text);
        drivers::choose(&config, dir, &in_use, &mut say).await?
    };
    let images = replaced.images.unwrap_or_else(|| images_for(&config));
    let warm = crate::warm::wanted(&config)
        .then(|| Arc::new(WarmImages::new(Arc::clone(&images), &config.cache_dir)));
    let images = warm.clone().map_or(images, |warm| warm as Arc<dyn ImageSource>);
    let knows_host = hosts.iter().any(|known| known.id == host);
    let store_knows_host = trust_store(dir, driver.as_ref(), &vms, knows_host).await?;

    let (cpus, memory_mib) = means();
    // Simulated VMs take none.
    let memory: MemoryProbe = match driver.name() {
        "sim" => Arc::new(|| None),
        _ => Arc::new(available_mib),
    };
    let control = Control::new(Parts {
        store,
        driver,
        images: Arc::clone(&images),
        providers: Arc::new(config.providers()?),
        config: config.control(cpus, memory_mib),
        clock: Clock::System,
        memory,
        host,
        store_knows_host,
    });
    progress.say("reconciler", "sessions are being taken over");
    let drain = Arc::new(Drain::open(dir, &control)?);
    let state = AppState {
        drain,
        control,
        config,
        tokens: Arc::new(TokenCache::default()),
        images,
        verdict,
        streams: TaskTracker::new(),
        stop,
    };
    tokio::spawn(report_host(state.clone(), host));
    if let Some(warm) = warm {
        // A VM that is being baked is removed before the server ends.
        let (keeper, stop) = (state.clone(), state.stop.clone());
        state.streams.spawn(warm.keep(keeper, stop));
    }
    Ok(state)
}

fn images_for(config: &Config) -> Arc<dyn ImageSource> {
    match config.driver {
        DriverChoice::Sim => Arc::new(SimulatedImages::new(&config.cache_dir)),
        _ => Arc::new(ImageLibrary::new(&config.cache_dir)),
    }
}

/// Repeats what fails because the store does not answer, with growing pauses.
async fn patiently<T, F>(
    progress: &Progress,
    mut attempt: impl FnMut() -> F,
) -> Result<T, ServerError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut pause = Duration::from_millis(200);
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if error.is_unavailable() => {
                let text = crate::error::chain(&error);
                tracing::warn!(error = text, "the store does not answer; trying again");
                progress.say("store", text);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether VMs on this machine without a row may be removed. Not when the store has never heard of
/// this host while VMs are here: it may be the wrong store, and stays suspicious until those VMs
/// are gone or known.
async fn trust_store(
    dir: &StateDir,
    driver: &dyn Driver,
    rows: &[holdfast_core::Vm],
    knows_host: bool,
) -> Result<bool, ServerError> {
    let marked = dir.read(QUARANTINE)?.is_some();
    if knows_host && !marked {
        return Ok(true);
    }
    let known: BTreeSet<_> = rows.iter().map(|vm| vm.id).collect();
    let strange: Vec<String> = match driver.list().await {
        Ok(found) => {
            let strange = found.iter().filter(|seen| !known.contains(&seen.vm));
            strange.map(|seen| seen.vm.to_string()).collect()
        }
        // What cannot be read may be there.
        Err(error) => {
            tracing::warn!(error = crate::error::chain(&error), "VMs could not be listed");
            return Ok(false);
        }
    };
    if strange.is_empty() {
        dir.remove(QUARANTINE)?;
        return Ok(knows_host);
    }
    dir.write(QUARANTINE, &(strange.join("\n") + "\n"))?;
    Ok(false)
}

/// Processors and memory (MiB) of this host.
pub(crate) fn means() -> (usize, u64) {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = rustix::system::sysinfo();
    // Both fields are as wide as a machine word, whose width differs between targets.
    #[allow(clippy::unnecessary_cast)]
    let bytes = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    (cpus, bytes >> 20)
}

/// Memory of this host that can be had without taking it from anything in use, in MiB.
fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Says again and again that this host is there.
async fn report_host(state: AppState, host: HostId) {
    let mut ticks = tokio::time::interval(HOST_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (cpus, memory_mib) = means();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = state.stop.cancelled() => return,
        }
        // Only a host that took its sessions over is known to its store.
        if !state.control.is_started() {
            ticks.reset_after(Duration::from_millis(200));
            continue;
        }
        let verdict = state.verdict.borrow().clone();
        let record = HostRecord {
            id: host,
            name: name.clone(),
            driver: state.control.driver().name().to_owned(),
            driver_reason: verdict.reason,
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: None,
            seen_at: Timestamp::now(),
            draining_since: state.drain.since(),
        };
        if let Err(error) = state.control.store().upsert_host(record).await {
            tracing::warn!(error = crate::error::chain(&error), "this host could not be reported");
        }
    }
}

/// The verdict's type, for [`AppState`].
pub(crate) type VerdictWatch = tokio::sync::watch::Receiver<Verdict>;
