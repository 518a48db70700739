//! What a VMM sees of the file system when nothing else keeps it in: the machine's programs and
//! libraries, read-only, and its own process. Everything else it is handed open.
//!
//! A new root is put together in a mount namespace of the VMM's own, which ends with it: there is no
//! directory to make and nothing to take away.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt as _, path::Path};

use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
        mount_remount, unmount,
    },
    process::{chdir, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Where programs and libraries are, on the distributions that there are; what is missing is left out.
const PROGRAMS: [&str; 9] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
];
/// The new root is made here, out of sight: a directory that every machine has.
const BUILT_AT: &std::ffi::CStr = c"/proc";

/// A part of a view. Paths within are relative to the new root.
#[derive(Debug)]
enum Part {
    Directory(CString),
    File(CString),
    Link { at: CString, to: CString },
    Shown { from: CString, at: CString, device: bool },
}

/// What is seen, prepared.
#[derive(Debug, Default)]
pub struct View {
    parts: Vec<Part>,
}

impl View {
    /// What it takes to run a program, and these devices.
    pub fn of(program: &Path, devices: &[&str]) -> io::Result<Self> {
        let mut view = Self::default();
        for path in PROGRAMS.map(Path::new) {
            view.show(path, false)?;
        }
        // One that was installed by hand brings its firmware along: all that is beside its `bin`.
        let own = fs::canonicalize(program).ok();
        let own = own.as_deref().and_then(Path::parent);
        let own = own.and_then(|dir| if dir.ends_with("bin") { dir.parent() } else { Some(dir) });
        if let Some(own) = own.filter(|own| !PROGRAMS.iter().any(|shown| own.starts_with(shown))) {
            view.show(own, false)?;
        }
        for device in devices {
            view.show(Path::new(device), true)?;
        }
        view.directory(Path::new("proc"))?;
        Ok(view)
    }

    fn show(&mut self, path: &Path, device: bool) -> io::Result<()> {
        let Ok(within) = path.strip_prefix("/") else { return Ok(()) };
        let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
        if let Some(parent) = within.parent() {
            self.directory(parent)?;
        }
        let at = c_string(within)?;
        if meta.is_symlink() {
            self.parts.push(Part::Link { at, to: c_string(&fs::read_link(path)?)? });
            return Ok(());
        }
        if meta.is_dir() {
            self.directory(within)?;
        } else {
            self.parts.push(Part::File(at.clone()));
        }
        self.parts.push(Part::Shown { from: c_string(path)?, at, device });
        Ok(())
    }

    /// A directory with all above it.
    fn directory(&mut self, within: &Path) -> io::Result<()> {
        let mut above: Vec<_> = within.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        for dir in above {
            self.parts.push(Part::Directory(c_string(dir)?));
        }
        Ok(())
    }

    /// Makes this all that the process sees. Runs between fork and exec: system calls only.
    #[allow(unsafe_code, reason = "the mount namespace of a process with one thread")]
    pub(super) fn enter(&self) -> io::Result<()> {
        let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        // SAFETY: only this process, which is a single thread, gets another mount namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
        mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        mount(c"tmpfs", BUILT_AT, c"tmpfs", quiet, c"mode=0755,size=64k,nr_inodes=256")?;
        chdir(BUILT_AT)?;
        for part in &self.parts {
            part.make()?;
        }
        // Of processes, its own alone.
        mount(c"proc", c"proc", c"proc", quiet, c"hidepid=2,subset=pid")?;
        mount_remount(c".", MountFlags::BIND | MountFlags::RDONLY | quiet, c"")?;
        // The old root lies on top of the new one for a moment, and is taken off.
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        Ok(chdir(c"/")?)
    }
}

impl Part {
    fn make(&self) -> io::Result<()> {
        match self {
            Self::Directory(at) => match mkdirat(CWD, at, Mode::from_raw_mode(0o755)) {
                Err(Errno::EXIST) => Ok(()),
                made => Ok(made?),
            },
            Self::File(at) => {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(CWD, at, flags, Mode::from_raw_mode(0o644))?;
                Ok(())
            }
            Self::Link { at, to } => Ok(symlinkat(to, CWD, at)?),
            Self::Shown { from, at, device } => {
                mount_bind(from, at)?;
                let flags = if *device {
                    MountFlags::NOEXEC
                } else {
                    MountFlags::NODEV | MountFlags::RDONLY
                };
                Ok(mount_remount(at, MountFlags::BIND | MountFlags::NOSUID | flags, c"")?)
            }
        }
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
