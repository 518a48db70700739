//! The sweep: compares what the machine holds with what the records say, and removes what has no
//! owner.
//!
//! A VM is removed only on evidence: the store was read and says that this VM is gone, or knows
//! neither it nor its session although it knows this host. With a store that does not know this
//! host, everything found is quarantined: it may belong to another store.

use std::{collections::HashSet, sync::Arc, time::Duration};

use holdfast_core::{VmId, VmState};
use holdfast_host::driver::DriverError;

use crate::{ControlError, control::Inner, records::chain};

/// What a sweep found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// VMs on the machine.
    pub found: usize,
    /// Without an owner, and removed.
    pub removed: Vec<VmId>,
    /// Without an owner, but resisting.
    pub resisting: Vec<VmId>,
    /// Without a row, and kept because the store may be another one.
    pub quarantined: Vec<VmId>,
    /// Checkpoints that no session needs, and removed.
    pub snapshots_removed: usize,
    /// Ended sessions forgotten.
    pub purged: u64,
}

pub(crate) async fn sweep_loop(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(inner.config.sweep_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = inner.stop.cancelled() => return,
        }
        if let Err(error) = sweep(&inner).await {
            tracing::warn!(
                error = chain(&error),
                "the sweep could not be done; nothing was removed"
            );
        }
    }
}

/// A machine that hangs must not hold up the sweep for ever.
const DEADLINE: Duration = Duration::from_mins(1);

async fn timely<T>(
    name: &str,
    call: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    tokio::time::timeout(DEADLINE, call).await.unwrap_or_else(|_| {
        Err(DriverError::Timeout { operation: name.to_owned(), after: DEADLINE })
    })
}

pub(crate) async fn sweep(inner: &Inner) -> Result<SweepReport, ControlError> {
    // The machine is read before the records: a VM's row is written before anything of it exists,
    // so whatever is seen here has its row by then.
    let observed = timely("listing VMs", inner.driver.list()).await?;
    let rows: HashSet<VmId> = inner.store.live_vms().await?.into_iter().map(|vm| vm.id).collect();
    let mut report = SweepReport { found: observed.len(), ..SweepReport::default() };
    for vm in observed.into_iter().map(|o| o.vm).filter(|vm| !rows.contains(vm)) {
        let evidence = match inner.store.vm(vm).await? {
            Some(row) if row.state == VmState::Gone => "its row says that it is gone",
            Some(_) => continue,
            None if inner.store_knows_host => "no row knows it",
            None => {
                report.quarantined.push(vm);
                continue;
            }
        };
        fail::fail_point!("sweep.remove");
        match timely("removing a VM", inner.driver.destroy(vm)).await {
            Ok(()) => {
                tracing::warn!(%vm, evidence, "removed a VM without an owner");
                metrics::counter!("holdfast_orphans_removed_total").increment(1);
                report.removed.push(vm);
            }
            Err(error) => {
                // One VM that resists does not stop the others.
                tracing::error!(%vm, evidence, error = chain(&error), "a VM without an owner could not be removed");
                report.resisting.push(vm);
            }
        }
    }
    metrics::gauge!("holdfast_quarantined_vms").set(report.quarantined.len() as f64);
    if !report.quarantined.is_empty() {
        tracing::error!(vms = ?report.quarantined, "VMs are on this machine that the store does not know, and the store does not know this host: is it the right store? They are kept");
    }
    report.snapshots_removed = crate::checkpoint::sweep(inner).await?;
    inner.store.destroy_expired_sealed(inner.clock.now()).await?;
    let before = inner.clock.now() - inner.config.retention;
    report.purged = inner.store.purge_ended(before).await?;
    Ok(report)
}
