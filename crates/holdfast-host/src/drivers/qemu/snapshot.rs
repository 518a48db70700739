//! Snapshots of QEMU's VMs.
//!
//! A VM that was booted has its memory in a shared file; QEMU then writes device state alone, and the
//! memory is copied from its file. A clone maps such a copy, a template, privately. Its snapshot has a
//! link to the template's file and the pages that the clone changed ([`changed`](super::changed)), so it is small,
//! is written and read quickly, needs no other snapshot, and clones that come back share the template again.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use holdfast_core::VmId;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstatvfs, memfd_create};
use serde_json::json;

use super::{
    QemuDriver,
    changed::{CHANGED, CHANGED_MAP, CloneMemory},
    command::Memory,
    launch::{MEMORY_NAME, SHARED},
    qmp::Qmp,
};
use crate::{
    disk::Replacement,
    driver::{DriverError, Process, Result, VmSpec},
    files,
    snapshot::{BASE, DEVICES, Draft, Entry, Fits, MEMORY, Snapshot, Stamp, blocking},
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
/// End of a stream: a description of what it holds (section 6) that has no bytes. QEMU misses it otherwise, and
/// says so: docs/devel/migration.rst, `qemu_loadvm_state`.
const NO_DESCRIPTION: &[u8] = &[6, 0, 0, 0, 0];
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Memory that clones map: sealed, so that what is true of its content stays true, and none of them can
/// change it for another.
pub(super) struct Template {
    sum: String,
    stamp: Stamp,
    memory: File,
}

/// A snapshot that was compared with its checksums.
pub(super) struct Verified {
    snapshot: Snapshot,
    stamps: Vec<(String, Stamp)>,
    template: Arc<Template>,
}

/// What was verified last, so that it need not be again.
#[derive(Default)]
pub(super) struct Kept {
    /// Those with a memory of their own: from others, one VM is restored as a rule.
    snapshots: Vec<Arc<Verified>>,
    templates: Vec<Arc<Template>>,
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
        let note = self.host.processes().note(&dir).unwrap_or_default();
        if note == SHARED {
            write_shared(&mut qmp, &draft.file(DEVICES)?).await?;
            let memory = self.memory_of(&dir, MEMORY_NAME)?;
            return blocking(move || {
                let mut files = devices_and_disk(&draft, &dir)?;
                files.push(draft.copy(&memory, MEMORY)?);
                draft.finish(fits, files)
            })
            .await;
        }
        write_devices(&mut qmp, &draft).await?;
        let template = self.memory_of(&dir, TEMPLATE)?;
        let pid = self.pid(&dir).ok_or_else(|| not_found(&dir))?;
        blocking(move || {
            let mut files = devices_and_disk(&draft, &dir)?;
            let (map, pages) = (draft.file(CHANGED_MAP)?, draft.file(CHANGED)?);
            CloneMemory::open(pid, TEMPLATE)
                .and_then(|memory| memory.save(&map, &pages))
                .map_err(|e| DriverError::io(WRITING, e))?;
            files.extend([draft.written(CHANGED_MAP)?, draft.written(CHANGED)?]);
            files.push(match draft.link(&dir.file(BASE), BASE, &note) {
                Some(base) => base,
                None => {
                    let base = draft.copy(&template, BASE)?;
                    draft.share(BASE, &dir.file(BASE));
                    base
                }
            });
            draft.finish(fits, files)
        })
        .await
    }

    /// Starts a VM from a snapshot.
    pub(super) async fn restore(&self, dir: &VmDir, spec: &VmSpec, path: &Path) -> Result<()> {
        let verified = self.verified(spec, path).await?;
        let io = |e| DriverError::io("opening what a clone is made of", e);
        let upper = Replacement::begin(&dir.file(UPPER))?;
        upper.file.set_len(u64::from(spec.disk_mib) << 20).map_err(io)?;
        let disk = upper.file.try_clone().map_err(io)?;
        let template = verified.template.memory.try_clone().map_err(io)?;
        let memory = Memory::Private(template.into(), verified.template.sum.clone());
        let (from, base) = (Arc::clone(&verified), dir.file(BASE));
        // QEMU reads nothing of its disks before it reads the snapshot.
        let filled = blocking(move || {
            let snapshot = &from.snapshot;
            files::remove_if_there(&base).map_err(|e| DriverError::io("removing a link", e))?;
            // Where there can be none, the first snapshot of this VM copies what it maps.
            let _ = fs::hard_link(snapshot.path().join(memory_in(snapshot)), base);
            upper.fill(&snapshot.file(UPPER)?)
        });
        let (filled, qmp) = tokio::join!(filled, self.spawn(dir, spec, memory, disk, true));
        let mut qmp = qmp?;
        filled?;
        if verified.snapshot.has(BASE) {
            let (from, pid) = (Arc::clone(&verified), self.pid(dir).ok_or_else(|| not_found(dir))?);
            blocking(move || {
                let (map, pages) = (from.snapshot.file(CHANGED_MAP)?, from.snapshot.file(CHANGED)?);
                CloneMemory::open(pid, TEMPLATE)
                    .and_then(|memory| memory.load(&map, &pages))
                    .map_err(|e| DriverError::io("giving a clone its memory", e))
            })
            .await?;
        }
        capability(&mut qmp).await?;
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
        let is_it = |v: &Arc<Verified>| v.snapshot.path() == path && v.stamps == stamps;
        if let Some(found) = kept.snapshots.iter().position(is_it) {
            let verified = kept.snapshots.remove(found);
            keep(&mut kept.snapshots, Arc::clone(&verified));
            return Ok(verified);
        }
        let (templates, running) = (kept.templates.clone(), self.templates());
        let verify = move || verify(snapshot, stamps, templates, running);
        let verified = Arc::new(blocking(verify).await?);
        kept.templates.retain(|other| !Arc::ptr_eq(other, &verified.template));
        keep(&mut kept.templates, Arc::clone(&verified.template));
        kept.snapshots.retain(|other| other.snapshot.path() != path);
        if verified.snapshot.has(MEMORY) {
            keep(&mut kept.snapshots, Arc::clone(&verified));
        }
        Ok(verified)
    }

    /// Sealed memory that running clones hold, also those of an earlier server process; each once.
    fn templates(&self) -> Vec<File> {
        let vms = self.host.state().list().unwrap_or_default();
        let held = vms
            .into_iter()
            .filter_map(|vm| memfd(self.pid(&self.host.dir(vm))?, TEMPLATE).ok().flatten());
        let mut seen = HashSet::new();
        held.filter(|file| file.metadata().is_ok_and(|meta| seen.insert(meta.ino()))).collect()
    }

    fn memory_of(&self, dir: &VmDir, name: &str) -> Result<File> {
        let found = match self.pid(dir) {
            Some(pid) => memfd(pid, name),
            None => Ok(None),
        };
        found
            .map_err(|e| DriverError::io("opening the guest's memory", e))?
            .ok_or_else(|| not_found(dir))
    }

    fn pid(&self, dir: &VmDir) -> Option<i32> {
        match self.host.processes().look(dir) {
            Process::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }
}

fn not_found(dir: &VmDir) -> DriverError {
    DriverError::Refused {
        operation: format!("reaching the memory of VM {}", dir.id()),
        message: "its memory was not found in its process".to_owned(),
    }
}

fn keep<T>(kept: &mut Vec<T>, newest: T) {
    kept.push(newest);
    let surplus = kept.len().saturating_sub(KEPT);
    kept.drain(..surplus);
}

/// The file of a snapshot that clones map.
fn memory_in(snapshot: &Snapshot) -> &'static str {
    if snapshot.has(BASE) { BASE } else { MEMORY }
}

