//! `cargo xtask test`: every check and test, in the order in which a failure is found soonest.
//!
//! Everything is built as the user who calls. Tests run as root, since they make networks and VMs, in one
//! process of this program that is told by a [`Plan`] what is there already.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    build::{self, Profile},
    cache,
    census::Run,
    debian, firecracker, image, lint,
    root::{self, Rights},
    sh, system, tally,
    tally::Tally,
    tools,
};

/// Environment variable: `1` runs the tests with real VMs on Firecracker alone, `0` never does. Else they run
/// on it as well where it boots the image.
const KVM: &str = "HOLDFAST_TEST_KVM";
/// What needs root here, as the beginning of a sentence.
const WHY: &str = "running the tests (packages of Debian, networks, VMs)";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only these parts; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// What was built and is to be run; given by this program to itself as root.
    #[arg(long, hide = true)]
    plan: Option<PathBuf>,
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

/// What is run as root, and with what.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// cargo-nextest.
    nextest: PathBuf,
    /// What Cargo says of the packages, and nextest of the tests' binaries.
    metadata: [PathBuf; 2],
    /// Only tests whose name contains this.
    filter: Option<String>,
    units: bool,
    /// The command and the guest's agent, when tests with real VMs are wanted.
    e2e: Option<[PathBuf; 2]>,
    /// What [`KVM`] says; the way to root forgets variables.
    kvm: Option<String>,
    /// Where the counts go.
    report: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(plan) = &args.plan {
        return privileged(plan);
    }
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let (units, e2e) = (wants(Part::Units), wants(Part::E2e));
    if units || e2e {
        Rights::now().check(WHY)?;
    }
    if args.only.is_empty() {
        system::check_disk(&[&cache::cache_dir()?, &cache::work_dir()?])?;
    }
    if (units || e2e) && root::is_root() {
        // What cannot be installed is found before anything is built.
        debian::ensure(&[debian::RUN, debian::TEST])?;
    }
    let mut tally = Tally::default();
    if wants(Part::Web) {
        lint::web(&mut tally)?;
    }
    if units || e2e {
        // Before anything is compiled: the server embeds it.
        let began = Instant::now();
        build::web()?;
        tally.note("building the dashboard", began.elapsed());
    }
    if wants(Part::Lint) {
        lint::rust(&mut tally)?;
    }
    if units || e2e {
        let began = Instant::now();
        match plan(args.filter.clone(), units, e2e) {
            Ok(plan) => {
                tally.note("building everything else", began.elapsed());
                as_root(&plan, &mut tally)?;
            }
            Err(error) => {
                eprintln!("building the tests: {error:#}");
                tally.add("building the tests", 0, 1, began.elapsed());
            }
        }
    }
    println!("\n{}", tally.summary());
    if tally.failed() > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

/// Builds what the tests need, and says where it is.
fn plan(filter: Option<String>, units: bool, e2e: bool) -> Result<Plan> {
    let built = if e2e {
        let agent = build::agent()?;
        Some([build::holdfast(Profile::Dev)?, agent])
    } else {
        None
    };
    sh::say("building the tests");
    let dir = cache::work_dir()?;
    let metadata = [dir.join("cargo.json"), dir.join("tests.json")];
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--locked", "--format-version=1", "--all-features"]);
    cargo.current_dir(cache::root());
    into(&metadata[0], &mut cargo)?;
    let mut nextest = tools::nextest()?;
    let program = PathBuf::from(nextest.get_program());
    nextest.args(["list", "--locked", "--workspace", "--cargo-quiet"]);
    nextest.args(["--list-type", "binaries-only", "--message-format", "json"]);
    into(&metadata[1], &mut nextest)?;
    let report = dir.join("tally.json");
    let kvm = std::env::var(KVM).ok();
    Ok(Plan { nextest: program, metadata, filter, units, e2e: built, kvm, report })
}

/// Runs a program with its standard output in a file.
fn into(path: &Path, command: &mut Command) -> Result<()> {
    let cannot = || format!("{} cannot be written", path.display());
    let _ = fs::remove_file(path);
    command.stdin(Stdio::null()).stdout(File::create(path).with_context(cannot)?);
    let status = command.status().context("the program could not be started")?;
    if !status.success() {
        bail!("it failed ({status})");
    }
    Ok(())
}

/// Runs the plan, in another process where this one is not root.
fn as_root(plan: &Plan, tally: &mut Tally) -> Result<()> {
    if root::is_root() {
        return run_tests(plan, tally);
    }
    let path = cache::work_dir()?.join("plan.json");
    fs::write(&path, serde_json::to_vec_pretty(plan)?)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    // Counts of before must not be taken for this run's.
    let _ = fs::remove_file(&plan.report);
    sh::run(root::myself(WHY)?.args(["test", "--plan"]).arg(&path))?;
    let counts = fs::read(&plan.report).context("root's part of the run left no counts behind")?;
    tally.append(serde_json::from_slice(&counts)?);
    Ok(())
}

