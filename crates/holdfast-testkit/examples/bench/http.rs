//! HTTP/1.1 without a library: what a client does is next to nothing of what is measured.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// No answer takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A keep-alive connection.
pub(crate) struct Http<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl Http<TcpStream> {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self::of(stream))
    }
}

impl<S: Read + Write> Http<S> {
    pub(crate) fn of(stream: S) -> Self {
        Self { stream, buffer: vec![0; 64 * 1024] }
    }

    /// Sends a request and answers status and body.
    pub(crate) fn call(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(read > 0, "the server hung up");
            filled += read;
            if let Some((status, begin, end)) = complete(&self.buffer[..filled])? {
                return Ok((status, &self.buffer[begin..end]));
            }
        }
    }
}

/// Status, and begin and end of the body, once all of it is there.
fn complete(answer: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head])?;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // Without a length there is no body: chunks are not asked for.
    let end = head + 4 + length.unwrap_or(0);
    Ok((answer.len() >= end).then_some((status, head + 4, end)))
}

/// The bytes of a request.
pub(crate) fn request(
    method: &str,
    path: &str,
    server: SocketAddr,
    token: &str,
    body: &str,
) -> Vec<u8> {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nAuthorization: Bearer {token}\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
