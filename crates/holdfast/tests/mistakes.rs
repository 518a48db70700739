//! What a person sees who asks for what cannot be: one sentence that says what to do, and nothing made.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);
/// Debian's `nobody`.
const NOBODY: u32 = 65_534;

/// A place of its own, which everybody may use.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(dir.path(), everybody).expect("opened to everybody");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        self.prepare(&mut command, line);
        command
    }

    /// The same as a user without rights.
    fn as_nobody(&self, line: &str) -> Command {
        if !rustix::process::geteuid().is_root() {
            return self.command(line);
        }
        // Where it was built is often closed to others.
        let binary = self.path("holdfast");
        if !binary.exists() {
            fs::copy(env!("CARGO_BIN_EXE_holdfast"), &binary).expect("copied");
        }
        let mut command = Command::new(binary);
        command.uid(NOBODY).gid(NOBODY);
        self.prepare(&mut command, line);
        command
    }

    fn prepare(&self, command: &mut Command, line: &str) {
        command
            .args(line.split(' '))
            .env("HOLDFAST_STATE_DIR", self.path("state"))
            .env("HOLDFAST_CACHE_DIR", self.path("cache"))
            .env("HOME", self.dir.path())
            .env_remove("HOLDFAST_URL")
            .env_remove("HOLDFAST_TOKEN")
            .env_remove("HOLDFAST_CONFIG")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
}

