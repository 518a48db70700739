//! `cargo xtask bench`: measures a release build. The figures are printed, and written to
//! `target/bench`; with `--docs` they go into `docs/benchmarks.md` too.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    cache, debian, firecracker, image,
    root::{self, Rights},
    sh,
};

/// What needs root here, as the beginning of a sentence.
const WHY: &str = "measuring VMs (packages of Debian, the image, networks)";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything, one after the other, when absent.
    #[arg(value_enum)]
    bench: Option<Bench>,
    /// The binaries that are there already; given by this program to itself as root.
    #[arg(long, hide = true, num_args = 3, value_names = ["HOLDFAST", "AGENT", "BENCH"])]
    built: Option<Vec<PathBuf>>,
    /// What the bench itself takes, such as --runs 20 or --docs; `--help` lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Bench {
    /// The server without VMs: requests, heartbeats, reconciling, recovery.
    Control,
    /// A stream through the gateway, raw, and through websockify.
    Gateway,
    /// The drivers' operations over the raw calls to the same VMMs.
    Vmm,
    /// Idle desktops, and putting them away.
    Density,
    /// From the request to a tool's sign-in link: cloned, from the pool, cold.
    Links,
    /// From the request to the desktop: cold, cloned, from the pool.
    Start,
}

impl Bench {
    /// The short ones first.
    const ALL: [Self; 6] =
        [Self::Control, Self::Gateway, Self::Vmm, Self::Density, Self::Links, Self::Start];

    const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Gateway => "gateway",
            Self::Vmm => "vmm",
            Self::Density => "density",
            Self::Links => "links",
            Self::Start => "start",
        }
    }

    /// Whether it boots desktops.
    const fn needs_image(self) -> bool {
        matches!(self, Self::Density | Self::Links | Self::Start)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    Rights::now().check(WHY)?;
    let benches = args.bench.map_or(Bench::ALL.to_vec(), |bench| vec![bench]);
    // Options of one bench are not those of another.
    if benches.len() > 1 && args.options.iter().any(|option| option != "--docs") {
        bail!("name a bench to give it options; all of them together take --docs alone");
    }
    if let Some([holdfast, agent, bench]) = args.built.as_deref() {
        return measure(&benches, &args.options, holdfast, agent, bench);
    }
    build::web()?;
    let holdfast = build::holdfast(Profile::Release)?;
    let bench = build::bench()?;
    let agent = build::agent()?;
    if root::is_root() {
        return measure(&benches, &args.options, &holdfast, &agent, &bench);
    }
    let mut command = root::myself(WHY)?;
    command.args(["bench", "--built"]).args([&holdfast, &agent, &bench]);
    if let Some(one) = args.bench {
        command.arg(one.name());
    }
    sh::run(command.args(&args.options))
}

/// The part that needs root.
fn measure(
    benches: &[Bench],
    options: &[String],
    holdfast: &Path,
    agent: &Path,
    bench: &Path,
) -> Result<()> {
    debian::ensure(&[debian::RUN, debian::BENCH])?;
    if benches.iter().any(|bench| bench.needs_image()) {
        image::ensure(holdfast, agent)?;
    }
    if benches.contains(&Bench::Vmm) {
        firecracker::ensure()?;
    }
    for which in benches {
        sh::say(&format!("measuring: {}", which.name()));
        let mut command = Command::new(bench);
        command
            .arg(which.name())
            .args(options)
            .env("HOLDFAST_TEST_BINARY", holdfast)
            .env("HOLDFAST_CACHE_DIR", cache::cache_dir()?)
            .env("CARGO_TARGET_DIR", cache::target_dir())
            .current_dir(cache::root());
        sh::run(&mut command)?;
    }
    Ok(())
}
