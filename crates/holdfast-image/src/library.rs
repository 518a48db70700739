//! The library of built images: finding, listing, checking and removing them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    FileEntry, ImageError, Manifest, Progress, Result, Stage, base, digest,
    error::IoContext as _,
    layer::{self, Layer},
    system, tools,
};

const MANIFEST: &str = "manifest.json";
const CURRENT: &str = "current";

/// The images of a cache directory.
#[derive(Debug, Clone)]
pub struct Library {
    cache: PathBuf,
}

/// What a check of an image's files found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were hashed.
    pub bytes: u64,
    /// What is wrong, a sentence each; empty when the image is as it was built.
    pub problems: Vec<String>,
}

/// Held by the one who changes the cache; released when dropped, also when the process is killed.
pub(crate) struct Lock {
    _file: File,
}

impl Library {
    /// The library in this cache directory, which need not exist yet.
    pub fn new(cache_dir: &Path) -> Self {
        Self { cache: cache_dir.to_owned() }
    }

    /// Where the images are.
    pub fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// Where an image with this digest is, or would be.
    pub fn path(&self, digest: &str) -> PathBuf {
        self.images().join(digest)
    }

    /// Digest of the image that new VMs boot.
    pub fn current(&self) -> Option<String> {
        let target = fs::read_link(self.images().join(CURRENT)).ok()?;
        let digest = target.file_name()?.to_str()?.to_owned();
        self.path(&digest).join(MANIFEST).is_file().then_some(digest)
    }

    /// Every image, newest first. One whose manifest cannot be read is an error of its own, so that
    /// it hides no other.
    pub fn list(&self) -> Result<Vec<Result<Manifest>>> {
        let mut found: Vec<_> =
            self.digests()?.into_iter().map(|digest| self.manifest(&digest)).collect();
        found.sort_by_key(|manifest| {
            std::cmp::Reverse(manifest.as_ref().map(|manifest| manifest.created_at).ok())
        });
        Ok(found)
    }

    /// The image whose digest starts with `prefix`; `current` names the current one.
    pub fn inspect(&self, prefix: &str) -> Result<Manifest> {
        self.manifest(&self.resolve(prefix)?)
    }

    /// Makes an image the one that new VMs boot.
    pub fn set_current(&self, prefix: &str) -> Result<()> {
        let digest = self.resolve(prefix)?;
        let lock = self.lock(&crate::Silent)?;
        self.point_current(&lock, &digest)
    }

    /// Removes an image. Unless it is forced, the current one and those for which `in_use` names a
    /// user are refused.
    pub fn remove(
        &self,
        prefix: &str,
        force: bool,
        in_use: impl FnOnce(&str) -> Option<String>,
    ) -> Result<Manifest> {
        let digest = self.resolve(prefix)?;
        let lock = self.lock(&crate::Silent)?;
        let is_current = self.current().is_some_and(|current| current == digest);
        if !force {
            if is_current {
                return Err(ImageError::Current { digest });
            }
            if let Some(by) = in_use(&digest) {
                return Err(ImageError::InUse { digest, by });
            }
        }
        let manifest = self.manifest(&digest)?;
        let remove = || -> io::Result<()> {
            if is_current {
                fs::remove_file(self.images().join(CURRENT))?;
            }
            // Out of the library in one step; what is left of it after a crash, or by an interrupted
            // build before, is cleared away.
            self.clear_building()?;
            let building = self.building();
            fs::create_dir_all(&building)?;
            let leaving = building.join(format!("removed-{digest}"));
            fs::rename(self.path(&digest), &leaving)?;
            fs::remove_dir_all(leaving)?;
            fs::remove_dir(building)
        };
        remove().doing(|| format!("removing image {digest}"))?;
        drop(lock);
        Ok(manifest)
    }

    /// Removes the layers that no image of the library was made from, and what an interrupted build
    /// left; answers how many bytes that freed.
    pub fn prune(&self) -> Result<u64> {
        let _lock = self.lock(&crate::Silent)?;
        let building = self.building();
        let what = || format!("removing {}", building.display());
        let left = if building.exists() { layer::disk_bytes(&building).doing(what)? } else { 0 };
        self.clear_building().doing(what)?;
        let mut used = Vec::new();
        for manifest in self.list()? {
            // With a manifest that cannot be read nobody knows what is unused.
            let inputs = manifest?.inputs;
            used.push(layer::directory_name(system::NAME, &system::key(&inputs)));
            used.push(layer::directory_name(base::NAME, &inputs.base));
            used.extend(inputs.tools.map(|key| layer::directory_name(tools::NAME, &key)));
        }
        let unused = |directory: &str| !used.iter().any(|name| name == directory);
        Ok(left + Layer::remove(&self.cache, unused)?)
    }

