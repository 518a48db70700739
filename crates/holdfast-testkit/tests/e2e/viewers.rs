//! Viewers other than the dashboard's.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::ws::Bridge;

use crate::fixture::{self, SOON};

/// gtk-vnc's gvnccapture, which knows plain RFB only, takes a picture through the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn another_viewer_sees_the_desktop() -> Result<()> {
    let server = fixture::server().await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "viewer").await?;
    fixture::shows(&api, session.id, "a picture", SOON, |f| f.colours() > 8).await?;
    let bridge = Bridge::open(api.address, session.id, &api.token).await?;
    let picture = tempfile::Builder::new().suffix(".png").tempfile()?;
    let mut command = Command::new("gvnccapture");
    // It takes a display's number, which is added to 5900.
    command
        .arg("--quiet")
        .arg(format!("127.0.0.1:{}", i32::from(bridge.address.port()) - 5900))
        .arg(picture.path())
        .stdin(Stdio::null());
    let taken = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(SOON, taken).await.context("gvnccapture hangs")???;
    ensure!(output.status.success(), "{output:?}");
    let png = std::fs::read(picture.path())?;
    let size =
        |at: usize| png.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    ensure!(png.starts_with(b"\x89PNG"), "{} bytes that are no PNG", png.len());
    ensure!((size(16), size(20)) == (Some(1280), Some(800)), "{:?} x {:?}", size(16), size(20));
    server.finish().await
}
