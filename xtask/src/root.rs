//! Becoming root: only for what needs it, once, and with the reason said.
//!
//! What can be done as the user who calls (building, linting, fetching) is done as that user, so that
//! nothing in the source tree or in the caches of Cargo and npm belongs to root. The rest is done by one
//! process of this program that sudo starts.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{cache, sh};

/// Environment that root's part works with as well: where things are.
const KEPT: [&str; 8] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "CARGO_TARGET_DIR",
    "HOLDFAST_STATE_DIR",
    "HOLDFAST_CONFIG",
    "CI",
];

/// How this process becomes root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// It is.
    Root,
    /// By sudo, which may ask for a password.
    Sudo,
    /// Not at all.
    None,
}

impl Rights {
    /// Those of this process.
    pub(crate) fn now() -> Self {
        Self::of(is_root(), sh::has("sudo"))
    }

    const fn of(is_root: bool, has_sudo: bool) -> Self {
        match (is_root, has_sudo) {
            (true, _) => Self::Root,
            (false, true) => Self::Sudo,
            (false, false) => Self::None,
        }
    }

    /// Refuses at the beginning what would fail for want of root at the end. `what` begins a sentence.
    pub(crate) fn check(self, what: &str) -> Result<()> {
        if self == Self::None {
            bail!(
                "{what} needs root, and there is no sudo here to become it: run this as root, or as root install sudo (apt-get install sudo; adduser {} sudo) and log in again",
                std::env::var("USER").unwrap_or_else(|_| "YOU".to_owned()),
            );
        }
        Ok(())
    }

    /// The program and its arguments that run `program` as root with this environment.
    fn line(self, program: &OsStr, env: &[(OsString, OsString)]) -> Vec<OsString> {
        let mut line = Vec::new();
        if self != Self::Root {
            // Set by env and not kept by sudo, which may be told not to let anything through.
            line.extend(["sudo", "--", "env"].map(OsString::from));
            for (name, value) in env {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                line.push(pair);
            }
        }
        line.push(program.to_owned());
        line
    }
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The path of a running program, also when building the workspace has replaced it: Linux marks the path of a
/// file that is no more (proc(5), `/proc/pid/exe`).
fn where_it_was(exe: PathBuf) -> PathBuf {
    match exe.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) if !exe.exists() => path.into(),
        _ => exe,
    }
}

/// This program, to be run as root. `why` is told to the person who may be asked for a password.
pub(crate) fn myself(why: &str) -> Result<Command> {
    let myself = std::env::current_exe().context("the path of this program cannot be read")?;
    let myself = where_it_was(myself);
    let rights = Rights::now();
    rights.check(why)?;
    let mut env: Vec<(OsString, OsString)> = KEPT
        .iter()
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
        .collect();
    // Debian's users do not have these in theirs, and root needs what is in them.
    if let Some((_, path)) = env.iter_mut().find(|(name, _)| name == "PATH") {
        path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    }
    env.push(("HOLDFAST_CACHE_DIR".into(), cache::cache_dir()?.into()));
    if rights == Rights::Sudo {
        sh::say(&format!("{why} needs root: sudo may ask for your password, this once"));
    }
    let line = rights.line(myself.as_os_str(), &env);
    let (program, args) = line.split_first().context("there is a program in every line")?;
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_needs_no_sudo_and_others_do() {
        assert_eq!(Rights::of(true, true), Rights::Root);
        assert_eq!(Rights::of(true, false), Rights::Root);
        assert_eq!(Rights::of(false, true), Rights::Sudo);
        assert_eq!(Rights::of(false, false), Rights::None);
    }

    #[test]
    fn without_a_way_to_root_one_sentence_says_so_at_the_beginning() {
        assert!(Rights::Root.check("running VMs").is_ok());
        assert!(Rights::Sudo.check("running VMs").is_ok());
        let refused = Rights::None.check("running VMs").expect_err("refused").to_string();
        assert!(refused.starts_with("running VMs needs root"), "{refused}");
        assert!(refused.contains("install sudo") && !refused.contains('\n'), "{refused}");
    }

    #[test]
    fn a_program_that_was_built_again_is_where_it_was() {
        assert_eq!(where_it_was("/x/xtask (deleted)".into()), PathBuf::from("/x/xtask"));
        assert_eq!(where_it_was("/x/xtask".into()), PathBuf::from("/x/xtask"));
    }

    #[test]
    fn what_root_runs_finds_the_directories_of_the_user() {
        let env = [("HOME".into(), "/home/a b".into()), ("PATH".into(), "/bin".into())];
        let line = Rights::Sudo.line(OsStr::new("/x/xtask"), &env);
        assert_eq!(line, ["sudo", "--", "env", "HOME=/home/a b", "PATH=/bin", "/x/xtask"]);
        assert_eq!(Rights::Root.line(OsStr::new("/x/xtask"), &env), ["/x/xtask"]);
    }
}
