//! The files of an image, as every VMM needs them. Must never write to any of them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::driver::{DriverError, ImageRef, Result};

/// The files of an image, open.
pub(crate) struct Image {
    pub(crate) root: File,
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
}

impl Image {
    /// Opens them; what cannot be used is refused with what to do.
    pub(crate) fn open(image: &ImageRef) -> Result<Self> {
        let open = |name: &str| open_part(&image.path, name);
        open("manifest.json")?;
        let kernel = open("vmlinux")?;
        let mut magic = [0; 4];
        let read = std::os::unix::fs::FileExt::read_exact_at(&kernel, &mut magic, 0);
        if read.is_err() || &magic != b"\x7fELF" {
            return Err(refused(
                &image.path,
                "vmlinux is not an uncompressed kernel; build the image again",
            ));
        }
        Ok(Self { root: open("rootfs.img")?, kernel, initramfs: open("initramfs.img")? })
    }
}

fn open_part(dir: &Path, name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::CLOEXEC.bits() as i32)
        .open(dir.join(name))
        .map_err(|e| refused(dir, &format!("{name}: {e}; build or fetch the image again")))?;
    // A VMM opens them anew as its own user; directories above do not matter to that.
    let mode =
        file.metadata().map(|m| std::os::unix::fs::MetadataExt::mode(&m)).unwrap_or_default();
    if mode & 0o004 == 0 {
        return Err(refused(dir, &format!("{name} is not readable by all; run `chmod a+r` on it")));
    }
    Ok(file)
}

fn refused(dir: &Path, why: &str) -> DriverError {
    DriverError::Image { path: dir.display().to_string(), why: why.to_owned() }
}
