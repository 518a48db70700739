//! What every start of a VMM has around it, whichever driver makes it: not twice, nothing half started
//! left behind, and the VMM's own words for its end.

use std::{fs::File, io, time::Duration};

use holdfast_core::VmId;

use crate::{
    driver::{DriverError, Process, Result},
    files,
    host::Host,
    statedir::VmDir,
};

/// Between the end of a VMM's connections and its own lies next to nothing.
const DYING: Duration = Duration::from_secs(1);
/// There while a start is not complete. A VMM found with it is not adopted but started anew.
const STARTING: &str = "starting";

fn starting(vm: VmId) -> impl Fn(io::Error) -> DriverError {
    move |source| DriverError::io(format!("starting VM {vm}"), source)
}

impl Host {
    /// Prepares a start; `false`: the VM runs already.
    pub(crate) async fn begin_start(&self, vm: VmId, dir: &VmDir) -> Result<bool> {
        match self.processes().look(dir) {
            Process::Running { .. } if !dir.file(STARTING).exists() => return Ok(false),
            Process::Unknown { why } => {
                let operation = format!("starting VM {vm}");
                return Err(DriverError::Refused { operation, message: why });
            }
            _ => self.kill(vm).await?,
        }
        File::create(dir.file(STARTING)).map_err(starting(vm))?;
        Ok(true)
    }

    /// Completes a start that went as `started` says, or undoes it.
    pub(crate) async fn end_start(&self, vm: VmId, dir: &VmDir, started: Result<()>) -> Result<()> {
        let started = match started {
            // A VMM that ends breaks its connection; its own words say more.
            Err(DriverError::Io { .. }) if self.ended(dir).await => {
                Err(DriverError::Exited { vm, why: self.wait_exit(vm).await? })
            }
            started => started,
        };
        if started.is_err() {
            // Nothing half started stays behind; the first error is the one that matters.
            if let Err(error) = self.kill(vm).await {
                tracing::warn!(%vm, %error, "a VMM that failed to start could not be ended");
            }
        }
        files::remove_if_there(&dir.file(STARTING)).map_err(starting(vm))?;
        started
    }

    async fn ended(&self, dir: &VmDir) -> bool {
        let processes = self.processes();
        let started = !matches!(processes.look(dir), Process::NotStarted | Process::Unknown { .. });
        started && processes.ended_within(dir, DYING).await.unwrap_or(false)
    }
}
