//! What a run of the tests may not leave behind: directories, processes, namespaces, links, rules and
//! mounts of its own. Others may run at the same time; what is theirs does not count.
//!
//! A run has a directory. Tests keep their temporary files in it, their processes carry it in their
//! environment, and every instance of Holdfast that they start is noted in it by its eight hex digits.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{sh, tally::Tally};

/// One run of the tests.
pub(crate) struct Run {
    dir: PathBuf,
}

impl Run {
    /// Makes the run's directory. Short: PostgreSQL's sockets allow for about a hundred characters.
    pub(crate) fn begin() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hf-run-{}", std::process::id()));
        let run = Self { dir };
        for dir in [run.temporary(), run.instances()] {
            fs::create_dir_all(&dir)
                .with_context(|| format!("{} cannot be made", dir.display()))?;
            // Servers of tests run as users of their own and have to pass through.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&dir, mode)?;
        }
        Ok(run)
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its tests keep temporary files.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    fn instances(&self) -> PathBuf {
        self.dir.join("instances")
    }

    /// Fails the run for everything of its own that is still there, and ends it.
    pub(crate) fn census(self, tally: &mut Tally) {
        let began = Instant::now();
        let left = self.leftovers();
        for name in &left {
            eprintln!("left behind: {name}");
        }
        if left.is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
        let failed = left.len() as u64;
        tally.add("nothing left behind", u64::from(failed == 0), failed, began.elapsed());
    }

    fn leftovers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        found.extend(names(&self.temporary()).map(|name| format!("directory {name}")));
        let dir = self.dir.to_string_lossy().into_owned();
        for pid in names(Path::new("/proc")).filter(|name| name.parse::<u32>().is_ok()) {
            let of = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let command = String::from_utf8_lossy(&of("cmdline")).replace('\0', " ");
            let ours =
                command.contains(&dir) || String::from_utf8_lossy(&of("environ")).contains(&dir);
            if ours && pid != std::process::id().to_string() {
                found.insert(format!("process {pid}: {}", command.trim()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        found.extend(mounts.lines().filter(|l| l.contains(&dir)).map(|l| format!("mount {l}")));
        let tables = sh::output(Command::new("nft").args(["list", "tables"])).unwrap_or_default();
        for instance in names(&self.instances()) {
            let mark = format!("hf-{instance}-");
            found.extend(tables.lines().filter(|line| line.contains(&mark)).map(str::to_owned));
            for lease in names(Path::new("/run/holdfast")) {
                let text = fs::read_to_string(format!("/run/holdfast/{lease}")).unwrap_or_default();
                if text.contains(&format!("\"{instance}\"")) {
                    found.insert(format!("lease of a namespace and a link: {text}"));
                }
            }
        }
        found
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
