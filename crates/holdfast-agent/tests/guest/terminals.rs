//! Terminals over the host's own path: `serve` passes the WebSocket on to `hold`.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use holdfast_agent_api::terminal::FromAgent;
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use crate::rig::{PATIENCE, Rig, SECRET};

struct Viewer {
    socket: WebSocketStream<TcpStream>,
    /// Everything that was shown.
    seen: Vec<u8>,
    messages: Vec<FromAgent>,
}

impl Viewer {
    async fn attach(rig: &Rig, name: &str) -> Self {
        let stream = TcpStream::connect(rig.address).await.expect("it listens");
        let url = format!("ws://guest/v1/terminals/{name}?cols=80&rows=24");
        let mut request = url.into_client_request().expect("a request");
        let secret = format!("Bearer {SECRET}").parse().expect("a header");
        request.headers_mut().insert("authorization", secret);
        let (socket, _) =
            tokio_tungstenite::client_async(request, stream).await.expect("it is upgraded");
        Self { socket, seen: Vec::new(), messages: Vec::new() }
    }

    /// Takes one message; false when there is no more.
    async fn take(&mut self) -> bool {
        let next = timeout(PATIENCE, self.socket.next()).await.expect("something is shown");
        match next {
            Some(Ok(Message::Binary(bytes))) => self.seen.extend_from_slice(&bytes),
            Some(Ok(Message::Text(text))) => {
                self.messages.push(serde_json::from_str(&text).expect("the protocol's message"));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return false,
            Some(Ok(_)) => {}
        }
        true
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let text = String::from_utf8_lossy(&self.seen).into_owned();
            assert!(start.elapsed() < PATIENCE, "waited in vain: {what}: {text:?}");
            assert!(self.take().await, "the terminal closed: {what}: {text:?}");
        }
    }

    async fn until_text(&mut self, text: &str) {
        self.until(text, |viewer| viewer.shows(text)).await;
    }

