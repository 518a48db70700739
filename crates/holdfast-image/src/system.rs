//! The system layer: all of an image but the agent. The file system with packages, tools and
//! configuration, the kernel, and the modules of the initramfs.
//!
//! The agent is what changes most, so it comes last: into a copy of the file system, without
//! unpacking or packing anything again.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    ImageError, Inputs, Progress, Recipe, Result, Stage, base,
    command::{self, Run},
    config, digest,
    error::IoContext as _,
    initramfs,
    kernel::{self, Modules},
    layer::{Description, Layer},
    rootfs, tools,
};

/// Name of the layer.
pub(crate) const NAME: &str = "system";
const ROOTFS: &str = "rootfs.img";
const KERNEL: &str = "vmlinux";
const MODULES: &str = "modules";
const ORDER: &str = "order";

/// The layer's key: that of the inputs, with any agent.
pub(crate) fn key(inputs: &Inputs) -> String {
    digest::of_value(&Inputs { agent: String::new(), ..inputs.clone() })
}

/// What the layer is built from.
pub(crate) struct Parts<'a> {
    pub cache: &'a Path,
    pub recipe: &'a Recipe,
    pub inputs: &'a Inputs,
    pub base: &'a Layer,
    pub tools: Option<&'a Layer>,
    pub progress: &'a dyn Progress,
}

/// Builds the layer in the empty directory `building`, and puts it into the cache. Others of its
/// kind are removed: each is as large as an image, and made again from the other layers in seconds.
pub(crate) fn build(parts: &Parts<'_>, building: &Path, key: &str) -> Result<Layer> {
    let result = building.join("layer");
    make_directory(&result.join(MODULES))?;
    let release = kernel(parts, building, &result)?;
    root(parts, building, &result)?;
    let mut description = Description {
        unpacked_bytes: size(&result.join(ROOTFS))? + size(&result.join(KERNEL))?,
        versions: parts.base.description.versions.clone(),
        kernel: release,
        ..Description::default()
    };
    if let Some(tools) = parts.tools {
        description.tools.clone_from(&tools.description.tools);
    }
    Layer::remove(parts.cache, |directory| directory.starts_with(NAME))?;
    Layer::publish(parts.cache, NAME, key, &result, description)
}

/// Writes `vmlinux` and the modules; answers the kernel's release.
fn kernel(parts: &Parts<'_>, building: &Path, result: &Path) -> Result<String> {
    parts.progress.stage(Stage::Kernel);
    let unpacked = building.join("kernel");
    make_directory(&unpacked)?;
    Run::new(&command::DPKG_DEB, "unpacking the kernel", "see the output below")?
        .arg("--extract")
        .arg(base::kernel_package(parts.base))
        .arg(&unpacked)
        .run(parts.progress)?;
    let modules = unpacked.join("lib/modules");
    let release = only_entry(&modules)?;
    let packed = unpacked.join(format!("boot/vmlinuz-{release}"));
    let packed = fs::read(&packed).doing(|| format!("reading {}", packed.display()))?;
    write(&result.join(KERNEL), &kernel::extract_vmlinux(&packed)?)?;
    let modules = Modules::find(&modules.join(&release))?;
    let mut order = String::new();
    for (name, content) in modules.closure(&parts.recipe.kernel.modules)? {
        write(&result.join(MODULES).join(format!("{name}.ko")), &content)?;
        order.push_str(&name);
        order.push('\n');
    }
    write(&result.join(MODULES).join(ORDER), order.as_bytes())?;
    Ok(release)
}

/// Writes the file system.
fn root(parts: &Parts<'_>, building: &Path, result: &Path) -> Result<()> {
    let root = building.join("root");
    make_directory(&root)?;
    parts.progress.stage(Stage::Unpack);
    for layer in [Some(parts.base), parts.tools].into_iter().flatten() {
        rootfs::unpack(layer, &root, parts.progress)?;
    }
    parts.progress.stage(Stage::Configure);
    config::apply(&root, &parts.recipe.guest, &parts.inputs.resolvers)?;
    if parts.tools.is_some() {
        config::link_tools(&root, tools::links(&parts.recipe.tools))?;
    }
    parts.progress.stage(Stage::Filesystem);
    rootfs::write(&result.join(ROOTFS), &root, parts.progress)
}

/// Makes an image's files in the directory `image`: those of the layer, with the agent in them.
pub(crate) fn finish(
    layer: &Layer,
    agent_path: &Path,
    agent: &[u8],
    image: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    progress.stage(Stage::Agent);
    let (from, to) = (layer.path.join(ROOTFS), image.join(ROOTFS));
    fs::copy(&from, &to).doing(|| format!("copying {}", from.display()))?;
    // The copy is the agent's binary as it was hashed, whatever happens to the original meanwhile.
    let copy = image.join("agent");
    write(&copy, agent)?;
    let added = rootfs::add_program(&to, &copy, config::AGENT, progress);
    fs::remove_file(&copy).doing(|| format!("removing {}", copy.display()))?;
    if digest::of_bytes(&added?) != digest::of_bytes(agent) {
        return Err(ImageError::Incomplete {
            what: "file system",
            why: format!("{} does not fit into it", agent_path.display()),
        });
    }
    let (from, to) = (layer.path.join(KERNEL), image.join(KERNEL));
    fs::copy(&from, &to).doing(|| format!("copying {}", from.display()))?;
    initramfs::write(&image.join("initramfs.img"), agent, &modules(layer)?)?;
    for name in crate::build::FILES {
        let path = image.join(name);
        let readable = fs::set_permissions(&path, Permissions::from_mode(0o444));
        readable.doing(|| format!("protecting {}", path.display()))?;
    }
    Ok(())
}

fn modules(layer: &Layer) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = layer.path.join(MODULES);
    let read = || -> io::Result<Vec<(String, Vec<u8>)>> {
        fs::read_to_string(directory.join(ORDER))?
            .lines()
            .map(|name| Ok((name.to_owned(), fs::read(directory.join(format!("{name}.ko")))?)))
            .collect()
    };
    read().doing(|| format!("reading {}", directory.display()))
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).doing(|| format!("making {}", path.display()))
}

fn write(path: &PathBuf, content: &[u8]) -> Result<()> {
    fs::write(path, content).doing(|| format!("writing {}", path.display()))
}

fn size(path: &Path) -> Result<u64> {
    let metadata = File::open(path).and_then(|file| file.metadata());
    Ok(metadata.doing(|| format!("reading {}", path.display()))?.len())
}

fn only_entry(directory: &Path) -> Result<String> {
    let what = || format!("reading {}", directory.display());
    let mut entries = fs::read_dir(directory).doing(what)?;
    let first = entries.next().transpose().doing(what)?;
    let name = first.and_then(|entry| entry.file_name().into_string().ok());
    name.ok_or_else(|| ImageError::Kernel { why: "it holds no modules".to_owned() })
}
