//! From a request to pixels, and what a VM costs while nobody uses it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use holdfast_api::CreateSession;
use holdfast_testkit::{
    process::{Options, ServerProcess},
    rfb::Viewer,
    wait, ws,
};
use serde_json::{Value, json};

use crate::report::summary;

/// Sessions that are made, one after the other.
const SESSIONS: usize = 5;
/// Time from a VM's first picture until its cost is looked at: the browser has started by then.
const SETTLE: Duration = Duration::from_mins(1);
/// Time over which processor time is counted.
const WINDOW: Duration = Duration::from_secs(20);
/// Longest time until a session is ready.
const BOOT: Duration = Duration::from_mins(3);

pub(crate) async fn measure() -> Result<Value> {
    let server =
        ServerProcess::start(Options { driver: "auto".to_owned(), ..Default::default() }).await?;
    let api = server.api()?;
    let host: Value = api.get("/api/hosts").await?.json(200)?;
    let (mut answered, mut ready, mut framed) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..SESSIONS {
        let began = Instant::now();
        let session = api.create(&CreateSession::default()).await?;
        answered.push(began.elapsed());
        api.ready(session.id, BOOT).await?;
        ready.push(began.elapsed());
        let stream = ws::desktop(api.address, session.id, &api.token).await?;
        let mut viewer = Viewer::connect(stream.io).await?;
        wait::until("a picture", BOOT, async || {
            Ok(Some(viewer.frame().await?).filter(|frame| !frame.is_blank()))
        })
        .await?;
        framed.push(began.elapsed());
        drop(viewer);
        // The last one stays, to be looked at while idle.
        if number + 1 < SESSIONS {
            api.end(session.id).await?;
            api.gone(session.id, BOOT).await?;
        }
    }
    tokio::time::sleep(SETTLE).await;
    let usage = async || api.vms().await?.into_iter().next().context("there is no VM");
    let before = usage().await?;
    tokio::time::sleep(WINDOW).await;
    let after = usage().await?;
    let cpu_ms = after.cpu_ms.zip(before.cpu_ms).map(|(after, before)| after - before);
    let busy = cpu_ms.map(|ms| ms as f64 / WINDOW.as_millis() as f64 * 100.0);
    server.finish().await?;
    Ok(json!({
        "driver": host["hosts"][0]["driver"],
        "driverReason": host["hosts"][0]["driverReason"],
        "coldAnsweredMs": summary(&answered),
        "coldReadyMs": summary(&ready),
        "coldFirstFrameMs": summary(&framed),
        "idleMemoryPssMib": after.memory_mib,
        "idleDiskMib": after.disk_mib,
        "idlePercentOfOneCore": busy,
    }))
}
