//! Cargo's additional tools, in the cache directory, one directory per version.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{cache, sh};

/// A tool from crates.io.
struct Tool {
    name: &'static str,
    /// What is installed when there is none.
    version: &'static str,
    /// What it is for.
    why: &'static str,
}

const NEXTEST: Tool = Tool { name: "cargo-nextest", version: "0.9.143", why: "runs the tests" };
const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", why: "checks dependencies" };

/// cargo-nextest: that of the machine, or one of our own.
pub(crate) fn nextest() -> Result<Command> {
    command(&NEXTEST, "nextest")
}

/// cargo-deny: that of the machine, or one of our own.
pub(crate) fn deny() -> Result<Command> {
    command(&DENY, "deny")
}

fn command(tool: &Tool, subcommand: &str) -> Result<Command> {
    let mut command =
        if sh::has(tool.name) { Command::new(tool.name) } else { Command::new(installed(tool)?) };
    command.arg(subcommand).current_dir(cache::root());
    Ok(command)
}

fn installed(tool: &Tool) -> Result<PathBuf> {
    let dir = cache::cache_dir()?.join("tools").join(format!("{}-{}", tool.name, tool.version));
    let binary = dir.join("bin").join(tool.name);
    if !binary.exists() {
        sh::say(&format!("building {} {} ({}), once", tool.name, tool.version, tool.why));
        install(tool, &dir)?;
    }
    Ok(binary)
}

fn install(tool: &Tool, dir: &Path) -> Result<()> {
    let mut command = Command::new("cargo");
    // Unoptimised: it is built several times faster, and what it does here takes no time.
    command
        .args(["install", "--locked", "--debug", "--version", tool.version, "--root"])
        .arg(dir)
        .arg(tool.name)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        // Away from this workspace's own configuration.
        .current_dir(dir.parent().unwrap_or(dir).parent().unwrap_or(dir));
    sh::run_logged(&mut command, tool.name)
        .with_context(|| format!("{} could not be built: is crates.io reachable?", tool.name))
}
