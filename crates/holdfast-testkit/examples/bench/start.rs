//! How long a user waits: from the request to the desktop's picture, the first key and a page.
//!
//! Cold boots, clones of the warm image and machines from the pool take turns, each begun when the
//! machine is at rest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_api::{CreateSession, Drain, DrainSessions, Readiness, StartDrain};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    wait,
};
use serde_json::Value;

use crate::{
    pages::Pages,
    report::{Report, Samples, Table},
    usage,
    visit::{self, BOOT, Took},
};

/// Longest time until the warm image is there, which is made when it is missing.
const BAKE: Duration = Duration::from_mins(10);
/// Time over which an idle server is looked at.
const WINDOW: Duration = Duration::from_secs(20);
/// No VM waits for room that it would not need.
pub(crate) const ROOM: &str = "max_vms = 256\nmemory_budget_mib = 1000000000\n";

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Clones of the warm image.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Cold boots among them; a fifth of the clones when absent.
    #[arg(long)]
    cold_runs: Option<usize>,
    /// Machines from the pool among them; half of the clones when absent.
    #[arg(long)]
    pool_runs: Option<usize>,
    /// Sessions that are asked for at the same time.
    #[arg(long, default_value_t = 10)]
    at_once: usize,
}

/// How a session's machine comes to be.
#[derive(Default)]
struct Kind {
    answered: Samples,
    ready: Samples,
    framed: Samples,
    echoed: Samples,
    asked: Samples,
    drawn: Samples,
}

impl Kind {
    fn add(&mut self, took: Took) {
        self.answered.time(took.answered);
        self.ready.time(took.ready);
        self.framed.time(took.framed);
    }

    /// One session from its request to its page, and its end. `keyed`: with a key press.
    async fn run(&mut self, api: &Api, pages: &Pages, keyed: bool) -> Result<()> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let request =
            CreateSession { start_url: Some(pages.url(&name)), ..CreateSession::default() };
        let began = Instant::now();
        let (session, took, mut shown) = visit::create(api, &request, visit::desktop).await?;
        self.add(took);
        let seen = async {
            if keyed {
                self.echoed.time(shown.echo().await?);
            }
            let (asked, drawn) = pages.drawn(&name, began, BOOT).await?;
            self.asked.time(asked);
            self.drawn.time(drawn);
            eprintln!("  picture after {:?}, page after {drawn:?}", took.framed);
            anyhow::Ok(())
        };
        if let Err(error) = seen.await {
            return Err(error.context(api.timeline(session.id).await));
        }
        drop(shown);
        api.end(session.id).await?;
        api.gone(session.id, BOOT).await?;
        Ok(())
    }
}

pub(crate) async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let pages = Pages::serve().await?;
    let server = async |vm: &str| {
        let config = format!(
            "[vm]\n{vm}\n{ROOM}[egress]\ninternet = false\nhost_ports = [{}]\n",
            pages.port
        );
        ServerProcess::start(Options { driver: "auto".into(), config, ..Options::default() }).await
    };
    let cold = server("warm = false").await?;
    let api = cold.api()?;
    let host = wait::until("the host has reported", BOOT, async || {
        let hosts: Value = api.get("/api/hosts").await?.json(200)?;
        Ok(hosts["hosts"].as_array().and_then(|hosts| hosts.first().cloned()))
    })
    .await?;
    report.note(format!(
        "VMs: {}, because: {}.",
        host["driver"].as_str().unwrap_or_default(),
        host["driverReason"].as_str().unwrap_or_default().trim_end_matches('.'),
    ));
    // Before anything ran on it, and with nothing beside it.
    report.add(idle(&cold).await?);
    report.add(added(args.runs).await?);

    let clones = server("warm = true").await?;
    until_warm(&clones.api()?).await?;
    at_once(&clones, args.at_once, report).await?;

    let pool_runs = args.pool_runs.unwrap_or(args.runs.div_ceil(2));
    let cold_runs = args.cold_runs.unwrap_or(args.runs.div_ceil(5));
    let pool = if pool_runs > 0 {
        let pool = server("warm = true\npool_min = 1\npool_max = 1").await?;
        until_warm(&pool.api()?).await?;
        Some(pool)
    } else {
        None
    };
    let (mut boots, mut warm, mut pooled) = (Kind::default(), Kind::default(), Kind::default());
    for run in 0..args.runs {
        eprintln!("run {} of {}", run + 1, args.runs);
        at_rest().await?;
        warm.run(&clones.api()?, &pages, true).await?;
        if let Some(pool) = &pool
            && is_turn(run, args.runs, pool_runs)
        {
            let api = pool.api()?;
            until_pooled(&api).await?;
            at_rest().await?;
            pooled.run(&api, &pages, true).await?;
            // Its successor is made at once; what follows shall not wait beside it.
            until_pooled(&api).await?;
        }
        if is_turn(run, args.runs, cold_runs) {
            at_rest().await?;
            boots.run(&cold.api()?, &pages, false).await?;
        }
    }
    report.add(waits(&boots, &warm, &pooled));
    if let Some(pool) = &pool {
        empty_pool(&pool.api()?).await?;
    }
    for server in [Some(cold), Some(clones), pool].into_iter().flatten() {
        server.finish().await?;
    }
    Ok(())
}

