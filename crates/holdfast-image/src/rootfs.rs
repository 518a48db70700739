//! The root file system as one ext4 image, sized to its content and never written to.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use crate::{
    Progress, Result,
    command::{self, Run},
    error::IoContext as _,
    layer::Layer,
};

/// Label by which the initramfs finds it.
const LABEL: &str = "hf-root";
/// Fixed, so that the same content gives the same image.
const UUID: &str = "6f0bd8f0-5a7c-4d1c-9c55-686f6c646661";
/// Seed of the hash that orders names in large directories.
const HASH_SEED: &str = "2b6b4c1e-77c5-4f0e-8d84-7374696c6c21";
const EPOCH: &str = "1700000000";
const BLOCK: u64 = 4096;
const INODE: u64 = 256;

/// Unpacks a layer over `root`.
pub(crate) fn unpack(layer: &Layer, root: &Path, progress: &dyn Progress) -> Result<()> {
    Run::new(
        &command::TAR,
        "unpacking a layer",
        "remove the `layers` directory of the cache and build again if it is damaged",
    )?
    .args(["--extract", "--numeric-owner", "--preserve-permissions", "--xattrs"])
    .args(["--xattrs-include=*", "--use-compress-program=zstd"])
    .arg("--file")
    .arg(layer.archive())
    .arg("--directory")
    .arg(root)
    .run(progress)
}

/// Makes the image of everything below `root`.
pub(crate) fn write(image: &Path, root: &Path, progress: &dyn Progress) -> Result<()> {
    let mut content = Content::default();
    content.add(root)?;
    let inodes = content.files + 512;
    // Inode tables, the files' content, 2 % for block maps and what each group keeps, and room for
    // the agent.
    let bytes = content.blocks * BLOCK + inodes * INODE;
    let bytes = (bytes + bytes / 50 + (96 << 20)).next_multiple_of(BLOCK);
    let what = || format!("making {}", image.display());
    File::create(image).and_then(|file| file.set_len(bytes)).doing(what)?;
    Run::new(&command::MKE2FS, "writing the file system", "see the output of mke2fs below")?
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", LABEL])
        .args(["-U", UUID, "-E"])
        .arg(format!("hash_seed={HASH_SEED},root_owner=0:0,lazy_itable_init=0,nodiscard"))
        // Nothing is ever written, so there is nothing to journal, to grow or to keep for repairs.
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum", "-N"])
        .arg(inodes.to_string())
        .arg("-d")
        .arg(root)
        .arg(image)
        .env("E2FSPROGS_FAKE_TIME", EPOCH)
        .run(progress)
}

/// Puts a program into the image; answers what the image holds of it then.
pub(crate) fn add_program(
    image: &Path,
    program: &Path,
    (directory, name): (&str, &str),
    progress: &dyn Progress,
) -> Result<Vec<u8>> {
    let commands = program.with_extension("commands");
    let copy = program.with_extension("copy");
    let script = format!(
        "cd /{directory}\n\
         write {program} {name}\n\
         set_inode_field {name} mode 0100755\n\
         set_inode_field {name} uid 0\n\
         set_inode_field {name} gid 0\n\
         set_inode_field {name} atime @{EPOCH}\n\
         set_inode_field {name} ctime @{EPOCH}\n\
         set_inode_field {name} mtime @{EPOCH}\n\
         dump {name} {copy}\n",
        program = program.display(),
        copy = copy.display(),
    );
    fs::write(&commands, script).doing(|| format!("writing {}", commands.display()))?;
    // It ends well also when a command failed: what it dumps is the proof.
    Run::new(&command::DEBUGFS, "adding the agent", "see the output of debugfs below")?
        .args(["-w", "-f"])
        .arg(&commands)
        .arg(image)
        .env("E2FSPROGS_FAKE_TIME", EPOCH)
        .run(progress)?;
    let found = fs::read(&copy).unwrap_or_default();
    for path in [&commands, &copy] {
        // Missing only where debugfs failed, which the caller sees from what it gets.
        let _ = fs::remove_file(path);
    }
    Ok(found)
}

#[derive(Default)]
struct Content {
    files: u64,
    blocks: u64,
}

impl Content {
    fn add(&mut self, directory: &Path) -> Result<()> {
        let what = || format!("reading {}", directory.display());
        for entry in fs::read_dir(directory).doing(what)? {
            let entry = entry.doing(what)?;
            let metadata = entry.metadata().doing(what)?;
            self.files += 1;
            self.blocks += metadata.size().div_ceil(BLOCK);
            if metadata.is_dir() {
                self.blocks += 1;
                self.add(&entry.path())?;
            }
        }
        Ok(())
    }
}
