//! What a server needs goes away under running sessions: its database, and the network to its users. The
//! machines are simulated; the server, the database and the browser are real.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_api::Session;
use holdfast_testkit::{
    TempPostgres,
    api::Api,
    process::{Options, ServerProcess},
    terminal::Terminal,
    wait,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use uuid::Uuid;

use crate::{
    fixture::{self, SOON},
    watch::{PageWatcher, Watcher},
};

/// Longer than what an unattended session is kept for below. A whole minute is in `long`.
const OUTAGE: Duration = Duration::from_secs(20);

fn simulated(config: String) -> Options {
    Options { driver: "sim".to_owned(), config, env: Vec::new() }
}

/// PostgreSQL stopped, killed, and away while the server starts: nothing is destroyed, what lives goes
/// on, what has to be written is refused for now, and all is well again by itself.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_their_database() -> Result<()> {
    outlive_the_database(OUTAGE).await
}

/// With outages of this length, longer than what an unattended session is kept for.
pub(crate) async fn outlive_the_database(outage: Duration) -> Result<()> {
    let mut postgres = TempPostgres::new();
    let config =
        format!("store = \"{}\"\n[session]\nlease = \"15s\"\ngrace = \"1s\"", postgres.database());
    let mut server = ServerProcess::start(simulated(config)).await?;
    let api = server.api()?;
    let attended = fixture::ready(&api, "attended").await?;
    let mut viewer = Watcher::start(&api, attended.id);
    viewer.sees(Instant::now(), SOON).await?;

    for way in ["stopped", "killed"] {
        // Nobody attends to it, and it would be over before the database is back.
        let lonely = fixture::ready(&api, way).await?;
        if way == "stopped" {
            postgres.stop();
        } else {
            postgres.kill();
        }
        goes_on_without(&api, &attended, &lonely, outage).await.context(way)?;
        postgres.start();
        api.server_ready(SOON).await?;
        viewer.sees(Instant::now(), SOON).await?;
        // Only now can it be known that nobody came back to it.
        let problem = api.gone(lonely.id, SOON).await?;
        ensure!(problem.reason.as_deref() == Some("lease_expired"), "{problem:?}");
        let next = fixture::ready(&api, "next").await?;
        api.end(next.id).await?;
    }
    ensure!(viewer.seen().drops.is_empty(), "the viewer was dropped: {:?}", viewer.seen());

    // Killed with its database: the next server waits for it, and says so.
    postgres.stop();
    server.kill()?;
    server.spawn()?;
    wait::until("it listens, and is not ready", SOON, async || {
        Ok(api.get("/readyz").await.ok().filter(|answer| answer.status == 503).map(drop))
    })
    .await?;
    let answer = api.get(&format!("/api/sessions/{}", attended.id)).await?;
    ensure!(answer.status == 503, "{}", answer.status);
    postgres.start();
    server.ready().await?;
    viewer.sees(Instant::now(), SOON).await?;
    is_the_same(&api, &attended).await?;
    drop(viewer);
    server.finish().await
}

/// Through an outage that lasts longer than leases do.
async fn goes_on_without(
    api: &Api,
    attended: &Session,
    lonely: &Session,
    outage: Duration,
) -> Result<()> {
    let began = Instant::now();
    wait::until("readiness is red", SOON, async || {
        Ok((api.get("/readyz").await?.status == 503).then_some(()))
    })
    .await?;
    while began.elapsed() < outage {
        for session in [attended, lonely] {
            is_the_same(api, session).await?;
            ensure!(api.vm(session.id).await?.state == "running");
        }
        let beat = api.post(&format!("/api/sessions/{}/heartbeat", attended.id), &()).await?;
        ensure!(beat.status == 200, "a heartbeat is answered {}", beat.status);
        let unknown = format!("/api/sessions/{}", Uuid::now_v7());
        let lonely = format!("/api/sessions/{}", lonely.id);
        let made = api.post("/api/sessions", &fixture::named("refused")).await?;
        let ended = api.send(http::Method::DELETE, &lonely, &[], Vec::new()).await?;
        for (what, answer) in
            [("create", made), ("end", ended), ("unknown", api.get(&unknown).await?)]
        {
            let after = answer.headers.get("retry-after");
            ensure!(answer.status == 503 && after.is_some(), "{what}: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn is_the_same(api: &Api, session: &Session) -> Result<()> {
    let now = api.session(session.id).await?;
    let same = now.vm_id == session.vm_id && now.ready_at == session.ready_at;
    ensure!(same && now.state == "ready", "{now:?} instead of {session:?}");
    Ok(())
}

/// How long nothing gets through.
const CUT: Duration = Duration::from_secs(30);
/// How soon everybody is back: the longest pause between attempts, and what an attempt takes.
const BACK: Duration = Duration::from_secs(25);

/// Every packet to and from the server is dropped for a while, in a network of the test's own: the page,
/// and the viewer come back by themselves, to the same machine.
#[test]
fn a_cut_network_heals_by_itself() -> Result<()> {
    let namespace = Namespace::new()?;
    let inside = namespace.name.clone();
    // Threads and processes that are made by a thread inside are inside too.
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(format!("/run/netns/{inside}"))?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::Network),
        )?;
        run("ip", &["link", "set", "lo", "up"])?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(cut_and_heal())
    });
    thread.join().map_err(|_| anyhow::anyhow!("the test panicked"))?
}

async fn cut_and_heal() -> Result<()> {
    let server = ServerProcess::start(simulated(String::new())).await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "cut").await?;
    let mut viewer = Watcher::start(&api, session.id);
    let mut page = PageWatcher::start(&api, session.id)?;
    viewer.sees(Instant::now(), SOON).await?;
    page.sees(None, SOON).await?;

    let port = api.address.port();
    let rules = format!(
        "add table inet cut; add chain inet cut in {{ type filter hook input priority 0; }}; \
         add rule inet cut in tcp dport {port} drop; add rule inet cut in tcp sport {port} drop"
    );
    run("nft", &[&rules])?;
    let cut = Instant::now();
    page.misses(CUT).await?;
    tokio::time::sleep(CUT.saturating_sub(cut.elapsed())).await;
    run("nft", &["delete table inet cut"])?;
    let healed = Instant::now();
    viewer.sees(healed, BACK).await?;
    page.sees(Some(cut), BACK).await?;
    eprintln!("all back {:?} after the cut", healed.elapsed());
    is_the_same(&api, &session).await?;
    let mut terminal = Terminal::attach(api.address, session.id, &api.token).await?;
    terminal.type_text("still-here").await?;
    terminal.expect("still-here", SOON).await?;
    drop((viewer, terminal));
    page.stop().await?;
    server.finish().await
}

/// A network of the test's own. It is gone with the value.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Result<Self> {
        let name = format!("holdfast-cut-{}", Uuid::now_v7());
        run("ip", &["netns", "add", &name])?;
        Ok(Self { name })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &["netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

fn run(tool: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(tool).args(args).output().context(tool.to_owned())?;
    ensure!(output.status.success(), "{tool} {args:?}: {output:?}");
    Ok(())
}
