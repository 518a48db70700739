//! Snapshots of Firecracker's VMs. Firecracker writes device state and memory into the jail; from there
//! they are copied, for a file that a VMM once had open is not one to rely on.
//!
//! Where Firecracker remembers which pages changed, it writes only those, over what the memory was before
//! (`Base`): a snapshot is whole nevertheless, and needs no other one. When that is not known, as after a
//! restart of the server, it writes all.
//!
//! A clone maps the snapshot's memory privately, straight from its file, so clones share the pages that
//! none of them has changed.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::FileExt as _,
    panic::resume_unwind,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use holdfast_core::VmId;

use super::{
    FirecrackerDriver,
    api::{Api, SnapshotCreate},
    jail,
};
use crate::{
    driver::{DriverError, Result, VmSpec},
    snapshot::{DEVICES, Draft, Fits, MEMORY, Snapshot, Stamp, blocking},
    statedir::UPPER,
};

/// Writing a guest's memory takes seconds; a disk that takes longer does not work.
const WRITE_DEADLINE: Duration = Duration::from_mins(5);
/// Warm images in use at once, as a rule: the present one and the one before.
const KEPT: usize = 2;

/// A snapshot that was compared with its checksums, open.
pub(super) struct Verified {
    snapshot: Snapshot,
    stamps: Vec<(String, Stamp)>,
    pub(super) devices: File,
    pub(super) memory: File,
    pub(super) upper: File,
}

impl Verified {
    pub(super) fn is_of(&self, path: &Path) -> bool {
        self.snapshot.path() == path
    }

    /// The memory of a VM that was just restored from it.
    pub(super) fn base(&self) -> Result<BaseFile> {
        let file = self.memory.try_clone();
        let file = file.map_err(|e| DriverError::io("opening a snapshot's memory", e))?;
        Ok(BaseFile { file, snapshot: self.snapshot.clone() })
    }
}

/// What the memory of a VM was when Firecracker began to remember which pages change.
pub(super) enum Base {
    /// It was just made.
    Zeros,
    /// That of a snapshot.
    Snapshot(BaseFile),
}

/// The memory of a snapshot, which may be removed meanwhile.
pub(super) struct BaseFile {
    file: File,
    snapshot: Snapshot,
}

/// What is known of VMs that run: nothing of one that an earlier process of the server started.
#[derive(Default)]
pub(super) struct Bases(Mutex<HashMap<VmId, Base>>);

impl Bases {
    pub(super) fn set(&self, vm: VmId, base: Base) {
        self.known().insert(vm, base);
    }

