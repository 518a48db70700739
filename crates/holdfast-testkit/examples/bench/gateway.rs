//! The gateway's own cost: the same bytes through raw TCP, through the gateway, and through
//! websockify, read by the same client.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use holdfast_testkit::{ports, server::TestServer, wait, ws};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::Message;

use crate::report::summary_us;

mod wired;

/// Bytes that are carried for a throughput.
const BYTES: u64 = 2 << 30;
/// Longest time for one throughput.
const LONGEST: Duration = Duration::from_secs(10);
/// Messages that are echoed for a round trip.
const ECHOES: usize = 5000;
/// First byte of a connection: send without end, or echo.
const SEND: u8 = b'S';
const ECHO: u8 = b'E';

pub(crate) async fn measure() -> Result<Value> {
    let source = source().await?;
    let raw = raw(source).await?;

    let replaced = holdfast_server::Replaced {
        driver: Some(Arc::new(wired::Wired::new(source))),
        ..Default::default()
    };
    let server = TestServer::start_with(|_| {}, replaced).await?;
    let session = server.api.create(&holdfast_api::CreateSession::default()).await?;
    server.api.ready(session.id, Duration::from_mins(1)).await?;
    let path = format!("/api/sessions/{}/desktop", session.id);
    let gateway = websocket(server.api.address, &path, &server.api.token).await?;
    server.api.end(session.id).await?;
    server.stop().await?;

    let websockify = Websockify::start(source).await?;
    let peer = websocket(websockify.address, "/websockify", "none").await?;
    Ok(json!({ "rawTcp": raw, "gateway": gateway, "websockify": peer }))
}

/// A server that sends or echoes, as the first byte of a connection says.
async fn source() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let mut buffer = vec![0; 64 * 1024];
                if stream.read_u8().await? == SEND {
                    loop {
                        stream.write_all(&buffer).await?;
                    }
                }
                loop {
                    let read = stream.read(&mut buffer).await?;
                    if read == 0 {
                        return std::io::Result::Ok(());
                    }
                    stream.write_all(&buffer[..read]).await?;
                }
            });
        }
    });
    Ok(address)
}

fn figures(bytes: u64, took: Duration, trips: &[Duration]) -> Value {
    let gigabits = bytes as f64 * 8.0 / took.as_secs_f64() / 1e9;
    json!({ "gigabitsPerSecond": gigabits, "roundTripUs": summary_us(trips) })
}

async fn raw(source: SocketAddr) -> Result<Value> {
    let connect = async |first: u8| {
        let mut stream = TcpStream::connect(source).await?;
        stream.set_nodelay(true)?;
        stream.write_u8(first).await?;
        anyhow::Ok(stream)
    };
    let mut stream = connect(SEND).await?;
    let (mut buffer, mut bytes, began) = (vec![0; 64 * 1024], 0, Instant::now());
    while bytes < BYTES && began.elapsed() < LONGEST {
        bytes += stream.read(&mut buffer).await? as u64;
    }
    let took = began.elapsed();
    let mut stream = connect(ECHO).await?;
    let mut trips = Vec::with_capacity(ECHOES);
    for _ in 0..ECHOES {
        let began = Instant::now();
        stream.write_all(&[7; 32]).await?;
        stream.read_exact(&mut buffer[..32]).await?;
        trips.push(began.elapsed());
    }
    Ok(figures(bytes, took, &trips))
}

async fn websocket(address: SocketAddr, path: &str, token: &str) -> Result<Value> {
    let connect = async |first: u8| {
        let mut socket = ws::connect(address, path, token).await?;
        socket.send(Message::Binary(Bytes::copy_from_slice(&[first]))).await?;
        anyhow::Ok(socket)
    };
    let ended = "the stream ended";
    let mut socket = connect(SEND).await?;
    let (mut bytes, began) = (0, Instant::now());
    while bytes < BYTES && began.elapsed() < LONGEST {
        if let Message::Binary(data) = socket.next().await.context(ended)?? {
            bytes += data.len() as u64;
        }
    }
    let took = began.elapsed();
    drop(socket);
    let mut socket = connect(ECHO).await?;
    let mut trips = Vec::with_capacity(ECHOES);
    for _ in 0..ECHOES {
        let began = Instant::now();
        socket.send(Message::Binary(Bytes::from_static(&[7; 32]))).await?;
        let mut read = 0;
        while read < 32 {
            if let Message::Binary(data) = socket.next().await.context(ended)?? {
                read += data.len();
            }
        }
        trips.push(began.elapsed());
    }
    Ok(figures(bytes, took, &trips))
}

/// Debian's websockify, in front of the source.
struct Websockify {
    address: SocketAddr,
    child: Child,
}

impl Websockify {
    async fn start(source: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let child = Command::new("websockify")
            .args([address.to_string(), source.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("websockify could not be started")?;
        let websockify = Self { address, child };
        wait::until("websockify listens", Duration::from_secs(10), async || {
            Ok(TcpStream::connect(address).await.ok())
        })
        .await?;
        Ok(websockify)
    }
}

impl Drop for Websockify {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
