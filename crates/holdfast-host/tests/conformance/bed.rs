//! Where a promise is tried: a driver, and how another one of the same machine is made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{Screen, VmId};
use holdfast_host::{
    driver::{Driver, EgressPolicy, ImageRef, VmSpec},
    drivers::{
        firecracker::{FirecrackerConfig, FirecrackerDriver},
        qemu::QemuDriver,
        sim::SimDriver,
    },
    host::{Host, HostConfig},
    tiny::{self, Then},
};
use tempfile::TempDir;

use crate::census;

pub trait Bed: Sync {
    fn new() -> Self
    where
        Self: Sized;
    fn dir(&self) -> &Path;
    fn driver(&self) -> Arc<dyn Driver>;
    /// Another driver on the same state directory, as after a restart of the server.
    fn another(&self) -> Arc<dyn Driver>;
    /// Nothing is left on the machine.
    fn leaves_nothing(&self) -> impl Future<Output = ()> + Send
    where
        Self: Sized;

    fn spec(&self) -> VmSpec {
        self.spec_of(Then::Tick)
    }

    fn spec_of(&self, then: Then) -> VmSpec {
        let path = self.dir().join(format!("{then:?}"));
        // Once: a VMM may still be reading the files of a spec of before.
        if !path.exists() {
            tiny::image(&path, then).unwrap();
        }
        VmSpec {
            vm: VmId::from_uuid(uuid::Uuid::now_v7()),
            image: ImageRef { path, digest: format!("{then:?}") },
            memory_mib: 256,
            vcpus: 1,
            disk_mib: 64,
            egress: EgressPolicy::default(),
            screen: Screen { width: 800, height: 600 },
            eager: false,
        }
    }
}

/// A bed whose VMs are real processes.
pub trait RealBed: Bed {
    fn host(&self) -> &Host;
    /// A driver on another state directory.
    fn driver_at(&self, state: &Path) -> Arc<dyn Driver>;
}

pub struct SimBed {
    dir: TempDir,
    driver: Arc<SimDriver>,
}

impl Bed for SimBed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Arc::new(SimDriver::open(dir.path().join("state")).unwrap());
        Self { dir, driver }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.clone()
    }

    fn another(&self) -> Arc<dyn Driver> {
        Arc::new(SimDriver::open(self.dir.path().join("state")).unwrap())
    }

    async fn leaves_nothing(&self) {
        assert_eq!(self.driver.list().await.unwrap(), []);
        assert_eq!(std::fs::read_dir(self.dir.path().join("state")).unwrap().count(), 0);
    }
}

pub struct QemuBed {
    dir: TempDir,
    driver: Arc<QemuDriver>,
}

impl QemuBed {
    pub fn config(&self) -> HostConfig {
        config(self.dir.path(), &self.dir.path().join("state"))
    }
}

/// A driver on a bed's state directory that tries an image's kernel too.
pub fn open(driver: &str, bed: &Path, probe_image: Option<ImageRef>) -> Arc<dyn Driver> {
    let config = HostConfig { probe_image, ..config(bed, &bed.join("state")) };
    match driver {
        "qemu" => Arc::new(QemuDriver::open(config).unwrap()),
        "firecracker" => Arc::new(FirecrackerDriver::open(config, programs()).unwrap()),
        other => panic!("{other}"),
    }
}

/// Tests run at the same time: none sees what another one abandons.
fn config(bed: &Path, state: &Path) -> HostConfig {
    HostConfig { instances_dir: bed.join("instances"), ..HostConfig::new(state) }
}

/// Other state directories in a bed go first: what a test that failed left of them is then abandoned, and
/// goes with the bed's own.
fn abandon_others(bed: &Path) {
    for entry in std::fs::read_dir(bed).into_iter().flatten().flatten() {
        if entry.file_name() != "state" && entry.path().join("instance").exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A test that failed leaves its VMs; they go with the bed.
impl Drop for QemuBed {
    fn drop(&mut self) {
        abandon_others(self.dir.path());
        let config = self.config();
        sweep(move || Arc::new(QemuDriver::open(config).unwrap()));
    }
}

impl RealBed for QemuBed {
    fn host(&self) -> &Host {
        self.driver.host()
    }

    fn driver_at(&self, state: &Path) -> Arc<dyn Driver> {
        Arc::new(QemuDriver::open(config(self.dir.path(), state)).unwrap())
    }
}

fn sweep(open: impl FnOnce() -> Arc<dyn Driver> + Send + 'static) {
    let sweep = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let driver = open();
            for left in driver.list().await.unwrap() {
                driver.destroy(left.vm).await.unwrap();
            }
        });
    });
    // Dropped while a test unwinds: a second failure would hide the first.
    if sweep.join().is_err() {
        eprintln!("some VMs of this test could not be removed");
    }
}

impl Bed for QemuBed {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces: run them as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let driver = QemuDriver::open(config(dir.path(), &dir.path().join("state"))).unwrap();
        Self { dir, driver: Arc::new(driver) }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.clone()
    }

    fn another(&self) -> Arc<dyn Driver> {
        Arc::new(QemuDriver::open(self.config()).unwrap())
    }

    async fn leaves_nothing(&self) {
        assert_eq!(self.driver.list().await.unwrap(), []);
        census::nothing_of(self.driver.host().state());
    }
}

pub struct FirecrackerBed {
    dir: TempDir,
    driver: Arc<FirecrackerDriver>,
}

impl FirecrackerBed {
    fn open(bed: &Path, state: &Path) -> FirecrackerDriver {
        FirecrackerDriver::open(config(bed, state), programs()).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A driver on the same state directory that is configured otherwise.
    pub fn driver_with(&self, change: impl FnOnce(&mut FirecrackerConfig)) -> Arc<dyn Driver> {
        let mut programs = programs();
        change(&mut programs);
        let config = config(self.dir.path(), &self.state());
        Arc::new(FirecrackerDriver::open(config, programs).unwrap())
    }
}

/// The programs that `cargo xtask test` fetches.
pub fn programs() -> FirecrackerConfig {
    let dir = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = dir("HOLDFAST_CACHE_DIR")
        .or_else(|| dir("XDG_CACHE_HOME").map(|dir| dir.join("holdfast")))
        .or_else(|| dir("HOME").map(|dir| dir.join(".cache/holdfast")))
        .expect("neither HOLDFAST_CACHE_DIR nor HOME is set");
    let found = FirecrackerConfig::find(&cache);
    for program in [&found.firecracker, &found.jailer] {
        assert!(
            program.exists(),
            "{} is missing: `cargo xtask test --only units` fetches it",
            program.display()
        );
    }
    found
}

impl Drop for FirecrackerBed {
    fn drop(&mut self) {
        abandon_others(self.dir.path());
        let (bed, state) = (self.dir.path().to_owned(), self.state());
        sweep(move || Arc::new(Self::open(&bed, &state)));
    }
}

impl RealBed for FirecrackerBed {
    fn host(&self) -> &Host {
        self.driver.host()
    }

    fn driver_at(&self, state: &Path) -> Arc<dyn Driver> {
        Arc::new(Self::open(self.dir.path(), state))
    }
}

impl Bed for FirecrackerBed {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces: run them as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let driver = Arc::new(Self::open(dir.path(), &dir.path().join("state")));
        Self { dir, driver }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.clone()
    }

    fn another(&self) -> Arc<dyn Driver> {
        self.driver_at(&self.state())
    }

    async fn leaves_nothing(&self) {
        assert_eq!(self.driver.list().await.unwrap(), []);
        census::nothing_of(self.driver.host().state());
    }
}
