//! Finds processes by their mark and ends them: what a service, terminal or run started is gone with
//! it, also what left its process group or session.

use std::{fs, os::unix::ffi::OsStrExt, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// Environment variable that marks the processes of a service, terminal or run. Inherited by children.
pub const MARK: &str = "HOLDFAST_MARK";

/// Processes that carry `MARK=mark` in the environment they were started with, or belong to
/// `session`. The mark may end with `*`.
pub fn find(mark: &str, session: Option<u32>) -> Vec<u32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && *pid != 1)
        .filter(|pid| {
            session.is_some_and(|session| session_of(*pid) == Some(session)) || marked(*pid, mark)
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

/// Session of a process that is no zombie.
fn session_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = after_name(&stat)?;
    (fields.next()? != "Z").then(|| fields.nth(2)?.parse().ok())?
}

/// Sends a signal to a process; one that has ended is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Ends all that [`find`] finds: SIGTERM and SIGHUP first, SIGKILL after `grace`. Returns once none is
/// left, or after five more seconds with the number of those that cannot be killed.
pub async fn end(mark: &str, session: Option<u32>, grace: Duration) -> usize {
    let start = Instant::now();
    if !grace.is_zero() {
        for pid in find(mark, session) {
            signal(pid, Signal::TERM);
            signal(pid, Signal::HUP);
            signal(pid, Signal::CONT);
        }
    }
    let mut pause = Duration::from_millis(5);
    loop {
        let left = find(mark, session);
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
