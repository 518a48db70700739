//! Control groups of VMMs, outside the server's own, so that VMMs never stand in the way of its restart.
//!
//! Version 2 where it has controllers, version 1 otherwise; limits are left out where the hierarchy
//! cannot be written, as in most containers.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_core::VmId;

use super::Limits;
use crate::driver::{DriverError, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// Before the name of an instance in that of its groups.
const PREFIX: &str = "holdfast-";
/// Takes a process with all its threads.
const WHOLE: &str = "cgroup.procs";
/// Takes a thread. A single one that moves itself waits for nobody; the kernel lets a whole process move
/// only while no other one on the machine forks or ends, and waits some 15 ms for that.
const SINGLE: &str = "tasks";
/// Most threads and processes of a VMM.
const PIDS: u32 = 256;
/// An empty group can be removed at once; one whose last process just died, a moment later.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// A hierarchy, with what to write for given limits.
struct Hierarchy {
    root: PathBuf,
    settings: Settings,
    entrance: &'static str,
}

/// File names and values for given limits.
type Settings = fn(Limits) -> Vec<(&'static str, String)>;

/// What keeps a VM from moving what is beyond its limit to the host's swap. There only where the kernel
/// accounts for swapped memory; the other limits hold without.
const NO_SWAP: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

fn hierarchies() -> Vec<Hierarchy> {
    let root = Path::new(ROOT);
    if fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|c| c.contains("memory")) {
        return vec![Hierarchy {
            root: root.to_owned(),
            entrance: WHOLE,
            settings: |limits| {
                vec![
                    ("memory.max", (limits.memory_mib << 20).to_string()),
                    ("memory.swap.max", "0".to_owned()),
                    ("pids.max", PIDS.to_string()),
                    ("cpu.weight", (u32::from(limits.vcpus) * 50).clamp(1, 10_000).to_string()),
                ]
            },
        }];
    }
    let version_1: [(&str, Settings); 3] = [
        ("memory", |limits| {
            // The second counts memory and swap together, and may not be below the first.
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
                .map(|file| (file, (limits.memory_mib << 20).to_string()))
                .to_vec()
        }),
        ("pids", |_| vec![("pids.max", PIDS.to_string())]),
        ("cpu", |limits| vec![("cpu.shares", (u32::from(limits.vcpus) * 512).to_string())]),
    ];
    version_1
        .into_iter()
        .map(|(name, settings)| Hierarchy { root: root.join(name), entrance: SINGLE, settings })
        .filter(|hierarchy| hierarchy.root.join(SINGLE).exists())
        .collect()
}

fn parent(hierarchy: &Hierarchy, instance: &str) -> PathBuf {
    hierarchy.root.join(format!("{PREFIX}{instance}"))
}

/// Makes the VM's groups and answers the files through which a process of one thread enters them. A hierarchy that
/// does not take the limits is left out: the VM runs without them, and the log says so.
pub(super) fn make(instance: &str, vm: VmId, limits: Limits) -> Vec<File> {
    let mut entrances = Vec::new();
    for hierarchy in hierarchies() {
        match enter(&hierarchy, instance, vm, limits) {
            Ok(entrance) => entrances.push(entrance),
            Err(error) => {
                let hierarchy = hierarchy.root.display();
                tracing::warn!(%vm, %hierarchy, %error, "limits cannot be set here");
            }
        }
    }
    entrances
}

fn enter(hierarchy: &Hierarchy, instance: &str, vm: VmId, limits: Limits) -> io::Result<File> {
    let parent = parent(hierarchy, instance);
    let group = parent.join(vm.to_string());
    fs::create_dir_all(&group)?;
    // Version 2 hands controllers down by name; version 1 has no such file.
    for dir in [&hierarchy.root, &parent] {
        let control = dir.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(control, "+memory +pids +cpu")?;
        }
    }
    for (file, value) in (hierarchy.settings)(limits) {
        let path = group.join(file);
        match fs::write(&path, value) {
            Err(error) if NO_SWAP.contains(&file) => {
                if path.exists() {
                    tracing::warn!(path = %path.display(), %error, "swap cannot be limited here");
                }
            }
            written => written?,
        }
    }
    File::options().write(true).open(group.join(hierarchy.entrance))
}

/// Removes the VM's groups; they need not be there. No process may be in them.
pub(super) async fn remove(instance: &str, vm: VmId) -> Result<()> {
    let instance = instance.to_owned();
    let removed = tokio::task::spawn_blocking(move || remove_now(&instance, vm)).await;
    removed.map_err(|e| DriverError::io("removing control groups", io::Error::other(e)))?
}

/// The same for whoever may wait without a runtime.
pub(super) fn remove_now(instance: &str, vm: VmId) -> Result<()> {
    for hierarchy in hierarchies() {
        let group = parent(&hierarchy, instance).join(vm.to_string());
        let began = std::time::Instant::now();
        loop {
            match fs::remove_dir(&group) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound || unwritable(&error) => {
                    break;
                }
                Err(_) if began.elapsed() < REMOVE_DEADLINE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    return Err(DriverError::io(format!("removing {}", group.display()), error));
                }
            }
        }
    }
    remove_parent(instance);
    Ok(())
}

/// Removes what the groups of an instance are in, once there are none any more.
pub(super) fn remove_parent(instance: &str) {
    for hierarchy in hierarchies() {
        let _ = fs::remove_dir(parent(&hierarchy, instance));
    }
}

fn unwritable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Instances that have groups.
pub(super) fn instances() -> BTreeSet<String> {
    let names = |hierarchy: Hierarchy| fs::read_dir(hierarchy.root).into_iter().flatten();
    let entries = hierarchies().into_iter().flat_map(names);
    entries
        .filter_map(|entry| {
            Some(entry.ok()?.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned())
        })
        .collect()
}

/// VMs that have a group of this instance.
pub(crate) fn list(instance: &str) -> Vec<VmId> {
    let names =
        |hierarchy: Hierarchy| fs::read_dir(parent(&hierarchy, instance)).into_iter().flatten();
    hierarchies()
        .into_iter()
        .flat_map(names)
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}
