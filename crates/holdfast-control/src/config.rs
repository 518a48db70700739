//! Durations and limits of control, with safe defaults.

use std::{path::PathBuf, time::Duration};

use holdfast_core::health::Patience;
use holdfast_host::driver::EgressPolicy;

/// What happens to a session that nobody returned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnIdle {
    /// It ends.
    End,
    /// It hibernates, and ends only after [`ControlConfig::keep_hibernated`].
    Hibernate,
}

/// How control behaves.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// How long a heartbeat or an open stream protects a session.
    pub lease: Duration,
    /// How long after its lease a session that nobody returned to is kept.
    pub grace: Duration,
    /// Age at which a session ends even while somebody is attached.
    pub max_lifetime: Duration,
    /// How long a session may be used by nobody although somebody is attached: heartbeats and open
    /// streams do not count, only input and commands do. Zero: for ever.
    pub idle: Duration,
    /// How long before a limit strikes the timeline says so.
    pub warn: Duration,
    /// How long an ended session answers 410 with its reason.
    pub retention: Duration,
    /// How long sealed credentials that nobody fetches are kept.
    pub keep_credentials: Duration,
    /// What happens to a session that nobody returned to.
    pub on_idle: OnIdle,
    /// How long a hibernated session is kept.
    pub keep_hibernated: Duration,
    /// Time between checkpoints of a session in use; zero takes none.
    pub checkpoint_interval: Duration,
    /// Deadline of writing a checkpoint. At it, the session goes on without one.
    pub snapshot_deadline: Duration,
    /// Where checkpoints of this host are kept.
    pub snapshot_dir: PathBuf,
    /// VMs that wait ready for a session, at least.
    pub pool_min: usize,
    /// VMs that wait ready for a session, at most: as many as sessions were asked for lately.
    pub pool_max: usize,
    /// Memory of a VM in the pool in MiB; sessions of another size do not get one.
    pub pool_memory_mib: u32,
    /// Processors of a VM in the pool.
    pub pool_vcpus: u8,
    /// Processors of this host.
    pub processors: usize,
    /// Time between health probes of a session that is well.
    pub probe_interval: Duration,
    /// Patience with a VM that does not answer.
    pub patience: Patience,
    /// Deadline of each preparing step: disk, network, start of the VMM.
    pub step_deadline: Duration,
    /// Deadline from the start of the VMM until the desktop can be used. At it, the attempt has failed.
    pub boot_deadline: Duration,
    /// Deadline from the start of a clone until its desktop can be used. At it, the VM boots instead.
    pub restore_deadline: Duration,
    /// Deadline of one attempt at taking a VM down. At it, the attempt is made again.
    pub teardown_deadline: Duration,
    /// Attempts at starting a session's VM before the session fails.
    pub start_attempts: u32,
    /// Time between comparisons of the machine with the records.
    pub sweep_interval: Duration,
    /// VMs that may exist at once on this host.
    pub max_vms: usize,
    /// VMs that may boot at once; more wait, oldest first.
    pub max_starting: usize,
    /// Sessions that may wait for room or for their start; one more is refused.
    pub max_waiting: usize,
    /// Memory that all VMs together may have, in MiB, by their sizes.
    pub memory_budget_mib: u64,
    /// Memory of the host that no VM is started into, in MiB.
    pub memory_reserve_mib: u64,
    /// Largest size of a VM's writable disk in MiB.
    pub disk_mib: u32,
    /// What guests may reach.
    pub egress: EgressPolicy,
    /// Name servers given to guests; empty leaves the image's.
    pub dns: Vec<std::net::IpAddr>,
    /// Each clone gets a browser of its own instead of the warm image's.
    pub fresh_browser: bool,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_mins(1),
            grace: Duration::from_mins(30),
            max_lifetime: Duration::from_hours(12),
            idle: Duration::ZERO,
            warn: Duration::from_mins(5),
            retention: Duration::from_hours(168),
            keep_credentials: Duration::from_hours(1),
            on_idle: OnIdle::End,
            keep_hibernated: Duration::from_hours(7 * 24),
            checkpoint_interval: Duration::ZERO,
            snapshot_deadline: Duration::from_mins(3),
            snapshot_dir: PathBuf::new(),
            pool_min: 0,
            pool_max: 0,
            pool_memory_mib: 2048,
            pool_vcpus: 2,
            processors: 16,
            probe_interval: Duration::from_secs(10),
            patience: Patience::default(),
            step_deadline: Duration::from_mins(1),
            boot_deadline: Duration::from_mins(3),
            restore_deadline: Duration::from_mins(1),
            teardown_deadline: Duration::from_mins(1),
            start_attempts: 3,
            sweep_interval: Duration::from_mins(1),
            max_vms: 64,
            max_starting: 4,
            max_waiting: 100,
            memory_budget_mib: 16 * 1024,
            memory_reserve_mib: 256,
            disk_mib: 8 * 1024,
            egress: EgressPolicy::default(),
            dns: Vec::new(),
            fresh_browser: false,
        }
    }
}
