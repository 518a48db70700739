//! A session as its user's page sees it: asked for, heard to be ready, its desktop shown, used.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_api::{CreateSession, Session};
use holdfast_testkit::{
    api::Api,
    rfb::{Frame, Viewer},
    ws,
};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, net::TcpStream};
use uuid::Uuid;

/// Longest time for anything that may boot a VM.
pub(crate) const BOOT: Duration = Duration::from_mins(3);
/// Longest time until a key is echoed.
const ECHO: Duration = Duration::from_secs(20);
/// Least width, in pixels, of a typed letter and the cursor after it; a cursor alone is narrower.
const TYPED: u16 = 12;
/// The letter that is typed.
const LETTER: u32 = 'w' as u32;

/// A desktop that is shown.
pub(crate) struct Shown {
    pub(crate) viewer: Viewer<DuplexStream>,
    pub(crate) frame: Frame,
}

/// How long things took, from the request on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    /// Until the request was answered.
    pub(crate) answered: Duration,
    /// Until the session was heard to be ready.
    pub(crate) ready: Duration,
    /// Until the first whole picture, which is not one colour, was there.
    pub(crate) framed: Duration,
}

/// What a picture has to show to count.
pub(crate) type Wanted = fn(&Frame) -> bool;

/// A desktop, and not one colour all over.
pub(crate) fn desktop(frame: &Frame) -> bool {
    !frame.is_blank()
}

/// Asks for a session and shows its desktop.
pub(crate) async fn create(
    api: &Api,
    request: &CreateSession,
    wanted: Wanted,
) -> Result<(Session, Took, Shown)> {
    let began = Instant::now();
    let session = api.create(request).await?;
    let answered = began.elapsed();
    let seen = async {
        until_state(api, session.id, "ready").await?;
        let ready = began.elapsed();
        let shown = show(api, session.id, wanted).await?;
        anyhow::Ok((ready, began.elapsed(), shown))
    };
    match seen.await {
        Ok((ready, framed, shown)) => Ok((session, Took { answered, ready, framed }, shown)),
        Err(error) => Err(error.context(api.timeline(session.id).await)),
    }
}

/// Follows a session's events, as its page does, until it is in this state.
pub(crate) async fn until_state(api: &Api, id: Uuid, state: &str) -> Result<()> {
    let waited = tokio::time::timeout(BOOT, follow(api, id, state)).await;
    waited.with_context(|| format!("{id} was not {state} within {BOOT:?}"))?
}

async fn follow(api: &Api, id: Uuid, state: &str) -> Result<()> {
    let tcp = TcpStream::connect(api.address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("/api/sessions/{id}/events"))
        .header("host", api.address.to_string())
        .header("authorization", format!("Bearer {}", api.token))
        .header("accept", "text/event-stream")
        .body(Empty::<bytes::Bytes>::new())?;
    let mut answer = sender.send_request(request).await?;
    ensure!(answer.status() == 200, "events were answered with {}", answer.status());
    let mut text = String::new();
    let outcome = loop {
        let Some(part) = answer.frame().await else { bail!("the events of {id} ended") };
        text += &String::from_utf8_lossy(part?.data_ref().map_or(&[][..], |data| data));
        let mut reached = None;
        while let Some((message, rest)) = text.split_once("\n\n") {
            if message.contains("event: session\n") || message.starts_with("event: session") {
                let data = message.lines().find_map(|line| line.strip_prefix("data: "));
                let session: Session = serde_json::from_str(data.context("no data")?)?;
                reached = Some((session.state, session.detail)).or(reached);
            }
            text = rest.to_owned();
        }
        match reached {
            Some((now, _)) if now == state => break Ok(()),
            Some((now, why)) if matches!(now.as_str(), "failed" | "ended") => {
                break Err(anyhow::anyhow!("{id} is {now}: {why:?}"));
            }
            _ => {}
        }
    };
    connection.abort();
    outcome
}

/// Shows a desktop; answers once a whole picture is there that is wanted.
pub(crate) async fn show(api: &Api, id: Uuid, wanted: Wanted) -> Result<Shown> {
    let stream = ws::desktop(api.address, id, &api.token).await?;
    let mut viewer = Viewer::connect(stream.io).await?;
    let first = async {
        loop {
            let frame = viewer.frame().await?;
            if wanted(&frame) {
                return anyhow::Ok(frame);
            }
        }
    };
    let frame = tokio::time::timeout(BOOT, first).await.context("no picture")??;
    Ok(Shown { viewer, frame })
}

impl Shown {
    /// Presses a key in the desktop's terminal; answers how long until its letter was shown.
    pub(crate) async fn echo(&mut self) -> Result<Duration> {
        // The terminal takes the lower part of the desktop, from left to right.
        let (width, height) = (self.frame.width, self.frame.height);
        let top = height - height / 4;
        let before = self.frame.clone();
        self.viewer.click(width / 2, height - height / 10).await?;
        let began = Instant::now();
        self.viewer.press(LETTER).await?;
        let shown = async {
            loop {
                self.viewer.change(&mut self.frame).await?;
                if changed_width(&before, &self.frame, top) >= TYPED {
                    return anyhow::Ok(began.elapsed());
                }
            }
        };
        tokio::time::timeout(ECHO, shown).await.context("the key was not echoed")?
    }
}

/// Width of what differs below `top`: the most in any one line of pixels.
fn changed_width(before: &Frame, after: &Frame, top: u16) -> u16 {
    let width = usize::from(before.width);
    let lines = before.pixels.chunks(width).zip(after.pixels.chunks(width)).skip(usize::from(top));
    let widths = lines.filter_map(|(before, after)| {
        let differs = |at: &usize| before[*at] != after[*at];
        let (first, last) = ((0..width).find(differs)?, (0..width).rev().find(differs)?);
        Some((last - first + 1) as u16)
    });
    widths.max().unwrap_or(0)
}