fn verify(
    snapshot: Snapshot,
    stamps: Vec<(String, Stamp)>,
    kept: Vec<Arc<Template>>,
    running: Vec<File>,
) -> Result<Verified> {
    let memory = memory_in(&snapshot);
    let changed: &[&str] = if memory == BASE { &[CHANGED_MAP, CHANGED] } else { &[] };
    for name in [DEVICES, UPPER].iter().chain(changed) {
        snapshot.verify(name, &snapshot.file(name)?, |_, _| Ok(()))?;
    }
    let sum = snapshot.sum(memory)?.to_owned();
    let stamp = snapshot.stamp(memory)?;
    if let Some(template) = kept.into_iter().find(|kept| kept.sum == sum && kept.stamp == stamp) {
        return Ok(Verified { snapshot, stamps, template });
    }
    let adopted = running.into_iter().find(|file| {
        fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
            && snapshot.verify(memory, file, |_, _| Ok(())).is_ok()
    });
    let memory = match adopted {
        Some(memory) => memory,
        None => template(&snapshot, memory)?,
    };
    Ok(Verified { snapshot, stamps, template: Arc::new(Template { sum, stamp, memory }) })
}

/// Reads a snapshot's memory, comparing it on the way.
fn template(snapshot: &Snapshot, name: &str) -> Result<File> {
    let io = |source: io::Error| DriverError::io("reading a snapshot's memory", source);
    let from = snapshot.file(name)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = File::from(memfd_create(TEMPLATE, flags).map_err(|e| io(e.into()))?);
    memory.set_len(from.metadata().map_err(io)?.len()).map_err(io)?;
    snapshot.verify(name, &from, |offset, chunk| memory.write_all_at(chunk, offset))?;
    fcntl_add_seals(&memory, SEALS).map_err(|e| io(e.into()))?;
    Ok(memory)
}

