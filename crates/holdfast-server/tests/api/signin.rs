//! Sign-ins on the simulated driver: from the link to the hand-over, and everything that goes wrong
//! on the way.

use std::{path::Path, sync::Arc};

use age::x25519::Identity;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_agent_api::tool::Outcome;
use holdfast_api::{Code, CreateSession, Credentials, OwnerKey, Session, SignIn, client::Client};
use holdfast_core::VmId;
use holdfast_host::drivers::sim::{SimDriver, SimTool, secret};
use holdfast_server::{Config, Replaced};
use uuid::Uuid;

use crate::{
    broken_store::Breakable,
    server::{self, TestServer, until},
};

pub const LINK: &str =
    "https://auth.example.com/authorize?redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fcb&state=s1";

/// A server whose simulated tools do what the test says.
pub struct Bench {
    pub server: TestServer,
    pub driver: SimDriver,
}

impl Bench {
    pub async fn start() -> Self {
        Self::start_with(|_| {}, Replaced::default()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config), replaced: Replaced) -> Self {
        let driver = SimDriver::in_memory();
        driver.hold_tools();
        let replaced = Replaced { driver: Some(Arc::new(driver.clone())), ..replaced };
        Self { server: TestServer::start_with(change, replaced).await, driver }
    }

    /// The tool of a session, once the host has asked for run `run`.
    pub async fn tool(&self, client: &Client, session: Uuid, run: u32) -> SimTool {
        let mut found = None;
        until(&format!("run {run} begins"), async || {
            let Ok(vm) = client.session_vm(session).await else { return false };
            let tool = self.driver.tool(VmId::from_uuid(vm.vm_id));
            found = tool.filter(|t| t.request().is_some_and(|asked| asked.run == run));
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

pub async fn sign_in(client: &Client, provider: &str, recipient: &Identity) -> Session {
    let body = CreateSession {
        provider: Some(provider.to_owned()),
        recipient: Some(recipient.to_public().to_string()),
        ..CreateSession::default()
    };
    client.create_session(&body, &Uuid::new_v4().to_string()).await.unwrap()
}

pub async fn until_step(
    client: &Client,
    id: Uuid,
    what: &str,
    is: impl Fn(&SignIn) -> bool,
) -> SignIn {
    let mut last = None;
    until(what, async || {
        last = Some(client.sign_in(id).await.unwrap());
        last.as_ref().is_some_and(&is)
    })
    .await;
    last.unwrap()
}

async fn until_done(client: &Client, id: Uuid) -> SignIn {
    until_step(client, id, "it is done", |s| s.step == "done").await
}

fn open(identity: &Identity, sealed: &[u8]) -> Credentials {
    serde_json::from_slice(&age::decrypt(identity, sealed).unwrap()).unwrap()
}

/// The files below `dir` that hold these bytes.
fn holders(dir: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holders(&path, needle));
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(needle.len()).any(|window| window == needle)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_link_to_the_hand_over() {
    let bench = Bench::start().await;
    let server = &bench.server;
    let (ann, bob) = (server.owner("ann").await, server.owner("bob").await);
    let key = Identity::generate();
    // An older client's name means the same tool.
    let session = sign_in(&ann, "codex_cli", &key).await;
    let path = format!("/api/sessions/{}/oauth-url", session.id);
    let tool = bench.tool(&ann, session.id, 1).await;
    until_step(&ann, session.id, "the link is waited for", |s| s.step == "link").await;
    let waiting = server.get(&path).await;
    assert_eq!((waiting.status, waiting.header("retry-after")), (202, Some("1")));
    let early = ann.credentials(session.id).await.unwrap_err();
    assert_eq!(early.code(), Some(Code::Conflict));

    tool.show_link(LINK);
    let waits = until_step(&ann, session.id, "the link", |s| s.step == "sign_in").await;
    assert_eq!((waits.url.as_deref(), waits.run, waits.flow.as_str()), (Some(LINK), 1, "loopback"));
    assert!(waits.expires_at.is_some_and(|at| at > waits.step_since));
    for path in [path.clone(), format!("/api/vm/auth/session/{}/oauth-url", session.id)] {
        let answer = server.get(&path).await;
        let body: holdfast_api::OauthUrl = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status, body.url.as_str(), body.run), (200, LINK, 1));
    }
    ann.sign_in_open(session.id).await.unwrap();
    assert_eq!(tool.opened(), 1);
    for refused in [
        bob.sign_in(session.id).await.err(),
        bob.sign_in_open(session.id).await.err(),
        bob.sign_in_retry(session.id).await.err(),
        bob.sign_in_code(session.id, "x").await.err(),
    ] {
        assert_eq!(refused.unwrap().code(), Some(Code::NotFound));
    }

    tool.print("Your token: 0123456789abcdef\n");
    until_step(&ann, session.id, "its output", |s| !s.output.is_empty()).await;
    tool.end(Outcome::Succeeded);
    let done = until_done(&ann, session.id).await;
    assert_eq!((done.outcome.as_deref(), done.url), (Some("succeeded"), None));
    assert_eq!(done.output, "", "nothing that a tool said is kept");
    let sealed = done.credentials.unwrap();
    assert_eq!((sealed.files[0].path.as_str(), sealed.files[0].mode), (".codex/auth.json", 0o600));
    assert!(!sealed.fetched);
    // The machine that holds them in clear has no further use.
    until("the machine is gone", async || server.client.vms().await.unwrap().vms.is_empty()).await;
    let ended = ann.session(session.id).await.unwrap_err();
    assert_eq!(ended.code(), Some(Code::Gone));
    let gone = server.get(&path).await.problem();
    assert_eq!((gone.code, gone.reason.as_deref()), (Code::Gone, Some("completed")));
    assert_eq!(ann.sign_in_retry(session.id).await.unwrap_err().code(), Some(Code::Gone));

    // Only the owner, not even the administrator; once.
    for stranger in [&bob, &server.client] {
        let refused = stranger.credentials(session.id).await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::NotFound));
    }
    let ciphertext = ann.credentials(session.id).await.unwrap();
    let credentials = open(&key, &ciphertext);
    assert_eq!(credentials.files[0].path, ".codex/auth.json");
    let content = BASE64.decode(&credentials.files[0].content).unwrap();
    assert_eq!(content, secret(".codex/auth.json", 1).as_bytes());
    assert!(age::decrypt(&Identity::generate(), &ciphertext).is_err());
    let path = format!("/api/sessions/{}/credentials", session.id);
    let again = server.ask(&server.token, "POST", &path, "").await;
    assert_eq!(again.code(), Code::NotFound);
    assert_eq!(ann.credentials(session.id).await.unwrap_err().code(), Some(Code::Gone));
    assert!(ann.sign_in(session.id).await.unwrap().credentials.unwrap().fetched);
    // Nothing of them is kept, neither in clear nor sealed.
    let (config, dir) = bench.server.stop().await;
    assert_eq!(holders(dir.path(), b"c0ffee5ec2e7"), Vec::<String>::new());
    assert_eq!(
        holders(&config.state_dir, &ciphertext[ciphertext.len() - 32..]),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_no_success_is_said_with_the_output() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let failed = |why: &str| Outcome::Failed { why: why.to_owned() };
    for (outcome, name, word) in [
        (Outcome::Refused, "refused", "refused"),
        (Outcome::Expired, "expired", "in time"),
        (failed("`codex` is not in this image"), "failed", "not in this image"),
        (failed("the tool showed no link within 60 s"), "failed", "no link"),
        (failed("`codex` ended: it did not write `.codex/auth.json`"), "failed", "did not write"),
    ] {
        let session = sign_in(client, "codex", &Identity::generate()).await;
        let tool = bench.tool(client, session.id, 1).await;
        tool.print(&"x".repeat(1 << 20));
        tool.print("\nlast words");
        tool.end(outcome);
        let done = until_done(client, session.id).await;
        assert_eq!(done.outcome.as_deref(), Some(name));
        assert!(done.why.unwrap().contains(word) && done.output.len() <= 4096);
        let answer = bench.server.get(&format!("/api/sessions/{}/oauth-url", session.id)).await;
        let problem = answer.problem();
        assert_eq!((answer.status, problem.code), (424, Code::ToolFailed));
        assert!(
            problem.error.contains(word) && problem.error.ends_with("last words"),
            "{problem:?}"
        );
        let none = client.credentials(session.id).await.unwrap_err();
        assert_eq!(none.code(), Some(Code::Conflict));
        // The machine stays for another try.
        assert_eq!(client.session(session.id).await.unwrap().state, "ready");
        client.end_session(session.id).await.unwrap();
    }
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_never_serves_the_old_link() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let session = sign_in(client, "codex", &Identity::generate()).await;
    let path = format!("/api/sessions/{}/oauth-url", session.id);
    let tool = bench.tool(client, session.id, 1).await;
    tool.show_link(LINK);
    until_step(client, session.id, "the link", |s| s.step == "sign_in").await;

    let again = client.sign_in_retry(session.id).await.unwrap();
    assert_eq!((again.run, again.url), (2, None));
    assert_eq!(bench.server.get(&path).await.status, 202);
    let tool = bench.tool(client, session.id, 2).await;
    assert_eq!(bench.server.get(&path).await.status, 202, "run 2 has no link yet");
    tool.show_link("https://auth.example.com/authorize?state=s2");
    let waits = until_step(client, session.id, "the new link", |s| s.step == "sign_in").await;
    assert!(waits.url.unwrap().ends_with("state=s2"));
    tool.end(Outcome::Refused);
    until_done(client, session.id).await;
    // Also after an end.
    assert_eq!(client.sign_in_retry(session.id).await.unwrap().run, 3);
    let tool = bench.tool(client, session.id, 3).await;
    tool.show_link("https://auth.example.com/authorize?state=s3");
    tool.end(Outcome::Succeeded);
    assert_eq!(until_done(client, session.id).await.outcome.as_deref(), Some("succeeded"));
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_taken_while_the_tool_prints() {
    let bench = Bench::start().await;
    let ann = bench.server.owner("ann").await;
    let session = sign_in(&ann, "claude", &Identity::generate()).await;
    let tool = bench.tool(&ann, session.id, 1).await;
    tool.show_link(LINK);
    until_step(&ann, session.id, "its link", |s| s.url.is_some()).await;
    let prints = tokio::spawn(async move {
        loop {
            tool.print("news\n");
            tokio::task::yield_now().await;
        }
    });
    for run in 2..12 {
        let retried = ann.sign_in_retry(session.id).await.unwrap();
        assert!(retried.run >= run, "{retried:?}");
        until_step(&ann, session.id, "the run goes on", |s| {
            s.run == retried.run && s.step != "tool" && s.output.contains("news")
        })
        .await;
    }
    prints.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies_voids_the_link_and_the_tool_runs_again() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let session = sign_in(client, "codex", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    tool.show_link(LINK);
    until_step(client, session.id, "the link", |s| s.step == "sign_in").await;
    let vm = client.session_vm(session.id).await.unwrap().vm_id;
    assert!(bench.driver.crash(VmId::from_uuid(vm), "killed by the test"));
    let tool = bench.tool(client, session.id, 2).await;
    let now = client.sign_in(session.id).await.unwrap();
    assert_eq!((now.run, now.url), (2, None));
    let events = client.events(session.id, 0).await.unwrap();
    assert!(events.iter().any(|event| event.kind == "signin.restarted"));
    tool.show_link("https://auth.example.com/authorize?state=s2");
    tool.end(Outcome::Succeeded);
    assert_eq!(until_done(client, session.id).await.outcome.as_deref(), Some("succeeded"));
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_goes_on_with_the_same_run() {
    let bench = Bench::start().await;
    let session = sign_in(&bench.server.client, "codex", &Identity::generate()).await;
    let tool = bench.tool(&bench.server.client, session.id, 1).await;
    tool.show_link(LINK);
    until_step(&bench.server.client, session.id, "the link", |s| s.step == "sign_in").await;
    let driver = bench.driver.clone();
    let (config, dir) = bench.server.stop().await;
    // The person signs in while nobody watches.
    tool.end(Outcome::Succeeded);
    let replaced = Replaced { driver: Some(Arc::new(driver)), ..Replaced::default() };
    let server = TestServer::listen(config, replaced, dir).await;
    server.ready().await;
    let done = until_done(&server.client, session.id).await;
    assert_eq!((done.run, done.outcome.as_deref()), (1, Some("succeeded")));
    assert!(done.credentials.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sign_ins_at_once_are_never_mixed() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let keys = [Identity::generate(), Identity::generate()];
    let sessions =
        [sign_in(client, "codex", &keys[0]).await, sign_in(client, "codex", &keys[1]).await];
    let mut tools = Vec::new();
    for session in &sessions {
        tools.push(bench.tool(client, session.id, 1).await);
    }
    tools[1].show_link("https://auth.example.com/authorize?state=second");
    tools[0].show_link("https://auth.example.com/authorize?state=first");
    for (session, state) in sessions.iter().zip(["first", "second"]) {
        let waits = until_step(client, session.id, "a link", |s| s.url.is_some()).await;
        assert!(waits.url.unwrap().ends_with(state));
    }
    tools[1].end(Outcome::Succeeded);
    until_done(client, sessions[1].id).await;
    assert_eq!(client.sign_in(sessions[0].id).await.unwrap().step, "sign_in");
    let sealed = client.credentials(sessions[1].id).await.unwrap();
    assert!(age::decrypt(&keys[0], &sealed).is_err() && age::decrypt(&keys[1], &sealed).is_ok());
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_go_both_ways() {
    let providers = tempfile::tempdir().unwrap();
    for (name, flow, more) in [
        ("paste", "paste_code", ""),
        ("device", "device_code", "[link]\nuser_code = 'code: (\\S+)'\n"),
    ] {
        let text = format!(
            "name = \"{name}\"\ntitle = \"{name}\"\n[tool]\ncommand = [\"{name}\"]\nflow = \"{flow}\"\n{more}\
             [success]\nexit_code = 0\n[[credential]]\npath = \".tool/auth\"\n"
        );
        std::fs::write(providers.path().join(format!("{name}.toml")), text).unwrap();
    }
    let dir = providers.path().to_owned();
    let bench = Bench::start_with(|config| config.providers_dir = dir, Replaced::default()).await;
    let client = &bench.server.client;
    let session = sign_in(client, "paste", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    tool.show_link(LINK);
    until_step(client, session.id, "a code is asked for", |s| s.wants_input).await;
    for bad in ["", " ", "a\nb", &"x".repeat(4097)] {
        let refused = client.sign_in_code(session.id, bad).await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::Invalid), "{bad:?}");
    }
    client.sign_in_code(session.id, " code#state ").await.unwrap();
    assert_eq!(tool.typed(), ["code#state"]);
    assert!(!client.sign_in(session.id).await.unwrap().wants_input, "it is asked for once");
    tool.end(Outcome::Succeeded);
    until_done(client, session.id).await;
    let late = client.sign_in_code(session.id, "x").await.unwrap_err();
    assert!([Some(Code::Gone), Some(Code::Conflict)].contains(&late.code()), "{late}");

    let session = sign_in(client, "device", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    tool.show_code("ABCD-1234");
    let waits = until_step(client, session.id, "the code", |s| s.step == "sign_in").await;
    assert_eq!((waits.user_code.as_deref(), waits.url), (Some("ABCD-1234"), None));
    // A link that comes later is taken, too.
    tool.show_link(LINK);
    until_step(client, session.id, "the link", |s| s.url.is_some()).await;
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_collected_are_a_failure() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let session = sign_in(client, "codex", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    tool.lose_credentials("no space left on device");
    tool.end(Outcome::Succeeded);
    let done = until_done(client, session.id).await;
    assert_eq!(done.outcome.as_deref(), Some("failed"));
    assert!(done.why.unwrap().contains("no space left"));
    assert!(done.credentials.is_none());
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_credentials_is_never_saved() {
    let bench = Bench::start().await;
    let (server, client) = (&bench.server, &bench.server.client);
    let session = sign_in(client, "codex", &Identity::generate()).await;
    bench.tool(client, session.id, 1).await.show_link(LINK);
    until_step(client, session.id, "the link", |s| s.step == "sign_in").await;
    for what in ["hibernate", "fork"] {
        let path = format!("/api/sessions/{}/{what}", session.id);
        let refused = server.ask(&server.token, "POST", &path, "{}").await;
        assert_eq!((refused.status, refused.code()), (409, Code::Conflict), "{what}");
        assert!(refused.problem().error.contains("sign-in"), "{:?}", refused.problem());
    }
    assert_eq!(client.session(session.id).await.unwrap().state, "ready");
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_must_not_be_followed_are_refused() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let session = sign_in(client, "codex", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    let long = format!("https://auth.example.com/{}", "x".repeat(9000));
    let hostile = [
        "javascript:fetch('https://evil.example')",
        "data:text/html,<script>",
        "http://auth.example.com/",
        "https://169.254.169.254/latest/meta-data",
        "https://printer.local/",
        "https://auth.example.com@evil.example\u{1b}[2J/",
        long.as_str(),
    ];
    for (index, url) in hostile.iter().enumerate() {
        tool.show_link(url);
        tool.print("news\n");
        until("its refusal is told", async || {
            let events = client.events(session.id, 0).await.unwrap();
            events.iter().filter(|event| event.kind == "signin.link_refused").count() > index
        })
        .await;
    }
    let now = client.sign_in(session.id).await.unwrap();
    assert_eq!((now.url, now.step.as_str()), (None, "link"));
    assert_eq!(
        bench.server.get(&format!("/api/sessions/{}/oauth-url", session.id)).await.status,
        202
    );
    // One that may be followed still can come, and goes no more.
    tool.show_link(LINK);
    until_step(client, session.id, "the link", |s| s.url.as_deref() == Some(LINK)).await;
    tool.show_link(hostile[0]);
    tool.print("last\n");
    until_step(client, session.id, "later output", |s| s.output.ends_with("last\n")).await;
    assert_eq!(client.sign_in(session.id).await.unwrap().url.as_deref(), Some(LINK));
    let events = client.events(session.id, 0).await.unwrap();
    let told: Vec<_> = events.iter().filter(|e| e.kind == "signin.link_refused").collect();
    assert_eq!(told.len(), hostile.len(), "each once: {told:?}");
    for event in told {
        assert!(event.why.len() < 400 && !event.why.contains(char::is_control), "{event:?}");
    }
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_says_is_fit_to_be_shown() {
    const HOSTILE: &str = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}\r";
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let session = sign_in(client, "gh", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    tool.show_code(&format!("{HOSTILE}\n{}", "A".repeat(5000)));
    tool.print(&format!("one\n\ttwo{HOSTILE}"));
    let fit = |text: &str| {
        text.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control() && c != '\u{202e}')
    };
    let waits = until_step(client, session.id, "the code", |s| s.step == "sign_in").await;
    let code = waits.user_code.unwrap();
    assert!(code.len() <= 64 && !code.contains('\n') && fit(&code), "{code:?}");
    let said = until_step(client, session.id, "its output", |s| !s.output.is_empty()).await.output;
    assert!(said.starts_with("one\n\ttwo") && fit(&said), "{said:?}");
    tool.end(Outcome::Failed { why: format!("it broke{HOSTILE}\n{}", "b".repeat(1 << 20)) });
    let why = until_done(client, session.id).await.why.unwrap();
    assert!(why.starts_with("it broke") && why.len() <= 500, "{why:?}");
    assert!(!why.contains('\n') && fit(&why), "{why:?}");
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_provider_declares_are_not_taken() {
    let provider = |path: &str, mode: &str| {
        format!(
            "name = \"tool\"\ntitle = \"Tool\"\n[tool]\ncommand = [\"tool\"]\nflow = \"loopback\"\n\
             [success]\nexit_code = 0\n[[credential]]\npath = \"{path}\"\nmode = \"{mode}\"\n"
        )
    };
    let providers = tempfile::tempdir().unwrap();
    let file = providers.path().join("tool.toml");
    for (path, mode) in
        [(".bashrc", "0600"), (".ssh/authorized_keys", "0600"), (".tool/auth", "0755")]
    {
        // The guest hands over what it was asked for; by then that is not the provider's any more.
        std::fs::write(&file, provider(path, mode)).unwrap();
        let known = providers.path().to_owned();
        let bench =
            Bench::start_with(|config| config.providers_dir = known, Replaced::default()).await;
        let session = sign_in(&bench.server.client, "tool", &Identity::generate()).await;
        let tool = bench.tool(&bench.server.client, session.id, 1).await;
        tool.show_link(LINK);
        until_step(&bench.server.client, session.id, "the link", |s| s.step == "sign_in").await;
        let (config, dir) = bench.server.stop().await;
        std::fs::write(&file, provider(".tool/auth", "0600")).unwrap();
        tool.end(Outcome::Succeeded);
        let replaced =
            Replaced { driver: Some(Arc::new(bench.driver.clone())), ..Replaced::default() };
        let server = TestServer::listen(config, replaced, dir).await;
        server.ready().await;
        let done = until_done(&server.client, session.id).await;
        assert_eq!(done.outcome.as_deref(), Some("failed"), "{path} {mode}");
        let why = done.why.unwrap();
        assert!(why.contains(path) && why.contains("does not declare"), "{why}");
        assert!(done.credentials.is_none());
        let none = server.client.credentials(session.id).await.unwrap_err();
        assert_eq!(none.code(), Some(Code::Conflict));
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_in_the_middle_is_told_in_the_sign_in() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let session = sign_in(client, "codex", &Identity::generate()).await;
    bench.tool(client, session.id, 1).await.show_link(LINK);
    until_step(client, session.id, "the link", |s| s.step == "sign_in").await;
    client.end_session(session.id).await.unwrap();
    let done = until_done(client, session.id).await;
    assert_eq!((done.outcome.as_deref(), done.url), (Some("failed"), None));
    let gone = client.sign_in_code(session.id, "x").await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::Gone));
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_never_an_answer_about_a_sign_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Breakable::new(server::store(&dir).await));
    let replaced = Replaced { store: Some(Arc::clone(&store) as _), ..Replaced::default() };
    let bench = Bench::start_with(|_| {}, replaced).await;
    let client = &bench.server.client;
    let session = sign_in(client, "codex", &Identity::generate()).await;
    let tool = bench.tool(client, session.id, 1).await;
    until_step(client, session.id, "the link is waited for", |s| s.step == "link").await;
    store.break_it(true);
    for id in [session.id, Uuid::now_v7()] {
        let answer = client.sign_in(id).await;
        assert!(answer.is_err_and(|e| e.code() == Some(Code::Unavailable)));
        assert_eq!(client.credentials(id).await.unwrap_err().code(), Some(Code::Unavailable));
    }
    let unknown = format!("/api/sessions/{}/oauth-url", Uuid::now_v7());
    assert_eq!(bench.server.get(&unknown).await.status, 503);
    let known = format!("/api/sessions/{}/oauth-url", session.id);
    assert_eq!(bench.server.get(&known).await.status, 202, "what is known is served from memory");
    // What happens meanwhile is taken in once the store is back.
    tool.show_link(LINK);
    tool.end(Outcome::Succeeded);
    store.break_it(false);
    assert_eq!(until_done(client, session.id).await.outcome.as_deref(), Some("succeeded"));
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_needed_and_the_owners_is_taken() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    let without = CreateSession { provider: Some("codex".into()), ..CreateSession::default() };
    let make = async || client.create_session(&without, &Uuid::new_v4().to_string()).await;
    assert_eq!(make().await.unwrap_err().code(), Some(Code::Invalid));
    for bad in ["", "age1nonsense", "AGE-SECRET-KEY-1"] {
        let key = OwnerKey { recipient: Some(bad.to_owned()) };
        assert_eq!(client.set_owner_key(&key).await.unwrap_err().code(), Some(Code::Invalid));
    }
    let key = OwnerKey { recipient: Some(Identity::generate().to_public().to_string()) };
    assert_eq!(client.set_owner_key(&key).await.unwrap(), key);
    assert_eq!(client.owner_key().await.unwrap(), key);
    let session = make().await.unwrap();
    let taken = client.sign_in(session.id).await.unwrap().recipients;
    assert_eq!(Some(taken.as_slice()), key.recipient.as_ref().map(std::slice::from_ref));
    client.set_owner_key(&OwnerKey { recipient: None }).await.unwrap();
    assert!(make().await.is_err());
    // A plain desktop is none.
    let plain = bench.server.create_ready().await;
    assert_eq!(client.sign_in(plain.id).await.unwrap_err().code(), Some(Code::Conflict));
    let answer = bench.server.get(&format!("/api/sessions/{}/oauth-url", plain.id)).await;
    assert_eq!(answer.status, 409);
    bench.server.stop().await;
}
