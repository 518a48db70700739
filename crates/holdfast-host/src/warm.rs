//! Warm images on disk: `<cache>/warm/<key>/`, a snapshot each, beside a small file that says what it
//! fits.
//!
//! The key is made of everything that a snapshot depends on, so a warm image that is found by its key
//! can be restored. A clone copies the disk and has the memory open, or a link to it, before its start is
//! answered: removing a warm image never disturbs a VM.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    driver::{DriverError, Result},
    files,
    snapshot::{self, Fits},
};

const NOTE: &str = "json";

/// The warm images in a cache directory.
#[derive(Debug, Clone)]
pub struct WarmLibrary {
    dir: PathBuf,
}

/// A warm image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WarmImage {
    /// Its snapshot directory.
    pub path: PathBuf,
    /// Which VMs can be restored from it.
    pub fits: Fits,
    /// Space that it takes on disk, in bytes.
    pub bytes: u64,
    /// How busy the guest was when it was saved, in thousandths of a processor.
    pub busy_permille: u32,
}

/// The right to bake: one process of this cache directory has it at a time. The kernel takes it back
/// when the process ends.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl WarmLibrary {
    /// The library in this cache directory.
    pub fn new(cache: &Path) -> Self {
        Self { dir: cache.join("warm") }
    }

    /// State directory of the VM that is booted to make a warm image.
    pub fn work_dir(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where the warm image of these VMs is, or will be.
    pub fn path(&self, fits: &Fits) -> PathBuf {
        self.dir.join(key(fits))
    }

    /// The warm image of these VMs, when there is one.
    pub fn find(&self, fits: &Fits) -> Option<PathBuf> {
        let path = self.path(fits);
        (note(&path).is_file() && path.is_dir()).then_some(path)
    }

    /// All warm images.
    pub fn list(&self) -> Result<Vec<WarmImage>> {
        let reading = |e| DriverError::io(format!("reading {}", self.dir.display()), e);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(reading(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(reading)?.path();
            if path.extension().is_some_and(|extension| extension == NOTE)
                && let Some(image) = files::read_json::<WarmImage>(&path).map_err(reading)?
                && image.path.is_dir()
            {
                found.push(image);
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Says that a snapshot is complete and found by its key from now on.
    pub(crate) fn add(&self, fits: Fits, busy_permille: u32) -> Result<WarmImage> {
        let path = self.path(&fits);
        let bytes = snapshot::bytes(&path)?;
        let image = WarmImage { path, fits, bytes, busy_permille };
        files::write_json(&note(&image.path), &image)
            .map_err(|e| DriverError::io("writing down a warm image", e))?;
        Ok(image)
    }

    /// Removes a warm image. VMs that were restored from it are not disturbed.
    pub fn remove(&self, path: &Path) -> Result<()> {
        files::remove_if_there(&note(path))
            .map_err(|e| DriverError::io(format!("removing {}", path.display()), e))?;
        snapshot::discard(path)
    }

    /// Removes the warm images of other images than this one, those that another version of the same
    /// VMM made, and what is half there.
    pub fn remove_outdated(&self, current: &Fits) -> Result<usize> {
        let kind = |vmm: &str| vmm.split(' ').next().unwrap_or_default().to_owned();
        let mut removed = 0;
        let known = self.list()?;
        for image in &known {
            let fits = &image.fits;
            let other_version = kind(&fits.vmm) == kind(&current.vmm) && fits.vmm != current.vmm;
            // Of before an update of Holdfast or of the processor's microcode.
            let other_key = image.path != self.path(fits);
            if fits.image != current.image || other_version || other_key {
                self.remove(&image.path)?;
                removed += 1;
            }
        }
        let work = self.work_dir();
        for path in snapshot::list(&self.dir)? {
            let is_half = path.extension().is_none()
                && path != work
                && path.file_name().is_some_and(|name| name != "lock")
                && !known.iter().any(|image| image.path == path);
            if is_half {
                self.remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Takes the right to bake, or `None` while another process has it.
    pub fn turn(&self) -> Result<Option<Turn>> {
        let io = |e| DriverError::io(format!("locking {}", self.dir.display()), e);
        fs::create_dir_all(&self.dir).map_err(io)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join("lock"))
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Turn { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io(error.into())),
        }
    }
}

fn note(path: &Path) -> PathBuf {
    path.with_extension(NOTE)
}

/// Name of the processor, as far as guests may see its features.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let lines = info.lines().take_while(|line| !line.is_empty());
    let named = lines.filter(|line| ["model name", "flags"].iter().any(|n| line.starts_with(n)));
    named.collect::<Vec<_>>().join("\n")
}

fn key(fits: &Fits) -> String {
    let mut hash = Sha256::new();
    let Fits { vmm, image, memory_mib, vcpus, disk_mib } = fits;
    let version = format!("{} {}", env!("CARGO_PKG_VERSION"), snapshot::FORMAT);
    let size = format!("{memory_mib} {vcpus} {disk_mib}");
    hash.update([&version, vmm, image, &size, &processor()].map(String::as_str).join("\n"));
    hash.finalize().iter().take(16).fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(image: &str, vmm: &str, memory_mib: u32) -> Fits {
        let (vmm, image) = (vmm.to_owned(), image.to_owned());
        Fits { vmm, image, memory_mib, vcpus: 2, disk_mib: 512 }
    }

    fn made(library: &WarmLibrary, fits: &Fits) -> PathBuf {
        let path = library.path(fits);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("manifest.json"), "{}").unwrap();
        library.add(fits.clone(), 0).unwrap().path
    }

    #[test]
    fn only_what_is_complete_and_fits_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let library = WarmLibrary::new(cache.path());
        let wanted = fits("a", "QEMU 7 (tcg)", 1024);
        assert!(library.list().unwrap().is_empty() && library.find(&wanted).is_none());
        fs::create_dir_all(library.path(&wanted)).unwrap();
        assert!(library.find(&wanted).is_none(), "no note says that it is complete");
        let path = made(&library, &wanted);
        assert_eq!(library.find(&wanted), Some(path));
        for other in [
            fits("b", "QEMU 7 (tcg)", 1024),
            fits("a", "QEMU 8 (tcg)", 1024),
            fits("a", "QEMU 7 (tcg)", 2048),
        ] {
            assert!(library.find(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn outdated_and_half_made_ones_are_removed() {
        let cache = tempfile::tempdir().unwrap();
        let library = WarmLibrary::new(cache.path());
        let current = fits("a", "QEMU 7 (tcg)", 1024);
        let kept = [
            made(&library, &current),
            made(&library, &fits("a", "QEMU 7 (tcg)", 2048)),
            made(&library, &fits("a", "Firecracker 1", 1024)),
        ];
        let of_before = WarmImage {
            path: cache.path().join("warm/of-before"),
            ..library.list().unwrap().swap_remove(0)
        };
        fs::create_dir_all(&of_before.path).unwrap();
        files::write_json(&note(&of_before.path), &of_before).unwrap();
        let gone = [
            made(&library, &fits("b", "QEMU 7 (tcg)", 1024)),
            made(&library, &fits("a", "QEMU 6 (tcg)", 1024)),
            of_before.path,
        ];
        let half = library.path(&fits("a", "QEMU 7 (tcg)", 512));
        fs::create_dir_all(&half).unwrap();
        fs::create_dir_all(library.work_dir()).unwrap();
        let _turn = library.turn().unwrap().expect("nobody else bakes");
        assert!(library.turn().unwrap().is_none(), "one bakes at a time");
        assert_eq!(library.remove_outdated(&current).unwrap(), 4);
        assert!(kept.iter().all(|path| path.is_dir()) && library.work_dir().is_dir());
        assert!(!half.exists() && gone.iter().all(|path| !path.exists()));
    }
}
