//! Starts a VMM: in a session of its own, as an unprivileged user, with limits, with no open file but
//! those that it is handed.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use holdfast_core::VmId;
use rustix::{
    fs::{Gid, Mode, OFlags, Uid, open},
    io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, write},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change,
        mount_remount, move_mount, open_tree,
    },
    process::{Resource, Rlimit, setrlimit, setsid},
    thread::{
        CapabilitySet, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
        remove_capability_from_bounding_set, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};

use super::{View, cgroup, identity::MARK};

/// Handed descriptors get numbers from here on, out of the way of what the standard library uses
/// between fork and exec.
const FIRST_HANDED: RawFd = 64;

/// What a VMM needs that shuts itself in: devices, mounts and another root, and another user.
const JAILERS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT);

/// Most open files of a VMM.
pub(crate) const OPEN_FILES: u64 = 1024;

/// A VMM to start.
pub struct Vmm {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Open files that it is handed, under their present numbers.
    pub handed: Vec<Handed>,
    /// Files that only it sees at these places.
    pub mounts: Vec<Mount>,
    /// All that it sees; `None` for a VMM that shuts itself in.
    pub view: Option<View>,
    /// Where its standard output goes, for a VMM that prints the guest's console there; to its log
    /// when there is none.
    pub stdout: Option<File>,
    /// Namespace that it lives in.
    pub namespace: Option<Arc<OwnedFd>>,
    /// User and group id that it runs under, and further groups; `None` stays root, for a VMM that
    /// drops its privileges itself.
    pub user: Option<(u32, Vec<u32>)>,
    /// What it may use.
    pub limits: Limits,
}

/// What a VMM may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Memory in MiB: the guest's and the VMM's own.
    pub memory_mib: u64,
    /// Share of the processors relative to other VMs.
    pub vcpus: u8,
    /// Size of the largest file that it may write, in bytes.
    pub file_bytes: u64,
    /// It calculates much and waits little: when it wakes, whoever runs finishes its turn first
    /// (`SCHED_BATCH`). Switched at every wake-up, many VMs that are translated hold each other up.
    pub batch: bool,
}

/// An open file for a VMM, under a number that does not change.
#[derive(Debug)]
pub struct Handed(OwnedFd);

impl Handed {
    /// Takes a file. It stays closed to every other program started meanwhile.
    pub fn new(file: &impl std::os::fd::AsFd) -> io::Result<Self> {
        Ok(Self(fcntl_dupfd_cloexec(file, FIRST_HANDED)?))
    }

    /// Its number in the VMM.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// A path by which the VMM can open it anew.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.number())
    }
}

/// An open file, shown under another name in a mount namespace that ends with the VMM: it needs no copy,
/// and nobody has to take it away again.
#[derive(Debug)]
pub struct Mount {
    tree: OwnedFd,
    at: CString,
    read_only: bool,
}

impl Mount {
    /// Shows exactly this file, whatever has its name by then, in the place of the file `at`.
    pub fn new(file: &File, at: &Path, read_only: bool) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(file, c"", flags)?;
        Ok(Self { tree, at: CString::new(at.as_os_str().as_bytes())?, read_only })
    }

    fn attach(&self) -> io::Result<()> {
        let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(self.tree.as_fd(), c"", rustix::fs::CWD, self.at.as_c_str(), whole)?;
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        flags |= MountFlags::NOEXEC;
        if self.read_only {
            flags |= MountFlags::RDONLY;
        }
        Ok(mount_remount(self.at.as_c_str(), flags, c"")?)
    }
}

#[allow(unsafe_code, reason = "what a child gives up, it gives up between fork and exec")]
pub(super) fn spawn(vmm: Vmm, vm: VmId, instance: &str, log: File) -> io::Result<Child> {
    let groups = cgroup::make(instance, vm, vmm.limits);
    let mut command = Command::new(&vmm.program);
    command
        .args(&vmm.args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env(MARK, format!("{instance} {vm}"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(vmm.stdout.map_or_else(|| log.try_clone(), Ok)?)
        .stderr(log);
    let Vmm { handed, mounts, view, namespace, user, limits, .. } = vmm;
    let user = user.map(|(id, further)| {
        let further: Vec<Gid> = further.into_iter().map(Gid::from_raw).collect();
        (Uid::from_raw(id), Gid::from_raw(id), further)
    });
    let become_vmm = move || {
        setsid()?;
        for group in &groups {
            write(group, b"0")?;
        }
        if let Some(namespace) = &namespace {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        // It has no use for shared memory, semaphores or queues, least of all for the host's.
        // SAFETY: only this process, which is a single thread, gets another IPC namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWIPC)? };
        if !mounts.is_empty() {
            // SAFETY: only this process, which is a single thread, gets another mount namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
            // What is mounted from here on is seen by nobody else.
            mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            for mount in &mounts {
                mount.attach()?;
            }
        }
        // Sooner than the server and the rest of the machine.
        let score = open(c"/proc/self/oom_score_adj", OFlags::WRONLY, Mode::empty())?;
        write(&score, b"300")?;
        let limit =
            |what, value| setrlimit(what, Rlimit { current: Some(value), maximum: Some(value) });
        limit(Resource::Core, 0)?;
        limit(Resource::Nofile, OPEN_FILES)?;
        limit(Resource::Fsize, limits.file_bytes)?;
        if limits.batch {
            batch()?;
        }
        if let Some(view) = &view {
            view.enter()?;
        }
        give_up(if user.is_some() { CapabilitySet::empty() } else { JAILERS })?;
        if let Some((uid, gid, further)) = &user {
            set_thread_groups(further)?;
            set_thread_res_gid(*gid, *gid, *gid)?;
            set_thread_res_uid(*uid, *uid, *uid)?;
        }
        set_no_new_privs(true)?;
        // SAFETY: marks descriptors to be closed at exec; none is closed now.
        let closed = unsafe {
            libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if closed != 0 {
            return Err(io::Error::last_os_error());
        }
        for file in &handed {
            fcntl_setfd(&file.0, FdFlags::empty())?;
        }
        Ok(())
    };
    // A file that grows too large is an error of the VMM's write, not its death: the disposition
    // survives exec, and this process has no use for the signal either.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // SAFETY: the closure only makes system calls on what was prepared before the fork; it neither
    // allocates nor locks.
    unsafe { command.pre_exec(become_vmm) };
    command.spawn()
}

/// Makes this process, and all threads that it will have, one that calculates.
#[allow(unsafe_code, reason = "setting a scheduling policy has no safe wrapper")]
fn batch() -> io::Result<()> {
    // SAFETY: `sched_param` is plain data, for which zeros are valid, and outlives the call.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &std::mem::zeroed()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes capabilities out of the reach of this process and of all that it becomes.
fn give_up(but: CapabilitySet) -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if but.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel knows no further ones.
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    Ok(())
}

/// Opens the tap device of a namespace for a VMM that cannot do so itself. Runs inside the namespace.
#[allow(unsafe_code, reason = "attaching to a tap device is an ioctl that has no safe wrapper")]
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let file =
        open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let fd: BorrowedFd<'_> = file.as_fd();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call returns.
    let attached = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if attached != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
