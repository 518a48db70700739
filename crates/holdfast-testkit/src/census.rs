//! The census of leaks: everything on this machine that belongs to one server's state directory.
//!
//! It looks at the machine itself and asks neither the server nor the driver, which could be wrong
//! in the same way as the code under test.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// What to look for.
#[derive(Debug, Clone)]
pub struct Scope {
    state_dir: PathBuf,
    /// Ids of VMs that were seen at any time.
    vms: BTreeSet<String>,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// A process: pid and command line.
    Process(i32, String),
    /// A network namespace.
    Namespace(String),
    /// A network link in this namespace.
    Link(String),
    /// A table, chain or rule of nftables.
    Firewall(String),
    /// A mount point.
    Mount(String),
    /// A VM's directory, or a file that holds its place.
    Path(PathBuf),
    /// A Unix socket.
    Socket(String),
    /// A route.
    Route(String),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid, command) => write!(f, "process {pid}: {command}"),
            Self::Namespace(name) => write!(f, "network namespace {name}"),
            Self::Link(name) => write!(f, "network link {name}"),
            Self::Firewall(line) => write!(f, "nftables: {line}"),
            Self::Mount(line) => write!(f, "mount {line}"),
            Self::Path(path) => write!(f, "path {}", path.display()),
            Self::Socket(path) => write!(f, "socket {path}"),
            Self::Route(line) => write!(f, "route {line}"),
        }
    }
}

