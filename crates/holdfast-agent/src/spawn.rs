//! Starts programs as the desktop's user or as root, with the environment of the desktop.

use std::{io, path::PathBuf};

use tokio::process::Command;

use crate::{census::MARK, guest::Guest};

/// Who and where a program is.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// Program and arguments; at least one.
    pub command: Vec<String>,
    /// Added to the environment of the desktop.
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home when absent.
    pub cwd: Option<PathBuf>,
    /// As root instead of the desktop's user.
    pub root: bool,
    /// See [`MARK`].
    pub mark: Option<String>,
}

/// Makes the command; the caller sets its streams and starts it.
///
/// # Errors
/// The command is empty, or its program is nowhere in PATH.
pub fn command(guest: &Guest, launch: &Launch) -> io::Result<Command> {
    let (program, arguments) = launch
        .command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    let mut environment = guest.environment();
    if launch.root {
        environment.retain(|(name, _)| !matches!(name.as_str(), "HOME" | "USER" | "LOGNAME"));
        environment.extend([
            ("HOME".to_owned(), "/root".to_owned()),
            ("USER".to_owned(), "root".to_owned()),
            ("LOGNAME".to_owned(), "root".to_owned()),
        ]);
    }
    environment.extend(launch.env.iter().cloned());
    let path = environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, v)| v.as_str());
    let program = resolve(program, path.unwrap_or_default()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("`{program}` is not installed in the guest"),
        )
    })?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment);
    if let Some(mark) = &launch.mark {
        command.env(MARK, mark);
    }
    command.current_dir(launch.cwd.as_ref().unwrap_or(&guest.home));
    // Setting the user as root drops the supplementary groups, too.
    if let Some(user) = guest.user
        && !launch.root
    {
        command.uid(user.uid).gid(user.gid);
    }
    Ok(command)
}

/// Finds a program in the PATH that it will run with, not in that of this process.
fn resolve(program: &str, path: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    if program.contains('/') {
        return Some(program.into());
    }
    path.split(':').map(|dir| PathBuf::from(dir).join(program)).find(|candidate| {
        candidate.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// Exit code of a status; 128 + signal when it was killed.
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// How a process ended, in words.
pub fn ending(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("ended with exit code {}", status.code().unwrap_or(-1)),
    }
}
