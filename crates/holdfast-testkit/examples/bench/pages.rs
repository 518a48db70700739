//! Pages of a user's choice: served here, opened by browsers in guests, which report what they drew.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Reports itself after its second animation frame: the first one was drawn by then.
const PAGE: &str = "<!doctype html><title>measured</title><body style='background:#2a6'>\
    <h1>A page of the user's choice</h1><script>\
    requestAnimationFrame(()=>requestAnimationFrame(()=>fetch('/drawn'+location.pathname)))\
    </script>";

/// When a page was asked for, and when it said that it was drawn.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    asked: Option<Instant>,
    drawn: Option<Instant>,
}

type Log = Arc<Mutex<HashMap<String, Seen>>>;

/// A web server on all addresses of this machine, on a port of its own.
pub(crate) struct Pages {
    pub(crate) port: u16,
    log: Log,
    changed: watch::Receiver<()>,
    task: JoinHandle<()>,
}

impl Pages {
    pub(crate) async fn serve() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let port = listener.local_addr()?.port();
        let log = Log::default();
        let (notify, changed) = watch::channel(());
        let (notify, seen) = (Arc::new(notify), Arc::clone(&log));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, notify) = (Arc::clone(&seen), Arc::clone(&notify));
                tokio::spawn(async move {
                    // A browser that leaves early is no failure of the page.
                    let _ = answer(stream, &seen).await;
                    notify.send_replace(());
                });
            }
        });
        Ok(Self { port, log, changed, task })
    }

    /// The address of a page for a browser in a guest.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://host.holdfast.internal:{}/{name}", self.port)
    }

    /// Waits until a page was drawn: how long after `began` it was asked for, and drawn.
    pub(crate) async fn drawn(
        &self,
        name: &str,
        began: Instant,
        deadline: Duration,
    ) -> Result<(Duration, Duration)> {
        let mut changed = self.changed.clone();
        let waited = async {
            loop {
                changed.mark_unchanged();
                let seen = lock(&self.log).get(&format!("/{name}")).copied().unwrap_or_default();
                if let (Some(asked), Some(drawn)) = (seen.asked, seen.drawn) {
                    return anyhow::Ok((asked - began, drawn - began));
                }
                changed.changed().await?;
            }
        };
        let waited = tokio::time::timeout(deadline, waited).await;
        waited.with_context(|| format!("the page {name} was not drawn within {deadline:?}"))?
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(log: &Log) -> std::sync::MutexGuard<'_, HashMap<String, Seen>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(stream: TcpStream, log: &Log) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let now = Instant::now();
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let body = if let Some(page) = path.strip_prefix("/drawn") {
        lock(log).entry(page.to_owned()).or_default().drawn.get_or_insert(now);
        ""
    } else {
        lock(log).entry(path.to_owned()).or_default().asked.get_or_insert(now);
        PAGE
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(answer.as_bytes()).await?;
    stream.get_mut().shutdown().await?;
    Ok(())
}
