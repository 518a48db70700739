//! One host: what every driver does alike with state directory, registry, network and processes.
//!
//! Owns the order in which things are made and removed. A driver adds how its VMM is started, paused
//! and snapshotted. Must never know which VMM it is.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use holdfast_core::VmId;
use tokio::sync::OwnedMutexGuard;

use crate::{
    disk,
    driver::{DriverError, GuestStream, ImageRef, Observed, Process, Result, Usage, VmSpec},
    net::{self, Range, namespace},
    presence::Presence,
    process::{self, Handed, Processes, cgroups},
    registry::{Lease, Registry},
    statedir::{StateDir, UPPER, VmDir},
};

/// How often consoles are looked at. Between two looks a guest writes what its serial port lets
/// through, some tens of MB at most.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// Clock ticks per second in /proc, the same on every Linux (USER_HZ).
const USER_HZ: u64 = 100;

/// Where and how VMs run on this host.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where VMs live; names this instance on the machine.
    pub state_dir: PathBuf,
    /// First of the user ids that VMMs run under; each VM gets one of its own.
    pub uid_base: u32,
    /// Network that host-side addresses of VMs are taken from.
    pub address_range: Range,
    /// QEMU's program, found in PATH when it is a bare name.
    pub qemu: PathBuf,
    /// Image whose kernel KVM is tried with, where one is there.
    pub probe_image: Option<ImageRef>,
    /// Leases of all instances on this machine; vanishes at a reboot.
    pub run_dir: PathBuf,
    /// Where the instances on this machine say that they are here; vanishes at a reboot.
    pub instances_dir: PathBuf,
}

impl HostConfig {
    /// The defaults, for a state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            uid_base: 200_000,
            address_range: Range::default(),
            qemu: PathBuf::from("qemu-system-x86_64"),
            probe_image: None,
            run_dir: PathBuf::from("/run/holdfast"),
            instances_dir: PathBuf::from("/run/holdfast/instances"),
        }
    }
}

