//! Checks that run no product code: formatting, lints, dependencies, the dashboard's sources.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{build, cache, sh, tally, tally::Tally, tools};

/// `cargo xtask lint`.
pub(crate) fn run_alone() -> Result<()> {
    let mut tally = Tally::default();
    rust(&mut tally)?;
    web(&mut tally)?;
    println!("{}", tally.summary());
    if tally.failed() > 0 {
        bail!("some checks failed");
    }
    Ok(())
}

/// Formatting, lints and dependencies of the workspace.
pub(crate) fn rust(tally: &mut Tally) -> Result<()> {
    check(tally, "rustfmt", &mut cargo(&["fmt", "--all", "--check"]));
    let clippy = ["clippy", "--locked", "--quiet", "--workspace", "--all-targets", "--"];
    check(tally, "clippy", cargo(&clippy).args(["-D", "warnings"]));
    // Advisories are not among them: their database cannot be had on every network.
    let mut deny = tools::deny()?;
    deny.args(["--offline", "--locked", "--log-level", "error", "check"]);
    deny.args(["bans", "licenses", "sources"]);
    check(tally, "cargo-deny", &mut deny);
    Ok(())
}

/// Formatting, types and units of the dashboard.
pub(crate) fn web(tally: &mut Tally) -> Result<()> {
    build::web_packages()?;
    check(tally, "prettier", &mut npx(&["prettier", "--check", "."]));
    check(tally, "svelte-check", &mut npx(&["svelte-check", "--fail-on-warnings"]));
    vitest(tally)
}

fn vitest(tally: &mut Tally) -> Result<()> {
    let report = cache::work_dir()?.join("vitest.json");
    let began = Instant::now();
    let mut vitest = npx(&["vitest", "run", "--reporter=default", "--reporter=json"]);
    vitest.arg(format!("--outputFile.json={}", report.display()));
    // A report of before must not be taken for this run's.
    let _ = std::fs::remove_file(&report);
    let result = sh::run(&mut vitest);
    let (passed, failed) = tally::vitest(&report).unwrap_or((0, 1));
    let failed = if result.is_err() { failed.max(1) } else { failed };
    tally.add("vitest", passed, failed, began.elapsed());
    Ok(())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(cache::root());
    command
}

fn npx(args: &[&str]) -> Command {
    let mut command = Command::new("npx");
    // What is not installed is missing from package.json; it is not fetched.
    command.arg("--no-install").args(args).current_dir(cache::root().join("web"));
    command
}

/// Runs one check, which counts as one test.
pub(crate) fn check(tally: &mut Tally, name: &str, command: &mut Command) -> bool {
    sh::say(name);
    let began = Instant::now();
    let result = sh::run(command);
    let took: Duration = began.elapsed();
    if let Err(error) = &result {
        eprintln!("{name}: {error:#}");
    }
    let ok = result.is_ok();
    tally.add(name, u64::from(ok), u64::from(!ok), took);
    ok
}
