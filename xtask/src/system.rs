//! What this machine has to offer.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

/// Free space needed for builds, tools and one image, in GiB.
const DISK_GIB: u64 = 12;

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
