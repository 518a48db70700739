//! What this machine and this user can do.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// Free space needed for builds, tools and one image, in GiB.
const DISK_GIB: u64 = 12;

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as root: as it is for root, through sudo for others. `why` is told to the
/// person who may be asked for a password.
pub(crate) fn as_root(program: impl AsRef<std::ffi::OsStr>, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if !sh::has("sudo") {
        bail!("{why} needs root: run this as root, or install sudo");
    }
    sh::say(&format!("{why} needs root: sudo may ask for your password"));
    let mut command = Command::new("sudo");
    command
        .arg("--preserve-env=HOLDFAST_CACHE_DIR,HOLDFAST_STATE_DIR,CARGO_TARGET_DIR,HOME,PATH")
        .arg("--")
        .arg(program);
    Ok(command)
}

/// Refuses to begin with too little space in any of these directories.
pub(crate) fn check_disk(dirs: &[&Path]) -> Result<()> {
    for dir in dirs {
        let stat = rustix::fs::statvfs(*dir)
            .with_context(|| format!("the free space of {} cannot be read", dir.display()))?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < DISK_GIB << 30 {
            bail!(
                "{} has {:.1} GiB of free space, and {DISK_GIB} GiB are needed: free some, or point HOLDFAST_CACHE_DIR and CARGO_TARGET_DIR to another disk",
                dir.display(),
                free as f64 / f64::from(1 << 30),
            );
        }
    }
    Ok(())
}

/// Refuses an address that is taken.
pub(crate) fn check_port(address: SocketAddr) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "{address} is in use, perhaps by another Holdfast: stop that, or choose another with --port"
            )
        }
        Err(error) => {
            bail!("{address} cannot be listened on ({error}): choose another with --listen")
        }
    }
}
