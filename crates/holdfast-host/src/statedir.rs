//! The state directory: what this instance knows of its VMs, on disk.
//!
//! ```text
//! <state_dir>/instance            eight hex digits that name this instance on the machine
//! <state_dir>/vms/<vm-id>/        root's; a VMM gets open files, never a path in here
//!     intent.json                 the specification; written before anything else exists
//!     lease.json                  slot and address (see `registry`)
//!     process.json                the VMM's process (see `process`)
//!     exit.json                   how the last one ended
//!     upper.img                   the writable disk
//!     base.img                    of a clone: a link to the memory of the snapshot it was made from
//!     serial.log, serial.old      the guest's console
//!     vmm.log                     what the VMM says
//!     qmp.sock, api.sock          the VMM's own interface
//! ```
//!
//! Must never delete anything on its own account.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use holdfast_core::{Timestamp, VmId};
use uuid::Uuid;

use crate::{
    driver::{DriverError, Result, VmSpec},
    files,
};

/// Name of a disk file.
pub const UPPER: &str = "upper.img";
/// Name of the console's file.
pub const SERIAL: &str = "serial.log";
/// Name of the console's earlier part.
pub const SERIAL_OLD: &str = "serial.old";
/// Name of the VMM's log.
pub const VMM_LOG: &str = "vmm.log";
const INTENT: &str = "intent.json";

/// A console file above this size is cut; its last quarter is kept in `serial.old`.
const SERIAL_LIMIT: u64 = 1 << 20;

/// The state directory of one instance.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
    instance: String,
}

impl StateDir {
    /// Opens it, making what is missing.
    pub fn open(root: &Path) -> Result<Self> {
        let io = |source| {
            DriverError::io(format!("opening the state directory {}", root.display()), source)
        };
        let vms = root.join("vms");
        // Others may pass through, not look: a VMM's user reaches nothing but what it was handed.
        DirBuilder::new().recursive(true).mode(0o711).create(&vms).map_err(io)?;
        let root = fs::canonicalize(root).map_err(io)?;
        let file = root.join("instance");
        let instance = match fs::read_to_string(&file) {
            Ok(text) if text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit()) => text,
            Ok(_) => {
                return Err(DriverError::Refused {
                    operation: "opening the state directory".to_owned(),
                    message: format!(
                        "{} does not hold eight hex digits; restore it, for the VMs here are marked with it",
                        file.display()
                    ),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fresh = Uuid::new_v4().simple().to_string()[..8].to_owned();
                let temporary = root.join(format!("instance.{fresh}"));
                fs::write(&temporary, &fresh).map_err(io)?;
                File::open(&temporary).and_then(|f| f.sync_all()).map_err(io)?;
                // The first of two that start at once wins.
                let linked = fs::hard_link(&temporary, &file);
                fs::remove_file(&temporary).map_err(io)?;
                if let Err(error) = linked
                    && error.kind() != io::ErrorKind::AlreadyExists
                {
                    return Err(io(error));
                }
                files::sync_dir(&root).map_err(io)?;
                fs::read_to_string(&file).map_err(io)?
            }
            Err(error) => return Err(io(error)),
        };
        Ok(Self { root, instance })
    }

    /// Eight hex digits that mark everything of this instance on the machine.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a VM, whether it exists or not.
    pub fn vm(&self, vm: VmId) -> VmDir {
        VmDir { vm, path: self.root.join("vms").join(vm.to_string()) }
    }

    /// Every VM that has a directory.
    pub fn list(&self) -> Result<Vec<VmId>> {
        let io = |source| DriverError::io("listing the state directory", source);
        let mut vms = Vec::new();
        for entry in fs::read_dir(self.root.join("vms")).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let name = name.to_string_lossy();
            // A creation that was interrupted leaves its temporary name.
            if let Ok(vm) = name.trim_start_matches(NEW_PREFIX).parse() {
                vms.push(vm);
            }
        }
        vms.sort_unstable();
        vms.dedup();
        Ok(vms)
    }
}

/// How often a directory is removed again into which something was written meanwhile.
const REMOVALS: u32 = 5;
const NEW_PREFIX: &str = "new-";