    fn shows(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.seen).contains(text)
    }

    async fn write(&mut self, text: &str) {
        self.socket.send(Message::binary(text.as_bytes().to_vec())).await.expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_outlives_its_viewers_and_shows_what_was_before() {
    let rig = Rig::claimed().await;
    let mut viewer = Viewer::attach(&rig, "main").await;
    viewer.until("it is ready", |v| v.messages.contains(&FromAgent::Ready)).await;
    viewer.write("MARK=4711; echo first-$MARK; tput cols; echo $TERM\r").await;
    viewer.until_text("first-4711").await;
    viewer.until_text("xterm-256color").await;
    drop(viewer);
    let mut viewer = Viewer::attach(&rig, "main").await;
    viewer.until("it is ready", |v| v.messages.contains(&FromAgent::Ready)).await;
    assert!(viewer.shows("first-4711"), "the scrollback came first");
    viewer.write("echo second-$MARK\r").await;
    viewer.until_text("second-4711").await;

    // A second viewer sees the same; its size is taken over.
    let mut other = Viewer::attach(&rig, "main").await;
    let size = r#"{"type":"resize","cols":101,"rows":33}"#;
    other.socket.send(Message::text(size)).await.expect("sent");
    other.write("echo size-$(stty size)\r").await;
    other.until_text("size-33 101").await;
    viewer.until_text("size-33 101").await;

    // Its end is told, and the next attach starts a new shell.
    viewer.write("exit 5\r").await;
    let exit = FromAgent::Exit { code: 5 };
    viewer.until("the exit is told", |v| v.messages.contains(&exit)).await;
    other.until("the exit is told", |v| v.messages.contains(&exit)).await;
    let mut viewer = Viewer::attach(&rig, "main").await;
    viewer.write("echo new-[$MARK]\r").await;
    viewer.until_text("new-[]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_neither_fills_the_memory_nor_locks_the_keys() {
    let rig = Rig::claimed().await;
    let mut viewer = Viewer::attach(&rig, "flood").await;
    // Made by the shell: typed, an escape would be a key.
    viewer.write("yes $'a line with a \u{e9} and \\e[31mcolour\\e[0m'\r").await;
    // Nobody reads for the moment; the shell has to wait, and the interrupt still gets through.
    viewer.until("it floods", |v| v.seen.len() > 1 << 20).await;
    viewer.write("\x03").await;
    viewer.write("echo over-$((40+2))\r").await;
    let start = Instant::now();
    while !viewer.shows("over-42") {
        let length = viewer.seen.len();
        viewer.seen.drain(..length.saturating_sub(4096));
        assert!(start.elapsed() < PATIENCE, "the interrupt did not get through");
        assert!(viewer.take().await);
    }
    drop(viewer);
    let mut viewer = Viewer::attach(&rig, "flood").await;
    viewer.until("it is ready", |v| v.messages.contains(&FromAgent::Ready)).await;
    assert!(viewer.seen.len() <= (256 << 10) + 4096, "{}", viewer.seen.len());
    // Only the start is the agent's: an interrupt makes the kernel drop output in mid-character.
    let start = String::from_utf8_lossy(&viewer.seen[..64]).into_owned();
    assert!(!start.starts_with(['[', 'm', '\u{fffd}']), "something is cut: {start:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_to_the_terminal_is_answered_when_nobody_looks() {
    let rig = Rig::claimed().await;
    let ask = rig.script(
        "ask",
        "until [ -e \"$HOME/alone\" ]; do read -t 0.05 -r _ </dev/zero; done\n\
         printf '\\e[6n'; IFS= read -rsd R -t 15 answer && echo \"got ${answer#?}\" > \"$HOME/answer\"",
    );
    let mut viewer = Viewer::attach(&rig, "asks").await;
    viewer.write(&format!("echo begun-$((1+1)); {ask}\r")).await;
    viewer.until_text("begun-2").await;
    drop(viewer);
    std::fs::write(rig.guest.home.join("alone"), "").expect("written");
    let answer = rig.guest.home.join("answer");
    rig.until("it has its answer", || {
        std::fs::read_to_string(&answer).is_ok_and(|a| a == "got [1;1\n")
    })
    .await;
    // A viewer that comes later must not answer the question once more.
    let mut viewer = Viewer::attach(&rig, "asks").await;
    viewer.until("it is ready", |v| v.messages.contains(&FromAgent::Ready)).await;
    assert!(!viewer.shows("\x1b[6n"), "the question is in the scrollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_for_a_shell_that_does_not_read_stop_nothing_else() {
    let rig = Rig::claimed().await;
    let mut viewer = Viewer::attach(&rig, "deaf").await;
    viewer.write("stty raw -echo; echo deaf-$((1+1)); exec sleep 300\r").await;
    viewer.until_text("deaf-2").await;
    // More than the terminal's own buffer takes.
    for _ in 0..100 {
        let filler = "x".repeat(4096);
        if timeout(Duration::from_millis(100), viewer.write(&filler)).await.is_err() {
            break;
        }
    }
    let (status, _) = rig.call(Method::GET, "/v1/health", &Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let mut other = Viewer::attach(&rig, "other").await;
    other.write("echo fine-$((1+1))\r").await;
    other.until_text("fine-2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_sizes_and_secrets_are_refused() {
    let rig = Rig::claimed().await;
    for path in ["..%2Fx?cols=80", "a%20b?cols=80", "x?cols=0&rows=1", "x?cols=80&rows=1001"] {
        let stream = TcpStream::connect(rig.address).await.expect("it listens");
        let mut request =
            format!("ws://guest/v1/terminals/{path}").into_client_request().expect("a request");
        let secret = format!("Bearer {SECRET}").parse().expect("a header");
        request.headers_mut().insert("authorization", secret);
        match tokio_tungstenite::client_async(request, stream).await {
            Err(tungstenite::Error::Http(answer)) => {
                assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let refused = tokio_tungstenite::client_async("ws://guest/v1/terminals/main", stream).await;
    assert!(
        matches!(&refused, Err(tungstenite::Error::Http(a)) if a.status() == StatusCode::UNAUTHORIZED)
    );
}
