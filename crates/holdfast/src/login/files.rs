//! Writes opened credentials where the tool expects them: only files that the provider declares, never
//! outside the home directory.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use holdfast_api::{CredentialFile, SealedFile};
use holdfast_core::provider::is_safe_mode;
use serde::Serialize;

/// A file that was written.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// Where.
    pub path: PathBuf,
    /// Its mode, in octal.
    pub mode: String,
    /// Where the file that was there before is now.
    pub backup: Option<PathBuf>,
}

/// Refuses `opened` credentials that are not what the server announced as `declared`, which are the
/// provider's: the machine that sealed them ran a tool and a browser, and may be somebody else's by now.
/// A shell's start-up file or a key for SSH would be its way here.
pub fn check(declared: &[SealedFile], opened: &[CredentialFile]) -> anyhow::Result<()> {
    for (index, file) in opened.iter().enumerate() {
        let name = file.path.escape_debug();
        ensure!(
            declared.iter().any(|known| known.path == file.path),
            "the machine handed over `{name}`, which is none of the provider's credentials; nothing was written. \
             Do not trust what this sign-in made: sign in again on a new machine"
        );
        ensure!(
            is_safe_mode(file.mode)
                && declared.iter().any(|k| k.path == file.path && k.mode == file.mode),
            "the machine handed over `{name}` with mode {:04o}, which is not the provider's; nothing was written. \
             Do not trust what this sign-in made: sign in again on a new machine",
            file.mode
        );
        ensure!(
            opened[..index].iter().all(|earlier| earlier.path != file.path),
            "the machine handed over `{name}` twice; nothing was written"
        );
    }
    Ok(())
}

/// Where `path` is below `home`, with its directories made. Nothing is written elsewhere: no `..`,
/// no absolute path, no link that leads out.
pub fn place(home: &Path, path: &str) -> anyhow::Result<PathBuf> {
    let home = home.canonicalize().with_context(|| format!("{} is not there", home.display()))?;
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        plain && relative.file_name().is_some(),
        "`{path}` does not stay in the home directory"
    );
    let mut dir = home.clone();
    for part in relative.parent().into_iter().flat_map(Path::components) {
        dir.push(part);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("{} cannot be made", dir.display()));
            }
            _ => {}
        }
        dir = dir.canonicalize().with_context(|| format!("{} cannot be used", dir.display()))?;
        if !dir.starts_with(&home) {
            bail!("`{path}` leads out of the home directory, to {}", dir.display());
        }
    }
    let target = relative.file_name().map(|name| dir.join(name)).unwrap_or(dir);
    ensure!(!target.is_dir() || target.is_symlink(), "{} is a directory", target.display());
    Ok(target)
}

/// Writes `content` to `target` at once and whole. A file that was there is kept beside it, unless
/// `force`.
pub fn write(target: &Path, mode: u32, content: &[u8], force: bool) -> anyhow::Result<Written> {
    let dir = target.parent().context("a file has a directory")?;
    let failed = || format!("{} cannot be written", target.display());
    // Made with mode 0600, so nobody reads it before its mode is set.
    let mut new =
        tempfile::Builder::new().prefix(".holdfast-").tempfile_in(dir).with_context(failed)?;
    new.write_all(content).with_context(failed)?;
    new.as_file().set_permissions(Permissions::from_mode(mode)).with_context(failed)?;
    new.as_file().sync_all().with_context(failed)?;
    let mut backup = None;
    if !force && target.symlink_metadata().is_ok() {
        let free = unused(target)?;
        fs::rename(target, &free).with_context(|| {
            format!("{} cannot be kept as {}", target.display(), free.display())
        })?;
        backup = Some(free);
    }
    new.persist(target).map_err(|error| error.error).with_context(failed)?;
    // The names are on the disk too.
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(failed)?;
    Ok(Written { path: target.to_owned(), mode: format!("{mode:04o}"), backup })
}

/// `NAME.bak`, or `NAME.bak.1` and so on: the first that is not taken.
fn unused(target: &Path) -> anyhow::Result<PathBuf> {
    let name = target.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    (0..1000)
        .map(|n| if n == 0 { format!("{name}.bak") } else { format!("{name}.bak.{n}") })
        .map(|name| target.with_file_name(name))
        .find(|path| path.symlink_metadata().is_err())
        .with_context(|| format!("there are 1000 copies of {} already", target.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_get_their_mode_and_what_was_there_is_kept() {
        let home = tempfile::tempdir().expect("a directory");
        let target = place(home.path(), ".tool/auth.json").expect("inside");
        let first = write(&target, 0o600, b"one", false).expect("written");
        assert_eq!((first.backup, first.mode.as_str()), (None, "0600"));
        let second = write(&target, 0o640, b"two", false).expect("written");
        let backup = second.backup.expect("kept");
        assert_eq!(fs::read(&backup).expect("read"), b"one");
        assert_eq!(fs::read(&target).expect("read"), b"two");
        let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode(&target), mode(target.parent().expect("a parent"))), (0o640, 0o700));
        assert_eq!(write(&target, 0o600, b"three", true).expect("written").backup, None);
        let third = write(&target, 0o600, b"four", false).expect("written").backup;
        assert!(third.is_some_and(|path| path.ends_with("auth.json.bak.1")));
    }

    #[test]
    fn only_what_was_declared_is_taken() {
        let declared = |path: &str, mode| SealedFile { path: path.to_owned(), size: 1, mode };
        let opened = |path: &str, mode| CredentialFile {
            path: path.to_owned(),
            mode,
            content: String::new(),
        };
        let known = [declared(".tool/auth.json", 0o600), declared(".tool/open", 0o666)];
        let good = opened(".tool/auth.json", 0o600);
        assert!(check(&known, std::slice::from_ref(&good)).is_ok() && check(&known, &[]).is_ok());
        for (path, mode) in [
            (".bashrc", 0o600),
            (".ssh/authorized_keys", 0o600),
            (".tool/./auth.json", 0o600),
            (".tool/auth.json", 0o644),
            (".tool/auth.json", 0o602),
            (".tool/auth.json", 0o4600),
            (".tool/auth.json", 0o100_600),
            // Not even when the server says so.
            (".tool/open", 0o666),
            (".tool/auth.json", 0o600),
        ] {
            assert!(check(&known, &[good.clone(), opened(path, mode)]).is_err(), "{path} {mode:o}");
        }
    }

    #[test]
    fn nothing_is_written_outside_the_home() {
        let outside = tempfile::tempdir().expect("a directory");
        let home = tempfile::tempdir().expect("a directory");
        symlink(outside.path(), home.path().join("out")).expect("a link");
        for bad in ["../x", "/etc/x", "a/../../x", "out/x", "", ".", "a/.."] {
            assert!(place(home.path(), bad).is_err(), "{bad}");
        }
        // A link in the place of the file is replaced, not followed.
        symlink(outside.path().join("x"), home.path().join("auth")).expect("a link");
        let target = place(home.path(), "auth").expect("inside");
        write(&target, 0o600, b"secret", true).expect("written");
        assert!(!outside.path().join("x").exists() && !target.is_symlink());
        fs::create_dir(home.path().join("dir")).expect("a directory");
        assert!(place(home.path(), "dir").is_err());
    }
}
