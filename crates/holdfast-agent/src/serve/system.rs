//! What a claim sets in the system. Files are those below the guest's root; calls of the kernel are
//! for whole guests only.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use jiff::Timestamp;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::guest::{Guest, write_atomically};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: rustix::ioctl::Opcode = 0x4008_5203;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: rustix::ioctl::Opcode = 0x5207;
/// Most entropy that is given to the kernel at once, in bytes.
const ENTROPY: usize = 512;

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct PoolInfo {
    entropy_count: i32,
    buf_size: i32,
    buf: [u8; ENTROPY],
}

/// Mixes `entropy` into the kernel's generator and has it start from new.
#[allow(unsafe_code, reason = "two ioctls of the kernel's generator")]
pub(super) fn reseed(entropy: &[u8]) -> io::Result<()> {
    let size = entropy.len().min(ENTROPY);
    let mut pool =
        PoolInfo { entropy_count: size as i32 * 8, buf_size: size as i32, buf: [0; ENTROPY] };
    pool.buf[..size].copy_from_slice(&entropy[..size]);
    let random = File::options().read(true).write(true).open("/dev/urandom")?;
    // SAFETY: the opcode reads a rand_pool_info, and `buf_size` bytes of its buffer are there.
    unsafe {
        let add = rustix::ioctl::Setter::<RNDADDENTROPY, PoolInfo>::new(pool);
        rustix::ioctl::ioctl(&random, add)?;
    }
    // SAFETY: the opcode takes no argument.
    unsafe { rustix::ioctl::ioctl(&random, rustix::ioctl::NoArg::<RNDRESEEDCRNG>::new())? };
    Ok(())
}

pub(super) fn set_clock(time: Timestamp) -> io::Result<()> {
    let timespec =
        Timespec { tv_sec: time.as_second(), tv_nsec: time.subsec_nanosecond().max(0).into() };
    Ok(clock_settime(ClockId::Realtime, timespec)?)
}

pub(super) fn shift_clock(by_us: i64) -> io::Result<()> {
    let by = jiff::SignedDuration::from_micros(by_us);
    let time = Timestamp::now().checked_add(by).map_err(io::Error::other)?;
    set_clock(time)
}

pub(super) fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// Clones were booted once, together: each shows a boot id of its own.
pub(super) fn renew_boot_id(guest: &Guest) -> io::Result<()> {
    let file = guest.run.join("boot_id");
    let id = uuid::Uuid::new_v4().to_string();
    // Written in place: a clone of a clone has it mounted already, and a file that was replaced cannot
    // be mounted over.
    fs::write(&file, format!("{id}\n"))?;
    if boot_id() == id {
        return Ok(());
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
    Ok(rustix::mount::mount_bind(&file, BOOT_ID)?)
}

pub(super) fn set_hostname(guest: &Guest, name: &str) -> io::Result<()> {
    if guest.is_whole() {
        rustix::system::sethostname(name.as_bytes())?;
    }
    write(guest, "etc/hostname", &format!("{name}\n"))?;
    let hosts = fs::read_to_string(guest.root.join("etc/hosts")).unwrap_or_default();
    let mut lines: Vec<_> = hosts.lines().filter(|line| !line.starts_with("127.0.1.1")).collect();
    let own = format!("127.0.1.1 {name}");
    lines.push(&own);
    let text = lines.join("\n") + "\n";
    write(guest, "etc/hosts", &text)
}

pub(super) fn renew_machine_id(guest: &Guest) -> io::Result<()> {
    write(guest, "etc/machine-id", &format!("{}\n", uuid::Uuid::new_v4().simple()))
}

pub(super) fn set_dns(guest: &Guest, servers: &[IpAddr]) -> io::Result<()> {
    let lines: Vec<_> = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let lines = lines.concat();
    write(guest, "etc/resolv.conf", &lines)
}

/// The zone that the guest is in; UTC where none was set.
pub(super) fn timezone(guest: &Guest) -> String {
    let name = fs::read_to_string(guest.root.join("etc/timezone")).unwrap_or_default();
    if name.trim().is_empty() { "Etc/UTC".to_owned() } else { name.trim().to_owned() }
}

/// Whether two names are those of zones with the same rules, such as `UTC` and `Etc/UTC`.
pub(super) fn same_zone(a: &str, b: &str) -> bool {
    let rules = |name: &str| fs::read(Path::new("/usr/share/zoneinfo").join(name)).ok();
    a == b || (is_zone_name(b) && rules(a).is_some_and(|a| Some(a) == rules(b)))
}

fn is_zone_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte);
    !name.is_empty() && !name.starts_with('/') && name.bytes().all(is_allowed)
}

/// # Errors
/// There is no such zone.
pub(super) fn set_timezone(guest: &Guest, name: &str) -> io::Result<()> {
    let zone = Path::new("/usr/share/zoneinfo").join(name);
    if !is_zone_name(name) || !zone.is_file() {
        return Err(io::Error::other(format!("there is no time zone `{name}` in the guest")));
    }
    let link = guest.root.join("etc/localtime");
    let temporary = guest.root.join("etc/.localtime");
    let _ = fs::remove_file(&temporary);
    fs::create_dir_all(guest.root.join("etc"))?;
    symlink(&zone, &temporary)?;
    // Programs that watch the link see it change in one step.
    fs::rename(&temporary, &link)?;
    write(guest, "etc/timezone", &format!("{name}\n"))
}

pub(super) fn remove_host_keys(guest: &Guest) -> io::Result<()> {
    for entry in fs::read_dir(guest.root.join("etc/ssh")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file, or the one that its name is a link to.
fn write(guest: &Guest, path: &str, text: &str) -> io::Result<()> {
    let path = guest.root.join(path);
    let path = fs::read_link(&path).map(|to| guest.root.join(to)).unwrap_or(path);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    write_atomically(&path, text.as_bytes(), 0o644)
}
