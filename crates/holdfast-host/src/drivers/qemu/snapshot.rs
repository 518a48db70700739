//! Snapshots of QEMU's VMs.
//!
//! A VM that was booted has its memory in a shared file; QEMU then writes device state alone, and the
//! memory is copied from its file. A clone maps such a copy privately. Its own changed pages are in no
//! file, so the snapshot of a clone has the memory in QEMU's stream.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use holdfast_core::VmId;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstatvfs, memfd_create};
use serde_json::json;

use super::{QemuDriver, command::Memory, qmp::Qmp};
use crate::{
    disk,
    driver::{DriverError, Process, Result, VmSpec},
    snapshot::{DEVICES, Draft, Fits, MEMORY, Snapshot, Stamp, blocking},
    statedir::{UPPER, VmDir},
};

/// Writing a guest's memory takes seconds; a disk that takes longer does not work.
const MIGRATE_DEADLINE: Duration = Duration::from_mins(5);
/// Between the failure of a migration and its end lies next to nothing, on a busy machine more.
const FINALIZE_DEADLINE: Duration = Duration::from_secs(5);
const FINALIZING: Duration = Duration::from_millis(1);
/// QEMU keeps to 128 MiB/s unless told otherwise. This is more than any disk does.
const BANDWIDTH: u64 = 64 << 30;
/// Warm images in use at once, as a rule: the present one and the one before.
const KEPT: usize = 2;
const TEMPLATE: &str = "holdfast-template";
const WRITING: &str = "writing the snapshot";
/// What a device state's next piece may need, in bytes.
const ROOM: u64 = 1 << 20;
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A snapshot that was compared with its checksums.
pub(super) struct Verified {
    snapshot: Snapshot,
    stamps: Vec<(String, Stamp)>,
    /// Its memory, sealed: every clone maps it privately and none can change it for another.
    memory: Option<File>,
}

impl QemuDriver {
    pub(super) async fn take_snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        let dir = self.host.dir(vm);
        let spec = dir.spec()?;
        let fits = self.fits_of(&spec).await?;
        let mut qmp = self.qmp(vm).await?;
        let draft = Draft::begin(dest)?;
        if qmp.status().await? == "postmigrate" {
            // QEMU takes no second snapshot in that state, and leaves it by running only.
            qmp.run("cont", json!({})).await?;
        }
        qmp.run("stop", json!({})).await?;
        let shared = self.host.processes().note(&dir).as_deref() == Some("shared");
        let devices = draft.file(DEVICES)?;
        capability(&mut qmp, shared).await?;
        qmp.give("snapshot", &devices).await?;
        qmp.run("migrate", json!({ "uri": "fd:snapshot" })).await?;
        if let Err(error) = migrated(&mut qmp, WRITING).await {
            // The first error is the one that matters.
            let _ = tokio::time::timeout(FINALIZE_DEADLINE, finalized(&mut qmp)).await;
            return Err(match error {
                // Of a write that failed, QEMU says only that it did.
                DriverError::Refused { .. } if is_full(&devices) => {
                    DriverError::NoSpace { what: WRITING.to_owned() }
                }
                other => other,
            });
        }
        let memory = if shared { Some(self.memory_of(&dir)?) } else { None };
        blocking(move || {
            let upper = File::open(dir.file(UPPER))
                .map_err(|e| DriverError::io("opening the disk for a snapshot", e))?;
            let mut files = vec![draft.written(DEVICES)?, draft.copy(&upper, UPPER)?];
            if let Some(memory) = memory {
                files.push(draft.copy(&memory, MEMORY)?);
            }
            draft.finish(fits, files)
        })
        .await
    }

    /// Starts a VM from a snapshot.
    pub(super) async fn restore(&self, dir: &VmDir, spec: &VmSpec, path: &Path) -> Result<()> {
        let verified = self.verified(spec, path).await?;
        let (from, to) = (Arc::clone(&verified), dir.file(UPPER));
        blocking(move || disk::replace(&from.snapshot.file(UPPER)?, &to)).await?;
        let memory = match &verified.memory {
            Some(template) => {
                let file = template.try_clone();
                let file = file.map_err(|e| DriverError::io("opening a snapshot's memory", e))?;
                Memory::Private(file.into())
            }
            None => Memory::Streamed,
        };
        let mut qmp = self.spawn(dir, spec, memory, true).await?;
        capability(&mut qmp, verified.memory.is_some()).await?;
        qmp.give("snapshot", &verified.snapshot.file(DEVICES)?).await?;
        qmp.run("migrate-incoming", json!({ "uri": "fd:snapshot" })).await?;
        migrated(&mut qmp, "reading the snapshot").await?;
        qmp.run("cont", json!({})).await?;
        Ok(())
    }

    pub(super) async fn fits_of(&self, spec: &VmSpec) -> Result<Fits> {
        let accel = self.accel(&spec.image).await?;
        let vmm = format!("{} ({})", self.version().await?, accel.name());
        Ok(Fits::new(vmm, spec))
    }

    /// The snapshot, compared with its checksums once for as long as its files do not change.
    pub(super) async fn verified(&self, spec: &VmSpec, path: &Path) -> Result<Arc<Verified>> {
        let snapshot = Snapshot::open(path, &self.fits_of(spec).await?)?;
        let stamps = snapshot.stamps()?;
        // Held while one is read: clones started together wait for one reading.
        let mut kept = self.snapshots.lock().await;
        let found = kept.iter().position(|v| v.snapshot.path() == path && v.stamps == stamps);
        if let Some(found) = found {
            let verified = kept.remove(found);
            kept.push(Arc::clone(&verified));
            return Ok(verified);
        }
        let held = self.templates();
        let verified = Arc::new(blocking(move || verify(snapshot, stamps, held)).await?);
        kept.retain(|other| other.snapshot.path() != path);
        kept.push(Arc::clone(&verified));
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        Ok(verified)
    }

    /// Sealed memory that running clones hold, also those of an earlier server process.
    fn templates(&self) -> Vec<File> {
        let vms = self.host.state().list().unwrap_or_default();
        vms.into_iter()
            .filter_map(|vm| memfd(self.pid(&self.host.dir(vm))?, TEMPLATE).ok().flatten())
            .collect()
    }

    fn memory_of(&self, dir: &VmDir) -> Result<File> {
        let found = match self.pid(dir) {
            Some(pid) => memfd(pid, super::launch::MEMORY_NAME),
            None => Ok(None),
        };
        found.map_err(|e| DriverError::io("opening the guest's memory", e))?.ok_or_else(|| {
            DriverError::Refused {
                operation: format!("snapshotting VM {}", dir.id()),
                message: "its memory was not found in its process".to_owned(),
            }
        })
    }

    fn pid(&self, dir: &VmDir) -> Option<i32> {
        match self.host.processes().look(dir) {
            Process::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }
}

