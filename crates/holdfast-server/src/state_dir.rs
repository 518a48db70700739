//! The state directory of a server: one server at a time, an identity for this host, and the
//! administrator's token.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use holdfast_core::HostId;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::ServerError;

/// A state directory that this process alone uses. The kernel takes the lock back when the process
/// ends, however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: fs::File,
}

impl StateDir {
    /// Makes the directory if it is missing, readable by its owner only, and locks it.
    pub fn lock(path: &Path) -> Result<Self, ServerError> {
        let failed = |why| ServerError::StateDir { path: path.to_path_buf(), why };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        // A directory that was there before may have been open to others.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let file = path.join("lock");
        let failed = |why| ServerError::StateDir { path: file.clone(), why };
        let mut lock = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(ServerError::StateDirInUse { path: path.to_path_buf(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// This host's id, made at the first start and kept.
    pub fn host_id(&self) -> Result<HostId, ServerError> {
        let file = self.path.join("host-id");
        let failed = |why| ServerError::StateDir { path: file.clone(), why };
        match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(|error: holdfast_core::id::ParseIdError| {
                failed(io::Error::new(io::ErrorKind::InvalidData, error))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = HostId::from_uuid(Uuid::now_v7());
                self.write("host-id", &format!("{id}\n"))?;
                Ok(id)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A small file of this directory; `None` when there is none.
    pub fn read(&self, name: &str) -> Result<Option<String>, ServerError> {
        let file = self.path.join(name);
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(ServerError::StateDir { path: file, why }),
        }
    }

    /// Writes a small file, readable by its owner only; it is there completely or not at all.
    pub fn write(&self, name: &str, text: &str) -> Result<(), ServerError> {
        let file = self.path.join(name);
        let failed = |why| ServerError::StateDir { path: file.clone(), why };
        let new = self.path.join(format!("{name}.new"));
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed)?;
        out.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
        fs::rename(&new, &file).map_err(failed)?;
        let dir = fs::File::open(&self.path).map_err(failed)?;
        dir.sync_all().map_err(failed)
    }

    /// Removes a small file.
    pub fn remove(&self, name: &str) -> Result<(), ServerError> {
        let file = self.path.join(name);
        match fs::remove_file(&file) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                Err(ServerError::StateDir { path: file, why })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_at_a_time_and_one_identity_for_ever() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state");
        let first = StateDir::lock(&path).expect("free");
        let id = first.host_id().expect("made");
        let refused = StateDir::lock(&path).expect_err("locked");
        let pid = std::process::id().to_string();
        assert!(
            matches!(&refused, ServerError::StateDirInUse { pid: found, .. } if *found == pid),
            "{refused}"
        );
        drop(first);
        let second = StateDir::lock(&path).expect("free again");
        assert_eq!(second.host_id().expect("kept"), id);
        let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{mode:o}");
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_host() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::lock(dir.path()).expect("free");
        state.write("host-id", "garbage").expect("written");
        assert!(state.host_id().is_err());
    }
}
