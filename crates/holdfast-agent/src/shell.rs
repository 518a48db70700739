//! The shell of the desktop's terminal, and the gate before it.
//!
//! A warm image holds a terminal whose window is there, but no shell: a shell that ran in the snapshot
//! would have its random numbers in common with every clone. In its place this program waits at the
//! gate, draws nothing, and becomes the shell when the claim opens it. Where there is no gate, it
//! becomes the shell at once.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::guest::Guest;

const SHELL: &str = "/bin/bash";

/// A named pipe: whoever reads it waits until the claim writes the environment into it.
fn gate(guest: &Guest) -> PathBuf {
    guest.run.join("shell-gate")
}

/// Has every shell that is started from now on wait for [`open_gate`].
pub fn close_gate(guest: &Guest) -> io::Result<()> {
    match mknodat(CWD, gate(guest), FileType::Fifo, Mode::from_raw_mode(0o644), 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets the shell that waits go on, with what became of the environment since. False: there was no gate.
pub fn open_gate(guest: &Guest) -> io::Result<bool> {
    let path = gate(guest);
    // Open for both, it does not wait for a reader. One that waits keeps what is written.
    let mut pipe = match File::options().read(true).write(true).open(&path) {
        Ok(pipe) => pipe,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut line = serde_json::to_vec(&guest.environment())?;
    line.push(b'\n');
    pipe.write_all(&line)?;
    fs::remove_file(&path)?;
    Ok(true)
}

/// Becomes the shell; returns when there is none.
pub fn main() -> ExitCode {
    let guest = Guest::from_env().unwrap_or_else(|_| Guest::image());
    let mut shell = Command::new(SHELL);
    shell.arg0("-bash").envs(wait(&gate(&guest)).unwrap_or_default());
    eprintln!("{SHELL} cannot be started: {}", shell.exec());
    ExitCode::FAILURE
}

fn wait(gate: &Path) -> io::Result<Vec<(String, String)>> {
    let mut line = String::new();
    BufReader::new(File::open(gate)?).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_shell_waits_for_the_claim_and_hears_what_it_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let guest = Guest { run: dir.path().into(), ..Guest::image() };
        assert!(wait(&gate(&guest)).is_err(), "there is no gate yet");
        close_gate(&guest).expect("closed");
        close_gate(&guest).expect("closed again");
        let path = gate(&guest);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(wait(&path)));
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "it did not wait");
        assert!(open_gate(&guest).expect("opened"), "there was none");
        let heard = receiver.recv_timeout(Duration::from_secs(10)).expect("it went on");
        assert_eq!(heard.expect("an environment"), guest.environment());
        assert!(!open_gate(&guest).expect("no error"), "it is still there");
    }
}
