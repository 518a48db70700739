//! Debian packages that a task needs and this machine lacks.

use std::{collections::HashSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{root, sh};

/// A package, and what it is for.
type Package = (&'static str, &'static str);

/// What running VMs and building their image take.
pub(crate) const RUN: &[Package] = &[
    ("qemu-system-x86", "runs VMs"),
    ("iproute2", "networks of VMs"),
    ("nftables", "egress rules of VMs"),
    ("e2fsprogs", "disks of VMs"),
    ("mmdebstrap", "builds the image"),
    ("zstd", "builds the image"),
];

/// What the tests take besides.
pub(crate) const TEST: &[Package] = &[
    ("chromium", "browser tests"),
    ("postgresql-15", "tests of the store"),
    ("pgbouncer", "tests of the store behind a pooler"),
    ("procps", "tests of processes"),
    ("gvncviewer", "a second viewer in tests"),
    ("cpio", "reads the initramfs in tests"),
    PIP,
];

/// Not every Python comes with it; one that does is good enough.
const PIP: Package = ("python3-pip", "fetches Firecracker for tests");

/// What measuring takes besides.
pub(crate) const BENCH: &[Package] = &[
    ("postgresql-15", "the store that is compared with SQLite"),
    ("websockify", "what the gateway is compared with"),
    PIP,
];

/// Installs what is missing. Only root can.
pub(crate) fn ensure(sets: &[&[Package]]) -> Result<()> {
    let wanted: Vec<Package> = sets.iter().flat_map(|set| set.iter().copied()).collect();
    let missing = missing(&wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    sh::say(&format!("installing Debian packages: {}", list.join(", ")));
    if !root::is_root() {
        bail!("installing Debian packages needs root");
    }
    if !Path::new("/etc/debian_version").exists() {
        bail!(
            "these packages are installed with apt-get on Debian 12; on this system, install them yourself and start again"
        );
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    keep_postgres_quiet()?;
    if install(&names).is_err() {
        // Only now: an index that is there and new enough is not fetched again.
        let mut update = apt();
        sh::run_logged(update.args(["-q", "update"]), "apt-update")
            .context("the list of Debian packages could not be fetched: is there a network?")?;
        install(&names).context("Debian packages could not be installed")?;
    }
    Ok(())
}

/// Those of the packages that are not installed.
fn missing(wanted: &[Package]) -> Result<Vec<Package>> {
    if !sh::has("dpkg-query") {
        return Ok(wanted.to_vec());
    }
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .output()
        .context("dpkg-query could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: HashSet<&str> =
        text.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    let mut missing = absent(wanted, &installed);
    if missing.contains(&PIP)
        && sh::output(Command::new("python3").args(["-m", "pip", "--version"])).is_ok()
    {
        missing.retain(|package| *package != PIP);
    }
    Ok(missing)
}

/// What is wanted and not installed, each once.
fn absent(wanted: &[Package], installed: &HashSet<&str>) -> Vec<Package> {
    let mut seen = HashSet::new();
    let wanted = wanted.iter().copied();
    wanted.filter(|(name, _)| !installed.contains(name) && seen.insert(*name)).collect()
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Another installation may hold the lock; it ends.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn install(names: &[&str]) -> Result<()> {
    let mut command = apt();
    command.args(["-q", "--yes", "--no-install-recommends", "install"]).args(names);
    sh::run_logged(&mut command, "apt-install")
}

/// Tests use PostgreSQL's programs only: its package shall not make and start a server.
fn keep_postgres_quiet() -> Result<()> {
    let dir = Path::new("/etc/postgresql-common/createcluster.d");
    if dir.parent().is_some_and(Path::exists) {
        return Ok(());
    }
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(dir.join("no-cluster.conf"), "create_main_cluster = false\n"))
        .context("/etc/postgresql-common cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_twice_is_installed_once() {
        let wanted = [RUN, TEST, BENCH].concat();
        let installed = HashSet::from(["qemu-system-x86", "chromium"]);
        let names: Vec<_> = absent(&wanted, &installed).iter().map(|(name, _)| *name).collect();
        assert!(!names.contains(&"chromium") && !names.contains(&"qemu-system-x86"), "{names:?}");
        assert_eq!(names.iter().filter(|name| **name == "postgresql-15").count(), 1, "{names:?}");
        assert!(names.contains(&"websockify"), "{names:?}");
    }
}
