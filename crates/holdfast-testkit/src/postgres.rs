//! A throw-away PostgreSQL server: own data, own Unix socket, no network.
//!
//! The server runs as the `postgres` user when the test runs as root, which PostgreSQL refuses to
//! be. A small shell script stands between: when the test ends, in whatever way, its standard input
//! closes, and it stops the server and removes everything.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long the server may take to start or to stop. Usually 0.1 s.
const DEADLINE: Duration = Duration::from_mins(1);

/// Time between two looks at whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Runs the server (`$1` and its arguments); stops it with the signal that it reads, or at the end
/// of its input with `$END_SIGNAL`. A shell starts programs in the background deaf to INT and QUIT;
/// PostgreSQL listens to both all the same, PgBouncer to TERM only.
const KEEPER: &str = r#"
"$@" >>"$HOME/log" 2>&1 &
server=$!
read -r signal || end=yes
kill -"${signal:-$END_SIGNAL}" "$server" 2>/dev/null
wait "$server"
[ -n "$end" ] && rm -rf "$HOME"
exit 0
"#;

/// A PostgreSQL server that lives as long as this value.
#[derive(Debug)]
pub struct TempPostgres {
    home: TempDir,
    programs: PathBuf,
    account: Option<Account>,
    keeper: Option<Child>,
    databases: std::sync::atomic::AtomicU32,
}

