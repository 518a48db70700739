//! Operations on the machine, one at a time per session and each with a deadline.

use std::{future::Future, sync::Arc, time::Duration};

use holdfast_core::{
    Vm, VmId,
    plan::{Machine, ProcessSeen},
};
use holdfast_host::{
    driver::{DriverError, Process, VmSpec},
    guest::AgentClient,
};

use crate::{Live, board::Entry, control::Inner};

/// How many deadlines an operation may go on for. One that hangs for longer is dropped at the
/// point where it waits, as a killed server would drop it: drivers take up what is half done.
const DROPPED_AFTER: u32 = 3;
/// Deadline of a look at the machine. At it, nothing is known.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// Runs an operation to its end even when the deadline passes: half an operation that goes on
/// unseen is worse than a late one. The next operation waits until it is over.
pub(crate) async fn operate<T, F>(
    entry: &Entry,
    name: &str,
    deadline: Duration,
    operation: F,
) -> Result<T, DriverError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, DriverError>> + Send + 'static,
{
    let lock = std::sync::Arc::clone(&entry.machine);
    let work = tokio::spawn(async move {
        let _one_at_a_time = lock.lock_owned().await;
        tokio::time::timeout(deadline * DROPPED_AFTER, operation).await
    });
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(Ok(result))) => result,
        Ok(Err(panicked)) => {
            Err(DriverError::Refused { operation: name.to_owned(), message: panicked.to_string() })
        }
        Ok(Ok(Err(_))) | Err(_) => {
            Err(DriverError::Timeout { operation: name.to_owned(), after: deadline })
        }
    }
}

/// What a look at the machine found of a VM.
pub(crate) struct Look {
    /// For the planner.
    pub machine: Machine,
    /// The VMM lives, but a signal has stopped it.
    pub stopped: bool,
    /// What is known of an end, or of what could not be read.
    pub why: Option<String>,
}

impl Look {
    /// Nothing is proven.
    pub(crate) fn unknown(why: Option<String>) -> Self {
        let machine = Machine { process: ProcessSeen::Unknown, directory: true, network: true };
        Self { machine, stopped: false, why }
    }
}

/// What the host holds of a VM. What cannot be read is unknown.
pub(crate) async fn look(inner: &Inner, vm: VmId) -> Look {
    let looked = tokio::time::timeout(LOOK_DEADLINE, inner.driver.inspect(vm)).await;
    let looked = looked.unwrap_or_else(|_| {
        Err(DriverError::Timeout { operation: "looking at it".into(), after: LOOK_DEADLINE })
    });
    let observed = match looked {
        Ok(observed) => observed,
        Err(DriverError::NotFound(_)) => {
            let process = ProcessSeen::NotStarted;
            let machine = Machine { process, directory: false, network: false };
            return Look { machine, stopped: false, why: None };
        }
        Err(error) => return Look::unknown(Some(crate::records::chain(&error))),
    };
    let (process, stopped, why) = match observed.process {
        Process::NotStarted => (ProcessSeen::NotStarted, false, None),
        Process::Running { stopped, .. } => (ProcessSeen::Running, stopped, None),
        Process::Exited { why } => (ProcessSeen::Exited, false, Some(why)),
        Process::Unknown { why } => (ProcessSeen::Unknown, false, Some(why)),
    };
    let machine = Machine { process, directory: observed.directory, network: observed.network };
    Look { machine, stopped, why }
}

/// What a session's VM is made of.
pub(crate) fn spec(inner: &Inner, live: &Live) -> Result<VmSpec, DriverError> {
    let image = inner
        .images
        .by_digest(&live.vm.image)
        .map_err(|why| DriverError::Image { path: live.vm.image.clone(), why })?;
    Ok(VmSpec {
        vm: live.vm.id,
        image,
        memory_mib: live.session.spec.memory_mib,
        vcpus: live.session.spec.vcpus,
        disk_mib: inner.config.disk_mib,
        egress: inner.config.egress.clone(),
        screen: live.session.spec.screen,
        eager: false,
    })
}

/// The agent of a VM.
pub(crate) fn agent(inner: &Inner, vm: &Vm) -> AgentClient {
    AgentClient::new(Arc::clone(&inner.driver), vm.id, vm.secret.clone().unwrap_or_default())
}
