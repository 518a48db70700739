//! Attaching this terminal to a session's terminal.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::{Context as _, bail};
use futures::{SinkExt as _, StreamExt as _};
use holdfast_api::{Problem, client::Client};
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    signal::unix::{SignalKind, signal},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};
use uuid::Uuid;

/// Ctrl-], which ends an attachment.
const DETACH: u8 = 0x1d;
/// How long a server or a machine may be away before attaching is given up.
const PATIENCE: Duration = Duration::from_mins(2);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Puts the terminal back as it was, however the attachment ends.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("the terminal cannot be read")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("the terminal cannot be set")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Why one connection ended.
enum End {
    /// The person detached, or the shell ended.
    Done(String),
    /// It can be opened again.
    Lost(String),
}

/// Attaches until the person detaches. Reconnects where the connection or the machine was lost.
/// `typed` is sent as the first line.
pub async fn attach(client: &Client, id: Uuid, typed: Option<String>) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        bail!("this needs a terminal; to run one command without, use `holdfast session exec`");
    }
    let mut typed = typed;
    let mut away = Duration::ZERO;
    let mut pause = Duration::from_millis(250);
    let mut socket = open(client, id).await?;
    eprintln!("Attached; Ctrl-] detaches.");
    loop {
        let end = {
            let _raw = Raw::enter()?;
            carry(&mut socket, typed.take()).await?
        };
        let why = match end {
            End::Done(text) => {
                eprintln!("\r\n{text}");
                return Ok(());
            }
            End::Lost(why) => why,
        };
        eprintln!("\r\nThe connection was lost ({why}); reconnecting.");
        socket = loop {
            match open(client, id).await {
                Ok(socket) => break socket,
                Err(error) if away >= PATIENCE || is_final(&error) => return Err(error),
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    away += pause;
                    pause = (pause * 2).min(Duration::from_secs(8));
                }
            }
        };
        (away, pause) = (Duration::ZERO, Duration::from_millis(250));
    }
}

/// A refusal with one of these codes does not go away by itself.
fn is_final(error: &anyhow::Error) -> bool {
    use holdfast_api::{Code, client::ClientError};
    let code = error.downcast_ref::<ClientError>().and_then(ClientError::code);
    matches!(code, Some(Code::Gone | Code::NotFound | Code::Unauthorized | Code::Forbidden))
}

fn size() -> (u16, u16) {
    let Winsize { ws_col, ws_row, .. } = tcgetwinsize(std::io::stdout()).unwrap_or(Winsize {
        ws_col: 80,
        ws_row: 24,
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    (ws_col.clamp(1, 1000), ws_row.clamp(1, 1000))
}

async fn open(client: &Client, id: Uuid) -> anyhow::Result<Socket> {
    let base = client.base().strip_prefix("http://").unwrap_or(client.base());
    let (cols, rows) = size();
    let url = format!("ws://{base}/api/sessions/{id}/terminal?cols={cols}&rows={rows}");
    let mut request = url.into_client_request().context("the server's address cannot be used")?;
    if let Some(token) = client.authorization() {
        request.headers_mut().insert(http::header::AUTHORIZATION, token.clone());
    }
    match connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap_or_default();
            match serde_json::from_slice::<Problem>(body) {
                Ok(problem) => {
                    Err(holdfast_api::client::ClientError::Refused(Box::new(problem)).into())
                }
                Err(_) => bail!("the server refused with status {}", answer.status()),
            }
        }
        Err(error) => Err(error).context("the terminal cannot be reached"),
    }
}

async fn carry(socket: &mut Socket, typed: Option<String>) -> anyhow::Result<End> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut stdin = tokio::io::stdin();
    let mut stdout = tokio::io::stdout();
    let mut buffer = [0_u8; 4096];
    if let Some(line) = typed {
        socket.send(Message::Binary(format!("{line}\r").into_bytes().into())).await?;
    }
    loop {
        tokio::select! {
            read = stdin.read(&mut buffer) => {
                let n = read.context("standard input broke")?;
                let detach = buffer[..n].iter().position(|byte| *byte == DETACH);
                let keys = &buffer[..detach.unwrap_or(n)];
                if !keys.is_empty() && socket.send(Message::Binary(keys.to_vec().into())).await.is_err() {
                    return Ok(End::Lost("the server went away".to_owned()));
                }
                if n == 0 || detach.is_some() {
                    let _ = socket.close(None).await;
                    return Ok(End::Done("Detached; the session goes on.".to_owned()));
                }
            }
            _ = resized.recv() => {
                let (cols, rows) = size();
                let text = format!(r#"{{"type":"resize","cols":{cols},"rows":{rows}}}"#);
                if socket.send(Message::text(text)).await.is_err() {
                    return Ok(End::Lost("the server went away".to_owned()));
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    stdout.write_all(&bytes).await?;
                    stdout.flush().await?;
                }
                Some(Ok(Message::Text(text))) => {
                    if let Some(code) = exit_code(&text) {
                        let _ = socket.close(None).await;
                        return Ok(End::Done(format!("The shell ended with code {code}.")));
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    let (code, why) = frame
                        .map_or((1005, String::new()), |f| (u16::from(f.code), f.reason.to_string()));
                    return match code {
                        4410 => Ok(End::Done(format!("Detached: {why}."))),
                        _ => Ok(End::Lost(if why.is_empty() { format!("code {code}") } else { why })),
                    };
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(End::Lost("the server went away".to_owned())),
            }
        }
    }
}

fn exit_code(text: &str) -> Option<i64> {
    let message: serde_json::Value = serde_json::from_str(text).ok()?;
    (message["type"] == "exit").then(|| message["code"].as_i64()).flatten()
}
