//! Trials: a VMM that is started to see what it prints, and ended.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use holdfast_core::VmId;
use rustix::process::{PidfdFlags, pidfd_open};
use uuid::Uuid;

use super::{Vmm, cgroup, pid, spawn, wait_readable};
use crate::news::News;

/// What came of a trial.
#[derive(Debug, Clone)]
pub struct Trial {
    /// What was waited for was printed.
    pub passed: bool,
    /// How long it took.
    pub took: Duration,
    /// Everything that was printed.
    pub output: String,
}

impl Trial {
    /// What came of it, as a sentence without its full stop.
    pub fn says(&self, what: &str) -> String {
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

/// Starts a VMM that prints to `log`, and ends it when `wanted` was printed, when it ends by itself, or
/// at the deadline.
pub async fn trial(vmm: Vmm, log: &Path, wanted: &str, deadline: Duration) -> io::Result<Trial> {
    let file = File::options().create(true).append(true).open(log)?;
    let vm = VmId::from_uuid(Uuid::new_v4());
    // No instance of that name exists, so nobody takes it for a leftover.
    let instance = format!("trial-{vm}");
    let began = Instant::now();
    let mut child = {
        let instance = instance.clone();
        let spawned = tokio::task::spawn_blocking(move || spawn::spawn(vmm, vm, &instance, file));
        spawned.await.map_err(io::Error::other)??
    };
    let watched = watch(&child, log, wanted, deadline).await;
    let took = began.elapsed();
    child.kill()?;
    tokio::task::spawn_blocking(move || child.wait()).await.map_err(io::Error::other)??;
    cgroup::remove(&instance, vm).await.map_err(io::Error::other)?;
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    watched.map(|passed| Trial { passed, took, output })
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
