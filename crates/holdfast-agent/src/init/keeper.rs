//! Keeps child processes alive and watches that they do not hang.
//!
//! A child's standard output is its line to the keeper: it writes [`BEAT`] every few seconds, and
//! [`POWER_OFF`] when the guest shall be switched off. A child that was silent for [`HANG`] is
//! killed, also when it was stopped by a signal, and started again like one that ended.

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait},
};

use super::say;

/// What a child writes while it is well.
pub const BEAT: u8 = b'.';
/// What a child writes to have the guest switched off.
pub const POWER_OFF: u8 = b'p';
/// How often a child writes [`BEAT`].
pub const BEAT_EVERY: Duration = Duration::from_secs(3);
/// Silence after which a child is taken to hang.
pub const HANG: Duration = Duration::from_secs(15);
/// The same before its first beat: a machine that has just started is slow.
const FIRST_BEAT: Duration = Duration::from_mins(1);
/// A child that lived this long is started again at once.
const STEADY: Duration = Duration::from_secs(10);
/// Longest wait before a start.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Environment variable with the number of times that a child was started again.
pub const RESTARTS_VARIABLE: &str = "HOLDFAST_RESTARTS";
/// Environment variable with the reason of the last end.
pub const REASON_VARIABLE: &str = "HOLDFAST_LAST_END";

/// A child to keep.
#[derive(Debug, Clone)]
pub struct Part {
    /// For messages.
    pub name: &'static str,
    /// What to start.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// The keeper of a set of children.
#[derive(Debug)]
pub struct Keeper {
    children: Vec<Kept>,
    hang: Duration,
    first_beat: Duration,
}

#[derive(Debug)]
struct Kept {
    part: Part,
    running: Option<Running>,
    start_at: Instant,
    delay: Duration,
    restarts: u32,
    reason: String,
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    /// `None` once the child closed it.
    line: Option<File>,
    started: Instant,
    last_beat: Option<Instant>,
}

impl Keeper {
    /// A keeper of `parts`, none of which runs yet.
    pub fn new(parts: Vec<Part>) -> Self {
        let now = Instant::now();
        let children = parts
            .into_iter()
            .map(|part| Kept {
                part,
                running: None,
                start_at: now,
                delay: Duration::ZERO,
                restarts: 0,
                reason: String::new(),
            })
            .collect();
        Self { children, hang: HANG, first_beat: FIRST_BEAT }
    }

    /// The same with other limits for silence.
    pub fn with_limits(mut self, hang: Duration, first_beat: Duration) -> Self {
        self.hang = hang;
        self.first_beat = first_beat;
        self
    }

    /// Keeps the children until one of them asks for the power to be switched off.
    pub fn run(&mut self) {
        while !self.turn() {}
    }

    /// Ids of the children that run, by name.
    pub fn pids(&self) -> Vec<(&'static str, i32)> {
        let running = |kept: &Kept| Some((kept.part.name, kept.running.as_ref()?.pid.as_raw_pid()));
        self.children.iter().filter_map(running).collect()
    }

    /// One round: start what is due, wait up to a second for news, read lines, reap, kill what hangs.
    /// Says whether to switch off.
    pub fn turn(&mut self) -> bool {
        let now = Instant::now();
        for kept in &mut self.children {
            if kept.running.is_none() && kept.start_at <= now {
                kept.start();
            }
        }
        self.wait_for_news();
        let mut power_off = false;
        for kept in &mut self.children {
            power_off |= kept.read_line();
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(kept) = self.children.iter_mut().find(|kept| kept.is(pid)) {
                kept.ended(status);
            }
        }
        for kept in &mut self.children {
            kept.kill_if_hung(self.hang, self.first_beat);
        }
        power_off
    }

    fn wait_for_news(&self) {
        let lines = self.children.iter().filter_map(|kept| kept.running.as_ref()?.line.as_ref());
        let mut lines: Vec<_> = lines.map(|line| PollFd::new(line, PollFlags::IN)).collect();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut lines, Some(&second));
    }
}

impl Kept {
    fn is(&self, pid: Pid) -> bool {
        self.running.as_ref().is_some_and(|running| running.pid == pid)
    }

    fn start(&mut self) {
        let spawned = Command::new(&self.part.program)
            .args(&self.part.arguments)
            .env(RESTARTS_VARIABLE, self.restarts.to_string())
            .env(REASON_VARIABLE, &self.reason)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        match spawned {
            Ok(mut child) => {
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                let line = child.stdout.take().map(|out| File::from(OwnedFd::from(out)));
                if let (Some(pid), Some(line)) = (pid, line) {
                    // A line that blocks would stop the keeper of all.
                    let _ = rustix::io::ioctl_fionbio(&line, true);
                    let (line, started) = (Some(line), Instant::now());
                    self.running = Some(Running { pid, line, started, last_beat: None });
                }
            }
            Err(error) => {
                say(&format!("cannot start {}: {error}", self.part.name));
                self.reason = error.to_string();
                self.postpone();
            }
        }
    }

