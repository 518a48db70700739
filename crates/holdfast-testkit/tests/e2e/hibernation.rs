//! A session put away and brought back, and forked: what a person left there is there again.

use anyhow::{Result, ensure};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    wait,
};
use uuid::Uuid;

use crate::fixture::{self, BOOT, SOON};

async fn count(api: &Api, session: Uuid, file: &str) -> Result<usize> {
    let ran = api.exec(session, &["sh", "-c", &format!("wc -l < {file} || echo 0")]).await?;
    Ok(ran.stdout.trim().parse().unwrap_or(0))
}

async fn post(api: &Api, session: Uuid, what: &str, status: u16) -> Result<holdfast_api::Session> {
    api.post(&format!("/api/sessions/{session}/{what}"), &serde_json::json!({})).await?.json(status)
}

async fn is(api: &Api, session: Uuid, state: &str) -> Result<()> {
    let waited = wait::until(&format!("{session} is {state}"), BOOT, async || {
        Ok((api.session(session).await?.state == state).then_some(()))
    })
    .await;
    api.explained(session, waited).await
}

/// A shell's job goes on where it was, what was typed and not sent is still on its line, files are
/// there, and the same session is reached at the same address on another VM.
#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_after_hibernation() -> Result<()> {
    let mut server = ServerProcess::start(Options {
        config: "[vm]\nwarm = false".to_owned(),
        ..Options::default()
    })
    .await?;
    let api = server.api()?;
    let id = fixture::ready(&api, "sleeper").await?.id;
    let before = api.vm(id).await?;
    let boot_id = fixture::boot_id(&api, id).await?;
    let mut terminal = fixture::terminal(&api, id, "alpha").await?;
    terminal.type_text("(while sleep 0.2; do date >> ticks; done) & echo job-$((1+1))\n").await?;
    terminal.expect("job-2", SOON).await?;
    terminal.type_text("echo unsent-$((20+").await?;
    terminal.expect("unsent-$((20+", SOON).await?;
    wait::until("the job runs", SOON, async || {
        Ok((count(&api, id, "ticks").await? > 2).then_some(()))
    })
    .await?;

    let began = std::time::Instant::now();
    post(&api, id, "hibernate", 202).await?;
    is(&api, id, "hibernated").await?;
    eprintln!("put away in {:?}", began.elapsed());
    ensure!(fixture::vmm(&mut server).is_err(), "no VMM runs while it is away");
    let began = std::time::Instant::now();
    post(&api, id, "resume", 202).await?;
    api.ready(id, BOOT).await?;
    eprintln!("brought back in {:?}", began.elapsed());
    fixture::clock_is_right(&api, id).await?;

    let after = api.vm(id).await?;
    ensure!(before.vm_id != after.vm_id, "another VM serves it");
    ensure!(fixture::boot_id(&api, id).await? == boot_id, "it was not booted again");
    let ticks = count(&api, id, "ticks").await?;
    wait::until("the job goes on", SOON, async || {
        Ok((count(&api, id, "ticks").await? > ticks).then_some(()))
    })
    .await?;
    let (address, token) = (api.address, api.token.clone());
    let mut again = holdfast_testkit::terminal::Terminal::attach(address, id, &token).await?;
    again.type_text("22))\n").await?;
    again.expect("unsent-42", SOON).await?;
    fixture::shows(&api, id, "a picture", SOON, |frame| !frame.is_blank()).await?;

    // A fork has it all too, and is another machine.
    let fork = post(&api, id, "fork", 201).await?.id;
    api.ready(fork, BOOT).await?;
    fixture::clock_is_right(&api, fork).await?;
    ensure!(fixture::boot_id(&api, fork).await? != boot_id, "a fork has a boot id of its own");
    ensure!(count(&api, fork, "ticks").await? >= ticks, "a fork has the files");
    let (mine, theirs) = (count(&api, id, "ticks").await?, count(&api, fork, "ticks").await?);
    wait::until("both go on", SOON, async || {
        let both =
            count(&api, id, "ticks").await? > mine && count(&api, fork, "ticks").await? > theirs;
        Ok(both.then_some(()))
    })
    .await?;
    for file in ["/etc/machine-id", "/etc/hostname"] {
        let (a, b) = (api.exec(id, &["cat", file]).await?, api.exec(fork, &["cat", file]).await?);
        ensure!(a.stdout != b.stdout, "{file} of a fork is its own");
    }
    server.finish().await
}

/// A checkpoint that was cut short is refused with its reason; the session comes back with its files.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_boots_its_disk() -> Result<()> {
    let server = ServerProcess::start(Options {
        config: "[vm]\nwarm = false".to_owned(),
        ..Options::default()
    })
    .await?;
    let api = server.api()?;
    let id = fixture::ready(&api, "damaged").await?.id;
    let ran = api.exec(id, &["sh", "-c", "echo kept > kept && sync"]).await?;
    ensure!(ran.code == 0, "{ran:?}");
    post(&api, id, "hibernate", 202).await?;
    is(&api, id, "hibernated").await?;
    let mut cut = 0;
    for entry in std::fs::read_dir(server.state_dir().join("snapshots"))? {
        let memory = entry?.path().join("memory.img");
        let file = std::fs::File::options().write(true).open(&memory)?;
        file.set_len(file.metadata()?.len() / 2)?;
        cut += 1;
    }
    ensure!(cut == 1, "{cut} checkpoints");
    post(&api, id, "resume", 202).await?;
    api.ready(id, BOOT).await?;
    let timeline = api.timeline(id).await;
    ensure!(timeline.contains("step.cold") && timeline.contains("memory.img has"), "{timeline}");
    ensure!(api.exec(id, &["cat", "kept"]).await?.stdout == "kept\n", "files are kept");
    server.finish().await
}
