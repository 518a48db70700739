//! The tools layer: sign-in tools and their Node from npm, as an archive of `opt/tools`.
//!
//! The lock file pins every file by its hash; no package's scripts are run.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use serde::Serialize;

use crate::{
    ImageError, Progress, Result,
    command::{self, Run},
    digest,
    error::IoContext as _,
    layer::{ARCHIVE, Description, Layer, disk_bytes},
    recipe::{PACKAGE_LOCK, Recipe, Tools},
};

/// Name of the layer.
pub(crate) const NAME: &str = "tools";
/// What building it takes at most, in MiB: npm's cache, the files, the archive.
pub(crate) const SPACE_MIB: u64 = 2400;

#[derive(Serialize)]
struct Key<'a> {
    format: u32,
    tools: &'a Tools,
    lock: String,
}

/// The layer's key.
pub(crate) fn key(recipe: &Recipe) -> String {
    let lock = digest::of_bytes(PACKAGE_LOCK.as_bytes());
    digest::of_value(&Key { format: recipe.format, tools: &recipe.tools, lock })
}

/// Builds the layer in the empty directory `building`, and puts it into the cache.
pub(crate) fn build(
    cache: &Path,
    building: &Path,
    recipe: &Recipe,
    key: &str,
    progress: &dyn Progress,
) -> Result<Layer> {
    command::require(&[&command::NPM, &command::TAR, &command::ZSTD])?;
    let root = building.join("root");
    let tools = root.join("opt/tools");
    let result = building.join("layer");
    for directory in [&tools, &result] {
        fs::create_dir_all(directory).doing(|| format!("making {}", directory.display()))?;
    }
    for (name, content) in
        [("package.json", recipe.package_json().as_str()), ("package-lock.json", PACKAGE_LOCK)]
    {
        let path = tools.join(name);
        fs::write(&path, content).doing(|| format!("writing {}", path.display()))?;
    }
    Run::new(&command::NPM, "the sign-in tools", "see npm's output below")?
        .args(["ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund"])
        .args(["--no-update-notifier", "--loglevel=http", "--engine-strict=false"])
        .args(["--os=linux", "--cpu=x64", "--libc=glibc"])
        .args(["--fetch-retries=2", "--fetch-retry-mintimeout=1000"])
        .arg("--cache")
        .arg(building.join("npm-cache"))
        .directory(&tools)
        .downloads_from("registry.npmjs.org")
        .run(progress)?;

    for path in &recipe.tools.remove {
        remove(&tools.join(path))?;
    }
    for program in programs(&recipe.tools) {
        let path = tools.join(program);
        let what = || format!("making {} executable", path.display());
        if !path.is_file() {
            let why = format!("npm left no {program}");
            return Err(ImageError::Incomplete { what: "tools layer", why });
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).doing(what)?;
    }
    let unpacked_bytes = disk_bytes(&tools).doing(|| format!("reading {}", tools.display()))?;
    pack(&root, &result.join(ARCHIVE), progress)?;
    let tools = versions(&recipe.tools);
    let description = Description { unpacked_bytes, tools, ..Description::default() };
    Layer::publish(cache, NAME, key, &result, description)
}

/// What has to be executable, relative to /opt/tools.
fn programs(tools: &Tools) -> impl Iterator<Item = &str> {
    let npm = tools.npm.iter().map(|tool| tool.program.as_str());
    npm.chain([tools.node.program.as_str()])
}

/// Versions by command.
fn versions(tools: &Tools) -> std::collections::BTreeMap<String, String> {
    let npm = tools.npm.iter().map(|tool| (tool.name.clone(), tool.version.clone()));
    npm.chain([("node".to_owned(), tools.node.version.clone())]).collect()
}

/// Links to be made in the image: command and what it runs.
pub(crate) fn links(tools: &Tools) -> impl Iterator<Item = (&str, &str)> {
    let npm = tools.npm.iter().map(|tool| (tool.name.as_str(), tool.program.as_str()));
    npm.chain([("node", tools.node.program.as_str())])
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        // A later version of the package may not have it any more.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.doing(|| format!("removing {}", path.display()))
}

fn pack(root: &Path, archive: &Path, progress: &dyn Progress) -> Result<()> {
    Run::new(&command::TAR, "packing the tools", "see the output below")?
        .args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mtime=@1700000000", "--mode=go+rX,go-w", "--use-compress-program=zstd -T0 -3"])
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(root)
        .arg("opt")
        .run(progress)
}
