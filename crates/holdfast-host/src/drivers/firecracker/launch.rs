//! Starts a VMM in its jail and waits until it runs the guest.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    sync::Arc,
    time::Duration,
};

use holdfast_core::VmId;
use rustix::fs::OFlags;

use super::{
    FirecrackerDriver, JAIL,
    api::{
        Action, Api, Balloon, BootSource, Connection, Drive, DriveUpdate, Entropy, MachineConfig,
        MemoryBackend, NetworkInterface, NetworkUpdate, RateLimiter, SnapshotLoad,
    },
    jail::{self, INITRAMFS, Jail, KERNEL, ROOT},
    snapshot::{Base, Verified},
};
use crate::{
    disk::Replacement,
    driver::{DriverError, Result, StartFrom, VmSpec},
    image::Image,
    net::{GATEWAY, GUEST, GUEST_MAC, TAP},
    news::News,
    process::{self, Limits, Vmm},
    snapshot::{DEVICES, MEMORY, blocking, take_disk},
    statedir::{SERIAL, UPPER, VmDir},
};

/// Memory that Firecracker takes besides the guest's: itself and device queues, and room for pages of
/// files that it reads and writes.
pub(super) const OVERHEAD_MIB: u64 = 256;
/// A jailed Firecracker answers after some tens of ms, on a busy machine later.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Reading the kernel, or the state of a snapshot; memory is read as it is touched.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// What Firecracker calls the disks and the network device.
const DISKS: [&str; 2] = ["root", "upper"];
const NETWORK: &str = "net";
/// Between making a socket and listening on it lies next to nothing, and nothing tells of the second: no
/// file changes, and who connects too early is refused instead of waiting.
const LISTENING: Duration = Duration::from_millis(1);

impl FirecrackerDriver {
    pub(super) async fn launch(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        let dir = self.host.dir(vm);
        let spec = dir.spec()?;
        if !self.host.begin_start(vm, &dir).await? {
            return Ok(());
        }
        self.bases.forget(vm);
        let started = match from {
            StartFrom::Boot => self.boot(&dir, &spec).await,
            StartFrom::Snapshot(path) => match self.verified(&spec, path).await {
                Ok(snapshot) => self.restore(&dir, &spec, &snapshot).await,
                Err(error) => Err(error),
            },
            StartFrom::DiskOf(path) => match take_disk(&dir, &spec, path).await {
                Ok(()) => self.boot(&dir, &spec).await,
                Err(error) => Err(error),
            },
        };
        self.host.end_start(vm, &dir, started).await
    }

    async fn boot(&self, dir: &VmDir, spec: &VmSpec) -> Result<()> {
        let image = Image::open(&spec.image)?;
        let upper = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(dir.file(UPPER))
            .map_err(|e| preparing(spec.vm, e))?;
        let mut jail = self.jail(dir, spec, &image, &upper)?;
        jail.show(&image.kernel, KERNEL, true)?;
        jail.show(&image.initramfs, INITRAMFS, true)?;
        let mut api = self.spawn(dir, spec, jail).await?;

        let machine = MachineConfig {
            vcpu_count: spec.vcpus,
            mem_size_mib: spec.memory_mib,
            track_dirty_pages: self.config.diff_snapshots,
        };
        api.put("/machine-config", &machine).await?;
        let boot = BootSource {
            kernel_image_path: KERNEL,
            initrd_path: Some(INITRAMFS),
            boot_args: kernel_line(spec),
        };
        api.put("/boot-source", &boot).await?;
        let disk_rate = self.config.disk_bytes_per_second.map(RateLimiter::per_second);
        for (id, path_on_host, is_read_only) in [(DISKS[0], ROOT, true), (DISKS[1], UPPER, false)] {
            // Neither is the root device, for which Firecracker would add `root=` to the kernel's
            // command line: the initramfs finds both by their labels.
            let drive = Drive {
                id,
                path_on_host,
                is_root_device: false,
                is_read_only,
                rate_limiter: disk_rate,
            };
            api.put(&format!("/drives/{id}"), &drive).await?;
        }
        let network_rate = self.config.network_bytes_per_second.map(RateLimiter::per_second);
        let network = NetworkInterface {
            iface_id: NETWORK,
            host_dev_name: TAP,
            guest_mac: GUEST_MAC,
            rx_rate_limiter: network_rate,
            tx_rate_limiter: network_rate,
        };
        api.put(&format!("/network-interfaces/{NETWORK}"), &network).await?;
        api.put("/entropy", &Entropy {}).await?;
        api.put("/balloon", &Balloon { amount_mib: 0, deflate_on_oom: true }).await?;
        let start = Action { action_type: "InstanceStart" };
        // Not asked afterwards how it is: a guest that ends while Firecracker works on a call leaves both
        // waiting for each other, and one that resets at once does that.
        api.put_within("/actions", &start, START_DEADLINE).await?;
        self.bases.set(spec.vm, Base::Zeros);
        Ok(())
    }

