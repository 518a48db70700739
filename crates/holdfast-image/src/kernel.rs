//! Debian's kernel package: the uncompressed kernel inside `vmlinuz`, and its modules.
//!
//! A bzImage carries the kernel's ELF file compressed; Debian's is in LZ4's legacy frame format.
//! `payload_offset` and `payload_length` of the boot header say where
//! (Documentation/arch/x86/boot.rst), counted from the start of the protected-mode code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{ImageError, Result, error::IoContext as _};

const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// Every block but the last unpacks to this much.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

fn unusable(why: impl Into<String>) -> ImageError {
    ImageError::Kernel { why: why.into() }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The kernel's ELF file out of a bzImage.
pub(crate) fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let cut = || unusable("vmlinuz is cut short");
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(unusable("vmlinuz is not a Linux boot image"));
    }
    let setup = match image[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup + 1) * 512 + u32_at(image, PAYLOAD_OFFSET).ok_or_else(cut)? as usize;
    let length = u32_at(image, PAYLOAD_LENGTH).ok_or_else(cut)? as usize;
    let payload = image.get(start..start + length).ok_or_else(cut)?;
    if u32_at(payload, 0) != Some(LZ4_LEGACY_MAGIC) {
        return Err(unusable("vmlinuz is not compressed with LZ4, as Debian's has been"));
    }
    // The last 4 bytes are the unpacked size, appended by the kernel's build.
    let (mut blocks, size) = payload[4..].split_at(payload.len().checked_sub(8).ok_or_else(cut)?);
    let size = u32_at(size, 0).ok_or_else(cut)? as usize;
    let mut kernel = Vec::with_capacity(size.min(1 << 28));
    let mut buffer = vec![0; LZ4_LEGACY_BLOCK];
    while !blocks.is_empty() {
        let length = u32_at(blocks, 0).ok_or_else(cut)? as usize;
        let block = blocks.get(4..4 + length).ok_or_else(cut)?;
        let unpacked = lz4_flex::block::decompress_into(block, &mut buffer)
            .map_err(|error| unusable(format!("vmlinuz does not unpack: {error}")))?;
        kernel.extend_from_slice(&buffer[..unpacked]);
        blocks = &blocks[4 + length..];
    }
    if kernel.len() != size || !kernel.starts_with(b"\x7fELF") {
        return Err(unusable("what vmlinuz unpacks to is not a kernel"));
    }
    Ok(kernel)
}

/// The modules of one kernel release.
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Finds the modules in `lib/modules/<release>`.
    pub(crate) fn find(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(directory, &mut files)?;
        let list = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&list).doing(|| format!("reading {}", list.display()))?;
        let builtin = builtin
            .lines()
            .filter_map(|line| Some(normal(Path::new(line).file_stem()?.to_str()?)))
            .collect();
        Ok(Self { files, builtin })
    }

    /// The named modules and all that they depend on, each after its own dependencies; name and
    /// content. Those built into the kernel are left out.
    pub(crate) fn closure(&self, names: &[String]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&normal(name), &mut seen, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        loaded: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self
            .files
            .get(name)
            .ok_or_else(|| unusable(format!("it has no module {name}, which the guest needs")))?;
        let content = fs::read(path).doing(|| format!("reading {}", path.display()))?;
        for dependency in dependencies(&content) {
            self.visit(&normal(&dependency), seen, loaded)?;
        }
        loaded.push((name.to_owned(), content));
        Ok(())
    }
}

/// A module's name has underscores where its file may have hyphens.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let what = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).doing(what)? {
        let entry = entry.doing(what)?;
        let path = entry.path();
        if entry.file_type().doing(what)?.is_dir() {
            collect(&path, files)?;
        } else if let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            && path.extension().is_some_and(|extension| extension == "ko")
        {
            files.insert(normal(stem), path);
        }
    }
    Ok(())
}

/// What a module says it depends on: `depends=a,b` among the strings of its `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let value = &value[..value.iter().position(|byte| *byte == 0).unwrap_or(value.len())];
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]
mod tests {
    use super::{Modules, dependencies, extract_vmlinux};

    /// A bzImage as Debian's: an LZ4 legacy frame and the unpacked size as its payload.
    fn boot_image(kernel: &[u8], claimed: u32) -> Vec<u8> {
        let mut payload = 0x184c_2102_u32.to_le_bytes().to_vec();
        for chunk in kernel.chunks(8 << 20) {
            // A block of literals only: a token of 15 and the rest of the length in bytes of 255.
            let mut block = vec![0xf0];
            let mut rest = chunk.len() - 15;
            while rest >= 255 {
                block.push(255);
                rest -= 255;
            }
            block.push(rest as u8);
            block.extend_from_slice(chunk);
            payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
            payload.extend_from_slice(&block);
        }
        payload.extend_from_slice(&claimed.to_le_bytes());
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0; 64]);
        image.extend_from_slice(&payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn kernel() -> Vec<u8> {
        let mut kernel = b"\x7fELF".to_vec();
        kernel.extend((0..(8 << 20) + 1000).map(|index: u32| (index % 251) as u8));
        kernel
    }

    #[test]
    fn a_kernel_of_several_blocks_comes_out_whole() {
        let kernel = kernel();
        assert!(extract_vmlinux(&boot_image(&kernel, kernel.len() as u32)).unwrap() == kernel);
    }

    #[test]
    fn a_damaged_image_is_refused() {
        let kernel = kernel();
        let whole = boot_image(&kernel, kernel.len() as u32);
        for length in [0, 0x204, 0x24e, 600, whole.len() / 2, whole.len() - 100] {
            assert!(extract_vmlinux(&whole[..length]).is_err(), "cut at {length}");
        }
        let refused = extract_vmlinux(&boot_image(&kernel, 17)).unwrap_err().to_string();
        assert!(refused.contains("not a kernel"), "{refused}");
        let not_elf = vec![1; 100];
        assert!(extract_vmlinux(&boot_image(&not_elf, 100)).is_err());
    }

    #[test]
    fn modules_come_after_what_they_depend_on() {
        let directory = tempfile::tempdir().unwrap();
        let module = |name: &str, depends: &str| {
            let content = format!("ELF\0license=GPL\0depends={depends}\0retpoline=Y\0");
            std::fs::create_dir_all(directory.path().join("kernel/drivers")).unwrap();
            let file = directory.path().join(format!("kernel/drivers/{name}.ko"));
            std::fs::write(file, content).unwrap();
        };
        module("virtio_net", "net_failover,virtio");
        module("net-failover", "failover");
        module("failover", "");
        module("virtio", "");
        module("unused", "");
        let builtin = directory.path().join("modules.builtin");
        std::fs::write(builtin, "kernel/fs/ext4/ext4.ko\n").unwrap();
        let modules = Modules::find(directory.path()).unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            modules.closure(&wanted).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            names(&["ext4", "virtio", "virtio_net"]),
            ["virtio", "failover", "net_failover", "virtio_net"]
        );
        assert!(modules.closure(&["absent".to_owned()]).is_err());
    }

    #[test]
    fn a_module_may_depend_on_nothing() {
        assert!(dependencies(b"\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
