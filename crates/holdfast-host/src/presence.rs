//! Which instances there are on this machine, so that what an instance can never come back to is found.
//!
//! Owns `/run/holdfast/instances/<instance>.json`: where the instance's state directory is. The file is
//! locked while a process of the instance lives. An instance is *abandoned* when nobody holds its lock
//! and its state directory is gone: no server can take its VMs over any more. What cannot be determined
//! is not abandoned. An instance that is merely stopped has its state directory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    driver::{DriverError, Result},
    files,
    statedir::StateDir,
};

/// What an instance says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    state_dir: PathBuf,
    /// The file system of the state directory. Where that is not mounted now, nothing is known.
    device: u64,
    /// The mount namespace that the path is meant in, as the kernel names it.
    mounts: String,
}

/// This instance among those of the machine.
#[derive(Debug)]
pub(crate) struct Presence {
    dir: PathBuf,
    instance: String,
    mounts: String,
    /// Says that this process lives.
    _lock: File,
}

impl Presence {
    /// Says that this instance is here, until it is dropped or the process ends.
    pub(crate) fn announce(dir: &Path, state: &StateDir) -> Result<Self> {
        let error = |source| DriverError::io("announcing this instance", source);
        fs::create_dir_all(dir).map_err(error)?;
        let instance = state.instance().to_owned();
        let mounts = mount_namespace().map_err(error)?;
        let device = fs::metadata(state.root()).map_err(error)?.dev();
        let record = Record { state_dir: state.root().to_owned(), device, mounts: mounts.clone() };
        let path = file(dir, &instance);
        let lock = loop {
            if read(&path).map_err(error)?.as_ref() != Some(&record) {
                files::write_json(&path, &record).map_err(error)?;
            }
            let Ok(lock) = File::open(&path) else { continue };
            flock(&lock, FlockOperation::LockShared).map_err(|e| error(e.into()))?;
            // Somebody may have written or removed it in between.
            let same = fs::metadata(&path)
                .is_ok_and(|now| lock.metadata().is_ok_and(|held| held.ino() == now.ino()));
            if same {
                break lock;
            }
        };
        Ok(Self { dir: dir.to_owned(), instance, mounts, _lock: lock })
    }

    /// Instances that nobody can come back to.
    pub(crate) fn abandoned(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let instance = name.to_str()?.strip_suffix(".json")?.to_owned();
                let own = instance == self.instance;
                (!own && self.is_abandoned(&instance)).then_some(instance)
            })
            .collect()
    }

    fn is_abandoned(&self, instance: &str) -> bool {
        let path = file(&self.dir, instance);
        let Ok(Some(record)) = read(&path) else { return false };
        if record.mounts != self.mounts {
            return false;
        }
        let lives = match File::open(&path) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
            Err(_) => true,
        };
        !lives && is_gone(&record, instance)
    }

    /// Forgets an abandoned instance of which nothing is left.
    pub(crate) fn forget(&self, instance: &str) {
        if self.is_abandoned(instance) {
            // It is looked at again next time.
            let _ = fs::remove_file(file(&self.dir, instance));
        }
    }
}

/// Whether the state directory is proven gone: its file system is there, and nothing of that instance is
/// at its place.
fn is_gone(record: &Record, instance: &str) -> bool {
    match fs::read_to_string(record.state_dir.join("instance")) {
        Ok(text) => return text != instance && !text.is_empty(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return false,
    }
    let existing = record.state_dir.ancestors().find_map(|dir| fs::metadata(dir).ok());
    existing.is_some_and(|meta| meta.dev() == record.device)
}

fn file(dir: &Path, instance: &str) -> PathBuf {
    dir.join(format!("{instance}.json"))
}

/// A record that cannot be understood counts as none.
fn read(path: &Path) -> io::Result<Option<Record>> {
    match files::read_json(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        read => read,
    }
}

fn mount_namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/mnt")?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_instance_that_is_gone_for_good_is_abandoned() {
        let (run, homes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let here = |name: &str| {
            let state = StateDir::open(&homes.path().join(name)).unwrap();
            let presence = Presence::announce(run.path(), &state).unwrap();
            (state.instance().to_owned(), presence)
        };
        let (_, me) = here("me");
        let (live, of_live) = here("live");
        let (stopped, of_stopped) = here("stopped");
        let (gone, of_gone) = here("gone");
        drop((of_stopped, of_gone));
        assert_eq!(me.abandoned(), Vec::<String>::new());
        fs::remove_dir_all(homes.path().join("gone")).unwrap();
        // Also of one whose process lives, which may have its reasons.
        fs::remove_dir_all(homes.path().join("live")).unwrap();
        assert_eq!(me.abandoned(), [gone.as_str()]);
        me.forget(&stopped);
        me.forget(&live);
        me.forget(&gone);
        assert_eq!(me.abandoned(), Vec::<String>::new());
        drop(of_live);
        assert_eq!(me.abandoned(), [live]);
        // Another one moved in where it was.
        let (_, _of_next) = here("stopped");
        fs::remove_dir_all(homes.path().join("stopped")).unwrap();
        let (_, _of_another) = here("stopped");
        assert!(!me.abandoned().contains(&stopped), "a process of it lives");
    }

    #[test]
    fn a_file_system_that_is_not_there_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("away");
        let device = fs::metadata(dir.path()).unwrap().dev();
        let record = Record { state_dir, device, mounts: String::new() };
        assert!(is_gone(&record, "0123abcd"));
        assert!(!is_gone(&Record { device: device + 1, ..record }, "0123abcd"));
    }
}
