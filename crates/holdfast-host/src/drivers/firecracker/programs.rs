//! Firecracker's two programs: where they are, which versions are used, and how to get them.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::driver::{DriverError, Result};

/// Oldest version whose API is the one used here. Firecracker promises that a client of version X.Y
/// works with every X.V where V >= Y (docs/RELEASE_POLICY.md, "API support"), so later ones of the same
/// major version are used too.
const OLDEST: (u32, u32) = (1, 12);
/// The version whose installation is proposed: the one that is tested.
const PROPOSED: &str = "v1.12.1";

/// Where the programs are, and what VMs may use at most.
#[derive(Debug, Clone)]
pub struct FirecrackerConfig {
    /// Firecracker itself.
    pub firecracker: PathBuf,
    /// The jailer of the same release.
    pub jailer: PathBuf,
    /// Where a download of them belongs; named in what is proposed when they are missing.
    pub download_dir: PathBuf,
    /// Bytes that the guest reads from and writes to each disk per second; `None` is no limit.
    pub disk_bytes_per_second: Option<u64>,
    /// Bytes that the guest sends, and receives, per second; `None` is no limit.
    pub network_bytes_per_second: Option<u64>,
    /// Of a guest's memory, a snapshot makes Firecracker write only what changed since the one before, or
    /// since the boot. It has to remember which pages change, which slows the guest down.
    pub diff_snapshots: bool,
}

impl FirecrackerConfig {
    /// The programs in PATH, else those in `<cache_dir>/firecracker`.
    pub fn find(cache_dir: &Path) -> Self {
        let download_dir = cache_dir.join("firecracker");
        let find = |name: &str| in_path(name).unwrap_or_else(|| download_dir.join(name));
        Self {
            firecracker: find("firecracker"),
            jailer: find("jailer"),
            download_dir,
            disk_bytes_per_second: None,
            network_bytes_per_second: None,
            diff_snapshots: false,
        }
    }

    /// What to run where a program is missing or too old.
    pub(super) fn remedy(&self) -> String {
        let (dir, v) = (self.download_dir.display(), PROPOSED);
        format!(
            "run `mkdir -p {dir} && curl -fsSL https://github.com/firecracker-microvm/firecracker/\
             releases/download/{v}/firecracker-{v}-x86_64.tgz | tar -xzC /tmp && \
             install -m 755 /tmp/release-{v}-x86_64/firecracker-{v}-x86_64 {dir}/firecracker && \
             install -m 755 /tmp/release-{v}-x86_64/jailer-{v}-x86_64 {dir}/jailer`, or configure \
             where they are"
        )
    }

    fn missing(&self, program: &Path, why: &str) -> DriverError {
        DriverError::Missing {
            program: program.display().to_string(),
            remedy: format!("{why}; {}", self.remedy()),
        }
    }

    /// What tells these files from others at the same places.
    pub(super) fn stamp(&self) -> Result<Stamp> {
        let of = |path: &Path| {
            let meta = fs::metadata(path).map_err(|e| self.missing(path, &e.to_string()))?;
            Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
        };
        Ok((of(&self.firecracker)?, of(&self.jailer)?))
    }

    /// Asks both for their version and answers it, such as `Firecracker v1.12.1`.
    pub(super) async fn version(&self) -> Result<String> {
        let firecracker = self.says(&self.firecracker, "Firecracker ").await?;
        let jailer = self.says(&self.jailer, "Jailer ").await?;
        if firecracker != jailer {
            return Err(DriverError::Refused {
                operation: "using Firecracker".to_owned(),
                message: format!(
                    "{} is {firecracker} and {} is {jailer}: both have to be of one release",
                    self.firecracker.display(),
                    self.jailer.display()
                ),
            });
        }
        if !is_supported(&firecracker) {
            let (major, minor) = OLDEST;
            let why = format!(
                "Firecracker {firecracker} is not supported; {major}.{minor} and later {major}.x are"
            );
            return Err(self.missing(&self.firecracker, &why));
        }
        Ok(format!("Firecracker {firecracker}"))
    }

    async fn says(&self, program: &Path, name: &str) -> Result<String> {
        let mut command = tokio::process::Command::new(program);
        command.arg("--version").env_clear().stdin(Stdio::null()).kill_on_drop(true);
        let output = match command.output().await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.missing(program, "there is no such file"));
            }
            output => output.map_err(|e| self.missing(program, &e.to_string()))?,
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().find_map(|line| line.strip_prefix(name));
        version
            .map(|version| version.trim().to_owned())
            .ok_or_else(|| self.missing(program, "it does not say its version"))
    }
}

type File = (u64, u64, i64, i64);
/// Device, inode and time of change of both programs.
pub(super) type Stamp = (File, File);

/// Versions read like `v1.12.1`, with a suffix for builds that are no releases.
fn is_supported(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-']);
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    matches!((next(), next()), (Some(major), Some(minor)) if major == OLDEST.0 && minor >= OLDEST.1)
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for supported in ["v1.12.0", "v1.12.1", "v1.13.0-dev", "1.20.3"] {
            assert!(is_supported(supported), "{supported}");
        }
        for other in ["v1.11.9", "v1.2.0", "v0.25.2", "v2.0.0", "", "v1", "latest"] {
            assert!(!is_supported(other), "{other}");
        }
    }

    #[tokio::test]
    async fn what_is_missing_or_foreign_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let config = FirecrackerConfig {
            firecracker: dir.path().join("nowhere"),
            jailer: "/bin/true".into(),
            ..FirecrackerConfig::find(dir.path())
        };
        let missing = config.version().await.unwrap_err();
        assert!(missing.is_permanent());
        let text = missing.to_string();
        assert!(text.contains("nowhere is not installed") && text.contains("curl -fsSL"), "{text}");
        let foreign = FirecrackerConfig { firecracker: "/bin/true".into(), ..config };
        let text = foreign.version().await.unwrap_err().to_string();
        assert!(text.contains("does not say its version"), "{text}");
    }

    #[tokio::test]
    async fn versions_that_are_not_supported_or_differ_are_refused_by_name() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, says: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let old = FirecrackerConfig {
            firecracker: program("old", "Firecracker v1.11.0"),
            jailer: program("old-jailer", "Jailer v1.11.0"),
            ..FirecrackerConfig::find(dir.path())
        };
        let text = old.version().await.unwrap_err().to_string();
        assert!(text.contains("Firecracker v1.11.0 is not supported; 1.12 and later"), "{text}");
        let mixed =
            FirecrackerConfig { firecracker: program("new", "Firecracker v1.13.0"), ..old.clone() };
        let text = mixed.version().await.unwrap_err().to_string();
        assert!(text.contains("both have to be of one release"), "{text}");
        let new = FirecrackerConfig { jailer: program("new-jailer", "Jailer v1.13.0"), ..mixed };
        assert_eq!(new.version().await.unwrap(), "Firecracker v1.13.0");
    }
}
