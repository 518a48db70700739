//! What the tests share: deadlines, and a session with its viewers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast_api::{CreateSession, Session};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    rfb::{Frame, Viewer},
    terminal::Terminal,
    wait, ws,
};
use tokio::io::DuplexStream;
use uuid::Uuid;

/// How long a VM may take until its desktop can be used, without hardware virtualisation and with
/// others starting beside it.
pub(crate) const BOOT: Duration = Duration::from_mins(3);
/// How long anything may take that needs no boot.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A guest's clock may differ from the host's by this, besides the time that asking took.
const CLOCK: Duration = Duration::from_millis(100);

/// A viewer of a desktop.
pub(crate) type Desktop = Viewer<DuplexStream>;

/// A server that runs real VMs.
pub(crate) async fn server() -> Result<ServerProcess> {
    ServerProcess::start(Options::default()).await
}

/// Makes a session of this name and waits until it is ready.
pub(crate) async fn ready(api: &Api, name: &str) -> Result<Session> {
    let session = api.create(&named(name)).await?;
    api.ready(session.id, BOOT).await
}

/// A request for a small machine.
pub(crate) fn named(name: &str) -> CreateSession {
    CreateSession { name: Some(name.to_owned()), memory_mib: Some(1024), ..Default::default() }
}

/// Connects a viewer to a session's desktop.
pub(crate) async fn desktop(
    api: &Api,
    session: Uuid,
) -> Result<(Desktop, tokio::task::JoinHandle<ws::Closed>)> {
    let stream = ws::desktop(api.address, session, &api.token).await?;
    let viewer = Viewer::connect(stream.io).await?;
    Ok((viewer, stream.closed))
}

/// Waits until a session's desktop shows what is asked for.
pub(crate) async fn shows(
    api: &Api,
    session: Uuid,
    what: &str,
    deadline: Duration,
    asked: impl Fn(&Frame) -> bool,
) -> Result<Frame> {
    let (mut viewer, _closed) = desktop(api, session).await?;
    let what = format!("the desktop of {session} shows {what}");
    wait::until(&what, deadline, async || {
        let frame = viewer.frame().await?;
        Ok(asked(&frame).then_some(frame))
    })
    .await
}

/// Attaches to a session's terminal and sees that it answers.
pub(crate) async fn terminal(api: &Api, session: Uuid, marker: &str) -> Result<Terminal> {
    let mut terminal = Terminal::attach(api.address, session, &api.token).await?;
    // The answer differs from what was typed, so an echo alone does not count.
    terminal.type_text(&format!("echo {marker}-$((40+2))\n")).await?;
    terminal.expect(&format!("{marker}-42"), SOON).await?;
    Ok(terminal)
}

/// Asks a guest for the time.
pub(crate) async fn clock_is_right(api: &Api, session: Uuid) -> Result<()> {
    let before = jiff::Timestamp::now();
    let ran = api.exec(session, &["date", "+%s%N"]).await?;
    let after = jiff::Timestamp::now();
    let guest = jiff::Timestamp::from_nanosecond(ran.stdout.trim().parse()?)?;
    ensure!(
        guest >= before - CLOCK && guest <= after + CLOCK,
        "the guest says {guest}, asked between {before} and {after}"
    );
    Ok(())
}

/// The id that a guest's kernel made at its boot.
pub(crate) async fn boot_id(api: &Api, session: Uuid) -> Result<String> {
    let ran = api.exec(session, &["cat", "/proc/sys/kernel/random/boot_id"]).await?;
    ensure!(ran.code == 0 && ran.stdout.trim().len() == 36, "no boot id: {ran:?}");
    Ok(ran.stdout.trim().to_owned())
}

/// Runs a shell script as root in a session's guest; a failure is an error.
pub(crate) async fn root_script(api: &Api, session: Uuid, script: &str) -> Result<String> {
    let ran = api.exec_as(session, &["sh", "-ec", script], true).await?;
    ensure!(ran.code == 0, "{script}: {ran:?}");
    Ok(ran.stdout)
}

/// The VMM's process of the only VM of this server.
pub(crate) fn vmm(server: &mut ServerProcess) -> Result<rustix::process::Pid> {
    let own = server.pid();
    let found = server.scope.take(own).into_iter().find_map(|found| match found {
        holdfast_testkit::census::Found::Process(pid, command)
            if ["qemu-system", "firecracker"].iter().any(|vmm| command.contains(vmm)) =>
        {
            rustix::process::Pid::from_raw(pid)
        }
        _ => None,
    });
    found.context("no VMM belongs to this server")
}