fn devices_and_disk(draft: &Draft, dir: &VmDir) -> Result<Vec<Entry>> {
    let upper = File::open(dir.file(UPPER))
        .map_err(|e| DriverError::io("opening the disk for a snapshot", e))?;
    Ok(vec![draft.written(DEVICES)?, draft.copy(&upper, UPPER)?])
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

/// Has a VM whose memory is in a shared file write the rest of its state.
async fn write_shared(qmp: &mut Qmp, devices: &File) -> Result<()> {
    capability(qmp).await?;
    qmp.give("snapshot", devices).await?;
    qmp.run("migrate", json!({ "uri": "fd:snapshot" })).await?;
    let Err(error) = migrated(qmp, WRITING).await else { return Ok(()) };
    // The first error is the one that matters.
    let _ = tokio::time::timeout(FINALIZE_DEADLINE, finalized(qmp)).await;
    Err(no_space_or(error, devices))
}

/// Has a clone write the state of its devices, and nothing of its memory. QEMU made this command for Xen
/// and needs no Xen for it; what it writes is a migration's stream without memory.
async fn write_devices(qmp: &mut Qmp, draft: &Draft) -> Result<()> {
    let devices = draft.file(DEVICES)?;
    let file = qmp.lend(&draft.writer(DEVICES)?).await?;
    // `live`: QEMU keeps its disks, with which it may go on.
    let written = qmp.run("xen-save-devices-state", json!({ "filename": file, "live": false }));
    written.await.map_err(|error| no_space_or(error, &devices))?;
    let end = || devices.write_all_at(NO_DESCRIPTION, devices.metadata()?.len());
    end().map_err(|e| DriverError::io(WRITING, e))
}

/// Of a write that failed, QEMU says only that it did.
fn no_space_or(error: DriverError, written: &File) -> DriverError {
    match error {
        DriverError::Refused { .. } if is_full(written) => {
            DriverError::NoSpace { what: WRITING.to_owned() }
        }
        other => other,
    }
}

/// That memory in shared files stays out of the stream, on which both sides have to agree, and that QEMU
/// tells how far it is.
async fn capability(qmp: &mut Qmp) -> Result<()> {
    let capabilities = json!([
        { "capability": "x-ignore-shared", "state": true },
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
