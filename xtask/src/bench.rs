//! `cargo xtask bench`: measures a release build; figures go to `docs/benchmarks.md`.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    cache, debian, image, sh, system,
};

pub(crate) fn run() -> Result<()> {
    if !system::is_root() {
        bail!("measuring VMs needs root: run this as root");
    }
    debian::ensure(&[debian::RUN, debian::BENCH])?;
    build::web()?;
    let agent = build::agent()?;
    let holdfast = build::holdfast(Profile::Release)?;
    image::ensure(&holdfast, &agent)?;
    sh::say("measuring");
    let mut bench = Command::new("cargo");
    bench
        .args(["run", "--quiet", "--locked", "--release", "--package", "holdfast-testkit"])
        .args(["--features", "harness", "--example", "bench"])
        .env("HOLDFAST_TEST_BINARY", holdfast)
        .env("HOLDFAST_CACHE_DIR", cache::cache_dir()?)
        .current_dir(cache::root());
    sh::run(&mut bench)
}
