//! The process that holds terminals and sign-in runs, so that they outlive a restart of `serve`.
//!
//! It answers `serve` on a Unix socket with the protocol's own calls, and takes links to open from
//! anybody in the guest on another.

use std::{os::unix::fs::symlink, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{
        Path, Query, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::Response,
    routing::get,
};
use futures::{SinkExt, StreamExt};
use holdfast_agent_api::terminal::{FromAgent, FromViewer};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    browser, census,
    guest::Guest,
    shim::{OpenLink, REQUEST_LIMIT},
    terminal::{Attached, Show, Terminals},
    tool::{self, Tools},
    wire::{self, Refusal},
};

/// Names that programs open links by.
const SHIMS: &[&str] = &["xdg-open", "x-www-browser", "sensible-browser", "www-browser"];
/// How long a link may wait for the browser.
const BROWSER_DEADLINE: Duration = Duration::from_mins(1);

/// Holds terminals and runs until the process is killed.
pub async fn run(guest: Guest) -> anyhow::Result<()> {
    tokio::spawn(wire::beat(|| std::future::ready(true)));
    // Those of a holder of before have lost their terminal.
    census::end(&guest.mark("terminal-*"), None, Duration::ZERO).await;
    census::end(&guest.mark("tool-*"), None, Duration::ZERO).await;
    start(&guest).await?;
    Ok(())
}

/// Listens on both sockets; returns only with an error.
pub async fn start(guest: &Guest) -> std::io::Result<()> {
    std::fs::create_dir_all(guest.shims())?;
    for name in SHIMS {
        let link = guest.shims().join(name);
        let _ = std::fs::remove_file(&link);
        symlink(&guest.exe, link)?;
    }
    let tools = Tools::new(guest.clone());
    let links = wire::listen_unix(&guest.open_socket(), 0o666)?;
    let takers = (guest.clone(), Arc::clone(&tools));
    let take_links = async move {
        loop {
            let (stream, _) = links.accept().await?;
            let (guest, tools) = takers.clone();
            tokio::spawn(async move {
                let taken = take_link(&guest, &tools, stream);
                let _ = tokio::time::timeout(Duration::from_secs(5), taken).await;
            });
        }
    };
    let router = Router::new()
        .route("/v1/terminals/{name}", get(attach))
        .with_state(Terminals::new(guest.clone()))
        .merge(tool::router(tools));
    let socket = guest.hold_socket();
    tokio::select! {
        ended = wire::serve_unix(&socket, 0o600, router) => ended,
        ended = take_links => ended,
    }
}

/// Takes one link: a run's goes to the run, any other straight to the browser.
async fn take_link(guest: &Guest, tools: &Tools, mut stream: UnixStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    (&mut stream).take(REQUEST_LIMIT as u64).read_to_end(&mut request).await?;
    let answer = match serde_json::from_slice::<OpenLink>(&request) {
        Err(_) => "this is not a link that can be opened".to_owned(),
        Ok(OpenLink { url, token }) => match tools.caught(token.as_deref(), &url) {
            tool::Taken::ByRun => String::new(),
            tool::Taken::Refused(why) => why,
            tool::Taken::NotTheirs => {
                let guest = guest.clone();
                tokio::spawn(async move {
                    if let Err(error) = browser::show(&guest, &url, BROWSER_DEADLINE).await {
                        tracing::warn!("a link cannot be opened: {error}");
                    }
                });
                String::new()
            }
        },
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[derive(Deserialize)]
struct Size {
    #[serde(default = "columns")]
    cols: u16,
    #[serde(default = "rows")]
    rows: u16,
}

fn columns() -> u16 {
    80
}

fn rows() -> u16 {
    24
}

async fn attach(
    State(terminals): State<Arc<Terminals>>,
    Path(name): Path<String>,
    Query(size): Query<Size>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let attached =
        terminals.attach(&name, size.cols, size.rows).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => Refusal::bad(error.to_string()),
            _ => Refusal::failed(format!("the terminal cannot be started: {error}")),
        })?;
    Ok(upgrade.on_upgrade(move |socket| view(socket, attached)))
}

async fn view(socket: WebSocket, mut attached: Attached) {
    let message = |message: &FromAgent| {
        Message::Text(serde_json::to_string(message).unwrap_or_default().into())
    };
    let (mut to_viewer, mut from_viewer) = socket.split();
    let keyboard = attached.keyboard();
    // Apart from the output: a shell that waits for its output to be read must not be kept waiting
    // by keys that it does not read.
    let input = async {
        while let Some(Ok(received)) = from_viewer.next().await {
            match received {
                Message::Binary(bytes) => keyboard.type_bytes(bytes).await,
                Message::Text(text) => {
                    if let Ok(message) = serde_json::from_str::<FromViewer>(&text) {
                        keyboard.message(&message);
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => return,
            }
        }
    };
    let output = async {
        for chunk in std::mem::take(&mut attached.scrollback) {
            to_viewer.send(Message::Binary(chunk)).await?;
        }
        to_viewer.send(message(&FromAgent::Ready)).await?;
        while let Some(show) = attached.next().await {
            match show {
                Show::Output(bytes) => to_viewer.send(Message::Binary(bytes)).await?,
                Show::Message(exit) => to_viewer.send(message(&exit)).await?,
            }
        }
        to_viewer.send(Message::Close(None)).await
    };
    tokio::select! {
        () = input => {}
        outcome = output => {
            if let Err(error) = outcome {
                tracing::debug!("a viewer left: {error}");
            }
        }
    }
}