    /// What was known.
    pub(super) fn forget(&self, vm: VmId) -> Option<Base> {
        self.known().remove(&vm)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<VmId, Base>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FirecrackerDriver {
    pub(super) async fn take_snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        let dir = self.host.dir(vm);
        let spec = dir.spec()?;
        let root = self.reach(vm)?;
        let vmm = match self.running_version(vm) {
            Some(version) => version,
            None => self.version().await?,
        };
        let fits = Fits::new(vmm, &spec);
        let kept = fits.clone();
        let draft = Draft::begin(dest)?;
        let mut api = Api::of(&root).connect().await?;
        api.state("Paused").await?;
        let uid = self.host.uid(&self.host.lease(vm)?);
        let written = Written::begin(&root, uid)?;
        // Firecracker counts from here on, also when what follows fails.
        let base = self.bases.forget(vm);
        let tracked = api.machine().await?.track_dirty_pages;
        let (written, snapshot_type) = match base.filter(|_| tracked) {
            Some(Base::Zeros) => (written, "Diff"),
            Some(Base::Snapshot(base)) => {
                blocking(move || written.begin_with(&base, uid)).await.map(|w| (w, "Diff"))?
            }
            None => (written, "Full"),
        };
        let create = SnapshotCreate {
            snapshot_type,
            snapshot_path: in_jail(DEVICES),
            mem_file_path: in_jail(MEMORY),
        };
        api.put_within("/snapshot/create", &create, WRITE_DEADLINE).await?;
        blocking(move || {
            // Only now: what the guest had asked of its disk may be done even after the pause, and a disk
            // that is ahead of the devices' state takes a write twice, where one behind it would lose it.
            let upper = File::open(dir.file(UPPER))
                .map_err(|e| DriverError::io("opening the disk for a snapshot", e))?;
            let (devices, memory) = (written.open(DEVICES)?, written.open(MEMORY)?);
            let files = thread::scope(|beside| {
                let upper = beside.spawn(|| draft.copy(&upper, UPPER));
                let files = [draft.copy(&devices, DEVICES), draft.copy(&memory, MEMORY)];
                let upper = upper.join().unwrap_or_else(|panic| resume_unwind(panic));
                files.into_iter().chain([upper]).collect::<Result<_>>()
            })?;
            drop(written);
            // Its space is free only when it is closed, which takes a while.
            tokio::task::spawn_blocking(move || drop(memory));
            draft.finish(fits, files)
        })
        .await?;
        if tracked {
            let snapshot = Snapshot::open(dest, &kept)?;
            self.bases.set(vm, Base::Snapshot(BaseFile { file: snapshot.file(MEMORY)?, snapshot }));
        }
        Ok(())
    }

    /// The snapshot, compared with its checksums once for as long as its files do not change.
    pub(super) async fn verified(&self, spec: &VmSpec, path: &Path) -> Result<Arc<Verified>> {
        let snapshot = Snapshot::open(path, &Fits::new(self.version().await?, spec))?;
        for name in [DEVICES, MEMORY] {
            jail::let_read(&snapshot.file(name)?)
                .map_err(|e| DriverError::io(format!("opening {name} to the VMM"), e))?;
        }
        let stamps = snapshot.stamps()?;
        // Held while one is read: clones started together wait for one reading.
        let mut kept = self.snapshots.lock().await;
        let found = kept.iter().position(|v| v.is_of(path) && v.stamps == stamps);
        if let Some(found) = found {
            let verified = kept.remove(found);
            kept.push(Arc::clone(&verified));
            return Ok(verified);
        }
        let verified = Arc::new(blocking(move || verify(snapshot, stamps)).await?);
        kept.retain(|other| !other.is_of(path));
        kept.push(Arc::clone(&verified));
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        Ok(verified)
    }
}

fn verify(snapshot: Snapshot, stamps: Vec<(String, Stamp)>) -> Result<Verified> {
    let verified = |name: &str| {
        let file = snapshot.file(name)?;
        snapshot.verify(name, &file, |_, _| Ok(()))?;
        Ok(file)
    };
    let (devices, memory, upper) = (verified(DEVICES)?, verified(MEMORY)?, verified(UPPER)?);
    Ok(Verified { snapshot, stamps, devices, memory, upper })
}

/// The directory in the jail that a snapshot is written into; it goes with this.
struct Written {
    root: std::path::PathBuf,
}

impl Written {
    fn begin(root: &Path, uid: u32) -> Result<Self> {
        let io = |source| DriverError::io("making room for a snapshot", source);
        let written = Self { root: root.to_owned() };
        // What an interrupted one left.
        written.remove().map_err(io)?;
        let path = written.root.join(jail::OUT);
        DirBuilder::new().create(&path).map_err(io)?;
        std::os::unix::fs::lchown(&path, Some(uid), Some(uid)).map_err(io)?;
        Ok(written)
    }

    /// Puts memory there that Firecracker writes over what changed since.
    fn begin_with(self, base: &BaseFile, uid: u32) -> Result<Self> {
        let io = |source| DriverError::io("beginning a snapshot with the one before", source);
        let to = jail::create_beneath(&self.root, &in_jail(MEMORY), uid).map_err(io)?;
        to.set_len(base.file.metadata().map_err(io)?.len()).map_err(io)?;
        // Damage is not passed on.
        base.snapshot.verify(MEMORY, &base.file, |offset, chunk| to.write_all_at(chunk, offset))?;
        Ok(self)
    }

    fn open(&self, name: &str) -> Result<File> {
        jail::open_written(&self.root, &in_jail(name))
            .map_err(|e| DriverError::io(format!("opening {name} in the jail"), e))
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.root.join(jail::OUT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // The next snapshot, or the end of the VM, removes what is left.
        let _ = self.remove();
    }
}

fn in_jail(name: &str) -> String {
    format!("{}/{name}", jail::OUT)
}
