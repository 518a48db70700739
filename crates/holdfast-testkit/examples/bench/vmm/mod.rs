//! What the drivers add to the VMMs: their operations beside the raw calls, on the same programs with the
//! same guest.
//!
//! The guest is a few dozen bytes that print and tick, so that a VMM's own work is all there is.

mod raw;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_core::{Screen, VmId};
use holdfast_host::{
    driver::{Driver, EgressPolicy, ImageRef, Process, StartFrom, Stop, VmSpec},
    drivers::{
        firecracker::{FirecrackerConfig, FirecrackerDriver},
        qemu::QemuDriver,
    },
    host::HostConfig,
    tiny::{self, Then},
};
use serde_json::{Value, json};
use uuid::Uuid;

use self::raw::Raw;
use crate::{
    report::{Report, Samples, Table},
    usage,
};

pub(crate) const MEMORY_MIB: u32 = 256;
/// Highest difference that is wished for, in ms.
const ADDED: f64 = 10.0;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Times that each operation is done both ways; they take turns.
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

/// Times of one way.
#[derive(Debug, Default)]
pub(crate) struct Way {
    pub(crate) start: Samples,
    pub(crate) pause: Samples,
    pub(crate) resume: Samples,
    pub(crate) snapshot: Samples,
    /// The same, copied out of the jail and synced.
    pub(crate) kept: Samples,
    pub(crate) restore: Samples,
    pub(crate) stop: Samples,
    /// Memory of a VMM besides its guest's.
    pub(crate) own: Samples,
    made: Samples,
    removed: Samples,
}

/// How long something took.
pub(crate) async fn timed<T, E>(
    samples: &mut Samples,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let began = Instant::now();
    let done = work.await;
    samples.time(began.elapsed());
    done
}

pub(crate) async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    firecracker(args.runs, report).await?;
    qemu(args.runs, report).await
}

/// A driver with a state directory of its own.
struct Bed {
    dir: tempfile::TempDir,
    driver: Arc<dyn Driver>,
}

impl Bed {
    fn new(open: impl FnOnce(HostConfig) -> Result<Arc<dyn Driver>>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        // VMMs run as users of their own and have to pass through.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir.path(), mode)?;
        let driver = open(HostConfig::new(dir.path().join("state")))?;
        tiny::image(&dir.path().join("image"), Then::Tick)?;
        Ok(Self { dir, driver })
    }

    fn spec(&self) -> VmSpec {
        VmSpec {
            vm: VmId::from_uuid(Uuid::now_v7()),
            image: ImageRef { path: self.dir.path().join("image"), digest: "tiny".to_owned() },
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            disk_mib: 64,
            egress: EgressPolicy::default(),
            screen: Screen::DEFAULT,
            eager: false,
        }
    }

    /// Makes a VM that can be started.
    async fn make(&self, way: &mut Way) -> Result<VmSpec> {
        let spec = self.spec();
        timed(&mut way.made, async {
            self.driver.create(&spec).await?;
            self.driver.connect(spec.vm).await
        })
        .await?;
        Ok(spec)
    }

    async fn pid(&self, vm: VmId) -> Result<i32> {
        match self.driver.inspect(vm).await?.process {
            Process::Running { pid, .. } => Ok(pid),
            other => anyhow::bail!("{vm} does not run: {other:?}"),
        }
    }