/// The directory of one VM.
#[derive(Debug, Clone)]
pub struct VmDir {
    vm: VmId,
    path: PathBuf,
}

impl VmDir {
    /// The VM.
    pub fn id(&self) -> VmId {
        self.vm
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn unfinished(&self) -> PathBuf {
        self.path.with_file_name(format!("{NEW_PREFIX}{}", self.vm))
    }

    /// Makes it, with `intent.json` in it, or not at all. Refuses another specification.
    pub fn create(&self, spec: &VmSpec) -> Result<()> {
        let io =
            |source| DriverError::io(format!("making the directory of VM {}", self.vm), source);
        if let Some(existing) = self.spec_if_there()? {
            return if existing == *spec { Ok(()) } else { Err(DriverError::Conflict(self.vm)) };
        }
        let unfinished = self.unfinished();
        match DirBuilder::new().mode(0o711).create(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
        files::write_json(&unfinished.join(INTENT), spec).map_err(io)?;
        fs::rename(&unfinished, &self.path).map_err(io)?;
        files::sync_dir(self.path.parent().unwrap_or(&self.path)).map_err(io)
    }

    /// The specification; [`DriverError::NotFound`] when there is none.
    pub fn spec(&self) -> Result<VmSpec> {
        self.spec_if_there()?.ok_or(DriverError::NotFound(self.vm))
    }

    fn spec_if_there(&self) -> Result<Option<VmSpec>> {
        files::read_json(&self.file(INTENT))
            .map_err(|e| DriverError::io(format!("reading the intent of VM {}", self.vm), e))
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path.exists() || self.unfinished().exists()
    }

    /// When it was made, as far as the file system tells.
    pub fn created_at(&self) -> Option<Timestamp> {
        let meta = fs::metadata(self.file(INTENT)).ok()?;
        Timestamp::from_second(meta.mtime()).ok()
    }

    /// Removes it and everything in it; it need not be there. The intent goes last, so a removal
    /// that was interrupted is still seen as a VM.
    pub fn remove(&self) -> Result<()> {
        let io =
            |source| DriverError::io(format!("removing the directory of VM {}", self.vm), source);
        for path in [self.unfinished(), self.path.clone()] {
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(io)?,
            };
            for entry in entries {
                let entry = entry.map_err(io)?;
                if entry.file_name() == INTENT {
                    continue;
                }
                if entry.file_type().map_err(io)?.is_dir() {
                    fs::remove_dir_all(entry.path()).map_err(io)?;
                } else {
                    files::remove_if_there(&entry.path()).map_err(io)?;
                }
            }
            // The end of a VMM that was just killed may be written by whoever had started it.
            let mut removed = fs::remove_dir_all(&path);
            for _ in 0..REMOVALS {
                match removed {
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                        removed = fs::remove_dir_all(&path);
                    }
                    _ => break,
                }
            }
            removed.map_err(io)?;
        }
        Ok(())
    }

    /// Bytes of disk taken, without what is shared with others.
    pub fn disk_bytes(&self) -> u64 {
        let Ok(entries) = fs::read_dir(&self.path) else { return 0 };
        entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| files::own_bytes(&m)).sum()
    }

    /// The last `max_bytes` of the guest's console.
    pub fn console(&self, max_bytes: usize) -> Result<String> {
        let io = |source| DriverError::io(format!("reading the console of VM {}", self.vm), source);
        let recent = files::tail(&self.file(SERIAL), max_bytes).map_err(io)?;
        let room = max_bytes.saturating_sub(recent.len());
        let earlier = files::tail(&self.file(SERIAL_OLD), room).map_err(io)?;
        Ok(earlier + &recent)
    }

    /// Cuts a console that has grown too long. The VMM appends, so it goes on at the new end.
    pub fn trim_console(&self) -> io::Result<()> {
        let path = self.file(SERIAL);
        if fs::metadata(&path)?.len() <= SERIAL_LIMIT {
            return Ok(());
        }
        fs::write(self.file(SERIAL_OLD), files::tail(&path, SERIAL_LIMIT as usize / 4)?)?;
        fs::OpenOptions::new().write(true).open(&path)?.set_len(0)
    }
}
