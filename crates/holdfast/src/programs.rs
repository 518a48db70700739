//! Programs of this machine.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::bail;

/// Where a program is, by PATH and the directories of administrators' programs.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(also)
        .map(|dir| dir.join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Opens an address in the person's browser.
pub fn open_in_browser(url: &str) -> anyhow::Result<()> {
    let browser = std::env::var("BROWSER").ok().filter(|name| !name.is_empty());
    let candidates = browser.into_iter().chain(["xdg-open".to_owned(), "open".to_owned()]);
    for program in candidates {
        let spawned = Command::new(&program)
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if spawned.is_ok() {
            return Ok(());
        }
    }
    bail!("no browser was found on this machine; open this address yourself: {url}")
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
