//! The files of an image, as every VMM needs them. Must never write to any of them.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::Deserialize;

use crate::driver::{DriverError, ImageRef, Result};

/// Format of the images that this version boots: their files, the kernel's command line, the agent's
/// protocol. An image of another one is refused before anything is started.
pub const FORMAT: u32 = 1;

/// What a manifest says that can be checked without reading gigabytes.
#[derive(Deserialize)]
struct Manifest {
    inputs: Option<Inputs>,
    #[serde(default)]
    files: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Inputs {
    format: u32,
}

#[derive(Deserialize)]
struct Entry {
    bytes: u64,
}

/// Whether the image in `dir` is one of this version with all its files at their full length; else
/// what is wrong. Takes microseconds, so content is not looked at: `holdfast image inspect --verify` does.
pub fn check(dir: &Path) -> std::result::Result<(), String> {
    let text = fs::read(dir.join("manifest.json"))
        .map_err(|error| format!("it is not complete: manifest.json: {error}"))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| format!("its manifest.json cannot be understood: {error}"))?;
    if let Some(Inputs { format }) = manifest.inputs
        && format != FORMAT
    {
        return Err(format!(
            "it was built by another version of Holdfast: its format is {format}, and this version boots format {FORMAT}"
        ));
    }
    for (name, Entry { bytes }) in manifest.files {
        match fs::metadata(dir.join(&name)) {
            Ok(file) if file.len() == bytes => {}
            Ok(file) => {
                return Err(format!(
                    "it is damaged: {name} has {} bytes instead of {bytes}",
                    file.len()
                ));
            }
            Err(error) => return Err(format!("it is damaged: {name}: {error}")),
        }
    }
    Ok(())
}

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
        check(&image.path).map_err(|why| refused(&image.path, &format!("{why}; {BUILD_AGAIN}")))?;
        let kernel = open("vmlinux")?;
        let mut magic = [0; 4];
        let read = std::os::unix::fs::FileExt::read_exact_at(&kernel, &mut magic, 0);
        if read.is_err() || &magic != b"\x7fELF" {
            return Err(refused(
                &image.path,
                &format!("vmlinux is not an uncompressed kernel; {BUILD_AGAIN}"),
            ));
        }
        Ok(Self { root: open("rootfs.img")?, kernel, initramfs: open("initramfs.img")? })
    }
}

const BUILD_AGAIN: &str = "build it again with `holdfast image build`";

fn open_part(dir: &Path, name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::CLOEXEC.bits() as i32)
        .open(dir.join(name))
        .map_err(|e| refused(dir, &format!("{name}: {e}; {BUILD_AGAIN}")))?;
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
