//! `cargo xtask up`: from a fresh clone to a running server.
//!
//! Building is done as the user who calls; everything that needs root (packages, image, server) is
//! done by one process of this program, so that a password is asked for once at most.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    cache, debian, image,
    root::{self, Rights},
    sh, system,
};

/// What needs root here, as the beginning of a sentence.
const WHY: &str = "running VMs (packages of Debian, the image, networks)";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on, such as 0.0.0.0:7070.
    #[arg(long, conflicts_with = "port")]
    listen: Option<SocketAddr>,
    /// Port of 127.0.0.1 to listen on.
    #[arg(long)]
    port: Option<u16>,
    /// The binaries that are there already; given by this program to itself as root.
    #[arg(long, hide = true, num_args = 2, value_names = ["HOLDFAST", "AGENT"])]
    built: Option<Vec<PathBuf>>,
    /// Further arguments of `holdfast serve`.
    #[arg(last = true)]
    serve: Vec<String>,
}

/// Where the server listens unless told otherwise.
const DEFAULT_PORT: u16 = 7070;

pub(crate) fn run(args: &Args) -> Result<()> {
    let address = args.listen.unwrap_or_else(|| {
        SocketAddr::new(IpAddr::from([127, 0, 0, 1]), args.port.unwrap_or(DEFAULT_PORT))
    });
    // A port of 0 is free by definition.
    system::check_port(address)?;
    if let Some([holdfast, agent]) = args.built.as_deref() {
        return privileged(holdfast, agent, address, &args.serve);
    }
    Rights::now().check(WHY)?;
    if !cache::target_dir().join("release/holdfast").exists() {
        system::check_disk(&[&cache::cache_dir()?, &cache::work_dir()?])?;
    }
    build::web()?;
    let agent = build::agent()?;
    let holdfast = build::holdfast(Profile::Release)?;
    if root::is_root() {
        return privileged(&holdfast, &agent, address, &args.serve);
    }
    let mut command = root::myself(WHY)?;
    command.args(["up", "--listen", &address.to_string(), "--built"]).args([&holdfast, &agent]);
    if !args.serve.is_empty() {
        command.arg("--").args(&args.serve);
    }
    Err(command.exec()).context("sudo could not be started")
}

/// The part that needs root. Ends as the server: signals reach it directly.
fn privileged(holdfast: &Path, agent: &Path, address: SocketAddr, serve: &[String]) -> Result<()> {
    if !root::is_root() {
        bail!("{WHY} needs root");
    }
    debian::ensure(&[debian::RUN])?;
    image::ensure(holdfast, agent)?;
    sh::say("starting the server");
    let mut command = Command::new(holdfast);
    command.args(["serve", "--show-token", "--listen", &address.to_string()]).args(serve);
    command.env("HOLDFAST_CACHE_DIR", cache::cache_dir()?);
    Err(command.exec()).context("the server could not be started")
}
