//! VMM processes: started so that they outlive this one, found again by what names them for ever, and
//! ended on evidence alone.
//!
//! `process.json` is written twice: before the fork (without a pid) and after. A crash between the two
//! leaves a process that nobody recorded; it is found by the mark in its environment. No process outlives
//! the machine's own crash, so nothing of this is synced. The VM's
//! directory is locked from before the fork until the child has become the VMM, so that nobody looks
//! for it in between.

mod cgroup;
mod console;
mod identity;
mod spawn;
mod trial;
mod view;

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_core::{Timestamp, VmId};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

pub(crate) use self::{
    cgroup::list as cgroups,
    identity::name_of,
    spawn::{OPEN_FILES, open_tap},
    trial::{LOG as TRIAL_LOG, Mark, Trial, trial},
};
pub use self::{
    identity::{Alive, Identity},
    spawn::{Handed, Limits, Mount, Vmm},
    trial::{end_trials, trial_dir},
    view::View,
};
use crate::{
    driver::{DriverError, Process, Result},
    files,
    statedir::{StateDir, UPPER, VMM_LOG, VmDir},
};

const RECORD: &str = "process.json";
const EXIT: &str = "exit.json";
/// How much of the console is searched for what it says of the end.
const CONSOLE_BYTES: usize = 16 * 1024;
/// A killed process is gone after this long, unless the kernel holds it.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What `process.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// `None`: about to be started.
    identity: Option<Identity>,
    /// What the driver wants to know of it later.
    note: String,
    at: Timestamp,
}

/// What `exit.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Exit {
    identity: Identity,
    why: String,
}

/// The VMM processes of one instance.
#[derive(Debug, Clone)]
pub struct Processes {
    instance: String,
    /// How the children of this very process end.
    children: Arc<Mutex<HashMap<VmId, watch::Receiver<Option<String>>>>>,
}

impl Processes {
    /// The processes of an instance.
    pub fn new(state: &StateDir) -> Self {
        Self { instance: state.instance().to_owned(), children: Arc::default() }
    }

    /// Those of another instance.
    pub(crate) fn of(instance: &str) -> Self {
        Self { instance: instance.to_owned(), children: Arc::default() }
    }

