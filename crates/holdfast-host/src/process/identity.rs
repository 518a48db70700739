//! What names a process for ever: its pid together with its start time and the host's boot.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::ExitStatus,
};

use holdfast_core::VmId;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};
use serde::{Deserialize, Serialize};
use uuid::fmt::Hyphenated;

use super::{KILL_DEADLINE, pid};

/// Environment variable of a VMM that holds `<instance> <vm-id>`.
pub(crate) const MARK: &str = "HOLDFAST_VM";

/// The mark of a VMM that is started without environment: the value of its argument `--id`.
pub(crate) fn name_of(instance: &str, vm: VmId) -> String {
    format!("{instance}-{vm}")
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since the host's boot.
    pub start_ticks: u64,
    /// The host's boot, from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

/// Whether a process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alive {
    /// It does.
    Yes {
        /// It was stopped by a signal.
        stopped: bool,
    },
    /// It is proven gone.
    No {
        /// By what.
        why: String,
    },
}

impl Identity {
    /// The identity of a process that exists now.
    pub fn of(raw: i32) -> io::Result<Self> {
        let stat = Stat::read(raw)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid: raw, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// A process of the host's present boot.
    pub(super) fn now(pid: i32, start_ticks: u64) -> io::Result<Self> {
        Ok(Self { pid, start_ticks, boot_id: boot_id()? })
    }

    /// Whether it lives. An error proves nothing.
    pub fn alive(&self) -> io::Result<Alive> {
        let gone = |why: &str| Ok(Alive::No { why: why.to_owned() });
        if self.boot_id != boot_id()? {
            return gone("the host was rebooted");
        }
        match Stat::read(self.pid)? {
            None => gone("no such process exists any more"),
            Some(stat) if stat.start_ticks != self.start_ticks => {
                gone("its process id belongs to another process now")
            }
            Some(Stat { state: 'Z' | 'X', threads: ..=1, .. }) => gone("it is dead"),
            Some(stat) => Ok(Alive::Yes { stopped: matches!(stat.state, 'T' | 't') }),
        }
    }

    /// A descriptor of it; `None` when it is proven gone.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match pidfd_open(self.raw(), PidfdFlags::NONBLOCK) {
            Err(Errno::SRCH) => return Ok(None),
            pidfd => pidfd?,
        };
        // Opened first and checked then: the descriptor cannot change hands.
        Ok(matches!(self.alive()?, Alive::Yes { .. }).then_some(pidfd))
    }

    /// Whether pids mean the same to it as to this process.
    pub(super) fn is_in_our_pid_namespace(&self) -> bool {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/pid")).ok();
        namespace("self").is_some_and(|ours| namespace(&self.pid.to_string()) == Some(ours))
    }

    /// Kills it and waits for its end, which it need not live for.
    pub(super) fn kill(&self) -> io::Result<()> {
        let Some(pidfd) = self.open()? else { return Ok(()) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(Errno::SRCH) => return Ok(()),
            sent => sent?,
        }
        let deadline = Timespec::try_from(KILL_DEADLINE).map_err(io::Error::other)?;
        let mut end = [PollFd::new(&pidfd, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut end, Some(&deadline)))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// How it ended, while it is a child of this server that nobody has reaped.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        let dead = matches!(Stat::read(self.pid), Ok(Some(Stat { state: 'Z', start_ticks, .. }))
            if start_ticks == self.start_ticks);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(self.raw()), options).ok().flatten().filter(|_| dead)?;
        // As wait(2) packs it.
        let core = if status.dumped() { 0x80 } else { 0 };
        let raw = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code << 8,
            (None, Some(signal)) => signal | core,
            (None, None) => return None,
        };
        Some(ExitStatus::from_raw(raw))
    }

    pub(super) fn raw(&self) -> Pid {
        pid(self.pid).unwrap_or(Pid::INIT)
    }
}

