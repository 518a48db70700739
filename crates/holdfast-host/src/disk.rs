//! Writable disks: sparse files with an empty ext4 labelled `hf-upper`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    command::Tool,
    driver::{DriverError, Result},
    files,
};

/// Label by which the guest finds its writable disk.
pub const UPPER_LABEL: &str = "hf-upper";

/// Makes an empty disk of at most `mib` MiB at `path`, unless it is there already. It appears
/// complete or not at all, and takes a few MiB at first.
pub async fn make_upper(path: &Path, mib: u32) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let temporary = path.with_extension("img.new");
    let made = make(&temporary, path, mib).await;
    if made.is_err() {
        // Half of a disk would keep a full file system full.
        let _ = files::remove_if_there(&temporary);
    }
    made
}

async fn make(temporary: &Path, path: &Path, mib: u32) -> Result<()> {
    let operation = format!("making the disk {}", path.display());
    let io = |source| DriverError::io(&operation, source);
    let file = fs::File::create(temporary).map_err(io)?;
    file.set_len(u64::from(mib) << 20).map_err(io)?;
    // A small journal lets a killed guest boot again on its disk. Nothing is zeroed now or later by
    // the guest's kernel: the file is new, so everything in it is zero already.
    let extended =
        "assume_storage_prezeroed=1,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    let options = ["-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=16", "-E", extended, "-L"];
    let target = temporary.display().to_string();
    let formatted =
        Tool::new("mke2fs", options.into_iter().chain([UPPER_LABEL, target.as_str()])).run().await;
    formatted.map_err(|error| match error {
        // What was run to make it says nothing about what to do.
        DriverError::NoSpace { .. } => DriverError::NoSpace { what: operation.clone() },
        error => error,
    })?;
    file.sync_all().map_err(io)?;
    fs::rename(temporary, path).map_err(io)?;
    files::sync_dir(path.parent().unwrap_or(path)).map_err(io)
}

/// Replaces a disk; it has its name only once it is whole.
pub(crate) fn replace(from: &fs::File, to: &Path) -> Result<()> {
    Replacement::begin(to)?.fill(from)
}

/// A disk that is to replace another. It can be shown before it is whole.
pub(crate) struct Replacement {
    pub(crate) file: fs::File,
    temporary: PathBuf,
    to: PathBuf,
}

impl Replacement {
    /// An empty one.
    pub(crate) fn begin(to: &Path) -> Result<Self> {
        let temporary = to.with_extension("img.new");
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&temporary).map_err(|e| Self::failed(to, e))?;
        Ok(Self { file, temporary, to: to.to_owned() })
    }

    /// Fills it and gives it its name.
    pub(crate) fn fill(self, from: &fs::File) -> Result<()> {
        files::copy_sparse(from, &self.file)
            // What takes the place of another file, ext4 writes out before it answers (auto_da_alloc). Nobody
            // needs the disk of before, and nobody waits for that of now to be written.
            .and_then(|()| files::remove_if_there(&self.to))
            .and_then(|()| fs::rename(&self.temporary, &self.to))
            .map_err(|e| Self::failed(&self.to, e))?;
        let Self { file, to, .. } = self;
        std::thread::spawn(move || {
            if let Err(error) = file.sync_data() {
                tracing::error!(disk = %to.display(), %error, "a disk could not be written out");
            }
        });
        Ok(())
    }

    fn failed(to: &Path, source: io::Error) -> DriverError {
        DriverError::io(format!("copying the disk to {}", to.display()), source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[tokio::test]
    async fn a_disk_is_sparse_and_labelled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upper.img");
        make_upper(&path, 8192).await.unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 8192 << 20);
        assert!(meta.blocks() * 512 < 8 << 20, "{} blocks", meta.blocks());
        let mut label = [0; 8];
        let file = fs::File::open(&path).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut label, 1024 + 0x78).unwrap();
        assert_eq!(&label, b"hf-upper");
    }
}