fn waits(boots: &Kind, warm: &Kind, pooled: &Kind) -> Table {
    let mut table = Table::new(
        "Until a user sees and uses it",
        "From POST /api/sessions; ready as heard over Server-Sent Events; the first whole picture (hextile) that \
         is not one colour, through the gateway's WebSocket; the first key pressed in the desktop's terminal, \
         counted from the picture on; a page of the user's choice asked for by the guest's browser, and \
         drawn as its second animation frame says. A clone's and a pooled machine's browser is the warm \
         image's, told that its memory is a copy, with new renderers. Cold boots, clones and pooled \
         machines took turns.",
    );
    for (name, kind) in [("cold", boots), ("clone", warm), ("pool", pooled)] {
        let row = |what: &str| format!("{name}: {what}");
        table.add(row("request answered"), "ms", kind.answered.clone());
        table.add(row("ready"), "ms", kind.ready.clone());
        if name == "pool" {
            table.aim(0.5, 150.0);
        }
        table.add(row("first picture"), "ms", kind.framed.clone());
        match name {
            "cold" => table.aim(0.5, 10_000.0),
            _ => table.aim(0.5, 500.0).aim(0.95, 1000.0),
        };
        table.add(row("first key shown"), "ms", kind.echoed.clone()).aim(0.5, 1000.0);
        table.add(row("page asked for"), "ms", kind.asked.clone());
        table.add(row("page drawn"), "ms", kind.drawn.clone());
        table.aim(
            0.5,
            match name {
                "cold" => 30_000.0,
                "clone" => 8000.0,
                _ => 1500.0,
            },
        );
    }
    for (name, kind) in [("clone", warm), ("pool", pooled)] {
        let faster = |a: &Samples, b: &Samples| a.median() / b.median();
        if kind.framed.len() > 0 && boots.framed.len() > 0 {
            table
                .add(
                    format!("cold : {name}, picture"),
                    "times",
                    faster(&boots.framed, &kind.framed),
                )
                .add(format!("cold : {name}, page"), "times", faster(&boots.drawn, &kind.drawn));
        }
    }
    table
}

/// Whether this one of `all` runs is one of `some` that are spread over them evenly.
fn is_turn(run: usize, all: usize, some: usize) -> bool {
    (run + 1) * some / all > run * some / all
}

pub(crate) async fn until_warm(api: &Api) -> Result<()> {
    let mut last = String::new();
    let waited = wait::until("the warm image is there", BAKE, async || {
        let ready: Readiness = api.get("/readyz").await?.json(200)?;
        let check = ready.checks.into_iter().find(|check| check.name == "warm image");
        last = check.context("this driver has no warm images")?.detail;
        Ok(last.starts_with("ready").then_some(()))
    });
    let waited = waited.await;
    waited.with_context(|| last)
}

