//! `holdfast login` and `holdfast provider` as a person runs them, against a server whose machines
//! are simulated.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_mins(1);

const PROVIDER: &str = r#"
name = "paste"
title = "Paste"
[tool]
command = ["paste", "login"]
flow = "paste_code"
[success]
exit_code = 0
[[credential]]
path = ".paste/auth.json"
mode = "0640"
[egress]
hosts = ["auth.paste.example"]
"#;

struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let providers = dir.path().join("providers");
        fs::create_dir(&providers).expect("a directory");
        fs::write(providers.join("paste.toml"), PROVIDER).expect("a provider");
        fs::create_dir(dir.path().join("home")).expect("a home");
        let config = format!(
            "listen = \"127.0.0.1:0\"\ndriver = \"sim\"\nstate_dir = \"{0}/state\"\ncache_dir = \"{0}/cache\"\nproviders_dir = \"{0}/providers\"\n",
            dir.path().display()
        );
        let file = dir.path().join("holdfast.toml");
        fs::write(&file, config).expect("a configuration");
        let child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["serve", "--log", "warn", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Self { child, dir };
        let begun = Instant::now();
        while !server.command(&["session", "ls"]).output().is_ok_and(|o| o.status.success()) {
            assert!(begun.elapsed() < DEADLINE, "the server is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn home(&self) -> std::path::PathBuf {
        self.dir.path().join("home")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .args(arguments)
            .env("HOLDFAST_CONFIG", self.dir.path().join("holdfast.toml"))
            .env("HOME", self.home())
            .env_remove("HOLDFAST_URL")
            .env_remove("HOLDFAST_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command with this standard input.
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child =
            self.command(arguments).stdin(Stdio::piped()).spawn().expect("the command starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("written");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    fn sessions(&self) -> Vec<String> {
        let output = self.command(&["--json", "session", "ls"]).output().expect("listed");
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let sessions = list["sessions"].as_array().expect("a list");
        let live = sessions.iter().filter(|session| session["state"] != "ending");
        live.map(|session| session["id"].to_string()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whatever failed before, no server is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn credentials_come_home() {
    let server = Server::start();
    let output = server.run(&["--json", "login", "paste"], "a-code\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stderr);
    assert!(shown.contains("Page: http://127.0.0.1:") && shown.contains("/?session="), "{shown}");
    assert!(shown.contains("https://sign-in.invalid/authorize?state="), "{shown}");
    let file = server.home().join(".paste/auth.json");
    let first = fs::read_to_string(&file).expect("written");
    assert!(first.starts_with("simulated credential of .paste/auth.json"), "{first}");
    assert_eq!(mode(&file), 0o640);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["files"][0]["mode"], "0640");

    // What was there is kept, unless it is to be replaced.
    fs::write(&file, "mine").expect("written");
    assert!(server.run(&["login", "paste"], "a-code\n").status.success());
    let backup = file.with_file_name("auth.json.bak");
    assert_eq!(fs::read_to_string(&backup).expect("kept"), "mine");
    assert!(server.run(&["login", "paste", "--force"], "a-code\n").status.success());
    assert!(!file.with_file_name("auth.json.bak.1").exists());

    let printed = server.run(&["login", "paste", "--print"], "a-code\n");
    let printed: serde_json::Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(printed["files"][0]["path"], ".paste/auth.json");
    assert!(server.sessions().is_empty());
}

#[test]
fn a_sign_in_that_fails_says_why_and_leaves_no_session() {
    let server = Server::start();
    for (typed, said) in
        [("refuse", "refused"), ("expire", "in time"), ("crash", "the simulated tool crashed")]
    {
        let output = server.run(&["login", "paste"], &format!("{typed}\n"));
        let shown = text(&output.stderr);
        assert!(output.status.code() == Some(1) && shown.contains(said), "{typed}: {shown}");
    }
    let output = server.run(&["login", "paste"], "");
    assert!(text(&output.stderr).contains("standard input ended"), "{}", text(&output.stderr));
    let output = server.run(&["login", "nobody"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(!server.home().join(".paste").exists());
    assert!(server.sessions().is_empty());
}

#[test]
fn the_browser_is_not_told_the_token_in_its_arguments() {
    let server = Server::start();
    let output = server.command(&["--json", "session", "create"]).output().expect("it runs");
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let id = made["id"].as_str().expect("an id");
    let token = fs::read_to_string(server.dir.path().join("state/admin-token")).expect("a token");
    let runtime = server.dir.path().join("runtime");
    fs::create_dir(&runtime).expect("a directory");
    let browser = runtime.join("browser");
    let script = "#!/bin/sh\necho \"$@\" >> \"$0.arguments\"\ncat \"$1\" >> \"$0.page\"\n\
                  echo end >> \"$0.page\"\n";
    fs::write(&browser, script).expect("written");
    fs::set_permissions(&browser, fs::Permissions::from_mode(0o755)).expect("a program");
    let prepared = |arguments: &[&str]| {
        let mut command = server.command(arguments);
        command.env("BROWSER", &browser).env("XDG_RUNTIME_DIR", &runtime);
        command
    };
    let opened = prepared(&["session", "open", id]).output().expect("it runs");
    assert!(opened.status.success(), "{}", text(&opened.stderr));
    let mut login = prepared(&["login", "paste", "--open"]).spawn().expect("it runs");
    let read = |name: &str| fs::read_to_string(runtime.join(name)).unwrap_or_default();
    let begun = Instant::now();
    while read("browser.page").matches("end\n").count() < 2 {
        assert!(begun.elapsed() < DEADLINE, "no page was opened: {}", read("browser.arguments"));
        std::thread::sleep(Duration::from_millis(20));
    }
    login.kill().expect("killed");
    login.wait().expect("it ends");
    let (arguments, pages) = (read("browser.arguments"), read("browser.page"));
    assert!(!arguments.contains(token.trim()), "{arguments}");
    assert_eq!(pages.matches("url=http://").count(), 2, "{pages}");
    assert!(pages.contains(&format!("/?token={}&amp;session={id}", token.trim())), "{pages}");
}

#[test]
fn what_a_provider_needs_is_told() {
    let server = Server::start();
    let output = server.command(&["--json", "provider", "ls"]).output().expect("it runs");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let providers = list["providers"].as_array().expect("a list");
    let named = |name: &str| providers.iter().find(|p| p["name"] == name).expect("it is known");
    assert_eq!(named("paste")["hosts"], serde_json::json!(["auth.paste.example"]));
    assert!(named("desktop").get("hosts").is_none());
}

#[test]
fn an_interrupt_ends_the_session() {
    let server = Server::start();
    let child = server.command(&["login", "codex"]).spawn().expect("it starts");
    let begun = Instant::now();
    while server.sessions().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "no session is made");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(server.sessions().is_empty());
}

#[test]
fn faults_of_providers_are_named_by_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |content: &str| {
        let file = dir.path().join("tool.toml");
        fs::write(&file, content).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["provider", "check"]).arg(&file).output().expect("it runs")
    };
    let good = check(PROVIDER);
    assert!(good.status.success() && text(&good.stdout).contains("paste (Paste), paste_code"));
    for (from, to, place) in [
        ("\"paste_code\"", "\"magic\"", "tool.toml:6:8:"),
        ("exit_code", "exit_cod", "tool.toml:8:1:"),
        (".paste/auth.json", "../auth.json", "tool.toml:10:8:"),
    ] {
        let bad = check(&PROVIDER.replace(from, to));
        let said = text(&bad.stderr);
        assert!(bad.status.code() == Some(1) && said.contains(place), "{to}: {said}");
    }
}
