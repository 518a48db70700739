//! Finds processes by their mark and their ancestry and ends them: what a service, terminal or run started
//! is gone with it, also what left its process group or session, or wrote over its environment.

use std::{collections::BTreeSet, fs, os::unix::ffi::OsStrExt, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// Environment variable that marks the processes of a service, terminal or run. Inherited by children.
pub const MARK: &str = "HOLDFAST_MARK";

/// Processes that carry `MARK=mark` in the environment they were started with, or belong to the session or
/// the process group that `leader` leads or led; and what these have started, with its groups: a program may
/// write over its environment, as every child of Chromium does. The mark may end with `*`.
pub fn find(mark: &str, leader: Option<u32>) -> Vec<u32> {
    let all = processes();
    let led = |process: &Process| {
        leader.is_some_and(|leader| process.session == leader || process.group == leader)
    };
    let mut found: BTreeSet<u32> = all
        .iter()
        .filter(|process| led(process) || marked(process.pid, mark))
        .map(|process| process.pid)
        .collect();
    loop {
        let before = found.len();
        for process in &all {
            if found.contains(&process.parent) || found.contains(&process.group) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

/// What /proc tells of a process.
struct Process {
    pid: u32,
    parent: u32,
    group: u32,
    session: u32,
}

/// All but this program, PID 1 and those that have ended.
fn processes() -> Vec<Process> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && *pid != 1)
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = after_name(&stat)?;
            let alive = !matches!(fields.next()?, "Z" | "X");
            let mut number = || fields.next()?.parse().ok();
            let (parent, group, session) = (number()?, number()?, number()?);
            alive.then_some(Process { pid, parent, group, session })
        })
        .collect()
}

fn marked(pid: u32, mark: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|byte| *byte == 0).any(|entry| {
        let Some(value) =
            entry.strip_prefix(MARK.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        else {
            return false;
        };
        match mark.strip_suffix('*') {
            Some(start) => value.starts_with(start.as_bytes()),
            None => value == std::ffi::OsStr::new(mark).as_bytes(),
        }
    })
}

/// Fields of a `stat` of /proc from the state on. The name before may contain blanks and brackets.
pub fn after_name(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat[stat.rfind(')')? + 1..].split_ascii_whitespace())
}

/// Sends a signal to a process; one that has ended is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Ends all that [`find`] finds: SIGTERM and SIGHUP first, SIGKILL after `grace`. Returns once none is
/// left, or after five more seconds with the number of those that cannot be killed.
pub async fn end(mark: &str, leader: Option<u32>, grace: Duration) -> usize {
    let start = Instant::now();
    if !grace.is_zero() {
        for pid in find(mark, leader) {
            signal(pid, Signal::TERM);
            signal(pid, Signal::HUP);
            signal(pid, Signal::CONT);
        }
    }
    let mut pause = Duration::from_millis(5);
    loop {
        let left = find(mark, leader);
        if left.is_empty() || start.elapsed() > grace + Duration::from_secs(5) {
            return left.len();
        }
        if start.elapsed() >= grace {
            // Stopped first, so that none of them starts another while the others are killed.
            for pid in &left {
                signal(*pid, Signal::STOP);
            }
            for pid in &left {
                signal(*pid, Signal::KILL);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The way of Chromium's children: no mark, another group, and the first process is gone.
    #[tokio::test]
    async fn ends_what_hides_its_mark() {
        use std::os::unix::process::CommandExt as _;
        let mark = format!("test-{}", uuid::Uuid::new_v4());
        let script = "env -i sh -c 'setsid sleep 300 & sleep 300 & wait' & wait";
        let mut shell = Command::new("/bin/sh")
            .args(["-c", script])
            .env(MARK, &mark)
            .process_group(0)
            .spawn()
            .expect("a shell");
        let start = Instant::now();
        while find(&mark, None).len() < 4 {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", find(&mark, None));
            sleep(Duration::from_millis(10)).await;
        }
        let leader = shell.id();
        signal(leader, Signal::KILL);
        shell.wait().expect("it ended");
        assert_eq!(find(&mark, None), Vec::<u32>::new(), "nothing tells whose they are");
        assert_eq!(find(&mark, Some(leader)).len(), 3);
        assert_eq!(end(&mark, Some(leader), Duration::ZERO).await, 0);
    }

    #[tokio::test]
    async fn ends_what_left_its_session() {
        let mark = format!("test-{}", uuid::Uuid::new_v4());
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "trap '' HUP TERM; setsid sleep 300 & setsid sleep 300 & wait"])
            .env(MARK, &mark)
            .stdout(Stdio::null())
            .spawn()
            .expect("a shell");
        let start = Instant::now();
        while find(&mark, None).len() < 3 {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", find(&mark, None));
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(find(&format!("{}*", &mark[..20]), None).len(), 3);
        let reaper = std::thread::spawn(move || shell.wait());
        assert_eq!(end(&mark, None, Duration::from_millis(200)).await, 0);
        assert_eq!(find(&mark, None), Vec::<u32>::new());
        reaper.join().expect("no panic").expect("the shell ended");
    }
}
