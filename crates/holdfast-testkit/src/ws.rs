//! WebSockets of the gateway, as byte streams and as bridges for viewers that speak plain TCP.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _, http::HeaderValue},
};

/// A WebSocket to the gateway.
pub type Socket = WebSocketStream<TcpStream>;

/// Why a stream ended: the close code and its text; `None` without a close frame.
pub type Closed = Option<(u16, String)>;

/// The handshake was answered with this HTTP status instead.
#[derive(Debug, thiserror::Error)]
#[error("the handshake was answered with {status}: {body}")]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// Body of the answer.
    pub body: String,
}

/// Opens a WebSocket at this path.
pub async fn connect(address: SocketAddr, path: &str, token: &str) -> Result<Socket> {
    let mut request = format!("ws://{address}{path}").into_client_request()?;
    let value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    request.headers_mut().insert("authorization", value);
    let tcp = TcpStream::connect(address).await.context("the server cannot be reached")?;
    tcp.set_nodelay(true)?;
    match tokio_tungstenite::client_async(request, tcp).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap_or_default();
            let body = String::from_utf8_lossy(body).into_owned();
            bail!(Refused { status: answer.status().as_u16(), body })
        }
        Err(error) => Err(error).context("the WebSocket could not be opened"),
    }
}

/// A byte stream carried by binary messages, and how it ended.
pub struct Bytes {
    /// The bytes.
    pub io: DuplexStream,
    /// Ends with the stream.
    pub closed: JoinHandle<Closed>,
}

/// Opens a desktop as a byte stream.
pub async fn desktop(address: SocketAddr, session: uuid::Uuid, token: &str) -> Result<Bytes> {
    let socket = connect(address, &format!("/api/sessions/{session}/desktop"), token).await?;
    let (io, far) = tokio::io::duplex(256 * 1024);
    Ok(Bytes { io, closed: tokio::spawn(carry(socket, far)) })
}

/// Copies between a WebSocket and a byte stream until one of them ends.
async fn carry(socket: Socket, stream: impl AsyncRead + AsyncWrite + Unpin) -> Closed {
    let (mut to_server, mut from_server) = socket.split();
    let (mut from_viewer, mut to_viewer) = tokio::io::split(stream);
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        tokio::select! {
            message = from_server.next() => match message {
                Some(Ok(Message::Binary(data))) => {
                    if to_viewer.write_all(&data).await.is_err() {
                        let _ = to_server.close().await;
                        return None;
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    return frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                }
                Some(Ok(_)) => {
                    // Answers to pings are queued by reading and sent by flushing.
                    let _ = to_server.flush().await;
                }
                Some(Err(_)) | None => return None,
            },
            read = from_viewer.read(&mut buffer) => match read {
                Ok(n) if n > 0 => {
                    let data = bytes::Bytes::copy_from_slice(&buffer[..n]);
                    if to_server.send(Message::Binary(data)).await.is_err() {
                        return None;
                    }
                }
                _ => {
                    let _ = to_server.close().await;
                    return None;
                }
            },
        }
    }
}

/// A TCP port on loopback where every connection is a session's desktop: for viewers that know
/// nothing of WebSockets.
pub struct Bridge {
    /// Where viewers connect.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Bridge {
    /// Opens a bridge to the desktop of a session.
    pub async fn open(server: SocketAddr, session: uuid::Uuid, token: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (path, token) = (format!("/api/sessions/{session}/desktop"), token.to_owned());
        let task = tokio::spawn(async move {
            while let Ok((viewer, _)) = listener.accept().await {
                let Ok(socket) = connect(server, &path, &token).await else { continue };
                tokio::spawn(carry(socket, viewer));
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}