/// The system user that the server runs as.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl TempPostgres {
    /// Makes a cluster and starts its server.
    ///
    /// # Panics
    /// When PostgreSQL is not installed, or does not start.
    #[must_use]
    pub fn new() -> Self {
        let programs = find_programs().expect(
            "PostgreSQL is not installed; install it with: \
             apt-get install --no-install-recommends postgresql",
        );
        let account = fs::metadata("/proc/self").expect("procfs is mounted").uid() == 0;
        let account = account.then(|| {
            find_account().expect(
                "tests run as root, PostgreSQL does not, and there is no user `postgres`; \
                 the package postgresql makes it",
            )
        });
        let home = make_home(account);
        let mut server = Self { home, programs, account, keeper: None, databases: 0.into() };
        let data = server.data();
        let initdb = server.run(
            "initdb",
            &["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
        );
        assert!(initdb.status.success(), "initdb failed: {}", text(&initdb));
        server.start();
        server
    }

    /// Starts the server again after [`Self::stop`] and waits until it takes connections.
    ///
    /// # Panics
    /// When it runs already, or does not start.
    pub fn start(&mut self) {
        assert!(self.keeper.is_none(), "the server runs already");
        let postgres = self.programs.join("postgres").display().to_string();
        let socket = self.socket().display().to_string();
        let data = self.data();
        let mut command = self.command("sh");
        command
            .args(["-c", KEEPER, "keeper", &postgres, "-D", &data, "-k", &socket])
            // No network, no waiting for disks: only the tests of SQLite are about durability.
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=300"]);
        // A server that was killed leaves its file behind.
        let before = self.pid();
        self.keeper = Some(keep(command));
        let ready = self.home.path().join("data/postmaster.pid");
        self.wait(|| {
            let text = fs::read_to_string(&ready).unwrap_or_default();
            let is_ready = text.lines().nth(7).is_some_and(|status| status.trim() == "ready");
            is_ready && self.pid() != before
        });
    }

    /// Kills the server and everything of it with SIGKILL, as a lost machine does: nothing is written any
    /// more.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn kill(&mut self) {
        let pid = self.pid().expect("the server runs");
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("the server runs");
        let all: Vec<&str> = children.split_whitespace().chain([pid.as_str()]).collect();
        for pid in &all {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            // One that ended meanwhile is gone.
            let _ = rustix::process::kill_process(
                pid.expect("a process id"),
                rustix::process::Signal::KILL,
            );
        }
        let mut keeper = self.keeper.take().expect("the server runs");
        // It asks a server that is gone to stop, and ends.
        writeln!(keeper.stdin.take().expect("piped"), "INT").expect("the keeper reads");
        self.wait(|| {
            let gone = all.iter().all(|pid| fs::read(format!("/proc/{pid}/exe")).is_err());
            keeper.try_wait().expect("it is our child").is_some() && gone
        });
    }

    fn pid(&self) -> Option<String> {
        let text = fs::read_to_string(self.home.path().join("data/postmaster.pid")).ok()?;
        text.lines().next().map(str::to_owned)
    }

    /// Stops the server at once, as an outage does: open connections break.
    ///
    /// # Panics
    /// When it does not run, or does not stop.
    pub fn stop(&mut self) {
        let mut keeper = self.keeper.take().expect("the server runs");
        let mut input = keeper.stdin.take().expect("piped");
        writeln!(input, "INT").expect("the keeper reads");
        self.wait(|| keeper.try_wait().expect("it is our child").is_some());
    }

    /// Makes an empty database and answers its URL, for the superuser `postgres`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn database(&self) -> String {
        let number = self.databases.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("test_{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url("postgres", &name)
    }

    /// Starts PgBouncer in transaction mode in front of the server. It stops with the value.
    ///
    /// # Panics
    /// When PgBouncer is not installed, or does not start.
    pub fn pooler(&self) -> Pooler {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .expect("PgBouncer is not installed; install it with: apt-get install pgbouncer");
        let home = make_home(self.account);
        let directory = home.path().display();
        let settings = format!(
            "[databases]\n* = host={} port=5432 user=postgres\n[pgbouncer]\nlisten_addr =\n\
             listen_port = {POOLER_PORT}\nunix_socket_dir = {directory}\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 5\n",
            self.socket().display()
        );
        let file = home.path().join("pgbouncer.ini");
        fs::write(&file, settings).expect("written");
        let mut command = self.command("sh");
        command.env("HOME", home.path()).env("END_SIGNAL", "TERM");
        command.args(["-c", KEEPER, "keeper", program]).arg(&file);
        let pooler = Pooler { keeper: keep(command), home };
        let socket = pooler.home.path().join(format!(".s.PGSQL.{POOLER_PORT}"));
        self.wait(|| socket.exists());
        pooler
    }

    /// URL of a database for a role.
    pub fn url(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@localhost/{database}?host={}", self.socket().display())
    }

    /// Runs statements as superuser in the database of this name or URL and answers what psql
    /// prints.
    ///
    /// # Panics
    /// When a statement fails.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let name = match database.split_once("@localhost/") {
            Some((_, rest)) => rest.split('?').next().unwrap_or(rest),
            None => database,
        };
        let socket = self.socket().display().to_string();
        let output = self.run(
            "psql",
            &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", &socket, "-U", "postgres"]
                .into_iter()
                .chain(["-d", name, "-c", statements])
                .collect::<Vec<_>>(),
        );
        assert!(output.status.success(), "{statements}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Adds lines to `pg_hba.conf` before all others and has the server read it again.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn require(&self, hba_lines: &str) {
        let path = self.home.path().join("data/pg_hba.conf");
        let rest = fs::read_to_string(&path).expect("initdb made it");
        fs::write(&path, format!("{hba_lines}\n{rest}")).expect("writable");
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// What the server wrote to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Directory of the Unix socket.
    pub fn socket(&self) -> &Path {
        self.home.path()
    }

    fn data(&self) -> String {
        self.home.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let path = self.programs.join(program).display().to_string();
        self.command(&path)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{path} cannot be started: {error}"))
    }

    /// A command that runs as the server's user and inherits no settings for PostgreSQL.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.home.path())
            .env("LC_ALL", "C.UTF-8")
            .env("END_SIGNAL", "QUIT")
            .current_dir(self.home.path());
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    fn wait(&self, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done() {
            assert!(
                Instant::now() < deadline,
                "PostgreSQL did not get there in {DEADLINE:?}; its log: {}",
                self.log()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Default for TempPostgres {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempPostgres {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            release(&mut keeper);
        }
    }
}

/// A transaction pooler in front of a [`TempPostgres`].
#[derive(Debug)]
pub struct Pooler {
    home: TempDir,
    keeper: Child,
}

impl Pooler {
    /// URL of a database for the superuser `postgres`, through the pooler.
    pub fn url(&self, database: &str) -> String {
        let directory = self.home.path().display();
        format!("postgres://postgres@localhost:{POOLER_PORT}/{database}?host={directory}")
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        release(&mut self.keeper);
    }
}

/// Names a socket in a directory of its own, so it need not be free.
const POOLER_PORT: u16 = 6543;

/// A directory that belongs to the user of the server.
fn make_home(account: Option<Account>) -> TempDir {
    let home =
        tempfile::Builder::new().prefix("holdfast-pg-").tempdir().expect("a directory in /tmp");
    if let Some(account) = account {
        std::os::unix::fs::chown(home.path(), Some(account.uid), Some(account.gid))
            .expect("root may give files away");
    }
    home
}

/// Starts a keeper, in a process group of its own: a runner that gives up on a test kills the test's
/// whole group, and the keeper has to be there afterwards to clean up.
fn keep(mut command: Command) -> Child {
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("sh can be started")
}

/// The end of its input tells a keeper to stop and clean up.
fn release(keeper: &mut Child) {
    drop(keeper.stdin.take());
    let _ = keeper.wait();
}

/// The newest version that is installed as Debian does it, or what is on the path.
fn find_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .max()
        .map(|(_, path)| path.join("bin"));
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    newest.into_iter().chain(on_path).find(|dir| dir.join("initdb").is_file())
}

fn find_account() -> Option<Account> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let user = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = user.split(':').skip(2);
    Some(Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