    /// Hashes every file of an image and compares it with the manifest.
    pub fn verify(&self, prefix: &str, progress: &dyn Progress) -> Result<Verified> {
        let manifest = self.inspect(prefix)?;
        let directory = self.path(&manifest.digest);
        progress.stage(Stage::Checksum);
        let total: u64 = manifest.files.values().map(|file| file.bytes).sum();
        let mut verified = Verified::default();
        if manifest.inputs.digest() != manifest.digest {
            verified.problems.push("the manifest's inputs do not give its digest".to_owned());
        }
        for (name, expected) in &manifest.files {
            progress.line(name);
            let path = directory.join(name);
            let length = fs::metadata(&path).map(|metadata| metadata.len());
            match length {
                Ok(length) if length == expected.bytes => {
                    let seen = &mut verified.bytes;
                    let hash = digest::of_file(&path, |count| {
                        *seen += count;
                        progress.fraction(*seen as f64 / total.max(1) as f64);
                    })?;
                    if hash != expected.sha256 {
                        verified.problems.push(format!("{name} was changed"));
                    }
                }
                Ok(length) => verified
                    .problems
                    .push(format!("{name} has {length} bytes instead of {}", expected.bytes)),
                Err(error) => verified.problems.push(format!("{name} cannot be read: {error}")),
            }
        }
        Ok(verified)
    }

    /// Waits for the lock on the cache, telling so when somebody has it.
    pub(crate) fn lock(&self, progress: &dyn Progress) -> Result<Lock> {
        let path = self.cache.join("build.lock");
        let what = || format!("locking {}", path.display());
        fs::create_dir_all(&self.cache).doing(what)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).doing(what)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                progress.stage(Stage::Waiting);
                flock(&file, FlockOperation::LockExclusive).doing(what)?;
            }
            Err(error) => return Err(error).doing(what),
        }
        Ok(Lock { _file: file })
    }

    /// Where everything unfinished is.
    pub(crate) fn building(&self) -> PathBuf {
        self.cache.join("building")
    }

    /// Removes what an interrupted build left. Only for the holder of the lock.
    pub(crate) fn clear_building(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.building()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether this image is there with every file at its full length: a disk that was full, or a hand
    /// that slipped, is put right by building again.
    pub(crate) fn contains(&self, digest: &str) -> bool {
        self.manifest(digest).is_ok_and(|manifest| {
            let directory = self.path(digest);
            manifest.files.iter().all(|(name, expected)| {
                fs::metadata(directory.join(name)).is_ok_and(|file| file.len() == expected.bytes)
            })
        })
    }

    /// Takes what is left of a damaged image out of the library. VMs that run from it keep its files open.
    pub(crate) fn discard(&self, _: &Lock, digest: &str) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("removing the damaged image {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Puts what `building` holds into the library.
    pub(crate) fn publish(&self, _: &Lock, building: &Path, manifest: &Manifest) -> Result<()> {
        let path = building.join(MANIFEST);
        let what = || format!("writing {}", path.display());
        let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other).doing(what)?;
        fs::write(&path, text).doing(what)?;
        layer::sync_tree(building)?;
        layer::rename(building, &self.path(&manifest.digest))
    }

    /// Replaces the link to the current image in one step.
    pub(crate) fn point_current(&self, _: &Lock, digest: &str) -> Result<()> {
        let link = self.images().join(CURRENT);
        let point = || -> io::Result<()> {
            let new = self.images().join(".current.new");
            if fs::symlink_metadata(&new).is_ok() {
                fs::remove_file(&new)?;
            }
            symlink(digest, &new)?;
            fs::rename(&new, &link)
        };
        point().doing(|| format!("pointing {} to {digest}", link.display()))
    }

    fn digests(&self) -> Result<Vec<String>> {
        let images = self.images();
        let what = || format!("reading {}", images.display());
        let entries = match fs::read_dir(&images) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing(what)?,
        };
        let mut digests = Vec::new();
        for entry in entries {
            let name = entry.doing(what)?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_digest(name)) {
                digests.push(name.to_owned());
            }
        }
        digests.sort();
        Ok(digests)
    }

    fn resolve(&self, prefix: &str) -> Result<String> {
        let not_found =
            || ImageError::NotFound { digest: prefix.to_owned(), library: self.images() };
        if prefix == CURRENT {
            return self.current().ok_or_else(|| ImageError::NoCurrent { library: self.images() });
        }
        let mut fitting = self.digests()?;
        fitting.retain(|digest| digest.starts_with(prefix));
        match (prefix.is_empty(), fitting.len()) {
            (false, 1) => Ok(fitting.remove(0)),
            (true, _) | (_, 0) => Err(not_found()),
            (_, count) => Err(ImageError::Ambiguous { digest: prefix.to_owned(), count }),
        }
    }

    fn manifest(&self, digest: &str) -> Result<Manifest> {
        let refuse = |why: String| ImageError::Manifest { digest: digest.to_owned(), why };
        let text = fs::read(self.path(digest).join(MANIFEST))
            .map_err(|error| refuse(error.to_string()))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        if manifest.digest == digest {
            Ok(manifest)
        } else {
            Err(refuse(format!("it is that of image {}", manifest.digest)))
        }
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Length, space and hash of a file.
pub(crate) fn describe(path: &Path, seen: impl FnMut(u64)) -> Result<FileEntry> {
    let metadata = fs::metadata(path).doing(|| format!("reading {}", path.display()))?;
    Ok(FileEntry {
        bytes: metadata.len(),
        disk_bytes: metadata.blocks() * 512,
        sha256: digest::of_file(path, seen)?,
    })
}
