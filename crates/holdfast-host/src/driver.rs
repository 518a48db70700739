//! The Driver trait: how VMs run on a host. Control drives VMs through it and knows nothing else.
//!
//! Owns the vocabulary between control and the machine. Must never know about sessions, owners or
//! the store. Every driver passes the same conformance suite (`tests/conformance`).
//!
//! Rules for every driver:
//! - Each method is idempotent: repeated after a crash in its middle, it completes the work or
//!   answers that it is already done.
//! - `create` writes `intent.json` durably before anything else exists, so everything that a VM
//!   owns can be found and removed by its id.
//! - The VMM outlives this process. A new process finds it by pid, start time and socket.
//! - What cannot be determined is [`Process::Unknown`], never "gone".

use std::{net::Ipv4Addr, path::PathBuf, pin::Pin, time::Duration};

use async_trait::async_trait;
use holdfast_core::{Screen, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::error::DriverError;

/// Result of a driver call.
pub type Result<T, E = DriverError> = std::result::Result<T, E>;

/// A byte stream to a port in a guest.
pub trait GuestIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestIo for T {}

/// An open connection into a guest.
pub type GuestStream = Pin<Box<dyn GuestIo>>;

/// What a VM is made of. Stored in its `intent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Its id.
    pub vm: VmId,
    /// The image it boots.
    pub image: ImageRef,
    /// Memory in MiB, 256 to 65,536.
    pub memory_mib: u32,
    /// Virtual processors, 1 to 32.
    pub vcpus: u8,
    /// Largest size of the writable disk in MiB; the file is sparse.
    pub disk_mib: u32,
    /// What the guest may reach.
    pub egress: EgressPolicy,
    /// Size of the desktop at boot, before a claim changes it.
    pub screen: Screen,
    /// It is made ahead of its use, to be quick then: it may take more memory of the host for that.
    #[serde(default)]
    pub eager: bool,
}

/// An image in the library: a directory with `manifest.json`, `rootfs.img`, `vmlinux` and
/// `initramfs.img`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The directory.
    pub path: PathBuf,
    /// Its digest, lower-case hex; names the directory too.
    pub digest: String,
}

/// What a guest may reach. Loopback of the host, other guests and link-local addresses are never
/// reachable, whatever the policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPolicy {
    /// Public addresses may be reached.
    pub internet: bool,
    /// TCP ports of the host's own services that the guest may reach at its gateway address
    /// 172.30.0.1 (`host.holdfast.internal`); the service has to listen on all addresses.
    pub host_ports: Vec<u16>,
    /// Private networks, as CIDR, that may be reached although they are not public.
    pub private_networks: Vec<String>,
}

impl Default for EgressPolicy {
    fn default() -> Self {
        Self { internet: true, host_ports: Vec::new(), private_networks: Vec::new() }
    }
}

/// How a VM starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    /// From its kernel, on its disk as it is now.
    Boot,
    /// From a snapshot directory made by [`Driver::snapshot`]. The VM's disk is replaced by the
    /// snapshot's; memory is mapped privately, so one snapshot serves many VMs.
    Snapshot(PathBuf),
    /// From its kernel, on the disk of a snapshot whose memory cannot be used.
    DiskOf(PathBuf),
}

/// How hard to stop a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ask the VMM to power the guest down, and kill it after this long.
    Graceful(Duration),
    /// Kill the VMM.
    Force,
}

/// What is known of a VM's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// It was never started, or its end was recorded and it may be started again.
    NotStarted,
    /// It runs: pid, and start time in clock ticks since the host's boot (field 22 of
    /// /proc/pid/stat), which together name a process for ever.
    Running {
        /// Process id.
        pid: i32,
        /// Start time.
        start_ticks: u64,
        /// A signal has stopped it: it lives and does nothing.
        stopped: bool,
    },
    /// It is proven gone: no process with that pid and start time exists.
    Exited {
        /// How it ended, with the end of its log, where known.
        why: String,
    },
    /// Nothing is proven. Must never lead to destruction.
    Unknown {
        /// What could not be read.
        why: String,
    },
}

/// What the machine holds of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The VM.
    pub vm: VmId,
    /// Its process.
    pub process: Process,
    /// Its state directory exists.
    pub directory: bool,
    /// Its network namespace exists.
    pub network: bool,
    /// Its host-side address, once it has a network.
    pub address: Option<Ipv4Addr>,
    /// When its state directory was made.
    pub created_at: Option<Timestamp>,
}

/// Whether a driver can run VMs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether a guest was booted and printed what it should.
    pub usable: bool,
    /// The evidence, as a sentence: what was booted, how long it took, what went wrong.
    pub evidence: String,
    /// Version of the VMM, such as `QEMU 7.2.22`.
    pub version: Option<String>,
    /// Hardware virtualisation is used.
    pub accelerated: bool,
    /// What to do when it is not usable.
    pub remedy: Option<String>,
}

