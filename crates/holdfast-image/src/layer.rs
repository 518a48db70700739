//! Layers: the expensive parts of an image, each a directory `<cache>/layers/<name>-<key>/` that is
//! addressed by what it is made from and appears complete or not at all.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
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

    /// Removes every layer of this name.
    pub(crate) fn remove_all(cache: &Path, name: &str) -> Result<()> {
        let layers = cache.join("layers");
        let what = || format!("removing old layers from {}", layers.display());
        let entries = match fs::read_dir(&layers) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.doing(what)?,
        };
        for entry in entries {
            let path = entry.doing(what)?.path();
            let stem = path.file_name().and_then(|file| file.to_str()).and_then(|file| {
                let (stem, _) = file.rsplit_once('-')?;
                Some(stem)
            });
            if stem == Some(name) {
                fs::remove_dir_all(&path).doing(what)?;
            }
        }
        Ok(())
    }

    /// Its archive.
    pub(crate) fn archive(&self) -> PathBuf {
        self.path.join(ARCHIVE)
    }
}

fn location(cache: &Path, name: &str, key: &str) -> PathBuf {
    // 128 bits of the key are enough to tell layers apart, and bearable in a listing.
    cache.join("layers").join(format!("{name}-{}", &key[..32]))
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
