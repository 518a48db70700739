//! Baking a warm image: a VM is booted from the image, brought to rest, saved, and removed.
//!
//! The browser is started once, so that its files are in the guest's memory, and again with a new profile;
//! that one is held still in the snapshot, and goes on in each clone once the clone's kernel was given
//! randomness of its own. No VM of a session is touched: the
//! driver works in [`WarmLibrary::work_dir`].

use std::{sync::Arc, time::Duration};

use holdfast_agent_api::{Health, Settled};
use holdfast_core::{Screen, VmId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    driver::{Driver, DriverError, EgressPolicy, ImageRef, StartFrom, VmSpec},
    guest::{AgentClient, GuestError},
    warm::{WarmImage, WarmLibrary},
};

/// From switching on until the browser shows a page. Without hardware virtualisation and beside other
/// VMs it takes a minute.
const BOOT_DEADLINE: Duration = Duration::from_mins(5);
/// The agent gives up earlier by itself.
const SETTLE_DEADLINE: Duration = Duration::from_mins(5);
/// Time between looks at the guest, and at a lock that another process holds.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
const CONSOLE_BYTES: usize = 2048;

/// Which VMs are to be cloned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The image.
    pub image: ImageRef,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// Largest size of the writable disk in MiB.
    pub disk_mib: u32,
}

impl Shape {
    /// A VM of this shape that reaches nothing.
    pub fn spec(&self, vm: VmId) -> VmSpec {
        let egress = EgressPolicy { internet: false, ..EgressPolicy::default() };
        VmSpec {
            vm,
            image: self.image.clone(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            disk_mib: self.disk_mib,
            egress,
            screen: Screen::DEFAULT,
            eager: false,
        }
    }
}

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another process bakes.
    Turn,
    /// The VM boots until its desktop is up.
    Desktop,
    /// The browser shows its first page.
    Browser,
    /// The guest comes to rest.
    Rest,
    /// Memory, devices and disk are written.
    Save,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Turn, Self::Desktop, Self::Browser, Self::Rest, Self::Save];
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Turn => "waiting for another process that bakes",
            Self::Desktop => "booting the desktop",
            Self::Browser => "starting the browser",
            Self::Rest => "coming to rest",
            Self::Save => "saving",
        })
    }
}

