//! Runs programs of the host: all they print goes to the progress, the end of it into the error.
//!
//! A program runs in process and mount namespaces of its own, tied to the life of this process. So
//! when the builder is killed, also with SIGKILL, everything that it started ends with it, and no
//! mount stays in a directory that the next build removes.

use std::{
    collections::VecDeque,
    env,
    ffi::OsStr,
    io::{self, BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{ImageError, Progress, Result, error::IoContext as _};

/// Lines of output that an error shows.
const TAIL: usize = 25;

/// A program of the host.
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
}

macro_rules! programs {
    ($($constant:ident = $name:literal in $package:literal;)*) => {
        $(pub(crate) const $constant: Program = Program { name: $name, package: $package };)*
    };
}

programs! {
    MMDEBSTRAP = "mmdebstrap" in "mmdebstrap";
    DPKG_DEB = "dpkg-deb" in "dpkg";
    NPM = "npm" in "npm";
    TAR = "tar" in "tar";
    ZSTD = "zstd" in "zstd";
    MKE2FS = "mke2fs" in "e2fsprogs";
    DEBUGFS = "debugfs" in "e2fsprogs";
    SETPRIV = "setpriv" in "util-linux";
    UNSHARE = "unshare" in "util-linux";
}

impl Program {
    fn find(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        // The paths of a user often lack those where Debian keeps mke2fs.
        env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
            .map(|directory| directory.join(self.name))
            .find(|candidate| candidate.is_file())
    }
}

/// Refuses, naming all at once, when programs are missing.
pub(crate) fn require(programs: &[&Program]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|program| program.find().is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<_> = missing.iter().map(|program| program.package.to_owned()).collect();
    packages.dedup();
    Err(ImageError::Missing {
        programs: missing.iter().map(|program| program.name.to_owned()).collect(),
        packages,
    })
}

/// A program about to be run.
pub(crate) struct Run {
    what: &'static str,
    remedy: &'static str,
    from: Option<String>,
    command: Command,
}

impl Run {
    /// `what` is being done, and `remedy` tells what to do when it fails.
    pub(crate) fn new(program: &Program, what: &'static str, remedy: &'static str) -> Result<Self> {
        require(&[&SETPRIV, &UNSHARE, program])?;
        let path = |program: &Program| program.find().unwrap_or_else(|| program.name.into());
        let mut command = Command::new(path(&SETPRIV));
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(path(&UNSHARE))
            .args(["--pid", "--mount-proc", "--fork", "--kill-child=KILL", "--"])
            .arg(path(program))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        Ok(Self { what, remedy, from: None, command })
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.command.current_dir(path.into());
        self
    }

    /// It downloads from there, so its failure may be the network's.
    pub(crate) fn downloads_from(mut self, server: impl Into<String>) -> Self {
        self.from = Some(server.into());
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self, progress: &dyn Progress) -> Result<()> {
        let what = self.what;
        let starting = || format!("starting a program ({what})");
        let (reader, writer) = io::pipe().doing(starting)?;
        self.command.stdout(writer.try_clone().doing(starting)?).stderr(writer);
        let mut child = self.command.spawn().doing(starting)?;
        // The command holds the pipe's writing ends: without them, its end would never be seen.
        drop(self.command);
        let mut tail = VecDeque::with_capacity(TAIL);
        let mut offline = false;
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.doing(|| format!("reading the output of a program ({what})"))?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if line.is_empty() {
                continue;
            }
            progress.line(line);
            offline |= says_offline(line);
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line.to_owned());
        }
        let status = child.wait().doing(|| format!("waiting for a program ({what})"))?;
        if status.success() {
            return Ok(());
        }
        match self.from {
            Some(from) if offline => Err(ImageError::NoNetwork { what, from }),
            _ => Err(ImageError::Command {
                what,
                status: status.to_string(),
                remedy: self.remedy,
                output: Vec::from(tail).join("\n"),
            }),
        }
    }
}

/// Whether apt or npm complain of the network in this line.
fn says_offline(line: &str) -> bool {
    const SIGNS: [&str; 11] = [
        "Could not resolve",
        "Temporary failure resolving",
        "Network is unreachable",
        "No route to host",
        "Could not connect",
        "Unable to connect",
        "Connection timed out",
        "ENOTFOUND",
        "EAI_AGAIN",
        "ETIMEDOUT",
        "ECONNREFUSED",
    ];
    SIGNS.iter().any(|sign| line.contains(sign))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]
mod tests {
    use super::{Program, Run, TAR, require};
    use crate::{ImageError, Silent};

    const SH: Program = Program { name: "sh", package: "dash" };

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let run = Run::new(&SH, "counting", "count again").unwrap();
        let error = run.args(["-c", "seq 100; echo wrong >&2; exit 3"]).run(&Silent).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("counting failed (exit status: 3): count again\n"), "{text}");
        assert!(text.ends_with("\n99\n100\nwrong") && !text.contains("\n50\n"), "{text}");
    }

    #[test]
    fn a_failed_download_names_the_server() {
        let offline = || {
            Run::new(&SH, "packages", "")
                .unwrap()
                .args(["-c", "echo 'Temporary failure resolving deb.debian.org'; exit 1"])
        };
        let error = offline().downloads_from("deb.debian.org").run(&Silent).unwrap_err();
        assert!(matches!(error, ImageError::NoNetwork { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        let error = offline().run(&Silent).unwrap_err();
        assert!(matches!(error, ImageError::Command { .. }), "{error}");
    }

    #[test]
    fn missing_programs_are_named_with_their_packages() {
        let absent = Program { name: "holdfast-no-such-program", package: "no-such-package" };
        let text = require(&[&TAR, &absent]).unwrap_err().to_string();
        assert!(text.contains("holdfast-no-such-program is not installed"), "{text}");
        assert!(text.ends_with("apt-get install no-such-package"), "{text}");
    }
}
