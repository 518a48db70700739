//! Requests that no proper client would make.

use std::net::SocketAddr;

use holdfast_api::{Code, Problem};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::server::{DEADLINE, TestServer};

/// An answer, read to the end of its body or to the end of the connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).next()
    }

    /// The problem that it has to be.
    pub fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: Problem =
            serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.code.status(), self.status);
        assert!(!problem.error.is_empty());
        assert_eq!(problem.request_id.as_deref(), self.header("x-request-id"));
        problem
    }

    pub fn code(&self) -> Code {
        self.problem().code
    }
}

/// Sends bytes as they are; `None` when the server closed the connection without an answer.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A server that refuses early may close while the rest is still being sent.
        let _ = stream.write_all(bytes).await;
        read(&mut stream).await
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("it answers or closes")
}

async fn read(stream: &mut TcpStream) -> Option<Answer> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if let Some(answer) = complete(&all) {
            return Some(answer);
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return partial(&all),
            Ok(n) => all.extend_from_slice(&buffer[..n]),
        }
    }
}

fn complete(bytes: &[u8]) -> Option<Answer> {
    let answer = partial(bytes)?;
    let length = answer.header("content-length").and_then(|text| text.parse::<usize>().ok());
    let endless = answer.header("content-type") == Some("text/event-stream");
    let done = match length {
        Some(length) => answer.body.len() >= length,
        None => endless || [101, 204, 304].contains(&answer.status),
    };
    done.then_some(answer)
}

fn partial(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: bytes[end + 4..].to_vec() })
}

/// A request with these headers and a body.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("Host: 127.0.0.1\r\n");
    }
    for (name, value) in headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    if !body.is_empty() {
        write!(text, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    format!("{text}\r\n{body}").into_bytes()
}

impl TestServer {
    /// A JSON request with a token, or without one when that is empty.
    pub async fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut headers = Vec::new();
        if !token.is_empty() {
            headers.push(("Authorization", bearer.as_str()));
        }
        if !body.is_empty() {
            headers.push(("Content-Type", "application/json"));
        }
        let bytes = request(method, path, &headers, body);
        raw(self.address, &bytes).await.expect("an answer")
    }

    /// A request of the administrator.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&self.token, "GET", path, "").await
    }
}

/// The headers of a WebSocket's handshake.
pub const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];
