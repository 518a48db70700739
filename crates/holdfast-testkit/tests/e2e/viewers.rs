//! Viewers other than the dashboard's.

use std::{
    collections::HashSet,
    fs::File,
    io::BufReader,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::ws::Bridge;

use crate::fixture::{self, SOON};

/// gtk-vnc's gvnccapture, which knows plain RFB only, takes a picture through the gateway,
/// and the desktop is on it.
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
    let (size, colours) = colours_of(picture.path())?;
    ensure!(size == (1280, 800), "{size:?}");
    ensure!(colours > 8, "it shows {colours} colours");
    server.finish().await
}

/// Size and number of different colours of a PNG.
fn colours_of(picture: &Path) -> Result<((u32, u32), usize)> {
    let mut decoder = png::Decoder::new(BufReader::new(File::open(picture)?));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().context("no PNG")?;
    let mut pixels = vec![0; reader.output_buffer_size().context("it is too large")?];
    let frame = reader.next_frame(&mut pixels)?;
    let colours: HashSet<_> = pixels.chunks_exact(frame.color_type.samples()).collect();
    Ok(((frame.width, frame.height), colours.len()))
}