    /// Starts a VMM. There must be none of this VM.
    pub async fn spawn(&self, dir: &VmDir, vmm: Vmm, note: &str) -> Result<Identity> {
        let vm = dir.id();
        let error = move |e| DriverError::io(format!("starting the VMM of VM {vm}"), e);
        let log =
            File::options().create(true).append(true).open(dir.file(VMM_LOG)).map_err(error)?;
        files::remove_if_there(&dir.file(EXIT)).map_err(error)?;
        let record = Record { identity: None, note: note.to_owned(), at: Timestamp::now() };
        files::replace_json(&dir.file(RECORD), &record).map_err(error)?;
        let (instance, path) = (self.instance.clone(), dir.path().to_owned());
        let program = vmm.program.display().to_string();
        let (mut child, identity) = tokio::task::spawn_blocking(move || {
            let lock = File::open(&path)?;
            flock(&lock, FlockOperation::LockExclusive)?;
            let child = spawn::spawn(vmm, vm, &instance, log)?;
            let identity = Identity::of(child.id() as i32)?;
            let record = Record { identity: Some(identity.clone()), ..record };
            files::replace_json(&path.join(RECORD), &record)?;
            Ok::<_, io::Error>((child, identity))
        })
        .await
        .map_err(|e| error(io::Error::other(e)))?
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DriverError::Missing {
                program,
                remedy: "install it, or configure where it is".to_owned(),
            },
            _ => error(source),
        })?;

        let (sender, receiver) = watch::channel(None);
        self.children.lock().unwrap_or_else(PoisonError::into_inner).insert(vm, receiver);
        let pidfd =
            pidfd_open(identity.raw(), PidfdFlags::NONBLOCK).map_err(|e| error(e.into()))?;
        let (exit, of) = (dir.file(EXIT), identity.clone());
        tokio::spawn(async move {
            let ended = wait_readable(pidfd).await.map(|()| of.ended());
            let why = match ended {
                Ok(Some(status)) => status.to_string(),
                Ok(None) => "how could not be read".to_owned(),
                Err(error) => format!("its end could not be read: {error}"),
            };
            // The directory may be gone by now, and the evidence with it. Kept before the process is reaped:
            // until then it tells whoever looks itself.
            let _ = files::replace_json(&exit, &Exit { identity: of, why: why.clone() });
            let _ = child.try_wait();
            let _ = sender.send(Some(why));
        });
        Ok(identity)
    }

    /// What is known of the VM's process. The machine is searched when a start was interrupted.
    pub fn look(&self, dir: &VmDir) -> Process {
        match self.identify(dir) {
            Ok(None) => Process::NotStarted,
            Ok(Some(identity)) => match identity.alive() {
                Ok(Alive::Yes { stopped }) => Process::Running {
                    pid: identity.pid,
                    start_ticks: identity.start_ticks,
                    stopped,
                },
                Ok(Alive::No { why }) => {
                    Process::Exited { why: Self::last_words(dir, &identity, &why) }
                }
                Err(error) => {
                    Process::Unknown { why: format!("the process could not be read: {error}") }
                }
            },
            Err(error) => {
                Process::Unknown { why: format!("its record could not be read: {error}") }
            }
        }
    }

    /// The VM's process, whether it still lives or not.
    pub fn identify(&self, dir: &VmDir) -> io::Result<Option<Identity>> {
        match read_record(dir)? {
            Some(Record { identity: Some(identity), .. }) => Ok(Some(identity)),
            Some(record) => {
                // Whoever holds the lock has forked and not finished; it is a matter of milliseconds.
                let lock = File::open(dir.path())?;
                flock(&lock, FlockOperation::LockShared)?;
                let again = read_record(dir)?;
                if let Some(identity) = again.and_then(|record| record.identity) {
                    return Ok(Some(identity));
                }
                let found =
                    identity::marked(&self.instance)?.into_iter().find(|(vm, _)| *vm == dir.id());
                if let Some((_, identity)) = &found {
                    let record = Record { identity: Some(identity.clone()), ..record };
                    files::replace_json(&dir.file(RECORD), &record)?;
                }
                Ok(found.map(|(_, identity)| identity))
            }
            None if dir.exists() => Ok(None),
            // Without a directory only the machine itself can tell.
            None => {
                let found = identity::marked(&self.instance)?;
                Ok(found.into_iter().find(|(vm, _)| *vm == dir.id()).map(|(_, identity)| identity))
            }
        }
    }

    /// What the driver noted at the start.
    pub fn note(&self, dir: &VmDir) -> Option<String> {
        files::read_json::<Record>(&dir.file(RECORD)).ok().flatten().map(|record| record.note)
    }

    /// Whether a process of the instance works on a disk that still has a name somewhere.
    pub(crate) fn keep_a_disk(&self) -> Result<bool> {
        let found = identity::marked(&self.instance)
            .map_err(|e| DriverError::io("searching the processes", e))?;
        Ok(found.into_iter().any(|(_, identity)| {
            let open = fs::read_dir(format!("/proc/{}/fd", identity.pid));
            open.into_iter().flatten().flatten().any(|entry| {
                let is_disk = fs::read_link(entry.path())
                    .is_ok_and(|file| file.to_string_lossy().contains(UPPER));
                is_disk && fs::metadata(entry.path()).is_ok_and(|meta| meta.nlink() > 0)
            })
        }))
    }

    /// VMs that have a process marked with this instance.
    pub fn list(&self) -> Result<Vec<VmId>> {
        let found = identity::marked(&self.instance)
            .map_err(|e| DriverError::io("searching the processes", e))?;
        Ok(found.into_iter().map(|(vm, _)| vm).collect())
    }

    /// Waits until the VM's process has ended, and says how.
    pub async fn wait_exit(&self, dir: &VmDir) -> Result<String> {
        let vm = dir.id();
        let error = move |e| DriverError::io(format!("waiting for the VMM of VM {vm}"), e);
        let Some(identity) = self.identify(dir).map_err(error)? else {
            return Err(DriverError::Refused {
                operation: format!("waiting for the VMM of VM {vm}"),
                message: "it was not started".to_owned(),
            });
        };
        self.gone(dir, &identity).await.map_err(error)
    }

    async fn gone(&self, dir: &VmDir, identity: &Identity) -> io::Result<String> {
        if let Some(pidfd) = identity.open()? {
            wait_readable(pidfd).await?;
        }
        let child =
            self.children.lock().unwrap_or_else(PoisonError::into_inner).get(&dir.id()).cloned();
        if let Some(mut child) = child {
            // Our own child: how it ended is known as soon as it is reaped.
            let _ = child.wait_for(Option::is_some).await;
        }
        Ok(Self::last_words(
            dir,
            identity,
            "how is not known: another server process had started it",
        ))
    }

    fn last_words(dir: &VmDir, identity: &Identity, fallback: &str) -> String {
        let kept = || {
            let exit: Option<Exit> = files::read_json(&dir.file(EXIT)).ok().flatten();
            exit.filter(|exit| exit.identity == *identity).map(|exit| exit.why)
        };
        // Kept, then reaped: what is not there before a look at the process may be there after it.
        let how = kept()
            .or_else(|| identity.ended().map(|status| status.to_string()))
            .or_else(kept)
            .unwrap_or_else(|| fallback.to_owned());
        let mut why = format!("the VMM ended ({how})");
        let said = files::tail(&dir.file(VMM_LOG), 600).unwrap_or_default();
        if !said.trim().is_empty() {
            let _ = write!(why, "; it said: {}", said.trim());
        }
        let console = dir.console(CONSOLE_BYTES).unwrap_or_default();
        if let Some(line) = console::telling(&console) {
            let _ = write!(why, "; the guest's console says: {line}");
        }
        why
    }

    /// Sends a signal to the VM's process; `false` when it has none that lives.
    pub fn signal(&self, dir: &VmDir, signal: Signal) -> Result<bool> {
        let vm = dir.id();
        let error = move |e| DriverError::io(format!("signalling the VMM of VM {vm}"), e);
        let Some(identity) = self.identify(dir).map_err(error)? else { return Ok(false) };
        let Some(pidfd) = identity.open().map_err(error)? else { return Ok(false) };
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(error(errno.into())),
        }
    }

    /// Waits for the end, at most this long; `false` when it still lives then.
    pub async fn ended_within(&self, dir: &VmDir, deadline: Duration) -> Result<bool> {
        let vm = dir.id();
        let error = move |e| DriverError::io(format!("waiting for the VMM of VM {vm}"), e);
        let Some(identity) = self.identify(dir).map_err(error)? else { return Ok(true) };
        match tokio::time::timeout(deadline, self.gone(dir, &identity)).await {
            Ok(gone) => gone.map(|_| true).map_err(error),
            Err(_) => Ok(false),
        }
    }

    /// Kills the VM's process, waits until it is gone, and forgets it: the VM may be started again.
    pub async fn kill(&self, dir: &VmDir) -> Result<()> {
        if self.signal(dir, Signal::KILL)? && !self.ended_within(dir, KILL_DEADLINE).await? {
            return Err(DriverError::Timeout {
                operation: format!("the end of the killed VMM of VM {}", dir.id()),
                after: KILL_DEADLINE,
            });
        }
        cgroup::remove(&self.instance, dir.id()).await?;
        let forget = files::remove_if_there(&dir.file(RECORD))
            .and_then(|()| files::remove_if_there(&dir.file(EXIT)));
        self.children.lock().unwrap_or_else(PoisonError::into_inner).remove(&dir.id());
        forget.map_err(|e| DriverError::io(format!("forgetting the VMM of VM {}", dir.id()), e))
    }
}

/// The record of a VM's process. One that cannot be understood, as of another version, says that there
/// may be one: the machine is searched for it.
fn read_record(dir: &VmDir) -> io::Result<Option<Record>> {
    match files::read_json(&dir.file(RECORD)) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Ok(Some(Record { identity: None, note: String::new(), at: Timestamp::UNIX_EPOCH }))
        }
        read => read,
    }
}

#[allow(unsafe_code, reason = "registering a descriptor with the runtime")]
pub(crate) async fn wait_readable(file: OwnedFd) -> io::Result<()> {
    // SAFETY: an `OwnedFd` keeps one open descriptor until it is dropped, which is with the `AsyncFd`.
    let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
    file.map_err(|refused| refused.into_parts().1)?.readable().await.map(|_| ())
}

/// A pid as the kernel's calls want it.
fn pid(raw: i32) -> io::Result<Pid> {
    Pid::from_raw(raw).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
