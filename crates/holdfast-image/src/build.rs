//! Builds an image from its inputs, or finds the one that was built from them before.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{
    ImageError, Inputs, Library, Manifest, Progress, Recipe, Result, Stage, ToolVersion, base,
    command, config, digest,
    error::IoContext as _,
    layer::{Description, Layer},
    library::{self, Lock},
    system, tools,
};

/// What the image itself takes besides the layers' content, in MiB: kernel, initramfs, slack.
const IMAGE_SPACE_MIB: u64 = 400;
/// What an unpacked layer takes, in MiB, before it is known.
const UNPACKED_MIB: u64 = 1000;
/// What an image consists of, besides its manifest.
pub(crate) const FILES: [&str; 3] = ["rootfs.img", "vmlinux", "initramfs.img"];

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Holds `images/` and `layers/`.
    pub cache_dir: PathBuf,
    /// The guest program: a static x86-64 executable.
    pub agent_binary: PathBuf,
    /// Name servers of the guest before a claim names others; empty: the recipe's.
    pub resolvers: Vec<IpAddr>,
    /// Names the state of Debian's archive; another one than before installs the packages anew.
    /// `None`: the recipe's.
    pub revision: Option<String>,
    /// Put the sign-in tools in.
    pub tools: bool,
    /// Make the image the one that new VMs boot.
    pub make_current: bool,
}

impl BuildRequest {
    /// A whole image, which becomes the current one.
    pub fn new(cache_dir: impl Into<PathBuf>, agent_binary: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            agent_binary: agent_binary.into(),
            resolvers: Vec::new(),
            revision: None,
            tools: true,
            make_current: true,
        }
    }
}

/// An image that is in the library now.
#[derive(Debug, Clone)]
pub struct Built {
    /// Its directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// It was there already, made from the same inputs.
    pub reused: bool,
}

