//! Machines that wait for a session: claimed, their browser up and rehearsed.

use anyhow::{Context as _, Result, ensure};
use holdfast_api::{CreateSession, Drain, DrainSessions, StartDrain};
use holdfast_testkit::{
    api::Api,
    page::Page,
    process::{Options, ServerProcess},
    wait,
};
use uuid::Uuid;

use crate::fixture::{self, BOOT, SOON};

const PAGE: &str = "<!doctype html><title>chosen</title><body><script>\
    requestAnimationFrame(() => requestAnimationFrame(() => fetch('/drawn')))</script>";
/// What the browser shows, as it says itself.
const TABS: &str = "exec 3<>/dev/tcp/127.0.0.1/9222; \
    printf 'GET /json/list HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' >&3; timeout 5 cat <&3 || true";

async fn waiting(api: &Api) -> Result<Uuid> {
    wait::until("a machine waits in the pool", BOOT, async || {
        let vms = api.vms().await?;
        Ok(vms.iter().find(|vm| vm.session_id.is_none() && vm.state == "running").map(|vm| vm.id))
    })
    .await
}

/// A session is given the machine that waits. The page that it asked for is asked for once, and nothing
/// of the rehearsal is found in the browser's files; without a page it shows the start page.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_machine_shows_the_sessions_page() -> Result<()> {
    let page = Page::serve(PAGE).await?;
    let config = format!(
        "[vm]\npool_min = 1\npool_max = 1\n[egress]\ninternet = false\nhost_ports = [{}]\n",
        page.port
    );
    let server = ServerProcess::start(Options { config, ..Options::default() }).await?;
    let api = server.api()?;

    let waits = waiting(&api).await?;
    let start_url = Some(format!("http://host.holdfast.internal:{}/chosen", page.port));
    let session = api.create(&CreateSession { start_url, ..CreateSession::default() }).await?;
    let id = session.id;
    ensure!(session.vm_id == Some(waits), "it was given {:?} instead of {waits}", session.vm_id);
    api.ready(id, SOON).await?;
    fixture::clock_is_right(&api, id).await?;
    let asked = |path: &str| page.seen().iter().filter(|seen| seen.path == path).count();
    let drawn =
        wait::until("its page is drawn", BOOT, async || Ok((asked("/drawn") > 0).then_some(())));
    drawn.await.with_context(|| format!("{:?}", page.seen()))?;
    ensure!(asked("/chosen") == 1, "the page was asked for again: {:?}", page.seen());
    let found = "grep -rl v1/rehearsal ~/.config/holdfast-chromium ~/.cache || true";
    let found = api.exec(id, &["bash", "-c", found]).await?.stdout;
    ensure!(found.is_empty(), "the rehearsal is in {found}");
    api.end(id).await?;

    let waits = waiting(&api).await?;
    let session = api.create(&CreateSession::default()).await?;
    ensure!(session.vm_id == Some(waits), "it was given {:?} instead of {waits}", session.vm_id);
    api.ready(session.id, SOON).await?;
    let mut tabs = String::new();
    let shown = wait::until("the start page is there", SOON, async || {
        tabs = api.exec(session.id, &["bash", "-c", TABS]).await?.stdout;
        Ok(tabs.contains("/holdfast/start.html").then_some(()))
    });
    let shown = shown.await;
    shown.with_context(|| tabs.clone())?;
    ensure!(tabs.matches("\"type\": \"page\"").count() == 1, "{tabs}");

    // What waits in the pool goes only so.
    let drain = StartDrain { sessions: DrainSessions::Keep };
    let _: Drain = api.post("/api/drain", &drain).await?.json(200)?;
    server.finish().await
}
