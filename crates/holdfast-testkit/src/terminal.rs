//! A viewer of a session's terminal.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::ws::{self, Closed, Socket};

/// An attached terminal.
pub struct Terminal {
    socket: Socket,
    /// Everything that it showed so far, scrollback first.
    pub seen: String,
    /// Where in `seen` the search for the next text begins.
    read_to: usize,
    /// How it was closed, once it was.
    pub closed: Closed,
}

impl Terminal {
    /// Attaches to the terminal of a session.
    pub async fn attach(server: SocketAddr, session: uuid::Uuid, token: &str) -> Result<Self> {
        let path = format!("/api/sessions/{session}/terminal?cols=120&rows=40");
        let socket = ws::connect(server, &path, token).await?;
        Ok(Self { socket, seen: String::new(), read_to: 0, closed: None })
    }

    /// Types text.
    pub async fn type_text(&mut self, text: &str) -> Result<()> {
        let data = bytes::Bytes::copy_from_slice(text.as_bytes());
        self.socket.send(Message::Binary(data)).await.context("the terminal went away")
    }

    /// Waits until it shows this text, after everything that an earlier call waited for.
    pub async fn expect(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let found = tokio::time::timeout(deadline, async {
            loop {
                if let Some(at) = self.seen[self.read_to..].find(text) {
                    self.read_to += at + text.len();
                    return Ok(());
                }
                self.read().await?;
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => bail!("the terminal did not show {text:?} but {:?}", self.seen),
        }
    }

    /// Does nothing for this long but stay attached, which takes answers to pings.
    pub async fn stay(&mut self, time: Duration) -> Result<()> {
        let reading = tokio::time::timeout(time, async {
            loop {
                self.read().await?;
            }
        });
        reading.await.unwrap_or(Ok(()))
    }

    /// Reads one message.
    async fn read(&mut self) -> Result<()> {
        match self.socket.next().await {
            Some(Ok(Message::Binary(data))) => self.seen += &String::from_utf8_lossy(&data),
            Some(Ok(Message::Close(frame))) => {
                self.closed = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                bail!("the terminal was closed: {:?}", self.closed);
            }
            Some(Ok(_)) => self.socket.flush().await?,
            Some(Err(error)) => return Err(error).context("the terminal broke"),
            None => bail!("the terminal ended"),
        }
        Ok(())
    }
}