/// Builds the image, or finds it. Blocks for as long as that takes: well under a second when it is
/// there, seconds when only agent or configuration are new, some minutes from nothing.
///
/// # Errors
/// Each names what to do. Nothing half-made is left in the library whatever happens.
pub fn build(request: &BuildRequest, progress: &dyn Progress) -> Result<Built> {
    let recipe = Recipe::builtin()?;
    let agent = read_agent(&request.agent_binary)?;
    let inputs = inputs(&recipe, request, &agent);
    let digest = inputs.digest();
    let library = Library::new(&request.cache_dir);

    if library.contains(&digest) {
        if request.make_current && library.current().as_ref() != Some(&digest) {
            library.set_current(&digest)?;
        }
        return found(&library, &digest);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    command::require(&[
        &command::SETPRIV,
        &command::UNSHARE,
        &command::TAR,
        &command::ZSTD,
        &command::MKE2FS,
        &command::DEBUGFS,
    ])?;
    let lock = library.lock(progress)?;
    // Somebody else may have built it while this waited.
    if !library.contains(&digest) {
        let builder = Builder { request, recipe: &recipe, library: &library, progress };
        builder.clear()?;
        library.discard(&lock, &digest)?;
        let result = builder.build(&lock, inputs, &agent);
        // A build that failed leaves nothing; its error is the one that matters.
        let cleared = builder.clear();
        result?;
        cleared?;
    }
    if request.make_current {
        library.point_current(&lock, &digest)?;
    }
    drop(lock);
    let mut built = found(&library, &digest)?;
    built.reused = false;
    Ok(built)
}

fn found(library: &Library, digest: &str) -> Result<Built> {
    Ok(Built { path: library.path(digest), manifest: library.inspect(digest)?, reused: true })
}

fn inputs(recipe: &Recipe, request: &BuildRequest, agent: &[u8]) -> Inputs {
    let revision = request.revision.clone().unwrap_or_else(|| recipe.revision.clone());
    let resolvers = if request.resolvers.is_empty() {
        recipe.guest.resolvers.clone()
    } else {
        request.resolvers.clone()
    };
    Inputs {
        format: recipe.format,
        base: base::key(recipe, &revision),
        tools: request.tools.then(|| tools::key(recipe)),
        config: config::key(&recipe.guest, &resolvers),
        modules: recipe.kernel.modules.clone(),
        agent: digest::of_bytes(agent),
        revision,
        resolvers,
    }
}

/// Reads the agent and refuses one that could not run as the first process of a guest.
fn read_agent(path: &Path) -> Result<Vec<u8>> {
    let refuse = |why: &str| ImageError::Agent { path: path.to_owned(), why: why.to_owned() };
    let agent = fs::read(path).map_err(|error| {
        refuse(&format!("{error}; build it with `cargo xtask agent` or name it with --agent"))
    })?;
    // ELF, 64 bit, little-endian, x86-64.
    if !agent.starts_with(b"\x7fELF\x02\x01") || agent.get(18..20) != Some(&[62, 0]) {
        return Err(refuse("it is no x86-64 Linux program"));
    }
    if needs_interpreter(&agent).unwrap_or(true) {
        return Err(refuse(
            "it needs shared libraries, which the initramfs does not have: build it with \
             RUSTFLAGS=\"-C target-feature=+crt-static\" and an explicit --target",
        ));
    }
    Ok(agent)
}

/// Whether the ELF file has a program header of type `PT_INTERP`.
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let start = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..count {
        let at = start.checked_add(index * size)?;
        let kind = u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

struct Builder<'a> {
    request: &'a BuildRequest,
    recipe: &'a Recipe,
    library: &'a Library,
    progress: &'a dyn Progress,
}

impl Builder<'_> {
    fn build(&self, lock: &Lock, inputs: Inputs, agent: &[u8]) -> Result<()> {
        self.check_space(&inputs)?;
        let key = system::key(&inputs);
        let system = match Layer::find(&self.request.cache_dir, system::NAME, &key) {
            Some(layer) => layer,
            None => self.system(&inputs, &key)?,
        };
        let image = self.directory("image")?;
        system::finish(&system, &self.request.agent_binary, agent, &image, self.progress)?;
        self.progress.stage(Stage::Checksum);
        let manifest = self.manifest(&system, inputs, &image)?;
        self.progress.stage(Stage::Publish);
        self.library.publish(lock, &image, &manifest)
    }

    fn system(&self, inputs: &Inputs, key: &str) -> Result<Layer> {
        let (cache, recipe, progress) = (&self.request.cache_dir, self.recipe, self.progress);
        let base = self.layer(base::NAME, &inputs.base, Stage::Base, |building| {
            base::build(cache, building, recipe, &inputs.base, progress)
        })?;
        let tools = match &inputs.tools {
            None => None,
            Some(key) => Some(self.layer(tools::NAME, key, Stage::Tools, |building| {
                tools::build(cache, building, recipe, key, progress)
            })?),
        };
        let tools = tools.as_ref();
        let building = self.directory(system::NAME)?;
        let parts = system::Parts { cache, recipe, inputs, base: &base, tools, progress };
        let layer = system::build(&parts, &building, key)?;
        fs::remove_dir_all(&building).doing(|| format!("removing {}", building.display()))?;
        Ok(layer)
    }

    fn layer(
        &self,
        name: &str,
        key: &str,
        stage: Stage,
        build: impl FnOnce(&Path) -> Result<Layer>,
    ) -> Result<Layer> {
        if let Some(layer) = Layer::find(&self.request.cache_dir, name, key) {
            return Ok(layer);
        }
        self.progress.stage(stage);
        let building = self.directory(name)?;
        let layer = build(&building)?;
        fs::remove_dir_all(&building).doing(|| format!("removing {}", building.display()))?;
        Ok(layer)
    }

    fn manifest(&self, system: &Layer, inputs: Inputs, image: &Path) -> Result<Manifest> {
        let lengths =
            FILES.iter().map(|name| fs::metadata(image.join(name)).map(|file| file.len()));
        let total: u64 =
            lengths.sum::<io::Result<u64>>().doing(|| "reading the image".to_owned())?;
        let mut seen = 0;
        let mut files = BTreeMap::new();
        for name in FILES {
            self.progress.line(name);
            let entry = library::describe(&image.join(name), |count| {
                seen += count;
                self.progress.fraction(seen as f64 / total.max(1) as f64);
            })?;
            files.insert(name.to_owned(), entry);
        }
        let Description { versions, tools, kernel, .. } = system.description.clone();
        let npm = tools.iter().map(|(name, version)| (name, version, "npm"));
        let gh = versions.get_key_value("gh").map(|(name, version)| (name, version, "deb"));
        let tools = npm
            .chain(gh)
            .map(|(name, version, kind)| ToolVersion {
                name: name.clone(),
                version: version.clone(),
                kind: kind.to_owned(),
            })
            .collect();
        Ok(Manifest {
            digest: inputs.digest(),
            created_at: jiff::Timestamp::now(),
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            kernel,
            packages: versions,
            tools,
            files,
            inputs,
        })
    }

    /// Removes whatever an earlier build left behind.
    fn clear(&self) -> Result<()> {
        let building = self.library.building();
        self.library.clear_building().doing(|| format!("removing {}", building.display()))
    }

    /// Makes an empty directory under `building`.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.library.building().join(name);
        fs::create_dir_all(&path).doing(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// Refuses before anything is downloaded when there is not enough space.
    fn check_space(&self, inputs: &Inputs) -> Result<()> {
        let cache = &self.request.cache_dir;
        let key = system::key(inputs);
        let needed_mib = if let Some(system) = Layer::find(cache, system::NAME, &key) {
            system.description.unpacked_bytes >> 20
        } else {
            let layers = [
                (base::NAME, Some(&inputs.base), base::SPACE_MIB),
                (tools::NAME, inputs.tools.as_ref(), tools::SPACE_MIB),
            ];
            let layers =
                layers.into_iter().filter_map(|(name, key, space)| Some((name, key?, space)));
            layers
                .map(|(name, key, space_mib)| match Layer::find(cache, name, key) {
                    // For a while it lies there three times: as files, in the system and the image.
                    Some(layer) => 3 * (layer.description.unpacked_bytes >> 20),
                    None => space_mib + 3 * UNPACKED_MIB,
                })
                .sum()
        };
        let needed_mib = needed_mib + IMAGE_SPACE_MIB;
        let free = rustix::fs::statvfs(cache)
            .doing(|| format!("asking for the free space in {}", cache.display()))?;
        let free_mib = (free.f_bavail * free.f_frsize) >> 20;
        if free_mib < needed_mib {
            return Err(ImageError::NoSpace { path: cache.clone(), needed_mib, free_mib });
        }
        Ok(())
    }
}
