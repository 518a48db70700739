//! What breaks is repaired, and what was lost is said.

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::wait;

use crate::fixture::{self, BOOT, SOON};

/// Kills every process of this name in a guest, and fails when there is none.
fn kill_all(name: &str) -> String {
    format!(
        "n=0; for p in /proc/[0-9]*; do \
           if [ \"$(cat $p/comm 2>/dev/null)\" = {name} ]; then kill -9 ${{p#/proc/}} && n=1; fi; \
         done; [ $n = 1 ]"
    )
}

/// The guest's own supervisor brings a killed browser and a killed desktop back.
#[tokio::test(flavor = "multi_thread")]
async fn killed_services_of_the_guest_come_back() -> Result<()> {
    let server = fixture::server().await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "services").await?;
    let boot = fixture::boot_id(&api, session.id).await?;
    let names = fixture::root_script(&api, session.id, "cat /proc/[0-9]*/comm | sort -u").await?;
    let xvnc = names.lines().find(|name| name.contains("vnc")).context(names.clone())?;
    for name in ["chromium", xvnc] {
        wait::until(&format!("{name} runs"), BOOT, async || {
            let ran = api.exec_as(session.id, &["sh", "-c", &kill_all(name)], true).await?;
            Ok((ran.code == 0).then_some(()))
        })
        .await?;
        wait::until(&format!("the desktop is back after {name} was killed"), BOOT, async || {
            let Ok((mut viewer, _)) = fixture::desktop(&api, session.id).await else {
                return Ok(None);
            };
            Ok(viewer.frame().await.ok().filter(|frame| !frame.is_blank()))
        })
        .await?;
    }
    api.ready(session.id, BOOT).await?;
    ensure!(fixture::boot_id(&api, session.id).await? == boot, "the guest was booted again");
    server.finish().await
}

/// A VMM that dies under a viewer: the viewer is told, the session comes back on the same disk, and
/// the timeline says what happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_is_booted_again_on_its_disk() -> Result<()> {
    let mut server = fixture::server().await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "vmm").await?;
    let boot = fixture::boot_id(&api, session.id).await?;
    fixture::root_script(&api, session.id, "echo kept >/root/marker; sync").await?;
    let before = api.vm(session.id).await?;
    let (mut viewer, closed) = fixture::desktop(&api, session.id).await?;
    viewer.frame().await?;

    let vmm = fixture::vmm(&mut server)?;
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL)?;
    let closed = tokio::time::timeout(SOON, closed).await.context("the viewer was not told")??;
    ensure!(closed.as_ref().is_some_and(|(code, _)| [4409, 4502].contains(code)), "{closed:?}");

    let booted = wait::until("the session runs on a new boot", BOOT, async || {
        let Ok(now) = fixture::boot_id(&api, session.id).await else { return Ok(None) };
        Ok((now != boot).then_some(()))
    });
    fixture::explained(booted.await, &api, session.id).await?;
    api.ready(session.id, BOOT).await?;
    let after = api.vm(session.id).await?;
    ensure!(after.vm_id == before.vm_id, "another VM took its place");
    let kept = fixture::root_script(&api, session.id, "cat /root/marker").await?;
    ensure!(kept.trim() == "kept", "{kept}");
    fixture::shows(&api, session.id, "a picture", SOON, |f| !f.is_blank()).await?;
    let events = api.events(session.id).await?;
    let states: Vec<_> = events.iter().filter(|e| e.kind == "session.state").collect();
    let fell = states.iter().position(|e| e.to.as_deref() == Some("degraded"));
    let rose = states.iter().rposition(|e| e.to.as_deref() == Some("ready"));
    ensure!(fell.is_some() && fell < rose, "{}", api.timeline(session.id).await);
    server.finish().await
}