impl Scope {
    /// Everything that belongs to this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_path_buf(), vms: BTreeSet::new() }
    }

    /// Also everything that carries this VM's id, whatever else is left of it.
    pub fn remember(&mut self, vm: impl ToString) {
        self.vms.insert(vm.to_string());
    }

    /// Looks at the machine. `server`, the server's own process, is not counted.
    pub fn take(&mut self, server: Option<u32>) -> Vec<Found> {
        self.learn();
        let mut found = BTreeSet::new();
        self.processes(server, &mut found);
        self.network(&mut found);
        self.files(&mut found);
        found.into_iter().collect()
    }

    /// Removes what is found by force; for tests that failed.
    pub fn remove(&mut self) {
        for found in self.take(None) {
            eprintln!("removed after a failure: {found}");
            match found {
                Found::Process(pid, _) => {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        // It may have ended meanwhile.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
                Found::Namespace(name) => run("ip", &["netns", "delete", &name]),
                Found::Link(name) => run("ip", &["link", "delete", &name]),
                Found::Path(path) if path.is_dir() => drop(fs::remove_dir_all(path)),
                Found::Path(path) => drop(fs::remove_file(path)),
                Found::Firewall(line) => {
                    if let Some(table) = line.strip_prefix("table inet ") {
                        run("nft", &["delete", "table", "inet", table.trim_end_matches(" {")]);
                    }
                }
                // These go with the others.
                Found::Mount(_) | Found::Socket(_) | Found::Route(_) => {}
            }
        }
    }

    /// Ids that the state directory and the machine's registry know now.
    fn learn(&mut self) {
        for entry in list(&self.state_dir.join("vms")) {
            self.vms.insert(entry.trim_start_matches("new-").to_owned());
        }
        let Some(instance) = self.instance() else { return };
        for name in list(Path::new(REGISTRY)) {
            let path = Path::new(REGISTRY).join(&name);
            if fs::read_to_string(path).is_ok_and(|text| text.contains(&instance)) {
                self.vms.insert(name.trim_end_matches(".json").to_owned());
            }
        }
    }

    /// The mark that this state directory's things carry on the machine.
    fn instance(&self) -> Option<String> {
        let text = fs::read_to_string(self.state_dir.join("instance")).ok()?;
        (text.len() == 8).then_some(text)
    }

    /// Whether a text names this state directory, its instance or one of its VMs.
    fn owns(&self, text: &str) -> bool {
        text.contains(&*self.state_dir.to_string_lossy())
            || self.instance().is_some_and(|instance| text.contains(&instance))
            || self.vms.iter().any(|vm| text.contains(vm))
    }

    fn processes(&self, server: Option<u32>, found: &mut BTreeSet<Found>) {
        let own = std::process::id();
        for name in list(Path::new("/proc")) {
            let Ok(pid) = name.parse::<i32>() else { continue };
            if u32::try_from(pid).is_ok_and(|pid| pid == own || Some(pid) == server) {
                continue;
            }
            let dir = Path::new("/proc").join(&name);
            // A process may end while it is read.
            let command = fs::read(dir.join("cmdline")).unwrap_or_default();
            let environment = fs::read(dir.join("environ")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let cwd = fs::read_link(dir.join("cwd")).unwrap_or_default();
            let open = open_files(&dir);
            let belongs = self.owns(&command)
                || self.owns(&String::from_utf8_lossy(&environment))
                || cwd.starts_with(&self.state_dir)
                || open.iter().any(|path| path.starts_with(self.state_dir.join("vms")));
            if belongs {
                found.insert(Found::Process(pid, command));
            }
        }
    }

    fn network(&self, found: &mut BTreeSet<Found>) {
        for name in list(Path::new("/run/netns")) {
            if self.owns(&name) {
                found.insert(Found::Namespace(name));
            }
        }
        let mut links = Vec::new();
        for name in list(Path::new("/sys/class/net")) {
            let alias = Path::new("/sys/class/net").join(&name).join("ifalias");
            if self.owns(&fs::read_to_string(alias).unwrap_or_default()) {
                links.push(name.clone());
                found.insert(Found::Link(name));
            }
        }
        for line in output("nft", &["list", "ruleset"]).lines() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '-');
            let names_link = words.into_iter().any(|word| links.iter().any(|link| link == word));
            if self.owns(line) || names_link {
                found.insert(Found::Firewall(line.trim().to_owned()));
            }
        }
        for line in output("ip", &["route"]).lines() {
            if links.iter().any(|link| line.contains(&format!("dev {link} "))) {
                found.insert(Found::Route(line.to_owned()));
            }
        }
    }

    fn files(&self, found: &mut BTreeSet<Found>) {
        for name in list(&self.state_dir.join("vms")) {
            found.insert(Found::Path(self.state_dir.join("vms").join(name)));
        }
        for name in list(Path::new(REGISTRY)) {
            if self.vms.contains(name.trim_end_matches(".json")) {
                found.insert(Found::Path(Path::new(REGISTRY).join(name)));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().filter(|line| self.owns(line)) {
            found.insert(Found::Mount(line.to_owned()));
        }
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        for path in sockets.lines().filter_map(|line| line.split(' ').next_back()) {
            if self.owns(path) {
                found.insert(Found::Socket(path.to_owned()));
            }
        }
    }
}

/// Where the host layer keeps what is unique on the machine.
const REGISTRY: &str = "/run/holdfast";

fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Files that a process holds open; empty when it cannot be seen.
fn open_files(proc_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(proc_dir.join("fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|path| path.as_os_str().as_bytes().starts_with(b"/"))
        .collect()
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

fn run(program: &str, args: &[&str]) {
    if let Err(error) = Command::new(program).args(args).status() {
        eprintln!("{program} could not be started: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_process_a_directory_and_a_socket_and_forgets_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vm = dir.path().join("vms/0190c1f0-0000-7000-8000-000000000001");
        fs::create_dir_all(&vm).expect("made");
        let socket = vm.join("api.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let mut child = Command::new("tail")
            .args(["-f", "/dev/null"])
            .env("STATE", dir.path())
            .spawn()
            .expect("tail starts");
        let mut scope = Scope::new(dir.path());
        let found = scope.take(None);
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(found.iter().any(|f| matches!(f, Found::Process(p, _) if *p == pid)), "{found:?}");
        assert!(found.contains(&Found::Path(vm.clone())), "{found:?}");
        assert!(found.iter().any(|f| matches!(f, Found::Socket(_))), "{found:?}");
        child.kill().and_then(|()| child.wait().map(drop)).expect("ended");
        drop(listener);
        fs::remove_dir_all(&vm).expect("removed");
        assert_eq!(scope.take(None), []);
    }
}