/// Why there is no warm image.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// This driver cannot.
    #[error("the {0} driver makes no warm images; sessions boot cold")]
    Unsupported(&'static str),
    /// The host did not do its part.
    #[error("the warm image could not be made")]
    Driver(#[from] DriverError),
    /// The guest did not do its part.
    #[error("the guest could not be brought to rest")]
    Guest(#[from] GuestError),
    /// The guest did not come up.
    #[error("the guest had no {what} after {after:?}; its console ends with: {console}")]
    NotReady {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
        /// The end of its console.
        console: String,
    },
    /// It was asked to stop.
    #[error("making the warm image was stopped")]
    Stopped,
}

/// What was asked for, and whether it was there already.
#[derive(Debug, Clone)]
pub struct Baked {
    /// The warm image.
    pub image: WarmImage,
    /// It was there.
    pub reused: bool,
}

/// Makes the warm image of this shape, unless it is there. `driver` works in the library's work
/// directory. Waits while another process bakes. Nothing of the VM is left afterwards, however it ends.
pub async fn bake(
    driver: &Arc<dyn Driver>,
    library: &WarmLibrary,
    shape: &Shape,
    progress: &(dyn Fn(Stage) + Send + Sync),
    stop: &CancellationToken,
) -> Result<Baked, BakeError> {
    let _turn = loop {
        if let Some(turn) = library.turn()? {
            break turn;
        }
        progress(Stage::Turn);
        tokio::select! {
            () = stop.cancelled() => return Err(BakeError::Stopped),
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    // What a process that was killed has left.
    for left in driver.list().await? {
        driver.destroy(left.vm).await?;
    }
    let vm = VmId::from_uuid(Uuid::now_v7());
    let spec = shape.spec(vm);
    let fits = driver.fits(&spec).await?.ok_or(BakeError::Unsupported(driver.name()))?;
    library.remove_outdated(&fits)?;
    if library.find(&fits).is_some()
        && let Some(image) = library.list()?.into_iter().find(|image| image.fits == fits)
    {
        return Ok(Baked { image, reused: true });
    }
    let made = tokio::select! {
        () = stop.cancelled() => Err(BakeError::Stopped),
        made = make(driver, library, &spec, progress) => made,
    };
    let removed = driver.destroy(vm).await;
    let settled = made?;
    removed?;
    let image = library.add(fits, settled.busy_permille)?;
    Ok(Baked { image, reused: false })
}

async fn make(
    driver: &Arc<dyn Driver>,
    library: &WarmLibrary,
    spec: &VmSpec,
    progress: &(dyn Fn(Stage) + Send + Sync),
) -> Result<Settled, BakeError> {
    let vm = spec.vm;
    progress(Stage::Desktop);
    driver.create(spec).await?;
    driver.connect(vm).await?;
    driver.start(vm, &StartFrom::Boot).await?;
    // An unclaimed guest asks for no secret.
    let agent = AgentClient::new(Arc::clone(driver), vm, String::new());
    until(driver, &agent, vm, "desktop", |health| health.desktop_ready).await?;
    progress(Stage::Browser);
    until(driver, &agent, vm, "browser", |health| health.browser_ready).await?;
    progress(Stage::Rest);
    let settled = agent.settle(SETTLE_DEADLINE).await?;
    progress(Stage::Save);
    if let Some(fits) = driver.fits(spec).await? {
        driver.snapshot(vm, &library.path(&fits)).await?;
    }
    Ok(settled)
}

async fn until(
    driver: &Arc<dyn Driver>,
    agent: &AgentClient,
    vm: VmId,
    what: &'static str,
    wanted: impl Fn(&Health) -> bool,
) -> Result<(), BakeError> {
    let look = async {
        loop {
            if let Ok(health) = agent.health(LOOK_DEADLINE).await
                && wanted(&health)
            {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = look => Ok(()),
        exit = driver.wait_exit(vm) => Err(DriverError::Exited { vm, why: exit? }.into()),
        () = tokio::time::sleep(BOOT_DEADLINE) => {
            let console = driver.console(vm, CONSOLE_BYTES).await.unwrap_or_default();
            Err(BakeError::NotReady { what, after: BOOT_DEADLINE, console })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::sim::{Fault, SimDriver, Step};

    fn shape() -> Shape {
        let image = ImageRef { path: "/nowhere".into(), digest: "a".repeat(64) };
        Shape { image, memory_mib: 1024, vcpus: 2, disk_mib: 512 }
    }

    async fn try_bake(sim: &SimDriver, library: &WarmLibrary) -> Result<Baked, BakeError> {
        let driver: Arc<dyn Driver> = Arc::new(sim.clone());
        bake(&driver, library, &shape(), &|_| {}, &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn it_is_made_once_and_its_vm_is_gone() {
        let cache = tempfile::tempdir().unwrap();
        let (sim, library) = (SimDriver::in_memory(), WarmLibrary::new(cache.path()));
        let first = try_bake(&sim, &library).await.unwrap();
        assert!(!first.reused && first.image.path.is_dir());
        let second = try_bake(&sim, &library).await.unwrap();
        assert!(second.reused && second.image.path == first.image.path);
        assert!(sim.list().await.unwrap().is_empty(), "nothing of the VM is left");
    }

    #[tokio::test]
    async fn a_failure_leaves_neither_vm_nor_image() {
        let cache = tempfile::tempdir().unwrap();
        let (sim, library) = (SimDriver::in_memory(), WarmLibrary::new(cache.path()));
        sim.faults().inject(Step::Snapshot, None, Fault::DoneButFailed("disk".into()), 1);
        try_bake(&sim, &library).await.unwrap_err();
        assert!(library.list().unwrap().is_empty());
        assert!(sim.list().await.unwrap().is_empty(), "nothing of the VM is left");
        // What was written is in nobody's way.
        assert!(!try_bake(&sim, &library).await.unwrap().reused);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        let (sim, library) = (SimDriver::in_memory(), WarmLibrary::new(cache.path()));
        let left = VmId::from_uuid(Uuid::now_v7());
        sim.create(&shape().spec(left)).await.unwrap();
        try_bake(&sim, &library).await.unwrap();
        assert!(sim.list().await.unwrap().is_empty());
    }
}
