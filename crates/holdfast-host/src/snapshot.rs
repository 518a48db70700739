//! Snapshot directories: a manifest with versions and checksums, and the files it names. Shared by the
//! drivers; each says which files there are.
//!
//! A directory appears complete or not at all. One that is truncated, changed, or made for another
//! image, VMM or size is refused with a sentence, before anything of it is used.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::ioctl_ficlone;
use serde::{Deserialize, Serialize};

use crate::{
    disk,
    driver::{DriverError, Result, VmSpec},
    files,
    statedir::{UPPER, VmDir},
};

const MANIFEST: &str = "manifest.json";
/// Rises when a snapshot of before cannot be read any more.
pub(crate) const FORMAT: u32 = 2;
/// Processor and device state.
pub const DEVICES: &str = "devices.state";
/// The guest's memory.
pub const MEMORY: &str = "memory.img";
/// Memory that the guest had not changed everywhere: what changed is in files beside it. A hard link, as a
/// rule: the warm image and all its clones have one file.
pub const BASE: &str = "base.img";

/// What a snapshot fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fits {
    /// VMM with version, and how it runs the guest: state of one means nothing to another.
    pub vmm: String,
    /// Digest of the image.
    pub image: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// Size of the writable disk in MiB.
    pub disk_mib: u32,
}

impl Fits {
    /// What a snapshot of this VM fits.
    pub fn new(vmm: String, spec: &VmSpec) -> Self {
        Self {
            vmm,
            image: spec.image.digest.clone(),
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            disk_mib: spec.disk_mib,
        }
    }

    /// Why a snapshot made for `self` is of no use for `wanted`.
    fn differs(&self, wanted: &Self) -> Option<String> {
        let differs = |what: &str, is: &str, wants: &str| {
            (is != wants).then(|| format!("it was made with {what} {is}, and {wants} is wanted"))
        };
        let number = |n: u32| n.to_string();
        differs("VMM", &self.vmm, &wanted.vmm)
            .or_else(|| differs("image", &self.image, &wanted.image))
            .or_else(|| {
                differs("MiB of memory:", &number(self.memory_mib), &number(wanted.memory_mib))
            })
            .or_else(|| differs("processors:", &self.vcpus.to_string(), &wanted.vcpus.to_string()))
            .or_else(|| differs("MiB of disk:", &number(self.disk_mib), &number(wanted.disk_mib)))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    fits: Fits,
    files: Vec<Entry>,
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    name: String,
    bytes: u64,
    sum: String,
}

/// A snapshot that is being written. Removed again unless it is finished.
pub struct Draft {
    dest: PathBuf,
    temporary: PathBuf,
    finished: bool,
}

impl Draft {
    /// Begins one; `dest` must not exist.
    pub fn begin(dest: &Path) -> Result<Self> {
        if dest.exists() {
            return Err(refused(dest, "something of that name exists already"));
        }
        let Some(name) = dest.file_name() else { return Err(refused(dest, "it has no name")) };
        let temporary = partial_of(dest, &name.to_string_lossy());
        let made = match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => DirBuilder::new().mode(0o700).recursive(true).create(&temporary),
        };
        made.map_err(|e| DriverError::io(format!("making {}", temporary.display()), e))?;
        Ok(Self { dest: dest.to_owned(), temporary, finished: false })
    }

