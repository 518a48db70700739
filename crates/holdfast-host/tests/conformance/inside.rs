//! What a VMM that was taken over could do, done: a process enters the groups, namespaces, root and user of
//! a VMM, and tries. The test starts this very program again for that, since none is to be had inside.
//!
//! It goes without the VMM's seccomp filter, so what fails here is kept in by everything else.

use std::{
    env,
    fs::{self, File},
    io,
    net::{SocketAddr, TcpStream},
    os::{fd::AsFd as _, linux::net::SocketAddrExt as _, unix::net},
    path::Path,
    process::{Command, ExitStatus},
    sync::mpsc,
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Gid, Mode, Uid, makedev, mknodat},
    mount::{MountFlags, mount},
    process::{Pid, chroot, fchdir, test_kill_process},
    thread::{
        LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};

/// What to do, and the process to do it as.
const TASK: &str = "HOLDFAST_TEST_INSIDE";
/// Where things are that must not be reached.
const TARGETS: &str = "HOLDFAST_TEST_TARGETS";
/// Begins a line of what was found out.
const FOUND: &str = "found: ";
/// More than any VMM may have.
const TOO_MANY: usize = 1000;
const TOO_MUCH_MIB: usize = 2048;
const SOON: Duration = Duration::from_secs(1);

/// What a task found out, and how it ended.
pub struct Outcome {
    pub found: Vec<String>,
    pub status: ExitStatus,
}

/// Does something as a VMM.
pub fn act(task: &str, pid: i32, targets: &[String]) -> Outcome {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "inside::act_inside", "--ignored", "--nocapture"])
        .env(TASK, format!("{task} {pid}"))
        .env(TARGETS, targets.join(" "))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().filter_map(|line| Some(line.split_once(FOUND)?.1.to_owned()));
    Outcome { found: found.collect(), status: output.status }
}

/// Files through which a process enters the groups of a VMM.
pub fn groups(pid: i32) -> Vec<std::path::PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let ours = text.lines().filter(|line| line.contains("/holdfast-"));
    ours.map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/'))
    })
    .collect()
}

#[test]
#[ignore = "the other side of the tests of escapes, which start it"]
#[allow(clippy::print_stdout, reason = "this is how it answers")]
fn act_inside() {
    let Ok(text) = env::var(TASK) else { return };
    let (task, pid) = text.split_once(' ').unwrap();
    let targets = env::var(TARGETS).unwrap_or_default();
    enter(pid.parse().unwrap());
    match task {
        "reach" => reach(&targets.split(' ').collect::<Vec<_>>()),
        "threads" => threads(),
        "memory" => memory(),
        other => panic!("{other}"),
    }
}

#[allow(unsafe_code, reason = "only this thread's view of the file system becomes another")]
fn enter(pid: i32) {
    // The kernel, short of memory, takes this one and never the VMM.
    fs::write("/proc/self/oom_score_adj", "1000").unwrap();
    for group in groups(pid) {
        fs::write(group.join("cgroup.procs"), "0").unwrap();
    }
    let proc = format!("/proc/{pid}");
    let [network, mounts] =
        ["net", "mnt"].map(|name| File::open(format!("{proc}/ns/{name}")).unwrap());
    let root = File::open(format!("{proc}/root")).unwrap();
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let uid: u32 = uid.split_whitespace().next().unwrap().parse().unwrap();
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    // SAFETY: root and working directory become this thread's own; no descriptor does.
    unsafe { unshare_unsafe(UnshareFlags::FS).unwrap() };
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
    fchdir(&root).unwrap();
    chroot(".").unwrap();
    drop((network, mounts, root));
    set_thread_groups(&[]).unwrap();
    let (gid, uid) = (Gid::from_raw(uid), Uid::from_raw(uid));
    set_thread_res_gid(gid, gid, gid).unwrap();
    set_thread_res_uid(uid, uid, uid).unwrap();
    set_no_new_privs(true).unwrap();
}