struct Stat {
    /// Of the first thread. It can be dead while others go on: such a process has not ended.
    state: char,
    threads: u32,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // The process went between opening and reading.
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Self::parse(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The name in parentheses may hold anything, also parentheses; the fields begin behind the last.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?.chars().next()?;
        // Fields 20 and 22, and `state` was field 3.
        let threads = fields.nth(16)?.parse().ok()?;
        let start_ticks = fields.nth(1)?.parse().ok()?;
        Some(Self { state, threads, start_ticks })
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Every process that carries the mark of the instance.
pub(super) fn marked(instance: &str) -> io::Result<Vec<(VmId, Identity)>> {
    let found = all_marked()?.into_iter().filter(|(of, ..)| of == instance);
    Ok(found.map(|(_, vm, identity)| (vm, identity)).collect())
}

/// Every process that carries a mark, with the instance that this names.
pub(super) fn all_marked() -> io::Result<Vec<(String, VmId, Identity)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process that ends while it is looked at is none.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let mark = words(&environment)
            .find_map(|word| in_mark(word.strip_prefix(MARK)?.strip_prefix('=')?, ' '))
            .or_else(|| in_mark(words(&line).skip_while(|word| *word != "--id").nth(1)?, '-'));
        if let Some((instance, vm)) = mark
            && let Ok(identity) = Identity::of(pid)
            && matches!(identity.alive(), Ok(Alive::Yes { .. }))
        {
            found.push((instance.to_owned(), vm, identity));
        }
    }
    Ok(found)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = &str> {
    bytes.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok())
}

/// Instance and VM, of which the latter always has this length.
fn in_mark(mark: &str, between: char) -> Option<(&str, VmId)> {
    let (instance, vm) = mark.split_at_checked(mark.len().checked_sub(Hyphenated::LENGTH)?)?;
    Some((instance.strip_suffix(between)?, vm.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let text = "7 (a) (b) R) S 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 3 0 4711 9 9 9";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.threads, stat.start_ticks), ('S', 3, 4711));
    }

    #[test]
    fn it_lives_as_long_as_any_of_its_threads() {
        const SYS_EXIT: i64 = 60;
        let script = format!(
            "import ctypes, sys, threading\n\
             threading.Thread(target=sys.stdin.read).start()\n\
             ctypes.CDLL(None).syscall({SYS_EXIT}, 0)"
        );
        let mut command = std::process::Command::new("python3");
        let mut child =
            command.args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap();
        let deadline = std::time::Instant::now() + KILL_DEADLINE;
        while Stat::read(identity.pid).unwrap().unwrap().state != 'Z' {
            assert!(std::time::Instant::now() < deadline, "its first thread goes on");
            std::thread::yield_now();
        }
        assert_eq!(identity.alive().unwrap(), Alive::Yes { stopped: false });
        assert_eq!(identity.ended(), None);
        drop(child.stdin.take());
        let all = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(identity.raw()), all).unwrap();
        assert!(matches!(identity.alive().unwrap(), Alive::No { .. }));
        child.wait().unwrap();
    }

    #[test]
    fn a_mark_is_read_back() {
        let vm = VmId::from_uuid(uuid::Uuid::new_v4());
        for instance in ["0123abcd", "trial-7-4711"] {
            assert_eq!(in_mark(&name_of(instance, vm), '-'), Some((instance, vm)));
            assert_eq!(in_mark(&format!("{instance} {vm}"), ' '), Some((instance, vm)));
        }
        for other in ["", "holdfast", &vm.to_string(), "ä0123456789012345678901234567890123456789"]
        {
            assert_eq!(in_mark(other, '-'), None);
        }
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Identity::of(std::process::id() as i32).unwrap();
        assert_eq!(me.alive().unwrap(), Alive::Yes { stopped: false });
        let other = Identity { start_ticks: me.start_ticks + 1, ..me.clone() };
        assert!(matches!(other.alive().unwrap(), Alive::No { .. }));
        let earlier = Identity { boot_id: "earlier".to_owned(), ..me };
        assert!(matches!(earlier.alive().unwrap(), Alive::No { .. }));
        assert!(other.open().unwrap().is_none());
    }

    #[test]
    fn how_it_ended_is_known_until_it_is_reaped() {
        for (script, how) in [("kill -9 $$", "signal: 9 (SIGKILL)"), ("exit 3", "exit status: 3")] {
            let script = format!("read line; {script}");
            let mut command = std::process::Command::new("sh");
            let mut child =
                command.args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
            let identity = Identity::of(child.id() as i32).unwrap();
            assert_eq!(identity.ended(), None);
            drop(child.stdin.take());
            let all = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(identity.raw()), all).unwrap();
            assert_eq!(identity.ended().unwrap().to_string(), how);
            child.wait().unwrap();
            assert_eq!(identity.ended(), None);
        }
    }
}