/// What a VM uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Proportional set size of the VMM in KiB: private pages, plus its share of shared ones.
    pub memory_pss_kib: u64,
    /// Resident set size of the VMM in KiB.
    pub memory_rss_kib: u64,
    /// Processor time used by the VMM in ms.
    pub cpu_ms: u64,
    /// Space taken by the state directory in bytes (blocks, not lengths).
    pub disk_bytes: u64,
}

/// Runs VMs on this host.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// `qemu`, `firecracker` or `sim`.
    fn name(&self) -> &'static str;

    /// Boots something small and watches it print. Takes seconds; callers keep the verdict.
    async fn probe(&self) -> Probe;

    /// What a verdict depends on besides the host's boot, such as the version of the VMM: a kept one is
    /// of no use once this differs. Quick.
    async fn probe_key(&self) -> String {
        String::new()
    }

    /// Makes the state directory with `intent.json`, and the writable disk.
    async fn create(&self, spec: &VmSpec) -> Result<()>;

    /// Makes the network namespace, tap, veth pair and egress rules; answers the VM's unique
    /// host-side address.
    async fn connect(&self, vm: VmId) -> Result<Ipv4Addr>;

    /// Starts the VMM. Answers once the VMM runs the guest, not once the guest is up. A VMM that
    /// runs already is left alone. A VM that exited may be started again.
    async fn start(&self, vm: VmId, from: &StartFrom) -> Result<()>;

    /// Stops the virtual processors.
    async fn pause(&self, vm: VmId) -> Result<()>;

    /// Lets them run again, also after the VMM process itself was stopped by a signal.
    async fn resume(&self, vm: VmId) -> Result<()>;

    /// Why the VMM itself keeps the guest from running, as half a sentence: what has to be put right
    /// before [`Driver::resume`] helps. `None` where it does not, or cannot tell.
    async fn halted(&self, _vm: VmId) -> Result<Option<String>> {
        Ok(None)
    }

    /// Writes memory, device state and disk of one instant into `dest`, a directory that must not
    /// exist; it appears complete or not at all. The VM is paused afterwards.
    async fn snapshot(&self, vm: VmId, dest: &std::path::Path) -> Result<()>;

    /// What a snapshot has to fit so that such a VM can be restored from it; `None` where this driver
    /// makes no snapshots that several VMs can be restored from.
    async fn fits(&self, _spec: &VmSpec) -> Result<Option<crate::snapshot::Fits>> {
        Ok(None)
    }

    /// Reads and verifies what every start from this snapshot needs, so that the first one does not wait
    /// for it. Quick when that was done before.
    async fn preload(&self, _spec: &VmSpec, _snapshot: &std::path::Path) -> Result<()> {
        Ok(())
    }

    /// Removes a snapshot directory, complete or not. Succeeds when there is none.
    async fn discard_snapshot(&self, path: &std::path::Path) -> Result<()> {
        crate::snapshot::discard(path)
    }

    /// Space that a snapshot takes, in bytes (blocks, not lengths).
    async fn snapshot_bytes(&self, path: &std::path::Path) -> Result<u64> {
        crate::snapshot::bytes(path)
    }

    /// Directories of snapshots, complete or not, in `dir`; empty when it does not exist.
    async fn snapshots_in(&self, dir: &std::path::Path) -> Result<Vec<PathBuf>> {
        crate::snapshot::list(dir)
    }

    /// Ends the VMM; directory, disk and network stay.
    async fn stop(&self, vm: VmId, how: Stop) -> Result<()>;

    /// Ends the VMM and removes everything the VM owns: process, network, mounts, directory.
    /// Succeeds when there is nothing.
    async fn destroy(&self, vm: VmId) -> Result<()>;

    /// What the machine holds of this VM.
    async fn inspect(&self, vm: VmId) -> Result<Observed>;

    /// Every VM of this host's state directory, and every namespace, process or link that claims to
    /// belong to it, whether a row knows it or not.
    async fn list(&self) -> Result<Vec<Observed>>;

    /// Waits until the VMM has ended (also one started by an earlier process) and says how.
    async fn wait_exit(&self, vm: VmId) -> Result<String>;

    /// Opens a connection to a TCP port of the guest, from within the VM's own network namespace.
    async fn dial(&self, vm: VmId, port: u16) -> Result<GuestStream>;

    /// The last `max_bytes` of the guest's serial console.
    async fn console(&self, vm: VmId, max_bytes: usize) -> Result<String>;

    /// What the VM uses now.
    async fn usage(&self, vm: VmId) -> Result<Usage>;
}
