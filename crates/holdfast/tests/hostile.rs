//! `holdfast login` against machines that somebody broke into: what they hand over, and what they say.
//! An honest guest cannot be made to do so, so the server here answers as one would that looks at nothing.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use age::x25519::Recipient;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_api::{
    CreateSession, CredentialFile, Credentials, Screen, SealedCredentials, SealedFile, Session,
    SignIn,
};
use jiff::Timestamp;
use uuid::Uuid;

const DECLARED: &str = ".tool/auth.json";

/// What the machine does.
struct Machine {
    sign_in: SignIn,
    /// Path and mode of what it hands over.
    files: Vec<(&'static str, u32)>,
    recipient: Mutex<Option<Recipient>>,
}

impl Machine {
    fn new(files: &[(&'static str, u32)]) -> Self {
        let declared = SealedFile { path: DECLARED.to_owned(), size: 6, mode: 0o600 };
        let sign_in = SignIn {
            session_id: Uuid::now_v7(),
            provider: "tool".to_owned(),
            flow: "loopback".to_owned(),
            run: 1,
            step: "done".to_owned(),
            step_since: Timestamp::now(),
            url: None,
            user_code: None,
            wants_input: false,
            outcome: Some("succeeded".to_owned()),
            why: None,
            output: String::new(),
            expires_at: None,
            recipients: Vec::new(),
            credentials: Some(SealedCredentials {
                files: vec![declared],
                fetched: false,
                expires_at: Timestamp::now(),
            }),
        };
        Self { sign_in, files: files.to_vec(), recipient: Mutex::default() }
    }
}

async fn create(
    State(machine): State<Arc<Machine>>,
    Json(asked): Json<CreateSession>,
) -> Json<Session> {
    let recipient = asked.recipient.unwrap().parse().unwrap();
    *machine.recipient.lock().unwrap() = Some(recipient);
    let now = Timestamp::now();
    let id = machine.sign_in.session_id;
    Json(Session {
        id,
        state: "ready".to_owned(),
        detail: None,
        end_reason: None,
        name: String::new(),
        provider: "tool".to_owned(),
        owner: "admin".to_owned(),
        screen: Screen { width: 1280, height: 800 },
        memory_mib: 1024,
        vcpus: 1,
        vm_id: None,
        created_at: now,
        state_since: now,
        ready_at: None,
        ended_at: None,
        expires_at: now,
        last_heartbeat: now,
        idle_at: None,
        ends_at: None,
        kept_until: None,
        url: format!("/?session={id}"),
    })
}

async fn sign_in(State(machine): State<Arc<Machine>>) -> Json<SignIn> {
    Json(machine.sign_in.clone())
}

async fn credentials(State(machine): State<Arc<Machine>>) -> Vec<u8> {
    let content = BASE64.encode("hostile");
    let files = machine.files.iter().map(|(path, mode)| CredentialFile {
        path: (*path).to_owned(),
        mode: *mode,
        content: content.clone(),
    });
    let clear = serde_json::to_vec(&Credentials { files: files.collect() }).unwrap();
    let recipient = machine.recipient.lock().unwrap().clone().unwrap();
    age::encrypt(&recipient, &clear).unwrap()
}

/// Runs `holdfast login` with this machine behind it, in a home of its own.
async fn login(machine: Machine, home: &std::path::Path, more: &[&str]) -> Output {
    let routes = Router::new()
        .route("/api/sessions", post(create))
        .route("/api/sessions/{id}/sign-in", get(sign_in))
        .route("/api/sessions/{id}/credentials", post(credentials))
        .with_state(Arc::new(machine));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["login", "tool"])
        .args(more)
        .env("HOLDFAST_URL", url)
        .env("HOLDFAST_TOKEN", "unused")
        .env("HOME", home)
        .stdin(Stdio::null())
        .output();
    let output = output.await.unwrap();
    server.abort();
    output
}

#[tokio::test]
async fn only_the_providers_credentials_are_written() {
    let home = tempfile::tempdir().unwrap();
    let bashrc = home.path().join(".bashrc");
    fs::write(&bashrc, "mine").unwrap();
    let declared = (DECLARED, 0o600);
    for (bad, mode) in [
        (".bashrc", 0o600),
        (".ssh/authorized_keys", 0o600),
        ("./.tool/auth.json", 0o600),
        (DECLARED, 0o4755),
        (DECLARED, 0o622),
        (DECLARED, 0o644),
        (DECLARED, 0o600),
    ] {
        for how in ["--force", "--print"] {
            let machine = Machine::new(&[declared, (bad, mode)]);
            let output = login(machine, home.path(), &[how]).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{bad} {mode:o}: {said}");
            assert!(said.contains(&format!("`{bad}`")), "{bad}: {said}");
            assert!(output.stdout.is_empty());
        }
    }
    assert_eq!(fs::read_to_string(&bashrc).unwrap(), "mine");
    assert!(!home.path().join(".ssh").exists() && !home.path().join(DECLARED).exists());
    // The same machine, honest.
    let output = login(Machine::new(&[declared]), home.path(), &[]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = home.path().join(DECLARED).metadata().unwrap();
    assert_eq!((written.len(), written.permissions().mode() & 0o7777), (7, 0o600));
}

#[tokio::test]
async fn nothing_that_a_machine_says_is_a_command_to_the_terminal() {
    const HOSTILE: &str = "\u{1b}]52;c;Y3VybA==\u{7}\u{1b}[2J\u{9b}31m\u{202e}\r";
    let home = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(&[]);
    let SignIn { url, user_code, outcome, why, output, .. } = &mut machine.sign_in;
    *url = Some(format!("https://auth.example/{HOSTILE}"));
    *user_code = Some(format!("AB-CD{HOSTILE}\n- signed in"));
    *outcome = Some("failed".to_owned());
    *why = Some(format!("it broke{HOSTILE}"));
    *output = format!("first\n\tsecond{HOSTILE}");
    let ended = login(machine, home.path(), &[]).await;
    let said = String::from_utf8(ended.stderr).unwrap();
    for shown in ["https://auth.example/", "AB-CD", "it broke", "first\n\tsecond"] {
        assert!(said.contains(shown), "{shown}: {said:?}");
    }
    let obeyed = |c: char| c == '\u{202e}' || c.is_control() && !matches!(c, '\n' | '\t');
    assert!(!said.contains(obeyed), "{said:?}");
    assert!(!said.contains("\n- signed in"), "{said:?}");
}