/// The part that needs root. What failed in it is in the counts that it leaves behind.
fn privileged(plan: &Path) -> Result<()> {
    let text = fs::read(plan).with_context(|| format!("{} cannot be read", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text)?;
    debian::ensure(&[debian::RUN, debian::TEST])?;
    let mut tally = Tally::default();
    run_tests(&plan, &mut tally)?;
    fs::write(&plan.report, serde_json::to_vec_pretty(&tally)?)
        .with_context(|| format!("{} cannot be written", plan.report.display()))
}

fn run_tests(plan: &Plan, tally: &mut Tally) -> Result<()> {
    let run = Run::begin()?;
    firecracker::ensure()?;
    if plan.units {
        nextest(tally, &run, plan, "units", "default", None)?;
    }
    if let Some([holdfast, agent]) = &plan.e2e {
        let began = Instant::now();
        image::ensure(holdfast, agent)?;
        tally.note("making the images", began.elapsed());
        run_e2e(plan, tally, &run, holdfast)?;
    }
    run.census(tally);
    Ok(())
}

/// On the VMMs that [`KVM`] asks for, or else on QEMU, and on Firecracker too where it boots the image.
fn run_e2e(plan: &Plan, tally: &mut Tally, run: &Run, holdfast: &Path) -> Result<()> {
    if plan.kvm.as_deref() != Some("1") {
        nextest(tally, run, plan, "end to end", "vm", Some((holdfast, "0")))?;
    }
    let also = match &plan.kvm {
        Some(asked) => asked == "1",
        None => firecracker::runs_the_image(holdfast)?,
    };
    if also {
        let name = "end to end, Firecracker";
        nextest(tally, run, plan, name, "vm", Some((holdfast, "1")))?;
    }
    Ok(())
}

/// How many tests that need no VM run at once: they wait about as long as they calculate.
fn units_at_once() -> usize {
    2 * std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs one profile of `.config/nextest.toml`.
fn nextest(
    tally: &mut Tally,
    run: &Run,
    plan: &Plan,
    name: &str,
    profile: &str,
    real: Option<(&Path, &str)>,
) -> Result<()> {
    sh::say(&format!("tests: {name}"));
    let [cargo, binaries] = &plan.metadata;
    let mut command = Command::new(&plan.nextest);
    command.args(["nextest", "run", "--profile", profile, "--cargo-metadata"]).arg(cargo);
    command.arg("--binaries-metadata").arg(binaries).current_dir(cache::root());
    command.args(["--no-tests", if plan.filter.is_some() { "pass" } else { "fail" }]);
    command.args(&plan.filter);
    // What a failure says is a chain of sentences; where an error value was made adds nothing.
    command.env("HOLDFAST_CACHE_DIR", cache::cache_dir()?).env("RUST_LIB_BACKTRACE", "0");
    command.env("HOLDFAST_TEST_RUN", run.dir()).env("TMPDIR", run.temporary());
    match real {
        Some((holdfast, kvm)) => {
            command.env("HOLDFAST_TEST_BINARY", holdfast).env(KVM, kvm);
        }
        None => {
            command.arg(format!("--test-threads={}", units_at_once()));
        }
    }
    let report = cache::target_dir().join("nextest").join(profile).join("junit.xml");
    // A report of before must not be taken for this run's.
    let _ = fs::remove_file(&report);
    let began = Instant::now();
    let result = sh::run(&mut command);
    let read = tally::junit(&report).ok();
    let (passed, failed) = counts(result.is_ok(), read);
    tally.add(name, passed, failed, began.elapsed());
    Ok(())
}

/// What passed and failed, of a run that ended well or not and its report. Without a report nothing was
/// run, which is well only where nothing was to be run.
fn counts(ended_well: bool, report: Option<(u64, u64)>) -> (u64, u64) {
    let (passed, failed) = report.unwrap_or((0, 0));
    (passed, if ended_well { failed } else { failed.max(1) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_run_that_ends_badly_never_counts_as_well() {
        assert_eq!(counts(true, Some((7, 0))), (7, 0));
        assert_eq!(counts(false, Some((7, 2))), (7, 2));
        assert_eq!(counts(false, Some((7, 0))), (7, 1));
        assert_eq!(counts(false, None), (0, 1));
        assert_eq!(counts(true, None), (0, 0));
    }

    #[test]
    fn root_is_told_everything() {
        let plan = Plan {
            nextest: "cargo-nextest".into(),
            metadata: ["a".into(), "b".into()],
            filter: Some("port".to_owned()),
            units: true,
            e2e: Some(["holdfast".into(), "agent".into()]),
            kvm: Some("0".to_owned()),
            report: "tally.json".into(),
        };
        let text = serde_json::to_string(&plan).expect("written");
        let read: Plan = serde_json::from_str(&text).expect("read");
        assert_eq!(format!("{read:?}"), format!("{plan:?}"));
        let mut here = Tally::default();
        here.add("lint", 3, 0, Duration::ZERO);
        let mut there = Tally::default();
        there.add("units", 5, 1, Duration::ZERO);
        let told = serde_json::to_string(&there).expect("written");
        here.append(serde_json::from_str(&told).expect("read"));
        assert_eq!(here.summary().lines().last(), Some("8 passed, 1 failed"));
    }
}
