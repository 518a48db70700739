//! Programs of this machine.

use std::{
    ffi::OsStr,
    fs::{File, Permissions},
    io::Write as _,
    os::unix::{
        fs::{OpenOptionsExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Where a program is, by PATH and the directories of administrators' programs.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(also)
        .map(|dir| dir.join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Opens an address without secrets in the person's browser.
pub fn open_in_browser(url: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        start_browser(&browsers(), OsStr::new(url)),
        "no browser was found on this machine; open this address yourself: {url}"
    );
    Ok(())
}

/// Opens an address with a token in it. Every user of the machine sees the arguments of programs, so the
/// browser gets a page of the person's own that leads there, and that is removed after a minute.
pub fn open_privately(url: &str) -> anyhow::Result<()> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let place = runtime.filter(|dir| dir.is_dir()).unwrap_or_else(std::env::temp_dir);
    lead(&browsers(), &place, url, 60)
}

fn lead(browsers: &[String], place: &Path, url: &str, seconds: u32) -> anyhow::Result<()> {
    let failed = || format!("no page can be made in {}", place.display());
    let mut private = tempfile::Builder::new();
    private.prefix("holdfast-").permissions(Permissions::from_mode(0o700));
    let dir = private.tempdir_in(place).with_context(failed)?;
    let page = dir.path().join("open.html");
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&page)
        .with_context(failed)?;
    file.write_all(redirect(url).as_bytes()).with_context(failed)?;
    anyhow::ensure!(
        start_browser(browsers, page.as_os_str()),
        "no browser was found on this machine; `holdfast session open --print` says the address"
    );
    // A browser may take long to start and this command does not wait for it, so somebody else removes
    // the page: this command's end is no reason to keep a token in a file.
    Command::new("sh")
        .args(["-c", REMOVE, "sh"])
        .arg(dir.path())
        .arg(seconds.to_string())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("sh is needed to remove the page that leads to the dashboard")?;
    let _ = dir.keep();
    Ok(())
}

/// Removes a directory after so many seconds, unless somebody did.
const REMOVE: &str =
    r#"n=0; while [ -e "$1" ] && [ $n -lt "$2" ]; do sleep 1; n=$((n+1)); done; rm -rf -- "$1""#;

/// A page that leads to an address at once.
fn redirect(url: &str) -> String {
    let escaped =
        url.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!doctype html><meta charset=\"utf-8\"><meta name=\"referrer\" content=\"no-referrer\">\
         <meta http-equiv=\"refresh\" content=\"0;url={escaped}\"><title>Holdfast</title>\
         <a href=\"{escaped}\">Open Holdfast</a>\n"
    )
}

/// What opens pages here, best first.
fn browsers() -> Vec<String> {
    let named = std::env::var("BROWSER").ok().filter(|name| !name.is_empty());
    named.into_iter().chain(["xdg-open".to_owned(), "open".to_owned()]).collect()
}

fn start_browser(browsers: &[String], what: &OsStr) -> bool {
    browsers.iter().any(|program| {
        let mut command = Command::new(program);
        command.arg(what).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().is_ok()
    })
}

/// The guest's agent: named, beside this program, or where packages put it.
pub fn find_agent(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(file) = named {
        if file.is_file() {
            return Ok(file);
        }
        bail!("the agent {} does not exist; see --agent and HOLDFAST_AGENT", file.display());
    }
    let beside =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("holdfast-agent")));
    let packaged = ["/usr/lib/holdfast/holdfast-agent", "/usr/local/lib/holdfast/holdfast-agent"];
    let candidates = beside.into_iter().chain(packaged.map(PathBuf::from));
    if let Some(found) = candidates.into_iter().find(|file| file.is_file()) {
        return Ok(found);
    }
    bail!(
        "the guest's agent was not found: put `holdfast-agent` beside this program, or name it with --agent or HOLDFAST_AGENT. \
         From the source it is made with `cargo build --release --package holdfast-agent --target x86_64-unknown-linux-musl`"
    )
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use super::*;

    const URL: &str = "http://127.0.0.1:7070/?token=hush&session=1";

    fn until(what: &str, is: impl Fn() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < Duration::from_secs(20), "not so: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A browser that notes what it was started with, and what it finds there.
    fn browser(dir: &Path) -> String {
        let script = "#!/bin/sh\nd=$(dirname \"$0\")\ncat \"$1\" > \"$d/page\"\n\
                      echo \"$@\" > \"$d/new\"\nmv \"$d/new\" \"$d/arguments\"\n";
        let file = dir.join("browser");
        fs::write(&file, script).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a program");
        file.display().to_string()
    }

    #[test]
    fn a_token_is_in_nobodys_arguments_and_in_a_file_for_a_moment() {
        let (tools, place) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("one"));
        let browsers = ["/nowhere/browser".to_owned(), browser(tools.path())];
        lead(&browsers, place.path(), URL, 3600).expect("opened");
        let arguments = tools.path().join("arguments");
        until("the browser was started", || arguments.exists());
        let arguments = fs::read_to_string(arguments).expect("read");
        let page = Path::new(arguments.trim());
        assert!(page.starts_with(place.path()) && !arguments.contains("hush"), "{arguments}");
        let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode(page), mode(page.parent().expect("a parent"))), (0o600, 0o700));
        let seen = fs::read_to_string(tools.path().join("page")).expect("read");
        assert!(seen.contains("0;url=http://127.0.0.1:7070/?token=hush&amp;session=1\""), "{seen}");

        let empty = || fs::read_dir(place.path()).expect("listed").next().is_none();
        fs::remove_dir_all(page.parent().expect("a parent")).expect("removed");
        lead(&browsers, place.path(), URL, 0).expect("opened");
        until("the page is removed", empty);
        lead(&browsers[..1], place.path(), URL, 3600).expect_err("no browser");
        assert!(empty());
    }
}
