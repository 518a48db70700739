//! Stamps: whether the inputs of a step are still those of its last success.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::cache;

/// Remembers a digest of a step's inputs.
pub(crate) struct Stamp {
    file: PathBuf,
    digest: Vec<u8>,
}

impl Stamp {
    /// The stamp of a step over these files and directories (relative to the root), without
    /// anything of the names in `skip`.
    pub(crate) fn new(step: &str, inputs: &[&str], skip: &[&str]) -> Result<Self> {
        let mut hash = Sha256::new();
        for input in inputs {
            add(&mut hash, &cache::root().join(input), skip)?;
        }
        let file = cache::work_dir()?.join(format!("{step}.stamp"));
        Ok(Self { file, digest: hash.finalize().to_vec() })
    }

    /// Whether the step succeeded with these inputs.
    pub(crate) fn is_fresh(&self) -> bool {
        fs::read(&self.file).is_ok_and(|digest| digest == self.digest)
    }

    /// The step succeeded.
    pub(crate) fn set(&self) -> Result<()> {
        fs::write(&self.file, &self.digest)
            .with_context(|| format!("{} cannot be written", self.file.display()))
    }
}

fn add(hash: &mut Sha256, path: &Path, skip: &[&str]) -> Result<()> {
    let unreadable = || format!("{} cannot be read", path.display());
    if path.is_dir() {
        let entries = fs::read_dir(path).with_context(unreadable)?;
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .with_context(unreadable)?;
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !skip.contains(&name.as_str()) {
                add(hash, &path, skip)?;
            }
        }
        return Ok(());
    }
    let content = fs::read(path).with_context(unreadable)?;
    hash.update(path.to_string_lossy().as_bytes());
    hash.update((content.len() as u64).to_le_bytes());
    hash.update(content);
    Ok(())
}