/// Runs a command that has to fail, and answers what it says: the last line is a sentence for people.
fn says(mut command: Command) -> String {
    let mut child = command.spawn().expect("it starts");
    let begun = Instant::now();
    while child.try_wait().expect("a status").is_none() {
        if begun.elapsed() > DEADLINE {
            child.kill().expect("killed");
            panic!("{command:?} goes on");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("its output");
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
    let odd = ["panicked", "os error", "Some(", "Err(", "{ ", "::", "stack backtrace"];
    assert!(!odd.iter().any(|odd| text.contains(odd)), "{command:?}: {text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{command:?}: {text}");
    text
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A server whose machines are simulated.
struct Server {
    child: Child,
}

impl Server {
    fn start(place: &Place) -> Self {
        let mut serve = place.command("serve --driver sim --listen 127.0.0.1:0 --log warn");
        serve.stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { child: serve.spawn().expect("the server starts") };
        let begun = Instant::now();
        while !place.command("session ls").output().is_ok_and(|output| output.status.success()) {
            assert!(begun.elapsed() < DEADLINE, "the server is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_port_that_is_taken() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let said = says(place.command(&format!("serve --driver sim --listen {address}")));
    contains(&said, &[&address, "is in use", "--listen"]);
    let said = says(place.command(&format!("up --driver sim --listen {address}")));
    contains(&said, &[&address, "is in use", "--listen"]);
    assert!(!place.path("state").exists(), "something was made");
}

#[test]
fn an_address_of_another_machine() {
    let place = Place::new();
    // Of a range that is for documentation only.
    let said = says(place.command("serve --driver sim --listen 192.0.2.1:7070"));
    contains(&said, &["cannot listen on 192.0.2.1:7070", "assign", "--listen"]);
    assert!(!place.path("state").exists(), "something was made");
}

#[test]
fn a_user_without_rights() {
    let place = Place::new();
    let said = says(place.as_nobody("serve --listen 127.0.0.1:0"));
    contains(&said, &["needs root", "sudo", "--driver sim"]);
    assert!(!place.path("state").exists(), "something was made");
    let said = says(place.as_nobody("up --listen 127.0.0.1:0"));
    contains(&said, &["not run by root", "use sudo", "this machine is not ready"]);
    assert!(!place.path("state").exists(), "something was made");
    let said = says(place.as_nobody("serve --driver sim --listen 127.0.0.1:0 --state-dir /proc/x"));
    contains(&said, &["the state directory cannot be used", "/proc/x", "--state-dir"]);
    let agent = place.path("agent");
    static_program(&agent);
    let build = format!("image build --agent {}", agent.display());
    contains(&says(place.as_nobody(&build)), &["as root", "sudo"]);
    assert!(!place.path("cache").exists(), "something was made");
}

/// The head of a program that needs no libraries, which is all that is looked at before the rights are.
fn static_program(path: &Path) {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
    elf.resize(64, 0);
    elf[32] = 64;
    elf[54] = 56;
    fs::write(path, elf).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made readable");
}

#[test]
fn a_state_directory_of_another_server() {
    let place = Place::new();
    let server = Server::start(&place);
    let said = says(place.command("serve --driver sim --listen 127.0.0.1:0"));
    contains(&said, &["another server", &server.child.id().to_string(), "--state-dir"]);
    assert!(place.command("session ls").status().expect("it runs").success());
}

#[test]
fn a_state_directory_that_is_none() {
    let place = Place::new();
    fs::write(place.path("state"), "a file").expect("written");
    let said = says(place.command("serve --driver sim --listen 127.0.0.1:0"));
    contains(&said, &["the state directory cannot be used", "--state-dir"]);
    assert_eq!(fs::read_to_string(place.path("state")).expect("still there"), "a file");
}

#[test]
fn a_store_that_is_none() {
    let place = Place::new();
    fs::create_dir(place.path("state")).expect("made");
    fs::write(place.path("state/holdfast.db"), [7; 8192]).expect("written");
    let said = says(place.command("serve --driver sim --listen 127.0.0.1:0 --log error"));
    contains(
        &said,
        &["the store holds a database that cannot be read", "not a database", "move it away"],
    );
    let said = says(place.command("serve --driver sim --listen 127.0.0.1:0 --store mysql:x"));
    contains(&said, &["`mysql` is no kind of store", "postgres://"]);
}

#[test]
fn a_configuration_that_is_wrong() {
    let place = Place::new();
    for (text, part) in [
        ("lisen = \"127.0.0.1:0\"", "lisen"),
        ("listen = 7070", "listen"),
        ("[session]\nlease = \"soon\"", "lease"),
        ("driver = [", "line 1"),
    ] {
        fs::write(place.path("holdfast.toml"), text).expect("written");
        let said = says(place.command("serve --driver sim --config holdfast.toml"));
        contains(&said, &["the configuration holdfast.toml is wrong", part]);
    }
    contains(&says(place.command("serve --config none.toml")), &["none.toml cannot be read"]);
    assert!(!place.path("state").exists(), "something was made");
}

#[test]
fn no_image() {
    let place = Place::new();
    let build = "`holdfast image build`";
    contains(&says(place.command("image inspect")), &["there is no image in", build]);
    contains(&says(place.command("image inspect abc")), &["no image abc", "`holdfast image ls`"]);
    contains(&says(place.command("image rm abc")), &["no image abc", "`holdfast image ls`"]);
    contains(&says(place.command("image bake")), &["no image", build]);
    let said = says(place.command("image build --agent nowhere"));
    contains(&said, &["the agent nowhere does not exist", "--agent"]);
    assert!(!place.path("cache").exists(), "something was made");
}

#[test]
fn no_server_and_no_session() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let said = says(place.command(&format!("session ls --url http://{free}")));
    contains(&said, &["no server answers at", "`holdfast up`"]);
    let said = says(place.command("session ls --url nonsense"));
    contains(&said, &["nonsense", "--url"]);
    let _server = Server::start(&place);
    for command in ["show", "logs", "explain", "end", "open --print"] {
        let said = says(place.command(&format!("session {command} 0193")));
        contains(&said, &["there is no session `0193`", "`holdfast session ls --all`"]);
    }
    let said = says(place.command("session ls --token wrong"));
    contains(&said, &["HOLDFAST_TOKEN"]);
    let said = says(place.command("session create --memory 1"));
    contains(&said, &["emory"]);
}
