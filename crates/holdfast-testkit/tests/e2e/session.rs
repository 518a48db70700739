//! The whole life of one session.

use anyhow::{Result, ensure};
use holdfast_testkit::page::Page;

use crate::fixture::{self, BOOT, SOON};

/// Created, ready, seen, used, ended, and gone without a trace.
#[tokio::test(flavor = "multi_thread")]
async fn from_create_to_nothing_left() -> Result<()> {
    let mut server = fixture::server().await?;
    let api = server.api()?;
    let created = api.create(&fixture::named("first")).await?;
    // Readable from the moment that it was answered.
    let read = api.session(created.id).await?;
    ensure!(read.id == created.id && read.name == "first", "{read:?}");
    let session = api.ready(created.id, BOOT).await?;

    let frame = fixture::shows(&api, session.id, "a picture", SOON, |f| !f.is_blank()).await?;
    ensure!((frame.width, frame.height) == (1280, 800), "{} x {}", frame.width, frame.height);

    let id = api.exec(session.id, &["id", "-un"]).await?;
    ensure!(id.code == 0 && !id.stdout.trim().is_empty() && id.stdout.trim() != "root", "{id:?}");
    let mut terminal = fixture::terminal(&api, session.id, "alpha").await?;

    let vm = api.vm(session.id).await?;
    ensure!(vm.vm_ip.is_some() && vm.state == "running", "{vm:?}");
    let steps = api.events(session.id).await?;
    for kind in ["step.disk", "step.network", "step.start", "step.desktop"] {
        ensure!(
            steps.iter().any(|e| e.kind == kind),
            "no {kind}{}",
            api.timeline(session.id).await
        );
    }

    server.scope.remember(vm.vm_id);
    api.end(session.id).await?;
    // A second time is harmless.
    api.end(session.id).await?;
    let problem = api.gone(session.id, SOON).await?;
    ensure!(problem.reason.as_deref() == Some("user_request"), "{problem:?}");
    let closed = terminal.expect("never", SOON).await;
    ensure!(
        closed.is_err() && terminal.closed.as_ref().is_some_and(|(code, _)| *code == 4410),
        "{:?}",
        terminal.closed
    );
    server.clean().await?;
    ensure!(api.get(&format!("/api/sessions/{}", uuid::Uuid::nil())).await?.status == 404);
    server.finish().await
}

/// A page that the session was made for is opened by the guest's own browser.
#[tokio::test(flavor = "multi_thread")]
async fn the_browser_opens_the_start_page() -> Result<()> {
    let page = Page::serve("<body style='margin:0;background:#2a9d8f'></body>").await?;
    let config = format!("[egress]\nhost_ports = [{}]", page.port);
    let server =
        holdfast_testkit::process::ServerProcess::start(holdfast_testkit::process::Options {
            config,
            ..Default::default()
        })
        .await?;
    let api = server.api()?;
    let mut request = fixture::named("page");
    request.memory_mib = Some(2048);
    request.start_url = Some(format!("http://host.holdfast.internal:{}/start", page.port));
    let session = api.create(&request).await?;
    api.ready(session.id, BOOT).await?;
    fixture::shows(&api, session.id, "the page", BOOT, |f| f.share(0x002a_9d8f) > 0.5).await?;
    ensure!(page.seen().iter().any(|seen| seen.path == "/start"), "{:?}", page.seen());
    server.finish().await
}
