//! `cargo xtask test`: every check and test, in the order in which a failure is found soonest.

use std::{fs, path::Path, time::Instant};

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    cache,
    census::Run,
    debian, firecracker, image, lint, sh, system, tally,
    tally::Tally,
    tools,
};

/// Environment variable: `1` runs the tests with real VMs on Firecracker alone, `0` never does. Else they run
/// on it as well where it boots the image.
const KVM: &str = "HOLDFAST_TEST_KVM";

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
    let run = Run::begin()?;
    let mut tally = Tally::default();
    if wants(Part::Web) {
        lint::web(&mut tally)?;
    }
    if wants(Part::Units) || wants(Part::E2e) {
        // Before anything is compiled: the server embeds it.
        build::web()?;
    }
    if wants(Part::Lint) {
        lint::rust(&mut tally)?;
    }
    if wants(Part::Units) {
        firecracker::ensure()?;
        nextest(&mut tally, &run, "units", "default", args.filter.as_deref(), None)?;
    }
    if wants(Part::E2e) {
        e2e(&mut tally, &run, args.filter.as_deref())?;
    }
    run.census(&mut tally);
    println!("\n{}", tally.summary());
    if tally.failed() > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

fn e2e(tally: &mut Tally, run: &Run, filter: Option<&str>) -> Result<()> {
    let agent = build::agent()?;
    let holdfast = build::holdfast(Profile::Dev)?;
    image::ensure(&holdfast, &agent)?;
    firecracker::ensure()?;
    let asked = std::env::var(KVM).ok();
    if asked.as_deref() != Some("1") {
        nextest(tally, run, "end to end", "vm", filter, Some((&holdfast, "0")))?;
    }
    let also = match &asked {
        Some(asked) => asked == "1",
        None => firecracker::runs_the_image(&holdfast)?,
    };
    if also {
        let name = "end to end, Firecracker";
        nextest(tally, run, name, "vm", filter, Some((&holdfast, "1")))?;
    }
    Ok(())
}

/// Runs one profile of `.config/nextest.toml`.
fn nextest(
    tally: &mut Tally,
    run: &Run,
    name: &str,
    profile: &str,
    filter: Option<&str>,
    real: Option<(&Path, &str)>,
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
    command.env("HOLDFAST_TEST_RUN", run.dir()).env("TMPDIR", run.temporary());
    if let Some((holdfast, kvm)) = real {
        command.env("HOLDFAST_TEST_BINARY", holdfast).env(KVM, kvm);
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
