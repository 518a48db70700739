//! Network namespaces: their names, and work inside them.
//!
//! A thread that enters a namespace is made for that and ends with the work: no thread of the
//! runtime ever leaves the host's namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::VmId;
use rustix::{
    fs::fstatfs,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::sync::oneshot;

use crate::driver::{DriverError, Result};

const DIR: &str = "/run/netns";
/// What `statfs` says of a namespace's file, from linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

pub(crate) fn name(vm: VmId) -> String {
    format!("hf-{vm}")
}

pub(crate) fn path(vm: VmId) -> PathBuf {
    Path::new(DIR).join(name(vm))
}

/// VMs of any instance that have a namespace, or the file of one.
pub(crate) fn list() -> Vec<VmId> {
    let entries = fs::read_dir(DIR).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("hf-")?.parse().ok())
        .collect()
}

/// Opens the namespace of a VM. A file of that name that is no namespace counts as none.
pub(crate) fn open(vm: VmId) -> Result<OwnedFd> {
    let error = |source| DriverError::io(format!("opening the network of VM {vm}"), source);
    let file = File::open(path(vm)).map_err(error)?;
    let kind = fstatfs(&file).map_err(|e| error(e.into()))?.f_type;
    if kind as i64 == NSFS_MAGIC {
        return Ok(file.into());
    }
    Err(error(io::Error::from(io::ErrorKind::NotFound)))
}

/// Runs `work` on a thread of its own inside the namespace.
pub(crate) async fn run<T: Send + 'static>(
    namespace: &Arc<OwnedFd>,
    operation: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let namespace = Arc::clone(namespace);
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("in-netns".to_owned()).spawn(move || {
        let done = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(io::Error::from)
            .and_then(|()| work());
        // Nobody waits for it any more when this fails.
        let _ = sender.send(done);
    });
    thread.map_err(|source| DriverError::io(operation, source))?;
    match receiver.await {
        Ok(done) => done.map_err(|source| DriverError::io(operation, source)),
        Err(_) => Err(DriverError::Refused {
            operation: operation.to_owned(),
            message: "the thread for it ended early".to_owned(),
        }),
    }
}

/// Whether a link of that name is in the namespace.
pub(crate) async fn has_link(namespace: &Arc<OwnedFd>, link: &'static str) -> Result<bool> {
    // /proc/thread-self/net is that of the thread's namespace; /sys would be the mount's.
    run(namespace, "listing the links of a namespace", move || {
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        Ok(table.lines().any(|l| l.split(':').next().is_some_and(|name| name.trim() == link)))
    })
    .await
}
