//! A web server for pages that browsers in guests open: it answers every path and remembers who
//! asked.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Path with query.
    pub path: String,
    /// Where it came from.
    pub peer: SocketAddr,
}

/// A page on all addresses of this machine, on a port of its own.
pub struct Page {
    /// Its port.
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Page {
    /// Serves this HTML.
    pub async fn serve(html: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (html, log) = (html.to_owned(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (html, log) = (html.clone(), Arc::clone(&log));
                // A browser that leaves early is no failure of the page.
                tokio::spawn(async move { answer(stream, peer, &html, &log).await.ok() });
            }
        });
        Ok(Self { port, seen, task })
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    html: &str,
    log: &Mutex<Vec<Seen>>,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(Seen { path, peer });
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{html}",
        html.len()
    );
    stream.get_mut().write_all(answer.as_bytes()).await?;
    stream.get_mut().shutdown().await?;
    Ok(())
}
