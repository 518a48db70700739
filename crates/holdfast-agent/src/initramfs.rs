//! The initramfs: loads modules, joins the read-only image and the VM's own disk to one root, and
//! starts `init` on it. It must say on the console why it cannot go on.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, mount, mount_move};

use crate::init::say;

/// Label of the image's file system.
pub const ROOT_LABEL: &str = "hf-root";
/// Label of the file system that takes what the guest writes.
pub const UPPER_LABEL: &str = "hf-upper";
/// How long the disks may take to appear.
const DEVICE_DEADLINE: Duration = Duration::from_secs(30);
/// The program of the image that goes on.
const NEXT: &str = "/usr/lib/holdfast/agent";

/// Runs as `/init`. Returns only when it cannot go on; the kernel then panics.
pub fn main() -> ExitCode {
    let Err(error) = run();
    say(&format!("the guest cannot start: {error:#}"));
    // The console is written out before the kernel panics over the end of init.
    thread::sleep(Duration::from_secs(1));
    ExitCode::FAILURE
}

fn run() -> anyhow::Result<std::convert::Infallible> {
    use anyhow::Context;
    pseudo("devtmpfs", "/dev")?;
    pseudo("proc", "/proc")?;
    pseudo("sysfs", "/sys")?;
    load_modules(Path::new("/modules"));
    let root = wait_for(ROOT_LABEL)?;
    let upper = wait_for(UPPER_LABEL)?;
    for dir in ["/root.ro", "/root.rw", "/root.new"] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
    }
    mount(&root.device, "/root.ro", root.kind, MountFlags::RDONLY, None)
        .with_context(|| format!("cannot mount {} ({ROOT_LABEL})", root.device.display()))?;
    mount(&upper.device, "/root.rw", upper.kind, MountFlags::NOATIME, None)
        .with_context(|| format!("cannot mount {} ({UPPER_LABEL})", upper.device.display()))?;
    for dir in ["/root.rw/upper", "/root.rw/work"] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
    }
    let layers = c"lowerdir=/root.ro,upperdir=/root.rw/upper,workdir=/root.rw/work";
    mount("overlay", "/root.new", "overlay", MountFlags::empty(), layers)
        .context("cannot join the image and the VM's disk (overlay)")?;
    for dir in ["dev", "proc", "sys"] {
        let target = Path::new("/root.new").join(dir);
        fs::create_dir_all(&target)?;
        mount_move(Path::new("/").join(dir), &target)
            .with_context(|| format!("cannot move /{dir} to the new root"))?;
    }
    // What the kernel unpacked stays in memory unless it is removed.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    std::env::set_current_dir("/root.new")?;
    mount_move(".", "/").context("cannot move to the new root")?;
    rustix::process::chroot(".").context("cannot change to the new root")?;
    std::env::set_current_dir("/")?;
    Err(Command::new(NEXT).arg("init").exec()).with_context(|| format!("cannot start {NEXT}"))
}

fn pseudo(kind: &str, target: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target)?;
    match mount(kind, target, kind, MountFlags::empty(), None) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(anyhow::anyhow!("cannot mount {target}: {error}")),
    }
}

/// Loads the modules that `order` names, in its order. A module may be built in, or be of no use on
/// this machine: what is really missing shows when a disk does not appear.
fn load_modules(dir: &Path) {
    let order = fs::read_to_string(dir.join("order")).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(error) = load_module(&dir.join(name)) {
            let known = [io::ErrorKind::NotFound, io::ErrorKind::AlreadyExists];
            if !known.contains(&error.kind()) {
                say(&format!("module {name}: {error}"));
            }
        }
    }
}

fn load_module(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    rustix::system::finit_module(&file, &CString::default(), 0).map_err(io::Error::from)
}

/// A disk with a known file system.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    device: PathBuf,
    kind: &'static str,
}

fn wait_for(label: &str) -> anyhow::Result<Disk> {
    let start = Instant::now();
    loop {
        let mut seen = Vec::new();
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let device = Path::new("/dev").join(entry.file_name());
            match File::open(&device).and_then(label_of) {
                Ok(Some((kind, found))) if found == label => return Ok(Disk { device, kind }),
                Ok(Some((kind, found))) => {
                    seen.push(format!("{} ({kind} `{found}`)", device.display()));
                }
                Ok(None) => seen.push(format!("{} (unknown content)", device.display())),
                // Loop devices and empty drives cannot be read.
                Err(_) => {}
            }
        }
        anyhow::ensure!(
            start.elapsed() < DEVICE_DEADLINE,
            "no disk with the label `{label}` after {} s; disks: {}",
            DEVICE_DEADLINE.as_secs(),
            if seen.is_empty() { "none".to_owned() } else { seen.join(", ") }
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// Kind and label of the ext4 or EROFS file system on a disk, from its superblock at byte 1024.
fn label_of(mut disk: impl Read + Seek) -> io::Result<Option<(&'static str, String)>> {
    let mut block = [0u8; 256];
    disk.seek(SeekFrom::Start(1024))?;
    disk.read_exact(&mut block)?;
    let label = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Ok(if block[0x38..0x3a] == [0x53, 0xef] {
        Some(("ext4", label(&block[0x78..0x88])))
    } else if block[..4] == 0xe0f5_e1e2_u32.to_le_bytes() {
        Some(("erofs", label(&block[0x40..0x50])))
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(program: &str, arguments: &[&str]) -> Option<(&'static str, String)> {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("disk");
        File::create(&image).expect("a file").set_len(16 << 20).expect("its size");
        let made = Command::new(program).args(arguments).arg(&image).output().expect("mkfs runs");
        assert!(made.status.success(), "{made:?}");
        label_of(File::open(&image).expect("the disk")).expect("a readable disk")
    }

    #[test]
    fn reads_the_label_that_mkfs_wrote() {
        let found = labelled("/sbin/mkfs.ext4", &["-q", "-L", ROOT_LABEL]);
        assert_eq!(found, Some(("ext4", ROOT_LABEL.to_owned())));
        let found = labelled("/sbin/mkfs.ext4", &["-q"]);
        assert_eq!(found, Some(("ext4", String::new())));
    }

    #[test]
    fn an_empty_disk_has_no_label() {
        assert_eq!(label_of(io::Cursor::new(vec![0; 4096])).expect("readable"), None);
        assert!(label_of(io::Cursor::new(vec![0; 100])).is_err());
    }
}