    async fn restore(&self, dir: &VmDir, spec: &VmSpec, snapshot: &Arc<Verified>) -> Result<()> {
        let image = Image::open(&spec.image)?;
        let upper = Replacement::begin(&dir.file(UPPER))?;
        let mut jail = self.jail(dir, spec, &image, &upper.file)?;
        jail.show(&snapshot.devices, DEVICES, true)?;
        jail.show(&snapshot.memory, MEMORY, true)?;
        // Firecracker reads nothing of its disks before it loads the snapshot.
        let from = Arc::clone(snapshot);
        let filled = blocking(move || upper.fill(&from.upper));
        let (filled, api) = tokio::join!(filled, self.spawn(dir, spec, jail));
        let mut api = api?;
        filled?;
        let load = SnapshotLoad {
            snapshot_path: DEVICES,
            mem_backend: MemoryBackend { backend_type: "File", backend_path: MEMORY },
            enable_diff_snapshots: self.config.diff_snapshots,
            resume_vm: false,
        };
        api.put_within("/snapshot/load", &load, START_DEADLINE).await?;
        self.limit(&mut api).await?;
        api.state("Resumed").await?;
        if self.config.diff_snapshots {
            self.bases.set(spec.vm, Base::Snapshot(snapshot.base()?));
        }
        Ok(())
    }

    /// Sets the limits that are configured now; a snapshot brings those of its time along.
    async fn limit(&self, api: &mut Connection) -> Result<()> {
        let rate_limiter = RateLimiter::instead(self.config.disk_bytes_per_second);
        for id in DISKS {
            api.patch(&format!("/drives/{id}"), &DriveUpdate { id, rate_limiter }).await?;
        }
        let limiter = RateLimiter::instead(self.config.network_bytes_per_second);
        let network =
            NetworkUpdate { iface_id: NETWORK, rx_rate_limiter: limiter, tx_rate_limiter: limiter };
        api.patch(&format!("/network-interfaces/{NETWORK}"), &network).await
    }

    /// Makes the jail with the disks in it.
    fn jail(&self, dir: &VmDir, spec: &VmSpec, image: &Image, upper: &File) -> Result<Jail> {
        let uid = self.host.uid(&self.host.lease(spec.vm)?);
        let id = process::name_of(self.host.state().instance(), spec.vm);
        let mut jail = Jail::of(&self.config, dir.file(JAIL), id, uid);
        jail.make()?;
        jail.show(&image.root, ROOT, true)?;
        std::os::unix::fs::fchown(upper, Some(uid), Some(uid))
            .map_err(|e| preparing(spec.vm, e))?;
        jail.show(upper, UPPER, false)?;
        for own in [jail::LOG, jail::METRICS] {
            jail.put(own, b"")?;
        }
        Ok(jail)
    }

    /// Starts the VMM and waits until it can be talked to.
    async fn spawn(&self, dir: &VmDir, spec: &VmSpec, jail: Jail) -> Result<Connection> {
        let vm = spec.vm;
        let io = |source| preparing(vm, source);
        let version = self.version().await?;
        // Firecracker would make a device that is not there, without its rules, were it allowed to.
        self.host.check_tap(vm).await?;
        let serial = OpenOptions::new()
            .create(true)
            .append(true)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(dir.file(SERIAL))
            .map_err(io)?;
        let memory = u64::from(spec.memory_mib);
        let limits = Limits {
            memory_mib: memory + OVERHEAD_MIB,
            vcpus: spec.vcpus,
            // A snapshot's memory is one file.
            file_bytes: memory.max(u64::from(spec.disk_mib)) << 20,
            batch: false,
        };
        let own = ["--log-path", jail::LOG, "--level", "Warn", "--metrics-path", jail::METRICS];
        let args: Vec<&str> = ["--api-sock", jail::SOCKET].into_iter().chain(own).collect();
        let root = jail.root().to_owned();
        let vmm = Vmm {
            stdout: Some(serial),
            namespace: Some(self.host.namespace(vm)?),
            ..jail.vmm(&self.config, &args, limits)
        };
        // Asked for before anything can happen.
        let names = News::of_names_in(&root).map_err(io)?;
        self.host.processes().spawn(dir, vmm, &version).await?;
        let connected = async {
            loop {
                match Api::of(&root).connect().await {
                    Err(DriverError::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotFound =>
                    {
                        names.next().await.map_err(io)?;
                    }
                    Err(DriverError::Io { source, .. })
                        if source.kind() == io::ErrorKind::ConnectionRefused =>
                    {
                        tokio::time::sleep(LISTENING).await;
                    }
                    connection => break connection,
                }
            }
        };
        tokio::select! {
            exit = self.host.wait_exit(vm) => Err(DriverError::Exited { vm, why: exit? }),
            ready = tokio::time::timeout(READY_DEADLINE, connected) => ready.unwrap_or_else(|_| {
                let operation = format!("the VMM of VM {vm}");
                Err(DriverError::Timeout { operation, after: READY_DEADLINE })
            }),
        }
    }
}

fn preparing(vm: VmId, source: io::Error) -> DriverError {
    DriverError::io(format!("preparing the VMM of VM {vm}"), source)
}

/// Firecracker has no PCI, resets through the keyboard controller, and describes its devices by ACPI.
fn kernel_line(spec: &VmSpec) -> String {
    let screen = spec.screen;
    format!(
        "console=ttyS0 quiet reboot=k panic=1 pci=off random.trust_cpu=on \
         holdfast.screen={}x{} holdfast.net={GUEST}/30,{GATEWAY}",
        screen.width, screen.height
    )
}
