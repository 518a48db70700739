//! `cargo xtask test`: every check and test, in the order in which a failure is found soonest.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    cache, debian, image, lint, sh, system, tally,
    tally::Tally,
    tools,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only these parts; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Run only tests whose name contains this.
    filter: Option<String>,
}

/// Part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Formatting, lints, dependencies.
    Lint,
    /// The dashboard's checks and tests.
    Web,
    /// Tests that need no VM.
    Units,
    /// Real VMs and a real browser.
    E2e,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    if wants(Part::E2e) && !system::is_root() {
        bail!(
            "tests with real VMs need root: run this as root, or choose parts with --only lint, --only web and --only units"
        );
    }
    if args.only.is_empty() {
        system::check_disk(&[&cache::cache_dir()?, &cache::work_dir()?])?;
    }
    if wants(Part::Units) || wants(Part::E2e) {
        debian::ensure(&[debian::RUN, debian::TEST])?;
    }
    let before = leftovers();
    let mut tally = Tally::default();
    if wants(Part::Web) {
        lint::web(&mut tally)?;
    }
    if wants(Part::Lint) {
        lint::rust(&mut tally)?;
    }
    if wants(Part::Units) {
        nextest(&mut tally, "units", "default", args.filter.as_deref(), None)?;
    }
    if wants(Part::E2e) {
        e2e(&mut tally, args.filter.as_deref())?;
    }
    census(&mut tally, &before);
    println!("\n{}", tally.summary());
    if tally.failed() > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

fn e2e(tally: &mut Tally, filter: Option<&str>) -> Result<()> {
    build::web()?;
    let agent = build::agent()?;
    let holdfast = build::holdfast(Profile::Dev)?;
    image::ensure(&holdfast, &agent)?;
    nextest(tally, "end to end", "vm", filter, Some(&holdfast))
}

/// Runs one profile of `.config/nextest.toml`.
fn nextest(
    tally: &mut Tally,
    name: &str,
    profile: &str,
    filter: Option<&str>,
    holdfast: Option<&Path>,
) -> Result<()> {
    sh::say(&format!("tests: {name}"));
    let mut command = tools::nextest()?;
    command.args(["run", "--locked", "--workspace", "--cargo-quiet", "--profile", profile]);
    command.args(["--no-tests", if filter.is_some() { "pass" } else { "fail" }]);
    if let Some(filter) = filter {
        command.arg(filter);
    }
    // What a failure says is a chain of sentences; where an error value was made adds nothing.
    command.env("HOLDFAST_CACHE_DIR", cache::cache_dir()?).env("RUST_LIB_BACKTRACE", "0");
    if let Some(holdfast) = holdfast {
        command.env("HOLDFAST_TEST_BINARY", holdfast);
    }
    let report = cache::target_dir().join("nextest").join(profile).join("junit.xml");
    // A report of before must not be taken for this run's.
    let _ = fs::remove_file(&report);
    let began = Instant::now();
    let result = sh::run(&mut command);
    // Without a report nothing was run: it did not compile, or there was nothing to run.
    let none = if result.is_ok() { (0, 0) } else { (0, 1) };
    let (passed, failed) = tally::junit(&report).unwrap_or(none);
    let failed = if result.is_err() { failed.max(1) } else { failed };
    tally.add(name, passed, failed, began.elapsed());
    Ok(())
}

/// Everything on this machine that tests could leave behind, by name.
fn leftovers() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut list = |kind: &str, dir: &str, keep: &dyn Fn(&str) -> bool| {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if keep(&name) {
                found.insert(format!("{kind} {name}"));
            }
        }
    };
    list("network namespace", "/run/netns", &|_| true);
    list("network link", "/sys/class/net", &|_| true);
    list("directory in /tmp", "/tmp", &|name| name.starts_with("holdfast"));
    list("process", "/proc", &is_ours);
    let nft = sh::output(Command::new("nft").args(["list", "tables"]));
    found.extend(nft.unwrap_or_default().lines().map(str::to_owned));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter(|line| line.contains("holdfast"));
    found.extend(mounts.map(|line| format!("mount {line}")));
    found
}

/// Whether this process is one of those that tests start.
fn is_ours(pid: &str) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let command = String::from_utf8_lossy(&command);
    let mut words = command.split('\0');
    let program = Path::new(words.next().unwrap_or_default());
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "holdfast" | "firecracker" => true,
        "postgres" | "chromium" => command.contains("holdfast"),
        name => name.starts_with("qemu-system") && command.contains("holdfast"),
    }
}

/// Fails the run for everything that is there now and was not before.
fn census(tally: &mut Tally, before: &BTreeSet<String>) {
    let began = Instant::now();
    let after = leftovers();
    let left: Vec<&String> = after.difference(before).collect();
    for name in &left {
        eprintln!("left behind: {name}");
    }
    let failed = left.len() as u64;
    tally.add("nothing left behind", u64::from(failed == 0), failed, began.elapsed());
}