    /// Every operation once, each VM removed at the end.
    async fn run(&self, way: &mut Way, number: usize) -> Result<()> {
        let driver = &self.driver;
        let spec = self.make(way).await?;
        timed(&mut way.start, driver.start(spec.vm, &StartFrom::Boot)).await?;
        timed(&mut way.pause, driver.pause(spec.vm)).await?;
        timed(&mut way.resume, driver.resume(spec.vm)).await?;
        way.own.value(usage::own_pss_mib(self.pid(spec.vm).await?, MEMORY_MIB)?);
        let snapshot = self.dir.path().join(format!("snapshot-{number}"));
        timed(&mut way.snapshot, driver.snapshot(spec.vm, &snapshot)).await?;
        timed(&mut way.stop, driver.stop(spec.vm, Stop::Force)).await?;
        timed(&mut way.removed, driver.destroy(spec.vm)).await?;

        let clone = self.make(&mut Way::default()).await?;
        let from = StartFrom::Snapshot(snapshot.clone());
        // Compared with its checksums once, when it is first used.
        driver.start(clone.vm, &from).await?;
        driver.destroy(clone.vm).await?;
        let clone = self.make(&mut Way::default()).await?;
        timed(&mut way.restore, driver.start(clone.vm, &from)).await?;
        driver.destroy(clone.vm).await?;
        driver.discard_snapshot(&snapshot).await?;
        Ok(())
    }

    /// A snapshot by a driver on the same state directory that is configured otherwise.
    async fn snapshot_by(&self, driver: &dyn Driver, samples: &mut Samples) -> Result<()> {
        let spec = self.make(&mut Way::default()).await?;
        driver.start(spec.vm, &StartFrom::Boot).await?;
        let snapshot = self.dir.path().join("snapshot-by");
        timed(samples, driver.snapshot(spec.vm, &snapshot)).await?;
        driver.destroy(spec.vm).await?;
        driver.discard_snapshot(&snapshot).await?;
        Ok(())
    }

    /// Removes whatever is left, and passes on how it went.
    async fn finish(self, outcome: Result<()>) -> Result<()> {
        for left in self.driver.list().await? {
            self.driver.destroy(left.vm).await?;
        }
        outcome
    }
}

async fn firecracker(runs: usize, report: &mut Report) -> Result<()> {
    let programs = FirecrackerConfig::find(&holdfast_server::config::default_cache_dir());
    for program in [&programs.firecracker, &programs.jailer] {
        ensure!(program.exists(), "{} is missing: use `cargo xtask bench vmm`", program.display());
    }
    let used = programs.clone();
    let bed = Bed::new(move |host| Ok(Arc::new(FirecrackerDriver::open(host, used)?)))?;
    let changes = FirecrackerConfig { diff_snapshots: true, ..programs.clone() };
    let changes = FirecrackerDriver::open(HostConfig::new(bed.dir.path().join("state")), changes)?;
    let (mut ours, mut raw) = (Way::default(), Way::default());
    let mut changed = Samples::default();
    let outcome = async {
        for number in 0..runs {
            bed.run(&mut ours, number).await?;
            bed.snapshot_by(&changes, &mut changed).await?;
            let (programs, image) = (programs.clone(), bed.dir.path().join("image"));
            let mut way = std::mem::take(&mut raw);
            raw = tokio::task::spawn_blocking(move || {
                Raw::new(programs, image)?.run(&mut way).map(|()| way)
            })
            .await??;
        }
        Ok(())
    };
    let outcome = outcome.await;
    bed.finish(outcome).await?;

    let mut table = Table::new(
        "Firecracker",
        format!(
            "The driver beside the same jailed binary driven by hand: the jailer started with the same arguments, \
             its socket connected to as soon as it is there, one connection, the same calls. The tiny guest, {MEMORY_MIB} MiB. \
             Start: from the process to the answered InstanceStart. Restore: from the process to the answered load, as a \
             second clone. By hand nothing is checked or recorded. A snapshot by hand stays in the jail, where its VMM can \
             change it; kept, it is copied out of there with `cp --sparse=always`, and synced, as the driver's is, which \
             has checksums besides. With diff_snapshots Firecracker writes what the guest touched."
        ),
    );
    let bare = &raw.snapshot;
    for (name, ours, raw) in [
        ("start", &ours.start, &raw.start),
        ("pause", &ours.pause, &raw.pause),
        ("resume", &ours.resume, &raw.resume),
        ("snapshot", &ours.snapshot, &raw.kept),
        ("restore", &ours.restore, &raw.restore),
        ("stop", &ours.stop, &raw.stop),
    ] {
        table.add(format!("{name}: driver"), "ms", ours.clone());
        if name == "snapshot" {
            table.add("snapshot: driver, diff_snapshots", "ms", changed.clone());
            table.add("snapshot: by hand, left in the jail", "ms", bare.clone());
        }
        let by_hand = if name == "snapshot" { "by hand, kept" } else { "by hand" };
        table.add(format!("{name}: {by_hand}"), "ms", raw.clone());
        table.add(format!("{name}: added"), "ms", ours.median() - raw.median()).aim(0.5, ADDED);
    }
    table.add("directory, disk and network made", "ms", ours.made.clone());
    table.add("all of it removed", "ms", ours.removed.clone());
    table.add("memory of the VMM besides the guest's", "MiB", ours.own.clone());
    table.add("the same by hand", "MiB", raw.own.clone());
    report.add(table);
    Ok(())
}