/// Every line is something that succeeded and should not have.
#[allow(unsafe_code, reason = "a namespace that must not be made")]
#[allow(clippy::print_stdout, reason = "this is how it answers")]
fn reach(targets: &[&str]) {
    let succeeded = |what: &str| println!("\n{FOUND}{what}");
    let fixed = ["/etc/passwd", "/etc/shadow", "/root", "/home", "/var", "/tmp", "/opt", "/sys"];
    let more = [
        "/run/netns",
        "/run/holdfast",
        "/boot",
        "/mnt",
        "/dev/mem",
        "/dev/vda",
        "/dev/sda",
        "/dev/ptmx",
        "/proc/1",
    ];
    let up = ["../../../../../../etc/passwd", "/proc/thread-self/root/etc/passwd", "/proc/1/root"];
    let (addresses, rest): (Vec<_>, Vec<_>) =
        targets.iter().copied().partition(|t| t.parse::<SocketAddr>().is_ok());
    let (names, paths): (Vec<&str>, Vec<_>) = rest.into_iter().partition(|t| t.starts_with('@'));
    for path in fixed.into_iter().chain(more).chain(up).chain(paths) {
        if File::open(path).is_ok() || fs::read_dir(path).is_ok() || fs::metadata(path).is_ok() {
            succeeded(&format!("opening {path}"));
        }
    }
    for address in addresses {
        if TcpStream::connect_timeout(&address.parse().unwrap(), SOON).is_ok() {
            succeeded(&format!("connecting to {address}"));
        }
    }
    for name in names {
        let address = net::SocketAddr::from_abstract_name(&name[1..]).unwrap();
        if net::UnixStream::connect_addr(&address).is_ok() {
            succeeded(&format!("connecting to {name}"));
        }
    }
    for other in [Pid::INIT, Pid::from_raw(std::os::unix::process::parent_id() as i32).unwrap()] {
        if test_kill_process(other).is_ok() {
            succeeded(&format!("signalling {other:?}"));
        }
    }
    let root = (Uid::ROOT, Gid::ROOT);
    // SAFETY: it must fail; were it to succeed, the test fails.
    let network = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    let tried = [
        ("becoming root", set_thread_res_uid(root.0, root.0, root.0)),
        ("joining root's group", set_thread_res_gid(root.1, root.1, root.1)),
        ("joining groups", set_thread_groups(&[Gid::from_raw(6)])),
        ("another root", chroot("/")),
        ("mounting", mount(c"tmpfs", c"/", c"tmpfs", MountFlags::empty(), c"")),
        ("another network", network),
        (
            "making a device",
            mknodat(CWD, "disk", FileType::BlockDevice, Mode::RUSR, makedev(254, 0)),
        ),
    ];
    for (what, done) in tried {
        if done.is_ok() {
            succeeded(what);
        }
    }
    println!("\n{FOUND}end");
}

/// Says how many threads there were when no more could be made.
#[allow(clippy::print_stdout, reason = "this is how it answers")]
fn threads() {
    let mut waiting = Vec::new();
    let refused = loop {
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        match thread.spawn(move || ended.recv()) {
            Ok(_) if waiting.len() == TOO_MANY => break None,
            Ok(_) => waiting.push(end),
            Err(error) => break Some(error),
        }
    };
    match refused {
        Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
            println!("\n{FOUND}{}", waiting.len());
        }
        other => println!("\n{FOUND}{} threads, then {other:?}", waiting.len()),
    }
}

/// Takes more memory than any VMM of these tests may have; does not come to its end.
#[allow(clippy::print_stdout, reason = "this is how it answers")]
fn memory() {
    println!("\n{FOUND}begun");
    let mut taken = Vec::new();
    for number in 0..TOO_MUCH_MIB {
        taken.push(vec![number as u8 | 1; 1 << 20]);
    }
    println!("\n{FOUND}{} MiB", taken.len());
}
