//! What takes minutes because the product waits for minutes; with the profile `slow`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_testkit::process::{Options, ServerProcess};

use crate::{
    fixture::{self, BOOT},
    ladder::Machine,
    outage,
};

/// Takes the guest's network away for good: nothing in it can be reached, and its VMM runs on.
const SILENCE: &str = "device=$(basename $(readlink -f /sys/class/net/eth0/device)); \
    setsid sh -c \"sleep 1; echo $device >/sys/bus/virtio/drivers/virtio_net/unbind\" >/dev/null 2>&1 </dev/null &";

/// A session whose guest fell silent, and when.
async fn silent(interval: &str) -> Result<(ServerProcess, Machine, Instant)> {
    let config = format!("[vm]\nwarm = false\n[session]\ncheckpoint_interval = \"{interval}\"");
    let server = ServerProcess::start(Options { config, ..Options::default() }).await?;
    let api = server.api()?;
    let id = fixture::ready(&api, "silent").await?.id;
    fixture::root_script(&api, id, "echo kept >/root/marker; sync").await?;
    let machine = Machine::of(&api, id).await?;
    if interval != "0s" {
        machine.is_told(&api, "checkpoint.taken", "A checkpoint was taken").await?;
    }
    let silenced = Instant::now();
    fixture::root_script(&api, id, SILENCE).await?;
    machine.is_told(&api, "session.state", "the guest does not answer").await?;
    machine.is_told(&api, "repair.resume", "run again").await?;
    Ok((server, machine, silenced))
}

/// It is given 90 s to come to itself, and booted again on its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_guest_is_booted_again() -> Result<()> {
    let (server, machine, silenced) = silent("0s").await?;
    let api = server.api()?;
    machine
        .is_told(&api, "repair.boot", "because the guest does not answer. Files are kept")
        .await?;
    let patience = silenced.elapsed();
    ensure!(patience >= Duration::from_secs(90), "it was given {patience:?} only");
    api.ready(machine.session, BOOT).await?;
    ensure!(fixture::boot_id(&api, machine.session).await? != machine.boot, "the same boot");
    let kept = fixture::root_script(&api, machine.session, "cat /root/marker").await?;
    ensure!(kept.trim() == "kept", "{kept}");
    server.finish().await
}

/// With a checkpoint, it is brought back to that.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_guest_comes_back_from_its_checkpoint() -> Result<()> {
    let (server, machine, _) = silent("30s").await?;
    let api = server.api()?;
    machine.is_told(&api, "repair.restore", "because the guest does not answer").await?;
    machine.is_the_same(&api).await?;
    server.finish().await
}

/// Stopped, killed and started again, each for a whole minute.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_their_database_for_a_minute() -> Result<()> {
    outage::outlive_the_database(Duration::from_mins(1)).await
}

/// Clones share no randomness with browsers of their own either.
#[tokio::test(flavor = "multi_thread")]
async fn clones_with_fresh_browsers() -> Result<()> {
    crate::clones::compare(2, true).await
}
