//! The jail of a VM: a directory of its own that is all it sees of the file system.
//!
//! ```text
//! <vm>/jail/<program>/<instance>-<vm>/root/    the VMM's `/`, made anew for every start
//!     vmlinux, initramfs.img, rootfs.img, upper.img      shown (process::Mount), not copied
//!     devices.state, memory.img                          shown, when it starts from a snapshot
//!     api.sock, firecracker.log, metrics.json            the VMM's own
//!     snapshot/                                          a snapshot while it is written
//! ```
//!
//! Names are relative and the same for every VM, so the state of one fits another. What is shown is
//! mounted in the VMM's own mount namespace: the host never sees it, and it is gone with the VMM.
//! Everything in a jail may have been put there by the VMM, so nothing in it is opened by its plain path.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::programs::FirecrackerConfig;
use crate::{
    driver::{DriverError, Result},
    process::{Limits, Mount, OPEN_FILES, Vmm},
};

pub(super) const KERNEL: &str = "vmlinux";
pub(super) const INITRAMFS: &str = "initramfs.img";
pub(super) const ROOT: &str = "rootfs.img";
pub(super) const SOCKET: &str = "api.sock";
pub(super) const LOG: &str = "firecracker.log";
pub(super) const METRICS: &str = "metrics.json";
pub(super) const CONFIG: &str = "vm.json";
/// Where the VMM writes a snapshot.
pub(super) const OUT: &str = "snapshot";

/// A jail.
pub(super) struct Jail {
    base: PathBuf,
    root: PathBuf,
    id: String,
    uid: u32,
    mounts: Vec<Mount>,
}

impl Jail {
    /// The jail in `base` of the VMM named `id`, whether it exists or not.
    pub(super) fn of(config: &FirecrackerConfig, base: PathBuf, id: String, uid: u32) -> Self {
        let program = fs::canonicalize(&config.firecracker);
        let program = program.unwrap_or_else(|_| config.firecracker.clone());
        let root = base.join(program.file_name().unwrap_or_default()).join(&id).join("root");
        Self { base, root, id, uid, mounts: Vec::new() }
    }

    /// Makes it anew. Nothing may run in it.
    pub(super) fn make(&self) -> Result<()> {
        match fs::remove_dir_all(&self.base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(making(error)),
            _ => {}
        }
        // The jailer gives the last of these directories to the VMM.
        DirBuilder::new().recursive(true).mode(0o711).create(&self.root).map_err(making)
    }

    /// The VMM's `/`.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Shows a file in it.
    pub(super) fn show(&mut self, file: &File, name: &str, read_only: bool) -> Result<()> {
        let at = self.root.join(name);
        File::create_new(&at).map_err(making)?;
        let mount = Mount::new(file, &at, read_only)
            .map_err(|e| DriverError::io(format!("showing {name} in the jail"), e))?;
        self.mounts.push(mount);
        Ok(())
    }

    /// Puts a small file of the VMM's own into it.
    pub(super) fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        fs::write(&path, content).map_err(making)?;
        std::os::unix::fs::chown(&path, Some(self.uid), Some(self.uid)).map_err(making)
    }

    /// The jailer's command line: it makes devices, enters the jail, gives up its rights and becomes
    /// Firecracker, under the same process id. Groups and network namespace are entered before.
    pub(super) fn vmm(self, config: &FirecrackerConfig, more: &[&str], limits: Limits) -> Vmm {
        let uid = self.uid.to_string();
        let (exec, base) = (path(&config.firecracker), path(&self.base));
        let ours = ["--id", &self.id, "--exec-file", &exec, "--chroot-base-dir", &base];
        let user = ["--uid", &uid, "--gid", &uid];
        // Its own default is higher than what it is started with, and it may not be able to rise.
        let files = format!("no-file={OPEN_FILES}");
        let args = ours.into_iter().chain(user).chain(["--resource-limit", &files, "--"]);
        Vmm {
            program: config.jailer.clone(),
            args: args.chain(more.iter().copied()).map(str::to_owned).collect(),
            handed: Vec::new(),
            mounts: self.mounts,
            view: None,
            stdout: None,
            namespace: None,
            user: None,
            limits,
        }
    }
}

/// The root of a jail that was made: by now another program may be configured than it was made for.
pub(super) fn root(base: &Path, id: &str) -> io::Result<PathBuf> {
    let program = fs::read_dir(base)?.next().ok_or(io::ErrorKind::NotFound)??;
    Ok(program.path().join(id).join("root"))
}

/// Opens something that a VMM may have put into its jail: never a link, nor anything outside.
pub(super) fn open_beneath(root: &impl AsFd, name: &str, flags: OFlags) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat2(root, name, flags, Mode::empty(), resolve)?.into())
}

/// Makes a file of the VMM's own, in a directory that it may have replaced.
pub(super) fn create_beneath(root: &Path, name: &str, uid: u32) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = File::from(openat2(&File::open(root)?, name, flags, mode, resolve)?);
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid))?;
    Ok(file)
}

/// Opens a plain file that a VMM wrote.
pub(super) fn open_written(root: &Path, name: &str) -> io::Result<File> {
    let file = open_beneath(&File::open(root)?, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} in the jail is no file")))
}

/// Lets the VMM's user read a file of root's. Those above it need not be open to it.
pub(super) fn let_read(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o004 == 0 {
        return file.set_permissions(fs::Permissions::from_mode(mode | 0o444));
    }
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn making(source: io::Error) -> DriverError {
    DriverError::io("making the VMM's jail", source)
}
