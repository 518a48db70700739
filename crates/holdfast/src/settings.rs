//! A server's configuration: defaults, then holdfast.toml, then the environment and options.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use holdfast_server::{Config, DriverChoice};

use crate::cli::{ConfigArgs, Driver};

/// Read when it exists and no other file is named.
const SYSTEM_FILE: &str = "/etc/holdfast/holdfast.toml";

/// The configuration in force, and the file that it was read from.
pub fn load(args: &ConfigArgs) -> anyhow::Result<(Config, Option<PathBuf>)> {
    let file = match &args.config {
        Some(file) => Some(file.clone()),
        None => Some(PathBuf::from(SYSTEM_FILE)).filter(|file| file.exists()),
    };
    let mut config = match &file {
        Some(file) => read(file)?,
        None => Config::default(),
    };
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(store) = &args.store {
        config.store.clone_from(store);
    }
    if let Some(driver) = args.driver {
        config.driver = match driver {
            Driver::Auto => DriverChoice::Auto,
            Driver::Firecracker => DriverChoice::Firecracker,
            Driver::Qemu => DriverChoice::Qemu,
            Driver::Sim => DriverChoice::Sim,
        };
    }
    if let Some(dir) = &args.state_dir {
        config.state_dir.clone_from(dir);
    }
    if let Some(dir) = &args.cache_dir {
        config.cache_dir.clone_from(dir);
    }
    // Relative directories must not depend on who asks from where.
    for dir in [&mut config.state_dir, &mut config.cache_dir] {
        *dir = std::path::absolute(&*dir)
            .with_context(|| format!("the directory {} cannot be used", dir.display()))?;
    }
    Ok((config, file))
}

fn read(file: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("the configuration {} cannot be read", file.display()))?;
    Config::from_toml(&text)
        .with_context(|| format!("the configuration {} is wrong", file.display()))
}

/// The configuration that a command finds its local server by.
pub fn local() -> anyhow::Result<Config> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let args = ConfigArgs {
        config: env("HOLDFAST_CONFIG"),
        state_dir: env("HOLDFAST_STATE_DIR"),
        cache_dir: env("HOLDFAST_CACHE_DIR"),
        ..ConfigArgs::default()
    };
    load(&args).map(|(config, _)| config)
}
