//! The ladder of repairs on a real machine, from what loses nothing to what loses what was open. The
//! session keeps its id and its VM, and the timeline says what happened and what was lost.

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    wait, ws,
};
use rustix::process::{Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use uuid::Uuid;

use crate::fixture::{self, BOOT, SOON};

/// One machine through everything that can happen to it short of its end.
#[tokio::test(flavor = "multi_thread")]
async fn one_session_through_every_fault() -> Result<()> {
    // The smallest disk that is allowed, so that it is full soon.
    let config = "[vm]\ndisk_mib = 512\nwarm = false".to_owned();
    let mut server = ServerProcess::start(Options { config, ..Options::default() }).await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "ladder").await?;
    let machine = Machine::of(&api, session.id).await?;
    fixture::root_script(&api, session.id, "echo kept >/root/marker; sync").await?;

    half_a_handshake(&api, &machine).await.context("half a handshake")?;
    a_stopped_vmm(&mut server, &api, &machine).await.context("a stopped VMM")?;
    a_wrong_clock(&api, &machine).await.context("a wrong clock")?;
    a_hung_agent(&api, &machine).await.context("a hung agent")?;
    no_memory(&api, &machine).await.context("no memory")?;
    a_full_disk(&api, &machine).await.context("a full disk")?;
    a_panic(&api, &machine).await.context("a panic")?;
    server.finish().await
}

/// A machine whose boot is remembered.
pub(crate) struct Machine {
    pub(crate) session: Uuid,
    pub(crate) vm: Uuid,
    pub(crate) boot: String,
}

impl Machine {
    /// That of a session that is ready.
    pub(crate) async fn of(api: &Api, session: Uuid) -> Result<Self> {
        let vm = api.vm(session).await?.vm_id;
        Ok(Self { session, vm, boot: fixture::boot_id(api, session).await? })
    }

    /// It is ready, and the same machine as ever: nothing was lost.
    pub(crate) async fn is_the_same(&self, api: &Api) -> Result<()> {
        let session = api.ready(self.session, BOOT).await?;
        ensure!(session.vm_id == Some(self.vm), "another VM took its place");
        let boot = fixture::boot_id(api, self.session).await?;
        ensure!(boot == self.boot, "it was booted again: {}", api.timeline(self.session).await);
        fixture::shows(api, self.session, "a picture", SOON, |frame| !frame.is_blank()).await?;
        Ok(())
    }

    /// Waits until the timeline holds an event of this kind with this text in it.
    pub(crate) async fn is_told(&self, api: &Api, kind: &str, text: &str) -> Result<()> {
        let what = format!("the timeline tells of {kind} with {text:?}");
        let told = wait::until(&what, BOOT, async || {
            let events = api.events(self.session).await?;
            let told = events.iter().any(|event| event.kind == kind && event.why.contains(text));
            Ok(told.then_some(()))
        })
        .await;
        api.explained(self.session, told).await
    }
}

/// Twice killed: it comes back from its checkpoint with what was done until then, and when the checkpoint
/// cannot be used, from its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_machine_comes_back_from_its_checkpoint() -> Result<()> {
    let config = "[vm]\nwarm = false\n[session]\ncheckpoint_interval = \"20s\"".to_owned();
    let mut server = ServerProcess::start(Options { config, ..Options::default() }).await?;
    let api = server.api()?;
    let id = fixture::ready(&api, "checkpoints").await?.id;
    let machine = Machine::of(&api, id).await?;
    let mut terminal = fixture::terminal(&api, id, "before").await?;
    terminal.type_text("kept=the-same-shell\n").await?;
    drop(terminal);
    machine.is_told(&api, "checkpoint.taken", "A checkpoint was taken").await?;
    fixture::root_script(&api, id, "echo later >/root/later; sync").await?;

    kill_process(fixture::vmm(&mut server)?, Signal::KILL)?;
    machine.is_told(&api, "repair.restore", "What was done since then is lost").await?;
    machine.is_the_same(&api).await?;
    let mut terminal = fixture::terminal(&api, id, "after").await?;
    terminal.type_text("echo $kept-$((1+1))\n").await?;
    terminal.expect("the-same-shell-2", SOON).await?;
    let later = api.exec_as(id, &["cat", "/root/later"], true).await?;
    ensure!(later.code != 0, "what was done after the checkpoint is there: {later:?}");

    // One that is damaged is of no use, and the disk is as it was last.
    fixture::root_script(&api, id, "echo kept >/root/marker; sync").await?;
    let damaged = damage_checkpoints(&server)?;
    ensure!(damaged > 0, "there is no checkpoint");
    kill_process(fixture::vmm(&mut server)?, Signal::KILL)?;
    machine.is_told(&api, "step.cold", "open programs are lost and files are kept").await?;
    api.ready(id, BOOT).await?;
    ensure!(fixture::boot_id(&api, id).await? != machine.boot, "it was not booted again");
    let kept = fixture::root_script(&api, id, "cat /root/marker").await?;
    ensure!(kept.trim() == "kept", "{kept}");
    server.finish().await
}

/// Cuts the memory in every checkpoint of a server short; answers how many.
fn damage_checkpoints(server: &ServerProcess) -> Result<usize> {
    let mut damaged = 0;
    for snapshot in std::fs::read_dir(server.state_dir().join("snapshots"))? {
        for file in std::fs::read_dir(snapshot?.path())? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains("mem") {
                std::fs::OpenOptions::new().write(true).open(&path)?.set_len(1 << 20)?;
                damaged += 1;
            }
        }
    }
    Ok(damaged)
}