    fn read_line(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let Some(line) = &mut running.line else { return false };
        let mut bytes = [0; 64];
        match line.read(&mut bytes) {
            Ok(0) => {
                running.line = None;
                false
            }
            Ok(count) => {
                running.last_beat = Some(Instant::now());
                bytes[..count].contains(&POWER_OFF)
            }
            Err(_) => false,
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        let Some(running) = self.running.take() else { return };
        self.reason = match status.terminating_signal() {
            Some(signal) => format!("killed by signal {signal}"),
            None => format!("ended with exit code {}", status.exit_status().unwrap_or(-1)),
        };
        say(&format!("{} {}; starting it again", self.part.name, self.reason));
        self.restarts += 1;
        if running.started.elapsed() >= STEADY {
            self.delay = Duration::ZERO;
        }
        self.postpone();
    }

    fn postpone(&mut self) {
        self.start_at = Instant::now() + self.delay;
        self.delay = (self.delay * 2).clamp(Duration::from_millis(250), LONGEST_DELAY);
    }

    fn kill_if_hung(&mut self, hang: Duration, first_beat: Duration) {
        let Some(running) = &mut self.running else { return };
        let (since, limit) = match running.last_beat {
            Some(beat) => (beat, hang),
            None => (running.started, first_beat),
        };
        if since.elapsed() > limit {
            say(&format!("{} was silent for {} s; killing it", self.part.name, limit.as_secs()));
            let _ = kill_process(running.pid, Signal::KILL);
            // It is dead in a moment; what cannot be killed is tried again later.
            running.last_beat = Some(Instant::now());
        }
    }
}

/// Reaps what has ended; says whether there are children left.
pub(super) fn reap_all() -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Part {
        Part { name: "part", program: "/bin/sh".into(), arguments: vec!["-c".into(), text.into()] }
    }

    /// Turns until `done`, for at most ten seconds.
    fn turn_until(keeper: &mut Keeper, mut done: impl FnMut(&mut Keeper) -> bool) {
        let start = Instant::now();
        while !done(keeper) {
            assert!(start.elapsed() < Duration::from_secs(10), "nothing happened: {keeper:?}");
            assert!(!keeper.turn(), "no one asked for the power to be switched off");
        }
    }

    fn pid(keeper: &Keeper) -> Option<i32> {
        keeper.pids().first().map(|(_, pid)| *pid)
    }

    fn kill(pid: i32, signal: Signal) {
        kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("it runs");
    }

    #[test]
    fn a_killed_child_is_started_again_and_told_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        let text = format!(
            "echo \"$HOLDFAST_RESTARTS:$HOLDFAST_LAST_END\" >> {0}; while :; do echo .; sleep 0.1; done",
            log.display()
        );
        let mut keeper = Keeper::new(vec![script(&text)]);
        let lines = |n| {
            let log = log.clone();
            move |_: &mut Keeper| {
                std::fs::read_to_string(&log).unwrap_or_default().lines().count() == n
            }
        };
        turn_until(&mut keeper, lines(1));
        let first = pid(&keeper).expect("it runs");
        kill(first, Signal::KILL);
        turn_until(&mut keeper, lines(2));
        assert_ne!(pid(&keeper), Some(first));
        let text = std::fs::read_to_string(&log).expect("a log");
        assert_eq!(text, "0:\n1:killed by signal 9\n");
        kill(pid(&keeper).expect("it runs"), Signal::KILL);
    }

    #[test]
    fn a_stopped_child_is_replaced() {
        let part = script("while :; do echo .; sleep 0.1; done");
        let mut keeper = Keeper::new(vec![part])
            .with_limits(Duration::from_millis(800), Duration::from_secs(10));
        turn_until(&mut keeper, |keeper| {
            keeper.children[0].running.as_ref().is_some_and(|r| r.last_beat.is_some())
        });
        let first = pid(&keeper).expect("it runs");
        kill(first, Signal::STOP);
        turn_until(&mut keeper, |keeper| pid(keeper).is_some_and(|now| now != first));
        kill(pid(&keeper).expect("it runs"), Signal::KILL);
    }

    #[test]
    fn a_child_that_cannot_live_is_not_started_in_a_loop() {
        let mut keeper = Keeper::new(vec![script("exit 3")]);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            keeper.turn();
        }
        let restarts = keeper.children[0].restarts;
        assert!((2..=6).contains(&restarts), "{restarts} starts in two seconds");
        assert_eq!(keeper.children[0].reason, "ended with exit code 3");
    }

    #[test]
    fn a_missing_program_is_no_panic_and_power_off_is_heard() {
        let missing = Part { name: "none", program: "/nonexistent".into(), arguments: vec![] };
        let mut keeper = Keeper::new(vec![missing, script("printf p; exec sleep 60")]);
        let start = Instant::now();
        while !keeper.turn() {
            assert!(start.elapsed() < Duration::from_secs(10), "the request was not heard");
        }
        kill(pid(&keeper).expect("it runs"), Signal::KILL);
    }
}
