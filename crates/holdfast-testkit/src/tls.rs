//! A TLS server that reads the first message of each client, which holds what the client drew at
//! random, and hangs up.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What a client drew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Where it came from.
    pub peer: IpAddr,
    /// `client_random`, hex.
    pub random: String,
    /// `legacy_session_id`, hex.
    pub session: String,
    /// Public keys of its `key_share`, hex.
    pub keys: Vec<String>,
}

/// Such a server, on all addresses of this machine.
pub struct Hellos {
    /// Its port.
    pub port: u16,
    seen: Arc<Mutex<Vec<Hello>>>,
    task: JoinHandle<()>,
}

impl Hellos {
    /// Starts it.
    pub async fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    // Browsers open connections that they do not use.
                    if let Ok(hello) = read(stream, peer.ip()).await {
                        log.lock().unwrap_or_else(PoisonError::into_inner).push(hello);
                    }
                });
            }
        });
        Ok(Self { port, seen, task })
    }

    /// What was read so far.
    pub fn seen(&self) -> Vec<Hello> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Hellos {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(mut stream: TcpStream, peer: IpAddr) -> Result<Hello> {
    let mut message = Vec::new();
    // The message may be spread over several records.
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header).await?;
        ensure!(header[0] == 22, "not a handshake");
        let mut record = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut record).await?;
        message.extend_from_slice(&record);
        if let [1, a, b, c, rest @ ..] = message.as_slice()
            && rest.len() >= u32::from_be_bytes([0, *a, *b, *c]) as usize
        {
            return parse(rest, peer).context("not a ClientHello");
        }
    }
}

/// RFC 8446, section 4.1.2.
fn parse(body: &[u8], peer: IpAddr) -> Option<Hello> {
    let (random, rest) = body.get(2..)?.split_at_checked(32)?;
    let (session, rest) = sized(rest, 1)?;
    let (_ciphers, rest) = sized(rest, 2)?;
    let (_compression, rest) = sized(rest, 1)?;
    let (mut extensions, _) = sized(rest, 2)?;
    let mut keys = Vec::new();
    while let [a, b, rest @ ..] = extensions {
        let (value, rest) = sized(rest, 2)?;
        extensions = rest;
        if u16::from_be_bytes([*a, *b]) != 51 {
            continue;
        }
        let (mut shares, _) = sized(value, 2)?;
        while let [_, _, rest @ ..] = shares {
            let (key, rest) = sized(rest, 2)?;
            shares = rest;
            // One byte: a placeholder (RFC 8701).
            if key.len() > 1 {
                keys.push(hex(key));
            }
        }
    }
    Some(Hello { peer, random: hex(random), session: hex(session), keys })
}

/// A value with its length in front, and what follows it.
fn sized(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_parts_of_a_first_message_are_read() {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 8, 9]); // session id
        body.extend([0, 2, 0x13, 1, 1, 0]); // ciphers, compression
        let share = [0, 51, 0, 10, 0, 8, 0x0a, 0x0a, 0, 0, 0, 29, 0, 0];
        body.extend(u16::try_from(share.len()).expect("short").to_be_bytes());
        body.extend(share);
        let hello = parse(&body, Ipv4Addr::LOCALHOST.into()).expect("a first message");
        assert_eq!((hello.random, hello.session), ("07".repeat(32), "0809".to_owned()));
        assert!(hello.keys.is_empty(), "{:?}", hello.keys);
        assert!(parse(&body[..20], Ipv4Addr::LOCALHOST.into()).is_none());
    }
}
