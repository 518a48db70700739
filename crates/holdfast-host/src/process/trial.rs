//! Trials: a VMM that is started to see what it prints, and ended.
//!
//! Everything that a trial has on the machine (process, control group, directory) is named after the
//! process that runs it, by pid and start time. So what a trial leaves whose runner was killed is told from
//! one that goes on, and the next process that may try something ends it ([`end_trials`]).

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Child,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::VmId;
use rustix::process::{PidfdFlags, pidfd_open};
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    Vmm, cgroup,
    identity::{self, Alive, Identity},
    name_of, pid, spawn, wait_readable,
};
use crate::{driver::DriverError, news::News};

/// Beginning of the instance that a trial belongs to: no real one is called so.
const INSTANCE: &str = "trial-";
/// Beginning of the name of a trial's directory.
const DIRECTORY: &str = "holdfast-trial-";

/// What the VMM of a trial prints to, in the trial's directory.
pub(crate) const LOG: &str = "log";

/// What came of a trial.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    /// What was waited for was printed.
    pub(crate) passed: bool,
    /// How long it took.
    took: Duration,
    /// Everything that was printed.
    pub(crate) output: String,
}

impl Trial {
    /// What came of it, as a sentence without its full stop.
    pub(crate) fn says(&self, what: &str) -> String {
        let took = self.took.as_millis();
        if self.passed {
            return format!("{what} printed its banner after {took} ms");
        }
        let output = self.output.trim();
        let end: String = output.chars().skip(output.chars().count().saturating_sub(300)).collect();
        let end = if end.is_empty() { "nothing".to_owned() } else { format!("`{end}`") };
        format!("{what} did not print its banner within {took} ms; it printed {end}")
    }
}

/// What a trial's process and control group are found by.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    instance: String,
    vm: VmId,
}

impl Mark {
    /// One for a trial that this process runs.
    pub(crate) fn new() -> io::Result<Self> {
        let instance = format!("{INSTANCE}{}", runner()?);
        Ok(Self { instance, vm: VmId::from_uuid(Uuid::new_v4()) })
    }

    /// What a VMM is to be called that loses its environment: at most 64 letters, digits and hyphens.
    pub(crate) fn name(&self) -> String {
        name_of(&self.instance, self.vm)
    }
}

/// A directory for a trial that this process runs, gone with the value.
pub fn trial_dir(within: &Path) -> io::Result<TempDir> {
    let prefix = format!("{DIRECTORY}{}-", runner()?);
    tempfile::Builder::new().prefix(&prefix).tempdir_in(within)
}

/// This process, as it is written into names.
fn runner() -> io::Result<String> {
    let me = Identity::of(std::process::id() as i32)?;
    Ok(format!("{}-{}", me.pid, me.start_ticks))
}

/// Whether a name says that the runner is one that is proven gone; `more` parts follow after it.
fn is_left(name: &str, prefix: &str, more: usize) -> bool {
    let Some(parts) = name.strip_prefix(prefix) else { return false };
    let parts: Vec<&str> = parts.split('-').collect();
    let ([pid, start_ticks], rest) = parts.split_at(2.min(parts.len())) else { return false };
    let (Ok(pid), Ok(start_ticks)) = (pid.parse(), start_ticks.parse()) else { return false };
    let runner = Identity::now(pid, start_ticks);
    rest.len() == more && matches!(runner.and_then(|of| of.alive()), Ok(Alive::No { .. }))
}

/// Starts a VMM that prints to `LOG` in the directory, and ends it when `wanted` was printed, when it ends
/// by itself, at the deadline, or when nobody waits for it any more.
pub(crate) async fn trial(
    vmm: Vmm,
    mark: Mark,
    dir: &Arc<TempDir>,
    wanted: &str,
    deadline: Duration,
) -> io::Result<Trial> {
    let log = &dir.path().join(LOG);
    let file = File::options().create(true).append(true).open(log)?;
    let began = Instant::now();
    let kept = Arc::clone(dir);
    let spawned = tokio::task::spawn_blocking(move || Running::start(vmm, mark, file, kept));
    let mut running = spawned.await.map_err(io::Error::other)??;
    let watched = watch(&running.child, log, wanted, deadline).await;
    let took = began.elapsed();
    tokio::task::spawn_blocking(move || running.end()).await.map_err(io::Error::other)??;
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    watched.map(|passed| Trial { passed, took, output })
}

/// The VMM of a trial.
struct Running {
    child: Child,
    mark: Mark,
    /// What it works in goes after it.
    _dir: Arc<TempDir>,
}

impl Running {
    fn start(vmm: Vmm, mark: Mark, log: File, dir: Arc<TempDir>) -> io::Result<Self> {
        match spawn::spawn(vmm, mark.vm, &mark.instance, log) {
            Ok(child) => Ok(Self { child, mark, _dir: dir }),
            Err(error) => {
                // The groups are made first, and may be there.
                if let Err(left) = cgroup::remove_now(&mark.instance, mark.vm) {
                    tracing::warn!(error = %left, "a trial that did not start left something");
                }
                Err(error)
            }
        }
    }