fn verify(snapshot: Snapshot, stamps: Vec<(String, Stamp)>, held: Vec<File>) -> Result<Verified> {
    for name in [DEVICES, UPPER] {
        snapshot.verify(name, &snapshot.file(name)?, |_, _| Ok(()))?;
    }
    if !snapshot.has_memory() {
        return Ok(Verified { snapshot, stamps, memory: None });
    }
    // Sealed, so what is true of its content now stays true.
    let adopted = held.into_iter().find(|file| {
        fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
            && snapshot.verify(MEMORY, file, |_, _| Ok(())).is_ok()
    });
    let memory = match adopted {
        Some(memory) => memory,
        None => template(&snapshot)?,
    };
    Ok(Verified { snapshot, stamps, memory: Some(memory) })
}

/// Reads a snapshot's memory, comparing it on the way.
fn template(snapshot: &Snapshot) -> Result<File> {
    let io = |source: io::Error| DriverError::io("reading a snapshot's memory", source);
    let from = snapshot.file(MEMORY)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = File::from(memfd_create(TEMPLATE, flags).map_err(|e| io(e.into()))?);
    memory.set_len(from.metadata().map_err(io)?.len()).map_err(io)?;
    snapshot.verify(MEMORY, &from, |offset, chunk| memory.write_all_at(chunk, offset))?;
    fcntl_add_seals(&memory, SEALS).map_err(|e| io(e.into()))?;
    Ok(memory)
}

/// Opens the anonymous file of that name that a process holds.
fn memfd(pid: i32, name: &str) -> io::Result<Option<File>> {
    let wanted = format!("/memfd:{name} (deleted)");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
            return File::open(path).map(Some);
        }
    }
    Ok(None)
}

/// Whether memory in shared files stays out of the stream; both sides have to agree. And that QEMU tells
/// how far it is.
async fn capability(qmp: &mut Qmp, ignore_shared: bool) -> Result<()> {
    let capabilities = json!([
        { "capability": "x-ignore-shared", "state": ignore_shared },
        { "capability": "events", "state": true },
    ]);
    qmp.run("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    qmp.run("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH })).await?;
    Ok(())
}

fn is_full(file: &File) -> bool {
    fstatvfs(file).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < ROOM)
}

/// Waits until a VM may run again whose migration failed: QEMU says that it did a moment before, and of the
/// moment nothing.
async fn finalized(qmp: &mut Qmp) -> Result<()> {
    while qmp.status().await? == "finish-migrate" {
        tokio::time::sleep(FINALIZING).await;
    }
    Ok(())
}

/// Waits for the end of a migration; QEMU tells when its state changes.
async fn migrated(qmp: &mut Qmp, operation: &str) -> Result<()> {
    let ended = async {
        loop {
            let answer = qmp.run("query-migrate", json!({})).await?;
            match answer["status"].as_str().unwrap_or_default() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    let why = answer["error-desc"].as_str().unwrap_or("the VMM does not say why");
                    return Err(DriverError::Refused {
                        operation: operation.to_owned(),
                        message: why.to_owned(),
                    });
                }
                _ => qmp.event("MIGRATION").await?,
            }
        }
    };
    tokio::time::timeout(MIGRATE_DEADLINE, ended).await.unwrap_or_else(|_| {
        Err(DriverError::Timeout { operation: operation.to_owned(), after: MIGRATE_DEADLINE })
    })
}