pub(crate) async fn until_pooled(api: &Api) -> Result<()> {
    wait::until("a machine waits in the pool", BOOT, async || {
        let waits =
            api.vms().await?.iter().any(|vm| vm.session_id.is_none() && vm.state == "running");
        Ok(waits.then_some(()))
    })
    .await
}

/// What waits in the pool goes only so.
pub(crate) async fn empty_pool(api: &Api) -> Result<()> {
    let drain = StartDrain { sessions: DrainSessions::Keep };
    let _: Drain = api.post("/api/drain", &drain).await?.json(200)?;
    Ok(())
}

/// Waits until the processors are mostly idle, but not for ever: others may use them.
pub(crate) async fn at_rest() -> Result<()> {
    const LOOK: Duration = Duration::from_secs(1);
    for _ in 0..15 {
        let before = usage::idle_ms()?;
        tokio::time::sleep(LOOK).await;
        let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        if (usage::idle_ms()? - before) / (LOOK.as_millis() as f64 * all) > 0.75 {
            break;
        }
    }
    Ok(())
}

async fn at_once(server: &ServerProcess, count: usize, report: &mut Report) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    at_rest().await?;
    let api = server.api()?;
    let request = CreateSession::default();
    let all = (0..count).map(|_| visit::create(&api, &request, visit::desktop));
    let began = Instant::now();
    let shown = futures::future::try_join_all(all).await?;
    let last = began.elapsed();
    let mut framed = Samples::default();
    for (session, took, _) in &shown {
        framed.time(took.framed);
        api.end(session.id).await?;
    }
    for (session, ..) in &shown {
        api.gone(session.id, BOOT).await?;
    }
    let mut table = Table::new(
        format!("{count} at once"),
        "Clones of the warm image, asked for at the same moment, each until its first picture.",
    );
    table.add("first picture", "ms", framed);
    table.add("the last of them", "ms", last.as_secs_f64() * 1e3).aim(0.5, 4000.0);
    report.add(table);
    Ok(())
}

/// What the server itself takes.
async fn idle(server: &ServerProcess) -> Result<Table> {
    let pid = server.pid().context("the server is not running")? as i32;
    // Its start is over: it is ready.
    let before = usage::cpu_ms(pid)?;
    tokio::time::sleep(WINDOW).await;
    let busy = (usage::cpu_ms(pid)? - before) / WINDOW.as_millis() as f64 * 100.0;
    let mut table =
        Table::new("The server, idle", "The process after its start, without sessions.");
    table.add("resident memory", "MiB", usage::rss_mib(pid)?).aim(0.5, 40.0);
    table.add("proportional memory", "MiB", usage::pss_mib(pid)?);
    table.add("processor", "% of a core", busy).aim(0.5, 1.0);
    Ok(table)
}

/// With machines that boot in no time, all that is left is the server.
async fn added(runs: usize) -> Result<Table> {
    let options = Options {
        driver: "sim".into(),
        config: format!("[vm]\nwarm = false\n{ROOM}"),
        ..Options::default()
    };
    let server = ServerProcess::start(options).await?;
    let api = server.api()?;
    let mut kind = Kind::default();
    for _ in 0..runs.max(1) {
        let (session, took, shown) =
            visit::create(&api, &CreateSession::default(), |_| true).await?;
        ensure!(took.framed >= took.ready, "a picture before the session was ready");
        kind.add(took);
        drop(shown);
        api.end(session.id).await?;
        api.gone(session.id, BOOT).await?;
    }
    server.finish().await?;
    let mut table = Table::new(
        "What the server adds",
        "The same requests on a server with the simulated driver, whose machines boot in no time: every step, \
         every write to the store and the gateway, and no VM.",
    );
    table.add("request answered", "ms", kind.answered);
    table.add("ready", "ms", kind.ready);
    table.add("first picture", "ms", kind.framed).aim(0.5, 100.0);
    Ok(table)
}
