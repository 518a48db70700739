//! PID 1: prepares the guest, keeps the agent's three processes alive, reaps orphans, switches off.
//!
//! It never panics, allocates little, starts no thread and talks to nobody: its children speak to it
//! through their standard output (see [`keeper`]).

pub mod keeper;
mod net;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use keeper::{Keeper, Part};
use rustix::{
    mount::{MountFlags, mount, mount_remount},
    process::{Pid, Signal},
    system::{RebootCommand, reboot},
};

use crate::guest::{Guest, kernel_option};

/// How long processes may take to end after SIGTERM when the guest is switched off.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// Host name of a guest that was not claimed.
const UNNAMED: &str = "holdfast";

/// What ticks in an idle guest for no use of it: looks for processors that hang, compaction before
/// anybody asks for it, and counters of memory brought up to date every second.
const QUIET: [(&str, &str); 3] = [
    ("/proc/sys/kernel/watchdog", "0"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    ("/proc/sys/vm/stat_interval", "30"),
];

/// Without swap, a guest that runs out of memory reads its programs from disk again and again and answers
/// nobody for minutes. The multi-generational LRU ends the largest process instead as soon as what was used
/// in the last second (in ms) cannot be kept. See `admin-guide/mm/multigen_lru` of the kernel.
const NO_THRASHING: [(&str, &str); 2] =
    [("/sys/kernel/mm/lru_gen/enabled", "y"), ("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000")];

/// Runs as PID 1. Does not return unless the kernel refuses to switch off.
pub fn main() -> ExitCode {
    if rustix::process::getpid() != Pid::INIT {
        eprintln!("holdfast: `init` runs as process 1 of a guest only");
        return ExitCode::from(2);
    }
    say("starting");
    prepare();
    let guest = Guest::image();
    let part = |name| Part { name, program: guest.exe.clone(), arguments: vec![name.to_owned()] };
    let mut keeper = Keeper::new(vec![part("serve"), part("supervise"), part("hold")]);
    keeper.run();
    switch_off();
    ExitCode::FAILURE
}

/// Writes a line to the console. A console that cannot be written to is no reason to panic.
pub(crate) fn say(message: &str) {
    let _ = writeln!(io::stderr(), "holdfast: {message}");
}

/// Reports a step that failed and goes on: a guest without one of its parts still answers the host,
/// which can say what is wrong.
fn step(what: &str, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        say(&format!("{what}: {error}"));
    }
}

fn prepare() {
    let guarded = MountFlags::NOSUID | MountFlags::NODEV;
    let strict = guarded | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
        ("proc", "/proc", strict, c""),
        ("sysfs", "/sys", strict, c""),
        (
            "devpts",
            "/dev/pts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"gid=5,mode=0620,ptmxmode=0666",
        ),
        ("tmpfs", "/dev/shm", guarded, c"mode=1777"),
        ("tmpfs", "/run", guarded, c"mode=0755,size=128m"),
        ("tmpfs", "/tmp", guarded, c"mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", strict, c""),
    ] {
        let _ = fs::create_dir_all(target);
        match mount(kind, target, kind, flags, options) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => say(&format!("cannot mount {target}: {error}")),
        }
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(to, link);
    }
    for (path, mode) in [
        ("/run/holdfast", 0o755),
        ("/run/lock", 0o1777),
        ("/run/user", 0o755),
        ("/run/user/1000", 0o700),
        ("/tmp/.X11-unix", 0o1777),
        ("/tmp/.ICE-unix", 0o1777),
    ] {
        step(path, directory(Path::new(path), mode));
    }
    step("/run/user/1000", std::os::unix::fs::chown("/run/user/1000", Some(1000), Some(1000)));
    step("host name", rustix::system::sethostname(UNNAMED.as_bytes()).map_err(io::Error::from));
    // Empty: each guest gets an id of its own when it is claimed.
    for (name, content) in [("hostname", format!("{UNNAMED}\n")), ("machine-id", String::new())] {
        step(name, fs::write(Path::new("/run/holdfast").join(name), content));
    }
    step("loopback", net::loopback_up());
    match kernel_option("holdfast.net") {
        Some(value) => step("network", configure(&value)),
        None => say("no `holdfast.net=` on the kernel's command line: no network"),
    }
    step("/etc/hosts", hosts());
    for (path, value) in QUIET.into_iter().chain(NO_THRASHING) {
        step(path, fs::write(path, value));
    }
}

fn directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    // The creation mask does not matter this way.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn configure(value: &str) -> io::Result<()> {
    let settings = net::Settings::parse(value).ok_or_else(|| {
        io::Error::other(format!("`{value}` is not ADDRESS/PREFIX,GATEWAY of IPv4"))
    })?;
    // The driver was loaded before, but the device may come a moment later.
    let start = Instant::now();
    let interface = loop {
        match net::first_interface()? {
            Some(found) => break found,
            None if start.elapsed() > Duration::from_secs(10) => {
                return Err(io::Error::other("no network interface but the loopback after 10 s"));
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    net::configure(interface, &settings)
}

fn hosts() -> io::Result<()> {
    let gateway = kernel_option("holdfast.net")
        .and_then(|value| net::Settings::parse(&value))
        .map_or_else(String::new, |s| format!("{} host.holdfast.internal\n", s.gateway));
    let text = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {UNNAMED}\n{gateway}"
    );
    fs::write("/run/holdfast/hosts", text)
}

/// Ends every process, writes everything out, and switches the machine off.
fn switch_off() {
    say("switching off");
    everybody(Signal::TERM);
    let start = Instant::now();
    while start.elapsed() < END_DEADLINE && keeper::reap_all() {
        thread::sleep(Duration::from_millis(20));
    }
    everybody(Signal::KILL);
    keeper::reap_all();
    rustix::fs::sync();
    let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
    if let Err(error) = mount_remount("/", read_only, c"") {
        say(&format!("the root stays writable: {error}"));
    }
    rustix::fs::sync();
    // Firecracker has no power switch: its guests leave by a reset, which it is told by `reboot=k`.
    let by_reset = kernel_option("reboot").is_some();
    let command = if by_reset { RebootCommand::Restart } else { RebootCommand::PowerOff };
    if let Err(error) = reboot(command) {
        say(&format!("cannot switch off: {error}"));
    }
}

/// Signals every process but this one and the kernel's threads.
fn everybody(signal: Signal) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
        let Some(pid) = pid.filter(|p| *p != 1).and_then(Pid::from_raw) else { continue };
        let _ = rustix::process::kill_process(pid, signal);
    }
}