/// One host. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    config: HostConfig,
    state: StateDir,
    registry: Registry,
    processes: Processes,
    presence: Presence,
    locks: Mutex<HashMap<VmId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Host {
    /// Opens the state directory, ends what trials of a killed process left, and starts keeping consoles
    /// short; needs a runtime.
    pub fn open(config: HostConfig) -> Result<Self> {
        let state = StateDir::open(&config.state_dir)?;
        process::end_trials(state.root());
        let registry = Registry::open(&config.run_dir, &state, config.address_range)?;
        let processes = Processes::new(&state);
        let presence = Presence::announce(&config.instances_dir, &state)?;
        let locks = Mutex::default();
        let inner = Arc::new(Inner { config, state, registry, processes, presence, locks });
        tokio::spawn(keep_consoles_short(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Its configuration.
    pub fn config(&self) -> &HostConfig {
        &self.inner.config
    }

    /// Its VMM processes.
    pub fn processes(&self) -> &Processes {
        &self.inner.processes
    }

    /// Its state directory.
    pub fn state(&self) -> &StateDir {
        &self.inner.state
    }

    /// The directory of a VM.
    pub fn dir(&self, vm: VmId) -> VmDir {
        self.inner.state.vm(vm)
    }

    /// Waits until nobody else changes this VM.
    pub async fn lock(&self, vm: VmId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.inner.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = locks.get(&vm).and_then(Weak::upgrade).unwrap_or_default();
            locks.insert(vm, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    /// Makes directory, intent and disk. The caller holds the lock, as for all that changes a VM.
    pub async fn create(&self, spec: &VmSpec) -> Result<()> {
        let dir = self.dir(spec.vm);
        dir.create(spec)?;
        disk::make_upper(&dir.file(UPPER), spec.disk_mib).await
    }

    /// Makes the network.
    pub async fn connect(&self, vm: VmId) -> Result<Ipv4Addr> {
        let dir = self.dir(vm);
        let spec = dir.spec()?;
        let lease = self.inner.registry.acquire(&dir)?;
        let range = self.config().address_range;
        net::connect(&lease, self.uid(&lease), range, &spec.egress).await?;
        Ok(lease.address)
    }

    /// The lease of a VM that is connected.
    pub fn lease(&self, vm: VmId) -> Result<Lease> {
        self.inner.registry.find(vm)?.ok_or_else(|| DriverError::Refused {
            operation: format!("starting VM {vm}"),
            message: "it has no network yet".to_owned(),
        })
    }

    /// User and group id of a VM's VMM.
    pub fn uid(&self, lease: &Lease) -> u32 {
        self.config().uid_base + lease.slot
    }

    /// The network namespace of a VM.
    pub fn namespace(&self, vm: VmId) -> Result<Arc<OwnedFd>> {
        namespace::open(vm).map(Arc::new)
    }

    /// Fails when the VM has no tap device.
    pub async fn check_tap(&self, vm: VmId) -> Result<()> {
        if namespace::has_link(&self.namespace(vm)?, net::TAP).await? {
            return Ok(());
        }
        Err(DriverError::Refused {
            operation: format!("opening the network device of VM {vm}"),
            message: "there is none; connect the VM again".to_owned(),
        })
    }

    /// The tap device of a VM, attached and open, for a VMM that must not open it itself.
    pub async fn open_tap(&self, vm: VmId) -> Result<Handed> {
        // Attaching would make a device that is not there, without its rules.
        self.check_tap(vm).await?;
        let inside = self.namespace(vm)?;
        let operation = "opening the network device of a VM";
        let tap = namespace::run(&inside, operation, || process::open_tap(net::TAP)).await?;
        Handed::new(&tap).map_err(|e| DriverError::io(operation, e))
    }

    /// Kills the VMM, waits for its end, and forgets it. A process that cannot be identified is an error
    /// and is left alone.
    pub async fn kill(&self, vm: VmId) -> Result<()> {
        self.inner.processes.kill(&self.dir(vm)).await
    }

    /// Removes everything that the VM owns.
    pub async fn destroy(&self, vm: VmId) -> Result<()> {
        let (dir, registry) = (self.dir(vm), &self.inner.registry);
        let instance = self.owner(vm).await?;
        Processes::kill(&self.processes_of(&instance), &dir).await?;
        let lease = registry.find_of(&instance, vm)?;
        net::disconnect(&instance, vm, lease.as_ref()).await?;
        // The directory before the lease: while anything is left, the VM is still listed.
        dir.remove()?;
        registry.release_of(&instance, vm)
    }

    /// The instance whose VM it is: this one, or one that was abandoned. A namespace is named by the VM
    /// alone, so whose it is has to be known from elsewhere.
    async fn owner(&self, vm: VmId) -> Result<String> {
        let own = self.inner.state.instance().to_owned();
        if self.dir(vm).exists() {
            return Ok(own);
        }
        let holder = match self.inner.registry.holder(vm)? {
            Some(holder) => Some(holder),
            None => net::owner_inside(vm).await,
        };
        match holder {
            Some(holder) if holder == own => return Ok(own),
            Some(holder) if self.abandoned().contains(&holder) => {
                return Ok(holder);
            }
            Some(_) => {
                return Err(DriverError::Refused {
                    operation: format!("removing VM {vm}"),
                    message: "it belongs to another Holdfast on this machine".to_owned(),
                });
            }
            None => {}
        }
        for other in self.abandoned() {
            if self.marked(&other).await?.contains(&vm) {
                return Ok(other);
            }
        }
        Ok(own)
    }

    fn processes_of(&self, instance: &str) -> Processes {
        if instance == self.inner.state.instance() {
            self.inner.processes.clone()
        } else {
            Processes::of(instance)
        }
    }

    /// What the machine holds of a VM. With a lease that cannot be read nothing is known of it.
    pub fn inspect(&self, vm: VmId) -> Result<Observed> {
        let lease = self.inner.registry.find(vm)?;
        Ok(self.observe(vm, lease))
    }

    fn observe(&self, vm: VmId, lease: Option<Lease>) -> Observed {
        let dir = self.dir(vm);
        let (directory, namespace) = (dir.exists(), namespace::open(vm).is_ok());
        let network = namespace && lease.is_some();
        Observed {
            vm,
            process: self.inner.processes.look(&dir),
            directory,
            network,
            address: lease.filter(|_| network).map(|lease| lease.address),
            created_at: dir.created_at(),
        }
    }

    /// One VM of which nothing is known hides none of the others.
    fn observe_listed(&self, vm: VmId) -> Observed {
        match self.inner.registry.find(vm) {
            Ok(lease) => self.observe(vm, lease),
            Err(error) => {
                let why = error.chain();
                tracing::warn!(%vm, error = why, "what the machine holds of a VM could not be read");
                Observed { process: Process::Unknown { why }, ..self.observe(vm, None) }
            }
        }
    }

    /// Every VM that anything on the machine says is of this instance, or of one that was abandoned:
    /// whose state directory is gone and of which no process lives.
    pub async fn list(&self) -> Result<Vec<Observed>> {
        let inner = &self.inner;
        let own = inner.state.instance();
        let mut vms: BTreeSet<VmId> = inner.state.list()?.into_iter().collect();
        vms.extend(self.marked(own).await?);
        let mut abandoned = self.abandoned();
        let mut left_of = BTreeSet::new();
        for other in &abandoned {
            let left = self.marked(other).await?;
            if !left.is_empty() {
                left_of.insert(other.clone());
            }
            vms.extend(left);
        }
        // A namespace alone says inside whose it is.
        for vm in namespace::list() {
            if !vms.contains(&vm)
                && !matches!(inner.registry.holder(vm), Ok(Some(_)))
                && let Some(owner) = net::owner_inside(vm).await
                && (owner == own || abandoned.contains(&owner))
            {
                vms.insert(vm);
                left_of.insert(owner);
            }
        }
        abandoned.retain(|other| !left_of.contains(other));
        for nothing_left in abandoned {
            inner.presence.forget(&nothing_left);
        }
        Ok(vms.into_iter().map(|vm| self.observe_listed(vm)).collect())
    }

    /// Instances that nobody can come back to. One whose directory was only moved still has its disks.
    fn abandoned(&self) -> Vec<String> {
        let mut found = self.inner.presence.abandoned();
        found.retain(|other| matches!(self.processes_of(other).keep_a_disk(), Ok(false)));
        found
    }

    /// VMs of which anything on the machine carries the mark of an instance.
    async fn marked(&self, instance: &str) -> Result<BTreeSet<VmId>> {
        let mut vms: BTreeSet<VmId> = self.inner.registry.list_of(instance)?.into_iter().collect();
        vms.extend(self.processes_of(instance).list()?);
        vms.extend(net::list(instance).await?);
        vms.extend(cgroups(instance));
        Ok(vms)
    }

    /// Waits for the end of the VMM.
    pub async fn wait_exit(&self, vm: VmId) -> Result<String> {
        self.inner.processes.wait_exit(&self.dir(vm)).await
    }

    /// Connects to a port of the guest.
    pub async fn dial(&self, vm: VmId, port: u16) -> Result<GuestStream> {
        if self.inner.registry.find(vm)?.is_none() {
            return Err(DriverError::NotFound(vm));
        }
        net::dial::dial(vm, port).await
    }

    /// The end of the guest's console.
    pub fn console(&self, vm: VmId, max_bytes: usize) -> Result<String> {
        let dir = self.dir(vm);
        if !dir.exists() {
            return Err(DriverError::NotFound(vm));
        }
        dir.console(max_bytes)
    }

    /// What the VM uses.
    pub fn usage(&self, vm: VmId) -> Result<Usage> {
        let dir = self.dir(vm);
        if !dir.exists() {
            return Err(DriverError::NotFound(vm));
        }
        let mut usage = Usage { disk_bytes: dir.disk_bytes(), ..Usage::default() };
        if let Process::Running { pid, .. } = self.inner.processes.look(&dir) {
            // A VMM that ends meanwhile uses nothing.
            let _ = measure(pid, &mut usage);
        }
        Ok(usage)
    }
}

fn measure(pid: i32, usage: &mut Usage) -> io::Result<()> {
    for line in fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?.lines() {
        let value = || line.split_whitespace().nth(1).and_then(|v| v.parse().ok()).unwrap_or(0);
        if line.starts_with("Pss:") {
            usage.memory_pss_kib = value();
        } else if line.starts_with("Rss:") {
            usage.memory_rss_kib = value();
        }
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    // Fields 14 and 15, utime and stime; the first here is field 3.
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    usage.cpu_ms = ticks * 1000 / USER_HZ;
    Ok(())
}

async fn keep_consoles_short(inner: Weak<Inner>) {
    let mut ticks = tokio::time::interval(TRIM_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        for vm in inner.state.list().unwrap_or_default() {
            // One that is removed meanwhile has no console.
            let _ = inner.state.vm(vm).trim_console();
        }
    }
}
