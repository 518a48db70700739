//! A guest in a temporary directory, and a browser that writes down what it is told to open.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::RawQuery, routing::any};
use base64::{Engine, engine::general_purpose::STANDARD};
use holdfast_agent::{guest::Guest, hold, serve, wire};
use holdfast_agent_api::{ClaimRequest, ScreenSize};
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Longest wait for anything in a test.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Secret of the rig's claims.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A guest without a desktop.
pub struct Rig {
    pub guest: Guest,
    pub address: SocketAddr,
    /// What the browser was told to open.
    pub opened: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
    _dir: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Rig {
    /// A guest that was not claimed, with `serve` and `hold`.
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("home");
        std::fs::create_dir(&home).expect("a home");
        let run = dir.path().join("run");
        std::fs::create_dir(&run).expect("a run directory");
        let opened = Arc::new(Mutex::new(Vec::new()));
        let browser = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let guest = Guest {
            run,
            root: dir.path().join("root"),
            exe: env!("CARGO_BIN_EXE_holdfast-agent").into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            user: None,
            home,
            devtools: browser.local_addr().expect("an address").port(),
            display: ":none".to_owned(),
        };
        std::fs::create_dir(&guest.root).expect("a root");
        let listener = TcpListener::bind(guest.listen).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = serve::router(serve::Agent::start(guest.clone()));
        let holder = guest.clone();
        let pages = devtools(Arc::clone(&opened));
        let tasks = vec![
            tokio::spawn(async move { axum::serve(browser, pages).await.expect("it serves") }),
            tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") }),
            tokio::spawn(async move { hold::start(&holder).await.expect("it holds") }),
        ];
        let rig = Self { guest, address, opened, tasks, _dir: dir };
        // A socket is there a moment before it is listened on.
        let listens = |path| std::os::unix::net::UnixStream::connect(path).is_ok();
        rig.until("the holder listens", || {
            listens(rig.guest.open_socket()) && listens(rig.guest.hold_socket())
        })
        .await;
        rig
    }

    /// A guest that was claimed with [`SECRET`]. Its `serve` finds no supervisor.
    pub async fn claimed() -> Self {
        let rig = Self::new().await;
        let (status, answer) = rig.call(Method::POST, "/v1/claim", &claim(SECRET)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        rig
    }

    /// Waits until `done`.
    pub async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the browser was told to open so far.
    pub fn opened(&self) -> Vec<String> {
        self.opened.lock().expect("no panic").clone()
    }

    /// A call to `serve`, with [`SECRET`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> (StatusCode, Value) {
        self.call_as(SECRET, method, path, body).await
    }

    /// A call to `serve` with any secret.
    pub async fn call_as(
        &self,
        secret: &str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> (StatusCode, Value) {
        let body = serde_json::to_vec(body).expect("JSON");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\
             Authorization: Bearer {secret}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&body).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let text = String::from_utf8(answer).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let status = StatusCode::from_u16(code).expect("a status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// A call to `hold`, which has to succeed.
    pub async fn tool<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> A {
        let (status, answer) = self.tool_call(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        serde_json::from_value(answer).expect("the protocol's answer")
    }

    /// A call to `hold`.
    pub async fn tool_call(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> (StatusCode, Value) {
        let body = serde_json::to_vec(body).expect("JSON");
        let socket = self.guest.hold_socket();
        let (status, answer) =
            wire::call_unix(&socket, method, path, body, PATIENCE * 2).await.expect("an answer");
        (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    /// Writes a script into the home; returns its path.
    pub fn script(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.guest.home.join(name);
        std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        path.display().to_string()
    }
}

/// A claim with `secret`.
pub fn claim(secret: &str) -> ClaimRequest {
    ClaimRequest {
        vm_id: "vm_1".to_owned(),
        session_id: None,
        secret: secret.to_owned(),
        time: Timestamp::now(),
        entropy: "ab".repeat(64),
        hostname: "hf-test".to_owned(),
        dns: vec![Ipv4Addr::new(9, 9, 9, 9).into()],
        locale: "en-US".to_owned(),
        timezone: "UTC".to_owned(),
        screen: ScreenSize { width: 1280, height: 800 },
        start_url: None,
        cloned: false,
        fresh_browser: false,
        browser_after_ms: 0,
    }
}

/// Text of a base64 output.
pub fn decoded(value: &Value) -> String {
    let bytes = STANDARD.decode(value.as_str().expect("a string")).expect("base64");
    String::from_utf8(bytes).expect("text")
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// The part of Chromium's DevTools that opens tabs.
fn devtools(opened: Arc<Mutex<Vec<String>>>) -> Router {
    let new = move |RawQuery(query): RawQuery| async move {
        let url = unescaped(&query.expect("a link"));
        opened.lock().expect("no panic").push(url.clone());
        Json(json!({"id": "1", "type": "page", "url": url}))
    };
    Router::new()
        .route("/json/list", any(|| async { Json(json!([])) }))
        .route("/json/new", any(new))
        .fallback(|| async { "ok" })
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(&tail[..2]).expect("two digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("hex"));
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).expect("text")
}
