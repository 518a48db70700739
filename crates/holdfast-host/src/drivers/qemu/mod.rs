//! QEMU's microvm: with KVM where that proves itself, otherwise by translation (TCG).

mod changed;
mod command;
mod launch;
mod probe;
mod qmp;
mod snapshot;
mod tsc;

use std::{io, net::Ipv4Addr, path::Path, time::Duration};

use async_trait::async_trait;
use holdfast_core::VmId;
use rustix::process::Signal;
use serde_json::json;

use self::qmp::Qmp;
use crate::{
    driver::{
        Driver, DriverError, GuestStream, Observed, Probe, Process, Result, StartFrom, Stop, Usage,
        VmSpec,
    },
    host::{Host, HostConfig},
    image::Image,
    snapshot::Fits,
};

const SOCKET: &str = "qmp.sock";
/// A VMM that answers at all does so long before this, on a machine however busy.
const READY_DEADLINE: Duration = Duration::from_secs(30);
const INSTALL: &str = "install QEMU, on Debian with `apt-get install qemu-system-x86`";
const QMP_DEADLINE: Duration = Duration::from_secs(5);

/// Runs VMs in QEMU.
pub struct QemuDriver {
    host: Host,
    kvm: tokio::sync::Mutex<Option<probe::Verdict>>,
    snapshots: tokio::sync::Mutex<snapshot::Kept>,
    version: tokio::sync::OnceCell<String>,
}

impl QemuDriver {
    /// Opens the host's state directory; needs a runtime.
    pub fn open(config: HostConfig) -> Result<Self> {
        Ok(Self {
            host: Host::open(config)?,
            kvm: tokio::sync::Mutex::default(),
            snapshots: tokio::sync::Mutex::default(),
            version: tokio::sync::OnceCell::new(),
        })
    }

    /// The host it runs VMs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// QEMU's version, such as `QEMU 7.2.22`.
    async fn version(&self) -> Result<&str> {
        let ask = || async {
            let program = &self.host.config().qemu;
            let operation = || format!("asking {} for its version", program.display());
            let output = tokio::process::Command::new(program).arg("--version").output().await;
            let output = output.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => DriverError::Missing {
                    program: program.display().to_string(),
                    remedy: INSTALL.to_owned(),
                },
                _ => DriverError::io(operation(), error),
            })?;
            let text = String::from_utf8_lossy(&output.stdout);
            // QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)
            let number = text.split_whitespace().nth(3).ok_or_else(|| DriverError::Refused {
                operation: operation(),
                message: format!("it answered `{}`", text.trim()),
            })?;
            Ok(format!("QEMU {number}"))
        };
        self.version.get_or_try_init(ask).await.map(String::as_str)
    }

    async fn qmp(&self, vm: VmId) -> Result<Qmp> {
        match self.host.processes().look(&self.host.dir(vm)) {
            Process::Running { .. } => {}
            Process::Exited { why } => return Err(DriverError::Exited { vm, why }),
            Process::Unknown { why } => {
                return Err(DriverError::Refused {
                    operation: format!("reaching VM {vm}"),
                    message: why,
                });
            }
            Process::NotStarted => {
                let message = "it was not started".to_owned();
                return Err(DriverError::Refused {
                    operation: format!("reaching VM {vm}"),
                    message,
                });
            }
        }
        Qmp::connect(&self.host.dir(vm).file(SOCKET), QMP_DEADLINE).await
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn probe(&self) -> Probe {
        self.probe_now().await.unwrap_or_else(|error| {
            let (evidence, remedy) = match error {
                DriverError::Missing { program, remedy } => {
                    (format!("{program} is not installed."), remedy)
                }
                error => (error.chain(), INSTALL.to_owned()),
            };
            let remedy = Some(remedy);
            Probe { usable: false, remedy, evidence, version: None, accelerated: false }
        })
    }

    async fn probe_key(&self) -> String {
        let image = self.host.config().probe_image.as_ref();
        self.key(image).await.unwrap_or_else(|error| error.to_string())
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
        self.qmp(vm).await?.run("stop", json!({})).await.map(|_| ())
    }

    async fn resume(&self, vm: VmId) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        // The process may have been stopped as well as the guest.
        self.host.processes().signal(&self.host.dir(vm), Signal::CONT)?;
        self.qmp(vm).await?.run("cont", json!({})).await.map(|_| ())
    }

    async fn halted(&self, vm: VmId) -> Result<Option<String>> {
        // Instead of telling the guest that its disk is broken, QEMU waits for space.
        let status = self.qmp(vm).await?.status().await?;
        let why = "no space is left on the host for what it writes: free some on the disk of the state directory, and it goes on";
        Ok((status == "io-error").then(|| why.to_owned()))
    }

    async fn snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        self.take_snapshot(vm, dest).await
    }

    async fn fits(&self, spec: &VmSpec) -> Result<Option<Fits>> {
        self.fits_of(spec).await.map(Some)
    }

    async fn preload(&self, spec: &VmSpec, snapshot: &Path) -> Result<()> {
        self.verified(spec, snapshot).await.map(drop)
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<()> {
        let _lock = self.host.lock(vm).await;
        if let Stop::Graceful(patience) = how
            && let Ok(mut qmp) = self.qmp(vm).await
            && qmp.run("system_powerdown", json!({})).await.is_ok()
        {
            // What does not end by itself is killed below.
            let _ = self.host.processes().ended_within(&self.host.dir(vm), patience).await;
        }
        self.host.kill(vm).await
    }

    async fn destroy(&self, vm: VmId) -> Result<()> {
        let _lock = self.host.lock(vm).await;
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
