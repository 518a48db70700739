//! What breaks is repaired, and what was lost is said.

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::{
    process::{Options, ServerProcess},
    rfb::Frame,
    wait,
};

use crate::fixture::{self, BOOT, SOON};

/// The colour of the desktop, of the terminal's ground and of the start page's.
const GROUND: u32 = 0x0017_1c26;
/// The colour of the terminal's cursor.
const CURSOR: u32 = 0x00f0_b45a;

/// Kills every process of this name in a guest, and fails when there is none.
fn kill_all(name: &str) -> String {
    format!(
        "n=0; for p in /proc/[0-9]*; do \
           if [ \"$(cat $p/comm 2>/dev/null)\" = {name} ]; then kill -9 ${{p#/proc/}} && n=1; fi; \
         done; [ $n = 1 ]"
    )
}

/// How much of the terminal is its cursor, in pixels: a block of 144, or a frame of 48 without the focus.
fn cursor(frame: &Frame) -> usize {
    let terminal = &frame.pixels[frame.pixels.len() / 4 * 3..];
    terminal.iter().filter(|pixel| **pixel == CURSOR).count()
}

/// The guest's own supervisor brings a killed browser and a killed desktop back. Whoever types in the terminal
/// goes on there when a browser comes, after the terminal or again.
#[tokio::test(flavor = "multi_thread")]
async fn killed_services_of_the_guest_come_back() -> Result<()> {
    // One that boots starts its browser last.
    let config = "[vm]\nwarm = false".to_owned();
    let server = ServerProcess::start(Options { config, ..Options::default() }).await?;
    let api = server.api()?;
    let id = fixture::ready(&api, "services").await?.id;
    let boot = fixture::boot_id(&api, id).await?;
    let shows = async |what: &str, asked: fn(&Frame) -> bool| {
        fixture::shows(&api, id, what, BOOT, asked).await.map(drop)
    };
    let kill = async |name: &str| fixture::root_script(&api, id, &kill_all(name)).await.map(drop);

    shows("a terminal", |frame| cursor(frame) > 40).await?;
    let (mut viewer, _closed) = fixture::desktop(&api, id).await?;
    viewer.click(viewer.width / 2, viewer.height / 10 * 9).await?;
    for typed in ["first", "again"] {
        shows("a terminal that has the focus", |frame| cursor(frame) > 80).await?;
        // Its bars are a tenth of the picture; its page is white at first.
        let is_there = |frame: &Frame| (0.8..0.95).contains(&frame.share(GROUND));
        shows("a browser with its page", is_there).await?;
        shows("a terminal that still has the focus", |frame| cursor(frame) > 80).await?;
        viewer.type_text(&format!("touch {typed}\n")).await?;
        wait::until("what was typed is done", SOON, async || {
            let made = api.exec(id, &["test", "-e", &format!("/home/user/{typed}")]).await?;
            Ok((made.code == 0).then_some(()))
        })
        .await?;
        kill("chromium").await?;
        shows("no browser", |frame| frame.share(GROUND) > 0.95).await?;
    }

    let names = fixture::root_script(&api, id, "cat /proc/[0-9]*/comm | sort -u").await?;
    kill(names.lines().find(|name| name.contains("vnc")).context(names.clone())?).await?;
    wait::until("the desktop is back", BOOT, async || {
        let Ok((mut viewer, _)) = fixture::desktop(&api, id).await else {
            return Ok(None);
        };
        Ok(viewer.frame().await.ok().filter(|frame| !frame.is_blank()))
    })
    .await?;
    api.ready(id, BOOT).await?;
    ensure!(fixture::boot_id(&api, id).await? == boot, "the guest was booted again");
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
    api.explained(session.id, booted.await).await?;
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
