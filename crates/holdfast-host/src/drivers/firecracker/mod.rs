//! Firecracker, jailed. Needs KVM that runs a stock kernel: there is no translation to fall back to.
//!
//! Must never show a VMM anything but its own jail, nor follow a name that a VMM may have made.

mod api;
mod jail;
mod launch;
mod probe;
mod programs;
mod snapshot;

use std::{
    convert::Infallible,
    fs,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::VmId;
use rustix::{fs::OFlags, process::Signal};
use tokio::sync::oneshot;

pub use self::programs::FirecrackerConfig;
use self::{
    api::{Action, Api},
    programs::Stamp,
};
use crate::{
    driver::{
        Driver, DriverError, GuestStream, Observed, Probe, Process, Result, StartFrom, Stop, Usage,
        VmSpec,
    },
    host::{Host, HostConfig},
    image::Image,
    process,
    snapshot::Fits,
};

/// Directory of a VM that holds its jail.
const JAIL: &str = "jail";
/// How often the files are looked at that a VMM writes into its jail.
const TRIM_INTERVAL: Duration = Duration::from_mins(1);
/// Space that each of them takes at most, in bytes; Firecracker writes some KiB a minute.
const TRIM_LIMIT: u64 = 1 << 20;

/// Runs VMs in Firecracker.
pub struct FirecrackerDriver {
    host: Host,
    config: FirecrackerConfig,
    version: tokio::sync::Mutex<Option<(Stamp, String)>>,
    snapshots: tokio::sync::Mutex<Vec<Arc<snapshot::Verified>>>,
    bases: snapshot::Bases,
    /// Its end is told to what runs beside it.
    _alive: oneshot::Sender<Infallible>,
}

impl FirecrackerDriver {
    /// Opens the host's state directory; needs a runtime. The programs need not be there yet.
    pub fn open(host: HostConfig, config: FirecrackerConfig) -> Result<Self> {
        let host = Host::open(host)?;
        let (alive, dropped) = oneshot::channel();
        tokio::spawn(keep_files_short(host.clone(), dropped));
        Ok(Self {
            host,
            config,
            version: tokio::sync::Mutex::default(),
            snapshots: tokio::sync::Mutex::default(),
            bases: snapshot::Bases::default(),
            _alive: alive,
        })
    }

    /// The host it runs VMs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The installed version, such as `Firecracker v1.12.1`; asked for again when the files change.
    async fn version(&self) -> Result<String> {
        let stamp = self.config.stamp()?;
        let mut known = self.version.lock().await;
        if let Some((of, version)) = known.as_ref()
            && *of == stamp
        {
            return Ok(version.clone());
        }
        let version = self.config.version().await?;
        *known = Some((stamp, version.clone()));
        Ok(version)
    }

    /// The root of the jail of a VM that runs.
    fn reach(&self, vm: VmId) -> Result<PathBuf> {
        let refused = |message: String| {
            let operation = format!("reaching VM {vm}");
            Err(DriverError::Refused { operation, message })
        };
        match self.host.processes().look(&self.host.dir(vm)) {
            Process::Running { .. } => jail_of(&self.host, vm)
                .map_err(|e| DriverError::io(format!("finding the jail of VM {vm}"), e)),
            Process::Exited { why } => Err(DriverError::Exited { vm, why }),
            Process::Unknown { why } => refused(why),
            Process::NotStarted => refused("it was not started".to_owned()),
        }
    }

    /// Version of the Firecracker that runs this VM, which may be older than what is installed.
    fn running_version(&self, vm: VmId) -> Option<String> {
        self.host.processes().note(&self.host.dir(vm))
    }
}

fn jail_of(host: &Host, vm: VmId) -> std::io::Result<PathBuf> {
    let id = process::name_of(host.state().instance(), vm);
    jail::root(&host.dir(vm).file(JAIL), &id)
}

/// Cuts what a VMM writes into its jail. It writes on at its old place, behind a hole that takes no space.
async fn keep_files_short(host: Host, mut dropped: oneshot::Receiver<Infallible>) {
    let mut ticks = tokio::time::interval(TRIM_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut dropped => return,
        }
        for vm in host.state().list().unwrap_or_default() {
            let Ok(root) = jail_of(&host, vm) else { continue };
            for name in [jail::LOG, jail::METRICS] {
                // One that is removed meanwhile needs no cutting.
                let _ = cut(&root, name);
            }
        }
    }
}

fn cut(root: &Path, name: &str) -> std::io::Result<()> {
    let file = jail::open_beneath(&fs::File::open(root)?, name, OFlags::RDWR | OFlags::NONBLOCK)?;
    let meta = file.metadata()?;
    // st_blocks counts units of 512 bytes, whatever the file system's own are: stat(2).
    if meta.is_file() && meta.blocks() * 512 > TRIM_LIMIT {
        file.set_len(0)?;
    }
    Ok(())
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    async fn probe(&self) -> Probe {
        self.probe_now().await
    }

    async fn probe_key(&self) -> String {
        self.key().await
    }

    async fn create(&self, spec: &VmSpec) -> Result<()> {
        let _lock = self.host.lock(spec.vm).await;
        Image::open(&spec.image)?;
        self.host.create(spec).await
    }

    async fn connect(&self, vm: VmId) -> Result<Ipv4Addr> {
        let _lock = self.host.lock(vm).await;
        self.host.connect(vm).await
    }

    async fn start(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        self.launch(vm, from).await
    }

    async fn pause(&self, vm: VmId) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        Api::of(&self.reach(vm)?).state("Paused").await
    }

    async fn resume(&self, vm: VmId) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        // The process may have been stopped as well as the guest.
        self.host.processes().signal(&self.host.dir(vm), Signal::CONT)?;
        Api::of(&self.reach(vm)?).state("Resumed").await
    }

    async fn snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        self.take_snapshot(vm, dest).await
    }

    async fn fits(&self, spec: &VmSpec) -> Result<Option<Fits>> {
        Ok(Some(Fits::new(self.version().await?, spec)))
    }

    async fn discard_snapshot(&self, path: &Path) -> Result<()> {
        // An open file would go on taking its space.
        self.snapshots.lock().await.retain(|kept| !kept.is_of(path));
        crate::snapshot::discard(path)
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        let ask = Action { action_type: "SendCtrlAltDel" };
        if let Stop::Graceful(patience) = how
            && let Ok(root) = self.reach(vm)
            && Api::of(&root).put("/actions", &ask).await.is_ok()
        {
            // What does not end by itself is killed below.
            let _ = self.host.processes().ended_within(&self.host.dir(vm), patience).await;
        }
        self.bases.forget(vm);
        self.host.kill(vm).await
    }

    async fn destroy(&self, vm: VmId) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        self.bases.forget(vm);
        self.host.destroy(vm).await
    }

    async fn inspect(&self, vm: VmId) -> Result<Observed> {
        self.host.inspect(vm)
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        self.host.list().await
    }

    async fn wait_exit(&self, vm: VmId) -> Result<String> {
        self.host.wait_exit(vm).await
    }

    async fn dial(&self, vm: VmId, port: u16) -> Result<GuestStream> {
        self.host.dial(vm, port).await
    }

    async fn console(&self, vm: VmId, max_bytes: usize) -> Result<String> {
        self.host.console(vm, max_bytes)
    }

    async fn usage(&self, vm: VmId) -> Result<Usage> {
        self.host.usage(vm)
    }
}
