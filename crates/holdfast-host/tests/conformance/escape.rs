//! Promises about what keeps a VMM in, looked at from outside, and tried from inside (`inside`).

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::process::ExitStatusExt as _,
        unix::{fs::MetadataExt as _, net},
    },
    path::Path,
};

use crate::{
    bed::RealBed,
    inside::{act, groups},
    promises::{pid, started},
};

/// Rights that upstream's jailer needs until it is Firecracker, which can get none of them back.
const JAILERS: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 18 | 1 << 21 | 1 << 27;
/// What a VMM may have open, by name in its own view; sockets and the like besides.
const OPEN: [&str; 14] = [
    "/dev/null",
    "/dev/kvm",
    "/dev/net/tun",
    "memfd:holdfast-memory",
    "memfd:holdfast-template",
    "vmlinux",
    "initramfs.img",
    "rootfs.img",
    "upper.img",
    "serial.log",
    "vmm.log",
    "firecracker.log",
    "metrics.json",
    "api.sock",
];

fn status_of(pid: i32, name: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

pub async fn a_vmm_has_no_privileges(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    for ids in ["Uid:", "Gid:"] {
        let ids = status_of(pid, ids);
        assert!(ids.iter().all(|id| id.parse::<u32>().unwrap() >= 200_000), "{ids:?}");
    }
    let groups = status_of(pid, "Groups:");
    assert!(!groups.contains(&"0".to_owned()), "{groups:?}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status_of(pid, set), ["0000000000000000"], "{set}");
    }
    let bound = u64::from_str_radix(&status_of(pid, "CapBnd:")[0], 16).unwrap();
    let most = if driver.name() == "qemu" { 0 } else { JAILERS };
    assert_eq!(bound & !most, 0, "{bound:x}");
    assert_eq!(status_of(pid, "NoNewPrivs:"), ["1"]);
    // Each of its threads is filtered.
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap().parse().unwrap();
        assert_eq!(status_of(thread, "Seccomp:"), ["2"], "thread {thread}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!((limit("Max core file size"), limit("Max open files")), ("0".into(), "1024".into()));
    assert_eq!(limit("Max file size"), (u64::from(spec.memory_mib) << 20).to_string());
    assert_eq!(stat(pid, 6), pid.to_string(), "it is not in a session of its own");
    driver.destroy(spec.vm).await.unwrap();
}

/// A field of the status of a process or thread, by its number in proc(5), from 3.
fn stat(pid: i32, field: usize) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(field - 3).unwrap().to_owned()
}

pub async fn a_vmm_holds_nothing_of_the_host_s(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    let nameless = ["socket:[", "anon_inode:", "pipe:["];
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // One that it closed meanwhile is none.
        let Ok(open) = fs::read_link(entry.unwrap().path()) else { continue };
        let open = open.to_string_lossy().into_owned();
        let name = open.trim_start_matches('/').trim_end_matches(" (deleted)");
        let known = OPEN
            .iter()
            .any(|known| open == *known || name == *known || Path::new(name).ends_with(known));
        assert!(known || nameless.iter().any(|n| open.starts_with(n)), "it has {open} open");
    }
    let seen: BTreeSet<_> = fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let ours = fs::metadata("/").unwrap();
    let theirs = fs::metadata(format!("/proc/{pid}/root/")).unwrap();
    assert_ne!((ours.dev(), ours.ino()), (theirs.dev(), theirs.ino()), "it has the host's root");
    for foreign in ["root", "home", "var", "tmp", "sys", "boot", "mnt", "opt", "srv", "run/netns"] {
        assert!(!seen.contains(foreign), "it sees /{foreign}");
    }
    // Whatever is mounted there: its root, and in QEMU's programs alone, cannot be written to.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for line in mounts.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (at, options) = (fields[4], fields[5].split(',').collect::<Vec<_>>());
        let own = ["/upper.img", "/dev/kvm", "/proc"].contains(&at)
            || at == "/" && driver.name() == "firecracker";
        assert!(own || options.contains(&"ro"), "{line}");
        assert!(at == "/" || options.contains(&"nosuid"), "{line}");
    }
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_vmm_has_its_own_network_alone(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    let namespace = |path: String| fs::metadata(path).unwrap().ino();
    let its = namespace(format!("/proc/{pid}/ns/net"));
    assert_ne!(its, namespace("/proc/self/ns/net".to_owned()));
    assert_eq!(its, namespace(format!("/run/netns/hf-{}", spec.vm)));
    let ipc = namespace(format!("/proc/{pid}/ns/ipc"));
    assert_ne!(ipc, namespace("/proc/self/ns/ipc".to_owned()));
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let links: BTreeSet<_> =
        table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    let expected = BTreeSet::from(["lo", "out0", "tap0"]);
    assert!(links.is_superset(&expected), "{links:?}");
    // The kernel makes some in every namespace, all of them down.
    for other in links.difference(&expected) {
        assert!(
            [
                "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "tunl0", "ip_vti0", "ip6_vti0",
                "ip6gre0"
            ]
            .contains(other),
            "{other}"
        );
    }
    driver.destroy(spec.vm).await.unwrap();
}