    /// A new file in it.
    pub fn file(&self, name: &str) -> Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.temporary.join(name))
            .map_err(|e| self.writing(e))
    }

    /// A second handle on a file in it, for somebody who only writes.
    pub fn writer(&self, name: &str) -> Result<File> {
        let opened = File::options().write(true).open(self.temporary.join(name));
        opened.map_err(|e| self.writing(e))
    }

    /// Takes over a file whose checksum is known by giving it a name in here too. `None` where that
    /// cannot be: on another file system, for instance.
    pub fn link(&self, from: &Path, name: &str, sum: &str) -> Option<Entry> {
        let to = self.temporary.join(name);
        fs::hard_link(from, &to).ok()?;
        let bytes = fs::metadata(&to).ok()?.len();
        Some(Entry { name: name.to_owned(), bytes, sum: sum.to_owned() })
    }

    /// Gives a file in it a second name elsewhere, where that can be.
    pub fn share(&self, name: &str, to: &Path) {
        let _ = fs::hard_link(self.temporary.join(name), to);
    }

    /// Copies an open file into it, without its holes and zeros, summed up on the way.
    pub fn copy(&self, from: &File, name: &str) -> Result<Entry> {
        let to = self.file(name)?;
        let copied = || {
            let bytes = from.metadata()?.len();
            let sum = if ioctl_ficlone(&to, from).is_ok() {
                sum(&to, |_, _| Ok(()))?
            } else {
                let mut sum = Sum::of(bytes);
                files::copy_chunks(from, &to, |offset, chunk| sum.add(offset, chunk))?;
                sum.finish()
            };
            Ok(Entry { name: name.to_owned(), bytes, sum })
        };
        copied().map_err(|e| self.writing(e))
    }

    /// Sums up a file in it that somebody else wrote.
    pub fn written(&self, name: &str) -> Result<Entry> {
        let written = || {
            let file = File::open(self.temporary.join(name))?;
            let sum = sum(&file, |_, _| Ok(()))?;
            Ok(Entry { name: name.to_owned(), bytes: file.metadata()?.len(), sum })
        };
        written().map_err(|e| self.writing(e))
    }

    /// Syncs it and gives it its name.
    pub fn finish(mut self, fits: Fits, files: Vec<Entry>) -> Result<()> {
        let done = (|| {
            let mut paths: Vec<_> = files.iter().map(|f| self.temporary.join(&f.name)).collect();
            let manifest = self.temporary.join(MANIFEST);
            files::replace_json(&manifest, &Manifest { format: FORMAT, fits, files })?;
            // The names in it, too.
            paths.extend([manifest, self.temporary.clone()]);
            files::sync_all(&paths)?;
            fs::rename(&self.temporary, &self.dest)?;
            files::sync_dir(self.dest.parent().unwrap_or(Path::new("/")))
        })();
        self.finished = done.is_ok();
        done.map_err(|e| self.writing(e))
    }

    fn writing(&self, source: io::Error) -> DriverError {
        DriverError::io(format!("writing the snapshot {}", self.dest.display()), source)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// A snapshot whose manifest was read and fits.
#[derive(Debug, Clone)]
pub struct Snapshot {
    path: PathBuf,
    manifest: Manifest,
}

/// What a file was when it was last summed up: device, inode, length, and when it was last written to. (The
/// change time, which cannot be set back, also changes with each hard link.)
pub type Stamp = (u64, u64, u64, i64, i64);

impl Snapshot {
    /// Reads the manifest of a snapshot and compares it with what is wanted.
    pub fn open(path: &Path, wanted: &Fits) -> Result<Self> {
        let snapshot = Self::read(path)?;
        match snapshot.manifest.fits.differs(wanted) {
            Some(why) => Err(refused(path, &why)),
            None => Ok(snapshot),
        }
    }

    /// Reads the manifest of a snapshot of which only the disk is wanted: image and size have to fit,
    /// the VMM may be another.
    pub fn open_disk(path: &Path, spec: &VmSpec) -> Result<Self> {
        let snapshot = Self::read(path)?;
        let made = &snapshot.manifest.fits;
        let wanted =
            Fits { image: spec.image.digest.clone(), disk_mib: spec.disk_mib, ..made.clone() };
        match made.differs(&wanted) {
            Some(why) => Err(refused(path, &why)),
            None => Ok(snapshot),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let manifest: Manifest = files::read_json(&path.join(MANIFEST))
            .map_err(|e| refused(path, &format!("its manifest cannot be read: {e}")))?
            .ok_or_else(|| refused(path, "it has no manifest"))?;
        if manifest.format != FORMAT {
            let format = manifest.format;
            return Err(refused(
                path,
                &format!("its format is {format}, and {FORMAT} is understood"),
            ));
        }
        Ok(Self { path: path.to_owned(), manifest })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file of this name in it.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.files.iter().any(|entry| entry.name == name)
    }

    /// The checksum that one of its files should have.
    pub fn sum(&self, name: &str) -> Result<&str> {
        self.entry(name).map(|entry| entry.sum.as_str())
    }

    /// Opens one of its files; its length is compared.
    pub fn file(&self, name: &str) -> Result<File> {
        let entry = self.entry(name)?;
        let file = File::open(self.path.join(name))
            .map_err(|e| refused(&self.path, &format!("{name} cannot be opened: {e}")))?;
        let length = file.metadata().map(|meta| meta.len()).unwrap_or_default();
        if length == entry.bytes {
            return Ok(file);
        }
        let why = format!("{name} has {length} bytes and should have {}", entry.bytes);
        Err(refused(&self.path, &why))
    }

    /// Compares a file with its checksum, showing each chunk that is not zeros to `visit`.
    pub fn verify(
        &self,
        name: &str,
        file: &File,
        visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<()> {
        let found = sum(file, visit).map_err(|e| DriverError::io(format!("reading {name}"), e))?;
        if found == self.entry(name)?.sum {
            return Ok(());
        }
        Err(refused(&self.path, &format!("{name} was changed or damaged: its checksum differs")))
    }

    /// Names, checksums and present stamps of its files.
    pub fn stamps(&self) -> Result<Vec<(String, Stamp)>> {
        let entries = self.manifest.files.iter();
        entries
            .map(|entry| Ok((format!("{} {}", entry.name, entry.sum), self.stamp(&entry.name)?)))
            .collect()
    }

    /// The present stamp of one of its files.
    pub fn stamp(&self, name: &str) -> Result<Stamp> {
        let meta = self.file(name)?.metadata();
        let meta = meta.map_err(|e| DriverError::io(format!("reading {name}"), e))?;
        Ok((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.manifest.files.iter().find(|entry| entry.name == name);
        found.ok_or_else(|| refused(&self.path, &format!("it has no {name}")))
    }
}

/// Removes a snapshot, and what was begun of it.
pub(crate) fn discard(path: &Path) -> Result<()> {
    let partial = path.file_name().map(|name| partial_of(path, &name.to_string_lossy()));
    for path in [Some(path.to_owned()), partial].into_iter().flatten() {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DriverError::io(format!("removing {}", path.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Space that a snapshot takes, in bytes, without what others have too.
pub(crate) fn bytes(path: &Path) -> Result<u64> {
    let sum = || {
        fs::read_dir(path)?
            .map(|entry| Ok(files::own_bytes(&entry?.metadata()?)))
            .sum::<io::Result<u64>>()
    };
    sum().map_err(|e| DriverError::io(format!("reading {}", path.display()), e))
}

/// Snapshots in a directory by their final paths, also those that were only begun.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let reading = |e| DriverError::io(format!("reading {}", dir.display()), e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(reading(error)),
    };
    let mut found = std::collections::BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(reading)?.file_name();
        let name = name.to_string_lossy();
        let name = name.strip_suffix(".partial").and_then(|n| n.strip_prefix('.')).unwrap_or(&name);
        found.insert(dir.join(name));
    }
    Ok(found.into_iter().collect())
}

/// Names of the snapshots in a directory, each with the digest of the image that it needs. One that was only
/// begun, or is damaged, is no use to anybody and left out; of one that cannot be read that is not known.
pub fn images(dir: &Path) -> Result<Vec<(String, String)>> {
    use io::ErrorKind::{InvalidData, NotADirectory, UnexpectedEof};
    let mut needed = Vec::new();
    for path in list(dir)? {
        let manifest = match files::read_json::<Manifest>(&path.join(MANIFEST)) {
            Err(e) if [InvalidData, NotADirectory, UnexpectedEof].contains(&e.kind()) => None,
            read => read.map_err(|e| DriverError::io(format!("reading {}", path.display()), e))?,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        needed.extend(manifest.map(|manifest| (name, manifest.fits.image)));
    }
    Ok(needed)
}

fn partial_of(dest: &Path, name: &str) -> PathBuf {
    dest.with_file_name(format!(".{name}.partial"))
}

/// Checksum of a file's length and of its chunks that are not zeros, so that holes cost nothing.
struct Sum(blake3::Hasher);

impl Sum {
    fn of(bytes: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes.to_le_bytes());
        Self(hasher)
    }

    /// Each chunk is hashed alone: at an odd place in one long text, it would take twice as long.
    fn add(&mut self, offset: u64, chunk: &[u8]) {
        self.0.update(&offset.to_le_bytes()).update(blake3::hash(chunk).as_bytes());
    }

    fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

fn sum(file: &File, mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<String> {
    let mut sum = Sum::of(file.metadata()?.len());
    files::each_chunk(file, |offset, chunk| {
        sum.add(offset, chunk);
        visit(offset, chunk)
    })?;
    Ok(sum.finish())
}

fn refused(path: &Path, why: &str) -> DriverError {
    DriverError::Snapshot { path: path.display().to_string(), why: why.to_owned() }
}

/// Gives a VM that does not run the disk of a snapshot.
pub(crate) async fn take_disk(dir: &VmDir, spec: &VmSpec, path: &Path) -> Result<()> {
    let (snapshot, to) = (Snapshot::open_disk(path, spec)?, dir.file(UPPER));
    blocking(move || {
        let disk = snapshot.file(UPPER)?;
        snapshot.verify(UPPER, &disk, |_, _| Ok(()))?;
        disk::replace(&disk, &to)
    })
    .await
}

/// Works on files of a snapshot beside the tasks that serve.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| {
        Err(DriverError::Refused {
            operation: "working on a snapshot".to_owned(),
            message: panicked.to_string(),
        })
    })
}
