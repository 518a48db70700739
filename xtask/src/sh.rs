//! Running other programs.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::cache;

/// Lines of a failed program's log that are shown.
const SHOWN_LINES: usize = 40;

/// Says what is done now.
pub(crate) fn say(text: &str) {
    eprintln!("==> {text}");
}

/// The program's name for messages.
fn name(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

/// Runs a program with its output on this terminal; an unsuccessful end is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{name} could not be started"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Runs a program with its output in `target/xtask/<log>.log`, whose end is shown when it fails.
pub(crate) fn run_logged(command: &mut Command, log: &str) -> Result<()> {
    let name = name(command);
    let path = cache::work_dir()?.join(format!("{log}.log"));
    // One of root's, from a run before, cannot be written, but it can be replaced.
    let _ = fs::remove_file(&path);
    let file =
        File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    let again = file.try_clone().context("a log file cannot be shared")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(again)
        .status()
        .with_context(|| format!("{name} could not be started"))?;
    if status.success() {
        return Ok(());
    }
    let lines = tail(&path, SHOWN_LINES);
    eprintln!("{}", lines.join("\n"));
    bail!("{name} failed ({status}); its whole output is in {}", path.display());
}

/// Standard output of a program that succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = name(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} could not be started"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name can be started.
pub(crate) fn has(program: impl AsRef<OsStr>) -> bool {
    let program = program.as_ref();
    let found = |dir: std::path::PathBuf| dir.join(program).is_file();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Normal users often have no sbin in their PATH.
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(found)
}

/// The last lines of a file.
fn tail(path: &Path, lines: usize) -> Vec<String> {
    let Ok(file) = fs::File::open(path) else { return Vec::new() };
    let all: Vec<String> = BufReader::new(file).lines().map_while(Result::ok).collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}
