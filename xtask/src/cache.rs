//! Directories outside and inside the source tree.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Logs and stamps of these tasks.
pub(crate) fn work_dir() -> Result<PathBuf> {
    made(target_dir().join("xtask"))
}

/// Tools and images, shared by all checkouts: `HOLDFAST_CACHE_DIR`, else `~/.cache/holdfast`.
/// The server looks for images in the same place.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let given = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = given("HOLDFAST_CACHE_DIR")
        .or_else(|| given("XDG_CACHE_HOME").map(|dir| dir.join("holdfast")))
        .or_else(|| given("HOME").map(|home| home.join(".cache/holdfast")))
        .context("neither HOLDFAST_CACHE_DIR nor HOME is set: set one of them")?;
    made(dir)
}

fn made(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    Ok(dir)
}
