//! The guest's image, made by the command itself; it knows whether there is anything to do.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{cache, sh};

/// Builds the image with this agent, and the warm image where the command can.
pub(crate) fn ensure(holdfast: &Path, agent: &Path) -> Result<()> {
    sh::say("making the image (the first time takes a few minutes)");
    let mut build = command(holdfast)?;
    build.args(["image", "build", "--agent"]).arg(agent);
    sh::run(&mut build).context("the image could not be made")?;
    if can_bake(holdfast) {
        sh::say("making the warm image");
        let mut bake = command(holdfast)?;
        sh::run(bake.args(["image", "bake"])).context("the warm image could not be made")?;
    }
    Ok(())
}

fn command(holdfast: &Path) -> Result<Command> {
    let mut command = Command::new(holdfast);
    command.env("HOLDFAST_CACHE_DIR", cache::cache_dir()?);
    Ok(command)
}

fn can_bake(holdfast: &Path) -> bool {
    let help = sh::output(Command::new(holdfast).args(["image", "--help"]));
    help.is_ok_and(|text| text.lines().any(|line| line.trim_start().starts_with("bake")))
}
