//! `holdfast serve` as a process of its own: it can be killed at any instruction and started again
//! on the same state directory and port.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::{
    api::{Answer, Api},
    census::Scope,
    ports, wait,
};

/// How long a server may take until it is ready: choosing a driver boots something.
const READY: Duration = Duration::from_mins(2);
/// How long a server may take to stop by itself.
const STOP: Duration = Duration::from_secs(15);
/// How long one reconcile round may take until nothing of an ended session is left.
const CLEAN: Duration = Duration::from_mins(1);

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sim`, `qemu`, `firecracker` or `auto`.
    pub driver: String,
    /// Lines for the configuration file, with their tables.
    pub config: String,
    /// Additional environment.
    pub env: Vec<(String, String)>,
}

/// Environment variable: `1` where KVM runs the image, so that real VMs are Firecracker's.
const KVM: &str = "HOLDFAST_TEST_KVM";

/// The driver of tests with real VMs.
pub fn real_driver() -> &'static str {
    let kvm = std::env::var_os(KVM).is_some_and(|value| value == "1");
    if kvm { "firecracker" } else { "qemu" }
}

impl Default for Options {
    fn default() -> Self {
        Self { driver: real_driver().to_owned(), config: String::new(), env: Vec::new() }
    }
}

/// A server of its own. When it is dropped, everything that belongs to it is gone.
pub struct ServerProcess {
    child: Option<Child>,
    // Before the directory that it is mounted in.
    disk: Option<SmallDisk>,
    dir: TempDir,
    address: SocketAddr,
    binary: PathBuf,
    options: Options,
    /// What belongs to this server on the machine.
    pub scope: Scope,
}

impl ServerProcess {
    /// Starts a server in a new directory and waits until it is ready.
    pub async fn start(options: Options) -> Result<Self> {
        let mut server = Self::spawned(options, None)?;
        server.ready().await?;
        server.note_instance()?;
        Ok(server)
    }

    /// Starts a server whose state directory is on a file system of its own with this many MiB; needs
    /// root.
    pub async fn start_on_disk(options: Options, mib: u32) -> Result<Self> {
        let mut server = Self::spawned(options, Some(mib))?;
        server.ready().await?;
        server.note_instance()?;
        Ok(server)
    }

    /// Starts a server that lacks something and so never becomes ready: waits until it has taken over its
    /// sessions.
    pub async fn start_unready(options: Options) -> Result<Self> {
        let mut server = Self::spawned(options, None)?;
        let taken_over = server.answers("/readyz", |answer| {
            let readiness: holdfast_api::Readiness = serde_json::from_slice(&answer.body)?;
            Ok(readiness.checks.iter().any(|check| check.name == "reconciler" && check.ok))
        });
        taken_over.await?;
        server.note_instance()?;
        Ok(server)
    }

    fn spawned(options: Options, disk_mib: Option<u32>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        // VMMs run as users of their own and have to pass through.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(dir.path(), mode)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let disk =
            disk_mib.map(|mib| SmallDisk::mount(&dir.path().join("disk"), mib)).transpose()?;
        let scope = Scope::new(&state_dir(disk.as_ref(), &dir));
        let binary = binary()?;
        let mut server = Self { child: None, disk, dir, address, binary, options, scope };
        server.write_config()?;
        server.spawn()?;
        Ok(server)
    }

    /// Tells the run of the tests whose namespaces and rules these are; it looks for them at its end.
    fn note_instance(&self) -> Result<()> {
        let Some(run) = std::env::var_os("HOLDFAST_TEST_RUN") else { return Ok(()) };
        let file = self.state_dir().join("instance");
        // The simulated driver has none: nothing of it is on the machine.
        let Ok(instance) = fs::read_to_string(&file) else { return Ok(()) };
        let noted = Path::new(&run).join("instances").join(instance.trim());
        File::create(&noted).with_context(|| noted.display().to_string())?;
        Ok(())
    }

    /// Where VMs live.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.disk.as_ref(), &self.dir)
    }

    /// Where it listens; the same after a restart.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The administrator's access token.
    pub fn token(&self) -> Result<String> {
        let file = self.state_dir().join("admin-token");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(text.trim().to_owned())
    }

    /// Calls it as administrator.
    pub fn api(&self) -> Result<Api> {
        Ok(Api { address: self.address, token: self.token()? })
    }

    /// Ends it with SIGKILL: nothing of it runs another instruction.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let stopped = wait::until("the server stops", STOP, async || Ok(child.try_wait()?)).await;
        match stopped {
            Ok(status) => {
                ensure!(status.success(), "the server ended with {status}: {}", self.log());
                Ok(())
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`], without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = Command::new(&self.binary);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.dir.path().join("holdfast.toml"))
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn();
        self.child = Some(child.with_context(|| self.binary.display().to_string())?);
        Ok(())
    }

    /// Waits until it can do its work.
    pub async fn ready(&mut self) -> Result<()> {
        self.answers("/readyz", |answer| Ok(answer.status == 200)).await
    }

    /// Waits until it answers as wanted.
    async fn answers(
        &mut self,
        path: &str,
        wanted: impl Fn(&Answer) -> Result<bool>,
    ) -> Result<()> {
        let token_file = self.state_dir().join("admin-token");
        let what = format!("the server answers {path} as it should");
        let waited = wait::until(&what, READY, async || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("the server ended with {status}");
            }
            if !token_file.exists() {
                return Ok(None);
            }
            // Before it listens, nothing answers.
            let Ok(answer) = self.api()?.get(path).await else { return Ok(None) };
            Ok(wanted(&answer)?.then_some(()))
        });
        waited.await.map_err(|error| error.context(self.log()))
    }

    /// Ends every session, waits until nothing of them is left on the machine, and stops.
    pub async fn finish(mut self) -> Result<()> {
        let api = self.api()?;
        let sessions: holdfast_api::SessionList = api.get("/api/sessions").await?.json(200)?;
        for session in sessions.sessions {
            self.scope.remember(session.id);
            if let Some(vm) = session.vm_id {
                self.scope.remember(vm);
            }
            if session.state != "ended" {
                api.end(session.id).await?;
            }
        }
        self.clean().await?;
        self.stop().await
    }

    /// Waits until nothing but the server itself is left on the machine.
    pub async fn clean(&mut self) -> Result<()> {
        let pid = self.pid();
        let mut left = Vec::new();
        let scope = &mut self.scope;
        let waited = wait::until("nothing is left", CLEAN, async || {
            left = scope.take(pid);
            Ok(left.is_empty().then_some(()))
        });
        let waited = waited.await;
        waited.with_context(|| {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            format!("left behind:\n  {}", left.join("\n  "))
        })
    }

    /// The end of what it wrote.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "the server's log ends with:\n{}",
            lines[lines.len().saturating_sub(60)..].join("\n")
        )
    }

    /// The file that it writes its log to.
    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    fn write_config(&self) -> Result<()> {
        let Options { driver, config, .. } = &self.options;
        let text = format!(
            "listen = \"{}\"\nstate_dir = \"{}\"\ndriver = \"{driver}\"\n{config}\n",
            self.address,
            self.state_dir().display(),
        );
        fs::write(self.dir.path().join("holdfast.toml"), text)?;
        Ok(())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // Whatever failed before, nothing is left behind for the next test.
        let _ = self.kill();
        self.scope.remove();
    }
}

/// Where VMs live: on the disk of its own, where there is one.
fn state_dir(disk: Option<&SmallDisk>, dir: &TempDir) -> PathBuf {
    disk.map_or(dir.path(), |disk| disk.0.as_path()).join("state")
}

/// A file system in memory that is soon full. Unmounted with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Result<Self> {
        fs::create_dir(at)?;
        let options = format!("size={mib}m,mode=711");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "holdfast-test"]).arg(at);
        ensure!(mount.status()?.success(), "{} could not be mounted", at.display());
        Ok(Self(at.to_path_buf()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever was killed a moment ago may still hold it.
        match Command::new("umount").arg("--lazy").arg(&self.0).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("{} could not be unmounted: {other:?}", self.0.display()),
        }
    }
}

/// The command under test: `HOLDFAST_TEST_BINARY`, else the one beside this test's own binary.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_TEST_BINARY") {
        return Ok(path.into());
    }
    let myself = std::env::current_exe()?;
    let path = myself
        .parent()
        .and_then(Path::parent)
        .map(|dir| dir.join("holdfast"))
        .filter(|path| path.exists());
    path.context(
        "the command is not built: run `cargo build -p holdfast`, or use `cargo xtask test`",
    )
}
