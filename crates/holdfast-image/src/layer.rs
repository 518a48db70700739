//! Layers: the expensive parts of an image, each a directory `<cache>/layers/<name>-<key>/` that is
//! addressed by what it is made from and appears complete or not at all.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{ImageError, Result, error::IoContext as _};

/// The archive in every layer.
pub(crate) const ARCHIVE: &str = "files.tar.zst";
const DESCRIPTION: &str = "layer.json";

/// What is known of a layer without unpacking it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Description {
    /// Bytes of all files when unpacked.
    pub unpacked_bytes: u64,
    /// Versions of packages.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// Versions of tools.
    #[serde(default)]
    pub tools: BTreeMap<String, String>,
    /// Release of the kernel.
    #[serde(default)]
    pub kernel: String,
}

/// A layer that is there.
pub(crate) struct Layer {
    pub path: PathBuf,
    pub description: Description,
}

impl Layer {
    /// Finds the layer.
    pub(crate) fn find(cache: &Path, name: &str, key: &str) -> Option<Self> {
        let path = location(cache, name, key);
        let description = fs::read(path.join(DESCRIPTION)).ok()?;
        Some(Self { description: serde_json::from_slice(&description).ok()?, path })
    }

    /// Puts what `building` holds into the cache as this layer.
    pub(crate) fn publish(
        cache: &Path,
        name: &str,
        key: &str,
        building: &Path,
        description: Description,
    ) -> Result<Self> {
        let path = location(cache, name, key);
        let text = serde_json::to_vec_pretty(&description)
            .map_err(|error| ImageError::Incomplete { what: "layer", why: error.to_string() })?;
        let file = building.join(DESCRIPTION);
        fs::write(&file, text).doing(|| format!("writing {}", file.display()))?;
        sync_tree(building)?;
        rename(building, &path)?;
        Ok(Self { path, description })
    }

    /// Removes every layer for which `unwanted` says so of its directory's name, `<name>-<key>`;
    /// answers how many bytes that freed.
    pub(crate) fn remove(cache: &Path, unwanted: impl Fn(&str) -> bool) -> Result<u64> {
        let layers = cache.join("layers");
        let what = || format!("removing layers from {}", layers.display());
        let entries = match fs::read_dir(&layers) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries.doing(what)?,
        };
        let mut freed = 0;
        for entry in entries {
            let path = entry.doing(what)?.path();
            if path.file_name().and_then(|file| file.to_str()).is_some_and(&unwanted) {
                freed += disk_bytes(&path).doing(what)?;
                fs::remove_dir_all(&path).doing(what)?;
            }
        }
        Ok(freed)
    }

    /// Its archive.
    pub(crate) fn archive(&self) -> PathBuf {
        self.path.join(ARCHIVE)
    }
}

/// Name of a layer's directory: 128 bits of the key are enough to tell layers apart, and bearable in
/// a listing.
pub(crate) fn directory_name(name: &str, key: &str) -> String {
    format!("{name}-{}", key.get(..32).unwrap_or(key))
}

fn location(cache: &Path, name: &str, key: &str) -> PathBuf {
    cache.join("layers").join(directory_name(name, key))
}

/// Bytes on disk of all that is below a directory.
pub(crate) fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += metadata.blocks() * 512;
        if metadata.is_dir() {
            total += disk_bytes(&entry.path())?;
        }
    }
    Ok(total)
}

/// Syncs what is in a directory, and the directory.
pub(crate) fn sync_tree(directory: &Path) -> Result<()> {
    let what = || format!("syncing {}", directory.display());
    for entry in fs::read_dir(directory).doing(what)? {
        let path = entry.doing(what)?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).doing(what)?;
        }
    }
    File::open(directory).and_then(|file| file.sync_all()).doing(what)
}

/// Renames a complete directory to its place, durably. What was there is replaced.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("putting {} into place", to.display());
    let parent = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).doing(what)?;
    if to.exists() {
        fs::remove_dir_all(to).doing(what)?;
    }
    fs::rename(from, to).doing(what)?;
    File::open(parent).and_then(|directory| directory.sync_all()).doing(what)
}
