//! What a desktop costs while nobody uses it, and how fast it is put away and brought back.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_api::{CreateSession, Vm};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    report::{Report, Samples, Table},
    start::{ROOM, at_rest, until_warm},
    usage,
    visit::{self, BOOT},
};

/// Time over which processor time is counted.
const WINDOW: Duration = Duration::from_secs(30);
/// Answers of the server whose times are looked at while all desktops are there.
const LOOKS: usize = 100;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Desktops that exist at once; each takes about 400 MiB under translation.
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Desktops that are put away and brought back, one after the other.
    #[arg(long, default_value_t = 8)]
    runs: usize,
    /// Seconds that desktops are left alone before they are looked at.
    #[arg(long, default_value_t = 30)]
    settle: u64,
}

pub(crate) async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    ensure!(args.count >= 2, "a further desktop needs at least two");
    let config = format!("[vm]\n{ROOM}[egress]\ninternet = false\n");
    let options = Options { driver: "auto".into(), config, ..Options::default() };
    let server = ServerProcess::start(options).await?;
    let api = server.api()?;
    until_warm(&api).await?;
    at_rest().await?;
    let mut ids = Vec::with_capacity(args.count);
    let mut free = Vec::with_capacity(args.count + 1);
    free.push(usage::available_mib()?);
    for number in 1..=args.count {
        eprintln!("desktop {number} of {}", args.count);
        let (session, _, shown) =
            visit::create(&api, &CreateSession::default(), visit::desktop).await?;
        drop(shown);
        ids.push(session.id);
        // One after the other: each begins its browser's new life when the one before has.
        at_rest().await?;
        free.push(usage::available_mib()?);
    }
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    report.add(cost(&api, &server, args, &free).await?);
    report.add(put_away(&api, &ids, args.runs, &server.state_dir().join("snapshots")).await?);
    server.finish().await
}

async fn cost(api: &Api, server: &ServerProcess, args: &Args, free: &[f64]) -> Result<Table> {
    let pid = server.pid().context("the server is not running")? as i32;
    let before = (api.vms().await?, usage::cpu_ms(pid)?);
    let began = Instant::now();
    tokio::time::sleep(WINDOW).await;
    let after = (api.vms().await?, usage::cpu_ms(pid)?);
    let window = began.elapsed().as_secs_f64() * 10.0;
    let count = args.count;
    ensure!(after.0.len() == count, "{} of {count} VMs are there", after.0.len());
    let used = |vms: &[Vm], id: Uuid| vms.iter().find(|vm| vm.id == id).and_then(|vm| vm.cpu_ms);
    let (mut pss, mut busy, mut disk) =
        (Samples::default(), Samples::default(), Samples::default());
    for vm in &after.0 {
        pss.value(vm.memory_mib.context("memory is not known")? as f64);
        disk.value(vm.disk_mib.context("disk is not known")? as f64);
        let (from, to) = used(&before.0, vm.id).zip(used(&after.0, vm.id)).context("no times")?;
        busy.value((to - from) as f64 / window);
    }
    let mut answers = Samples::default();
    for _ in 0..LOOKS {
        let began = Instant::now();
        let answer = api.get("/api/sessions").await?;
        answers.time(began.elapsed());
        ensure!(answer.status == 200, "answered with {}", answer.status);
    }
    let further = (free[1] - free[count]) / (count - 1) as f64;
    let mut table = Table::new(
        format!("{count} idle desktops"),
        format!(
            "Clones of one warm image with browser and terminal open and nobody attached, {} s after the last \
             came; processor time over {} s. Proportional memory counts private pages and a \
             share of shared ones; what a further desktop takes is by how much the machine's available memory \
             fell from the first to the last, divided by their number.",
            args.settle,
            WINDOW.as_secs()
        ),
    );
    table.add("proportional memory of each", "MiB", pss).aim(0.5, 110.0);
    table.add("each further desktop, by the machine's available memory", "MiB", further);
    table.add("disk of each", "MiB", disk);
    table.add("processor of each", "% of a core", busy).aim(0.5, 3.0);
    table.add("server's processor", "% of a core", (after.1 - before.1) / window);
    table.add("server's memory", "MiB", usage::rss_mib(pid)?);
    table.add("list of sessions answered", "ms", answers);
    Ok(table)
}

async fn put_away(api: &Api, ids: &[Uuid], runs: usize, snapshots: &Path) -> Result<Table> {
    let (mut away, mut ready, mut framed) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut disk = Samples::default();
    for id in ids.iter().cycle().take(runs) {
        at_rest().await?;
        let post = async |what: &str| {
            let path = format!("/api/sessions/{id}/{what}");
            let answer = api.post(&path, &json!({})).await?;
            ensure!(answer.status == 202, "{what} was answered with {}", answer.status);
            anyhow::Ok(())
        };
        // A session that was brought back keeps its checkpoint.
        let others = usage::disk_mib(snapshots);
        let began = Instant::now();
        post("hibernate").await?;
        visit::until_state(api, *id, "hibernated").await?;
        away.time(began.elapsed());
        disk.value(usage::disk_mib(snapshots) - others);
        let began = Instant::now();
        post("resume").await?;
        visit::until_state(api, *id, "ready").await?;
        ready.time(began.elapsed());
        let shown = visit::show(api, *id, visit::desktop).await?;
        framed.time(began.elapsed());
        drop(shown);
        ensure!(began.elapsed() < BOOT, "it took longer than a boot");
        let timeline = api.timeline(*id).await;
        ensure!(!timeline.contains("step.cold"), "it was booted instead: {timeline}");
    }
    let mut table = Table::new(
        "Put away and brought back",
        "One of those desktops at a time. Away: from the request until its machine is gone and its \
         checkpoint is on the disk. Back: from the request to the first whole picture through the gateway.",
    );
    table.add("hibernated", "ms", away).aim(0.5, 3000.0);
    table.add("checkpoint", "MiB", disk);
    table.add("resumed, ready", "ms", ready);
    table.add("resumed, first picture", "ms", framed).aim(0.5, 1000.0);
    Ok(table)
}
