//! A simulated machine: VMs without processes, networks or disks, whose guests speak the real protocol.
//!
//! For trying the API and for tests. With a directory its VMs outlive the driver like real ones outlive
//! a server: what is constructed on the same directory finds them running. All drivers of one directory
//! in one process are one machine. Time is tokio's, so paused clocks work.

mod faults;
mod guest;
mod machine;
mod rfb;
mod tool;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use holdfast_agent_api::{AGENT_PORT, VNC_PORT};
use holdfast_core::VmId;

use self::machine::Machine;
pub use self::{
    faults::{Fault, Faults, Step},
    tool::{SimTool, secret},
};
use crate::driver::{
    Driver, DriverError, GuestStream, Observed, Probe, Process, Result, StartFrom, Stop, Usage,
    VmSpec,
};

/// Space of a simulated connection in each direction.
const PIPE: usize = 64 * 1024;

/// Runs simulated VMs. Cheap to clone; clones are one machine.
#[derive(Clone)]
pub struct SimDriver {
    machine: Arc<Machine>,
}

impl SimDriver {
    /// A machine that forgets everything when its last driver is dropped.
    pub fn in_memory() -> Self {
        Self { machine: Machine::new(None) }
    }

    /// A machine whose VMs are kept in a directory.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        Machine::open(&dir.into()).map(|machine| Self { machine })
    }

    /// Injects faults.
    pub fn faults(&self) -> Faults {
        self.machine.faults.clone()
    }

    /// How long the desktop of a VM takes from its start on; none at first.
    pub fn set_boot_time(&self, time: Duration) {
        self.machine.set_boot_time(time);
    }

    /// Ends a VM's process as a crash would. `false` when it has none.
    pub fn crash(&self, vm: VmId, why: &str) -> bool {
        self.machine.exit(vm, why)
    }

    /// Lets the guest of a VM stop answering, or answer again. `false` when it does not run.
    pub fn silence(&self, vm: VmId, silent: bool) -> bool {
        self.machine.silence(vm, silent)
    }

    /// Leaves it to [`SimTool`] what the sign-in tools of VMs started from now on do.
    pub fn hold_tools(&self) {
        self.machine.hold_tools();
    }

    /// The sign-in tool of a VM that runs.
    pub fn tool(&self, vm: VmId) -> Option<SimTool> {
        self.machine.tool(vm)
    }

    async fn step<T>(
        &self,
        step: Step,
        vm: Option<VmId>,
        work: impl FnOnce(&Arc<Machine>) -> Result<T>,
    ) -> Result<T> {
        self.machine.faults.around(step, vm, async |_| work(&self.machine)).await
    }
}

#[async_trait]
impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "sim"
    }

    async fn probe(&self) -> Probe {
        Probe {
            usable: true,
            evidence: "Simulated: nothing is booted and no VM runs.".to_owned(),
            version: Some(format!("sim {}", env!("CARGO_PKG_VERSION"))),
            accelerated: false,
            remedy: None,
        }
    }

    async fn create(&self, spec: &VmSpec) -> Result<()> {
        self.step(Step::Create, Some(spec.vm), |machine| machine.create(spec)).await
    }

    async fn connect(&self, vm: VmId) -> Result<Ipv4Addr> {
        self.step(Step::Connect, Some(vm), |machine| machine.connect(vm)).await
    }

    async fn start(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        self.step(Step::Start, Some(vm), |machine| machine.start(vm, from)).await
    }

    async fn pause(&self, vm: VmId) -> Result<()> {
        self.step(Step::Pause, Some(vm), |machine| machine.set_paused(vm, true)).await
    }

    async fn resume(&self, vm: VmId) -> Result<()> {
        self.step(Step::Resume, Some(vm), |machine| machine.set_paused(vm, false)).await
    }

    async fn snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        self.step(Step::Snapshot, Some(vm), |machine| machine.snapshot(vm, dest)).await
    }

    async fn stop(&self, vm: VmId, _how: Stop) -> Result<()> {
        self.step(Step::Stop, Some(vm), |machine| machine.stop(vm)).await
    }

    async fn destroy(&self, vm: VmId) -> Result<()> {
        self.step(Step::Destroy, Some(vm), |machine| machine.destroy(vm)).await
    }

    async fn inspect(&self, vm: VmId) -> Result<Observed> {
        let faults = &self.machine.faults;
        let look = async |unknown: Option<String>| {
            let mut observed = self.machine.inspect(vm);
            if let Some(why) = unknown {
                observed.process = Process::Unknown { why };
            }
            Ok(observed)
        };
        faults.around(Step::Inspect, Some(vm), look).await
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        self.step(Step::List, None, |machine| Ok(machine.list())).await
    }

    async fn wait_exit(&self, vm: VmId) -> Result<String> {
        let mut exit = self.machine.exit_of(vm)?;
        let ended = exit.wait_for(Option::is_some).await;
        Ok(ended
            .ok()
            .and_then(|why| why.clone())
            .unwrap_or_else(|| "the VM was removed".to_owned()))
    }

    async fn dial(&self, vm: VmId, port: u16) -> Result<GuestStream> {
        let running = self.step(Step::Dial, Some(vm), |machine| machine.guest(vm)).await?;
        let (near, far) = tokio::io::duplex(PIPE);
        let (width, height) = (running.screen.width, running.screen.height);
        let mut exit = running.exit;
        match port {
            AGENT_PORT => tokio::spawn(async move {
                tokio::select! {
                    () = running.guest.serve(far) => {}
                    _ = exit.wait_for(Option::is_some) => {}
                }
            }),
            VNC_PORT => tokio::spawn(async move {
                tokio::select! {
                    // How a viewer leaves is its own affair.
                    _ = async {
                        // A guest that does not answer has no desktop that does.
                        let mut answers = running.guest.answers.subscribe();
                        let _ = answers.wait_for(|answers| *answers).await;
                        rfb::serve(far, width, height).await
                    } => {}
                    _ = exit.wait_for(Option::is_some) => {}
                }
            }),
            _ => {
                let refused = std::io::ErrorKind::ConnectionRefused.into();
                return Err(DriverError::io(
                    format!("connecting to port {port} of VM {vm}"),
                    refused,
                ));
            }
        };
        Ok(Box::pin(near))
    }

    async fn console(&self, vm: VmId, max_bytes: usize) -> Result<String> {
        let text = self.machine.console(vm)?;
        Ok(text[text.len().saturating_sub(max_bytes)..].to_owned())
    }

    async fn usage(&self, vm: VmId) -> Result<Usage> {
        self.machine.usage(vm)
    }
}