/// Runs a script as root in the guest a moment later, when the call that asks for it is over.
async fn soon(api: &Api, session: Uuid, script: &str) -> Result<()> {
    let later = format!("setsid sh -c 'sleep 1; {script}' >/dev/null 2>&1 </dev/null &");
    fixture::root_script(api, session, &later).await.map(drop)
}

/// Whoever leaves in the middle of it keeps nobody else out, however often.
async fn half_a_handshake(api: &Api, machine: &Machine) -> Result<()> {
    for _ in 0..12 {
        let mut stream = ws::desktop(api.address, machine.session, &api.token).await?.io;
        stream.read_exact(&mut [0; 12]).await?;
    }
    machine.is_the_same(api).await
}

/// It is let run again at once, under its viewer.
async fn a_stopped_vmm(server: &mut ServerProcess, api: &Api, machine: &Machine) -> Result<()> {
    let (mut viewer, _closed) = fixture::desktop(api, machine.session).await?;
    viewer.frame().await?;
    kill_process(fixture::vmm(server)?, Signal::STOP)?;
    machine.is_told(api, "repair.resume", "run again").await?;
    tokio::time::timeout(SOON, viewer.frame()).await.context("the viewer stands still")??;
    machine.is_the_same(api).await
}

/// It is set by itself, as after a host that slept.
async fn a_wrong_clock(api: &Api, machine: &Machine) -> Result<()> {
    fixture::root_script(api, machine.session, "date -s \"-1 hour\"").await?;
    machine.is_told(api, "guest.clock", "s behind and was set").await?;
    fixture::clock_is_right(api, machine.session).await?;
    machine.is_the_same(api).await
}

/// The guest's own watchdog replaces it; desktop, terminals and their shells go on meanwhile.
async fn a_hung_agent(api: &Api, machine: &Machine) -> Result<()> {
    let id = machine.session;
    let mut terminal = fixture::terminal(api, id, "before").await?;
    terminal.type_text("kept=the-same-shell\n").await?;
    let (mut viewer, _closed) = fixture::desktop(api, id).await?;
    let find = "for p in /proc/[0-9]*; do \
        if tr \"\\0\" \" \" <$p/cmdline | grep -q \"agent serve \\$\"; then kill -STOP ${p#/proc/}; fi; done";
    soon(api, id, find).await?;
    machine.is_told(api, "guest.service", "agent killed by signal 9").await?;
    tokio::time::timeout(SOON, viewer.frame()).await.context("the viewer stands still")??;
    machine.is_the_same(api).await?;
    let mut terminal = fixture::terminal(api, id, "after").await?;
    terminal.type_text("echo $kept-$((1+1))\n").await?;
    terminal.expect("the-same-shell-2", SOON).await
}

/// The guest's kernel ends what takes it all.
async fn no_memory(api: &Api, machine: &Machine) -> Result<()> {
    let id = machine.session;
    let kills = "sed -n \"s/^oom_kill //p\" /proc/vmstat";
    let before = fixture::root_script(api, id, kills).await?;
    soon(api, id, "tail /dev/zero").await?;
    let ended = wait::until("the kernel ended something", BOOT, async || {
        // A guest that has no memory answers late, or not at all.
        let Ok(now) = fixture::root_script(api, id, kills).await else { return Ok(None) };
        Ok((now != before).then_some(()))
    });
    api.explained(id, ended.await).await?;
    machine.is_the_same(api).await
}

/// What works goes on, and what ended starts again as soon as there is room.
async fn a_full_disk(api: &Api, machine: &Machine) -> Result<()> {
    let id = machine.session;
    // Most of it is taken without being written, which takes half a minute where the disk is slow.
    let fill = "fallocate -l 400M /root/most; dd if=/dev/zero of=/root/fill bs=1M 2>&1 || true; \
        df -P / | tail -n 1";
    let full = fixture::root_script(api, id, fill).await?;
    ensure!(full.contains("No space left") && full.contains("100%"), "{full}");
    let mut terminal = fixture::terminal(api, id, "full").await?;
    terminal.type_text("echo x >~/x; echo $((6*7))-written\n").await?;
    terminal.expect("42-written", SOON).await?;
    machine.is_the_same(api).await?;
    fixture::root_script(api, id, "rm /root/most /root/fill; echo kept >/root/marker; sync")
        .await?;
    machine.is_the_same(api).await
}

/// It boots again on its disk, and what that lost is said.
async fn a_panic(api: &Api, machine: &Machine) -> Result<()> {
    let id = machine.session;
    soon(api, id, "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger").await?;
    machine.is_told(api, "repair.boot", "open programs and unsaved work are lost").await?;
    let session = api.ready(id, BOOT).await?;
    ensure!(session.vm_id == Some(machine.vm), "another VM took its place");
    ensure!(fixture::boot_id(api, id).await? != machine.boot, "it was not booted again");
    let kept = fixture::root_script(api, id, "cat /root/marker").await?;
    ensure!(kept.trim() == "kept", "{kept}");
    fixture::shows(api, id, "a picture", SOON, |frame| !frame.is_blank()).await?;
    // What the kernel said before it died is kept for whoever wants to know why.
    machine.is_told(api, "vm.console", "sysrq").await
}