async fn qemu(runs: usize, report: &mut Report) -> Result<()> {
    let bed = Bed::new(|host| Ok(Arc::new(QemuDriver::open(host)?)))?;
    let (mut ours, mut raw) = (Way::default(), Way::default());
    let outcome = async {
        for number in 0..runs {
            bed.run(&mut ours, number).await?;
        }
        let spec = bed.make(&mut Way::default()).await?;
        bed.driver.start(spec.vm, &StartFrom::Boot).await?;
        let socket = bed.dir.path().join("state/vms").join(spec.vm.to_string()).join("qmp.sock");
        for _ in 0..runs {
            raw.pause.time(qmp(&socket, "stop")?);
            raw.resume.time(qmp(&socket, "cont")?);
        }
        bed.driver.destroy(spec.vm).await?;
        Ok(())
    };
    let outcome = outcome.await;
    bed.finish(outcome).await?;

    let mut table = Table::new(
        "QEMU",
        format!(
            "The driver with the tiny guest, {MEMORY_MIB} MiB; pausing and resuming beside the same QMP commands, each \
             on a connection of its own as the driver does it."
        ),
    );
    table.add("start", "ms", ours.start.clone());
    for (name, ours, raw) in
        [("pause", &ours.pause, &raw.pause), ("resume", &ours.resume, &raw.resume)]
    {
        table.add(format!("{name}: driver"), "ms", ours.clone());
        table.add(format!("{name}: QMP"), "ms", raw.clone());
        table.add(format!("{name}: added"), "ms", ours.median() - raw.median()).aim(0.5, ADDED);
    }
    table.add("snapshot", "ms", ours.snapshot.clone());
    table.add("restore", "ms", ours.restore.clone());
    table.add("stop", "ms", ours.stop.clone());
    table.add("directory, disk and network made", "ms", ours.made.clone());
    table.add("all of it removed", "ms", ours.removed.clone());
    table.add("memory of the VMM besides the guest's", "MiB", ours.own.clone());
    report.add(table);
    Ok(())
}

/// One command on a connection of its own.
fn qmp(socket: &Path, command: &str) -> Result<Duration> {
    let began = Instant::now();
    // A path through an open directory has room for a state directory of any length.
    let dir = std::fs::File::open(socket.parent().context("no directory")?)?;
    let name = socket.file_name().context("no name")?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)));
    let mut stream = BufReader::new(UnixStream::connect(path.join(name))?);
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    for command in ["qmp_capabilities", command] {
        writeln!(stream.get_mut(), "{}", json!({ "execute": command }))?;
        loop {
            line.clear();
            ensure!(stream.read_line(&mut line)? > 0, "QEMU hung up");
            let answer: Value = serde_json::from_str(&line)?;
            ensure!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                break;
            }
        }
    }
    Ok(began.elapsed())
}