    /// Ends it and waits for that; once more does no harm.
    fn end(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        cgroup::remove_now(&self.mark.instance, self.mark.vm).map_err(io::Error::other)
    }
}

/// Whoever gave a trial up may be at its own end, so there is no later.
impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "a trial could not be ended; the next start tries again");
        }
    }
}

/// Whether the child printed what is wanted before it ended, and before the deadline.
async fn watch(child: &Child, log: &Path, wanted: &str, deadline: Duration) -> io::Result<bool> {
    let news = News::of_writes_to(log)?;
    let end = wait_readable(pidfd_open(pid(child.id() as i32)?, PidfdFlags::NONBLOCK)?);
    let deadline = tokio::time::sleep(deadline);
    tokio::pin!(end, deadline);
    let mut over = false;
    loop {
        if String::from_utf8_lossy(&fs::read(log)?).contains(wanted) {
            return Ok(true);
        }
        if over {
            return Ok(false);
        }
        // What it printed last is looked at once more.
        tokio::select! {
            written = news.next() => written?,
            ended = &mut end => over = ended.map(|()| true)?,
            () = &mut deadline => over = true,
        }
    }
}

/// Ends what trials left whose runners are gone: processes and control groups of the whole machine, and
/// directories in this one. What cannot be ended stays for the next call, and the log says so.
pub fn end_trials(within: &Path) {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        tracing::warn!(what, %error, "what a trial left cannot be removed yet");
    };
    let marked = identity::all_marked().unwrap_or_else(|error| {
        failed("a process", &error);
        Vec::new()
    });
    for (instance, _, process) in marked {
        // Names hold pids as this namespace counts them, so they say nothing of another one's.
        if is_left(&instance, INSTANCE, 0)
            && process.is_in_our_pid_namespace()
            && let Err(error) = process.kill()
        {
            failed(&format!("process {}", process.pid), &error);
        }
    }
    for instance in cgroup::instances() {
        if is_left(&instance, INSTANCE, 0)
            && let Err(error) = end_groups(&instance)
        {
            failed(&format!("the control group of {instance}"), &error);
        }
    }
    // One that does not exist holds nothing.
    for entry in fs::read_dir(within).into_iter().flatten().flatten() {
        let is_left = entry.file_name().to_str().is_some_and(|name| is_left(name, DIRECTORY, 1));
        if is_left
            && let Err(error) = fs::remove_dir_all(entry.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            failed(&entry.path().display().to_string(), &error);
        }
    }
}

fn end_groups(instance: &str) -> Result<(), DriverError> {
    cgroup::list(instance).into_iter().try_for_each(|vm| cgroup::remove_now(instance, vm))?;
    cgroup::remove_parent(instance);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_trial_left_is_removed_and_a_running_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        let running = trial_dir(home.path()).unwrap();
        let mut runner = std::process::Command::new("cat");
        let mut runner = runner.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let of = Identity::of(runner.id() as i32).unwrap();
        let left = home.path().join(format!("{DIRECTORY}{}-{}-x", of.pid, of.start_ticks));
        // The same pid was another process's before.
        let before = home.path().join(format!("{DIRECTORY}{}-{}-x", of.pid, of.start_ticks - 1));
        let other = home.path().join(format!("{DIRECTORY}{}-x", i32::MAX));
        for dir in [&left, &before, &other] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("log"), "x").unwrap();
        }
        end_trials(home.path());
        assert!(running.path().exists() && left.exists() && !before.exists());
        drop(runner.stdin.take());
        runner.wait().unwrap();
        end_trials(home.path());
        assert!(running.path().exists() && !left.exists());
        assert!(other.exists(), "a name that says nothing of a runner was understood");
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_start_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (dir, mark) = (Arc::new(trial_dir(home.path()).unwrap()), Mark::new().unwrap());
        let vmm = Vmm {
            program: home.path().join("none"),
            args: Vec::new(),
            handed: Vec::new(),
            mounts: Vec::new(),
            view: None,
            stdout: None,
            namespace: None,
            user: None,
            limits: super::super::Limits {
                memory_mib: 64,
                vcpus: 1,
                file_bytes: 1 << 20,
                batch: false,
            },
        };
        trial(vmm, mark.clone(), &dir, "anything", Duration::from_secs(1)).await.unwrap_err();
        assert!(!cgroup::list(&mark.instance).contains(&mark.vm));
    }

    #[test]
    fn the_longest_name_is_one_that_the_jailer_takes() {
        // Pids end at 2^22; so many ticks are 300 years.
        let instance = format!("{INSTANCE}{}-{}", 1 << 22, 999_999_999_999_u64);
        let longest = Mark { instance, ..Mark::new().unwrap() }.name();
        let takes = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        assert!(longest.len() <= 64 && longest.bytes().all(takes), "{longest}");
        let mark = Mark::new().unwrap();
        assert!(!is_left(&mark.instance, INSTANCE, 0));
        assert!(is_left(&format!("{INSTANCE}{}-1", std::process::id()), INSTANCE, 0));
    }
}
