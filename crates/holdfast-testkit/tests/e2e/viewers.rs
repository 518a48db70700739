//! Viewers other than the dashboard's.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::ws::Bridge;

use crate::fixture::{self, SOON};

/// Debian's vncsnapshot, which knows plain RFB only, takes a picture through the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn another_viewer_sees_the_desktop() -> Result<()> {
    let server = fixture::server().await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "viewer").await?;
    fixture::shows(&api, session.id, "a picture", SOON, |f| f.colours() > 8).await?;
    let bridge = Bridge::open(api.address, session.id, &api.token).await?;
    let picture = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("vncsnapshot");
    command
        .args(["-quiet", "-allowblank", "-nocursor"])
        .arg(format!("127.0.0.1::{}", bridge.address.port()))
        .arg(picture.path())
        .stdin(Stdio::null());
    let taken = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(SOON, taken).await.context("vncsnapshot hangs")???;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let jpeg = std::fs::read(picture.path())?;
    ensure!(jpeg.starts_with(&[0xff, 0xd8]) && jpeg.len() > 4096, "{} bytes", jpeg.len());
    server.finish().await
}
