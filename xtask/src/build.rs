//! Builds the dashboard, the guest's agent and the command.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result};

use crate::{cache, sh, stamp::Stamp};

/// Target of the static agent. glibc, statically: no other toolchain is needed.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// A build of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For tests.
    Dev,
    /// For use.
    Release,
}

/// Installs the dashboard's packages when `package-lock.json` is another than at the last time.
pub(crate) fn web_packages() -> Result<()> {
    let web = cache::root().join("web");
    let stamp = Stamp::new("npm", &["web/package-lock.json"], &[])?;
    if stamp.is_fresh() && web.join("node_modules").is_dir() {
        return Ok(());
    }
    sh::say("installing the dashboard's packages (npm ci)");
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(&web);
    sh::run_logged(&mut npm, "npm-ci").context(
        "the dashboard's packages could not be installed: is the npm registry reachable?",
    )?;
    stamp.set()
}

/// Builds the dashboard when its sources changed.
pub(crate) fn web() -> Result<()> {
    web_packages()?;
    let web = cache::root().join("web");
    let stamp = Stamp::new("web", &["web"], &["node_modules", "dist", "e2e", "test-results"])?;
    if stamp.is_fresh() && web.join("dist/index.html").is_file() {
        return Ok(());
    }
    sh::say("building the dashboard");
    let mut npm = Command::new("npm");
    npm.args(["run", "build"]).current_dir(&web);
    sh::run_logged(&mut npm, "web-build")?;
    // The dashboard is embedded by a macro, which does not tell Cargo what it read.
    let embedder = cache::root().join("crates/holdfast-server/src/assets.rs");
    File::options()
        .append(true)
        .open(&embedder)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("{} cannot be touched", embedder.display()))?;
    stamp.set()
}

/// Builds the guest's agent as one static binary, and answers its path. It has a target directory
/// of its own, so that its flags do not make the rest be built again.
pub(crate) fn agent() -> Result<PathBuf> {
    sh::say("building the guest's agent");
    let dir = cache::target_dir().join("agent");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--package", "holdfast-agent"])
        .args(["--target", AGENT_TARGET])
        .env("CARGO_TARGET_DIR", &dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .current_dir(cache::root());
    sh::run(&mut cargo)?;
    Ok(dir.join(AGENT_TARGET).join("release/holdfast-agent"))
}

/// Builds the command, and answers its path.
pub(crate) fn holdfast(profile: Profile) -> Result<PathBuf> {
    sh::say("building the server and its command");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--package", "holdfast"])
        .current_dir(cache::root());
    let dir = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    sh::run(&mut cargo)?;
    let binary = cache::target_dir().join(dir).join("holdfast");
    fs::metadata(&binary).with_context(|| format!("{} is not there", binary.display()))?;
    Ok(binary)
}

/// Builds what measures, and answers its path.
pub(crate) fn bench() -> Result<PathBuf> {
    sh::say("building the benchmarks");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--package", "holdfast-testkit"])
        .args(["--features", "harness", "--example", "bench"])
        .current_dir(cache::root());
    sh::run(&mut cargo)?;
    Ok(cache::target_dir().join("release/examples/bench"))
}