/// Whether groups can be made here at all; in some containers they cannot.
fn limited(pid: i32) -> bool {
    let writable = ["memory", "."].iter().any(|hierarchy| {
        let at = Path::new("/sys/fs/cgroup").join(hierarchy).join("cgroup.procs");
        rustix::fs::access(at, rustix::fs::Access::WRITE_OK).is_ok()
    });
    assert!(!writable || !groups(pid).is_empty(), "it is in no group of its own");
    !groups(pid).is_empty()
}

fn setting(pid: i32, names: &[&str]) -> u64 {
    let mut files =
        groups(pid).into_iter().flat_map(|g| names.iter().map(move |name| g.join(name)));
    let found = files.find_map(|file| fs::read_to_string(file).ok());
    found.unwrap_or_else(|| panic!("none of {names:?}")).trim().parse().unwrap()
}

const MEMORY: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];
const HIGHEST: [&str; 2] = ["memory.peak", "memory.max_usage_in_bytes"];

pub async fn a_vmm_is_in_groups_of_its_own(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    // A translated guest's threads do not take the processor from another's (SCHED_BATCH, 3).
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let translated = line.contains("-accel\0tcg,");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap().parse().unwrap();
        let policy = stat(thread, 41);
        assert_eq!(policy, if translated { "3" } else { "0" }, "thread {thread}");
    }
    if limited(pid) {
        let own = format!("holdfast-{}/{}", bed.host().state().instance(), spec.vm);
        assert!(groups(pid).iter().all(|group| group.ends_with(&own)), "{:?}", groups(pid));
        // The guest's, and what the driver allows the VMM itself.
        let own = if driver.name() == "qemu" { 1024 } else { 256 };
        assert_eq!(setting(pid, &MEMORY) >> 20, u64::from(spec.memory_mib) + own);
        assert_eq!(setting(pid, &["pids.max"]), 256);
        // Where the kernel accounts for swap, a VM gets none beyond its limit.
        for group in groups(pid) {
            let read = |name: &str| fs::read_to_string(group.join(name));
            if let Ok(both) = read("memory.memsw.limit_in_bytes") {
                assert_eq!(both, read("memory.limit_in_bytes").unwrap());
            }
            if let Ok(swap) = read("memory.swap.max") {
                assert_eq!(swap.trim(), "0");
            }
        }
    }
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn nothing_is_reached_from_inside(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = everywhere.local_addr().unwrap().port();
    let lease = bed.host().lease(spec.vm).unwrap();
    let name = format!("holdfast-test-{}", spec.vm);
    let address = net::SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = net::UnixListener::bind_addr(&address).unwrap();
    let mut targets = vec![
        SocketAddr::from(([127, 0, 0, 1], port)).to_string(),
        SocketAddr::from((lease.host_end(), port)).to_string(),
        format!("@{name}"),
        "/usr/../etc/hostname".to_owned(),
    ];
    targets.extend([bed.dir(), bed.host().state().root()].map(|path| path.display().to_string()));
    let outcome = act("reach", pid, &targets);
    assert!(outcome.status.success(), "{:?}", outcome.found);
    assert_eq!(outcome.found, ["end"]);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn no_more_threads_than_allowed(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let before = pid(&driver, spec.vm).await;
    if limited(before) {
        let outcome = act("threads", before, &[]);
        let [made] = &outcome.found[..] else { panic!("{:?}", outcome.found) };
        let made: u64 = made.parse().unwrap_or_else(|_| panic!("{made}"));
        assert!((100..256).contains(&made), "{made}");
    }
    assert_eq!(pid(&driver, spec.vm).await, before);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn no_more_memory_than_allowed(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let before = pid(&driver, spec.vm).await;
    // A guest that touches new memory meanwhile is what is over the limit.
    driver.pause(spec.vm).await.unwrap();
    if limited(before) {
        let outcome = act("memory", before, &[]);
        assert_eq!(outcome.status.signal(), Some(9), "{:?}", outcome.found);
        assert_eq!(outcome.found, ["begun"]);
        assert!(setting(before, &HIGHEST) <= setting(before, &MEMORY));
    }
    // Whoever asked for too much is gone; the VM is not.
    assert_eq!(pid(&driver, spec.vm).await, before);
    driver.resume(spec.vm).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
}
