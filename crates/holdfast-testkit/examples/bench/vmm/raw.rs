//! Firecracker by hand: its jailer and its API, and nothing around them.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_host::{
    drivers::firecracker::FirecrackerConfig,
    net::{GUEST_MAC, TAP},
};
use serde_json::{Value, json};

use super::{MEMORY_MIB, Way};
use crate::{http::Http, usage};

/// A user that no VMM of a server has.
const UID: u32 = 299_999;
/// Between two looks for the socket.
const LOOK: Duration = Duration::from_micros(200);
const SOON: Duration = Duration::from_secs(20);

/// A network namespace with a tap, and jails.
pub(super) struct Raw {
    programs: FirecrackerConfig,
    image: PathBuf,
    namespace: String,
    dir: tempfile::TempDir,
}

/// A jailed Firecracker.
struct Jailed {
    child: Child,
    api: Http<UnixStream>,
}

impl Raw {
    pub(super) fn new(programs: FirecrackerConfig, image: PathBuf) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(dir.path(), mode)?;
        let namespace = format!("hfb-{}", std::process::id());
        let raw = Self { programs, image, namespace, dir };
        // From here on, dropping it cleans up.
        ip(&["netns", "add", &raw.namespace])?;
        let user = UID.to_string();
        let tap = ["tuntap", "add", "dev", TAP, "mode", "tap", "user", &user, "group", &user];
        ip(&[&["-n", &raw.namespace], &tap[..], &["vnet_hdr"]].concat())?;
        ip(&["-n", &raw.namespace, "link", "set", TAP, "up"])?;
        Ok(raw)
    }

    /// Every operation once.
    pub(super) fn run(&self, way: &mut Way) -> Result<()> {
        let root = self.jail("first")?;
        for name in ["vmlinux", "initramfs.img", "rootfs.img"] {
            fs::copy(self.image.join(name), root.join(name))?;
        }
        let upper = root.join("upper.img");
        fs::File::create(&upper)?.set_len(64 << 20)?;
        for name in ["vmlinux", "initramfs.img", "rootfs.img", "upper.img"] {
            own(&root.join(name))?;
        }

        let began = Instant::now();
        let mut vm = self.start("first", &root)?;
        vm.boot()?;
        way.start.time(began.elapsed());
        let state = |vm: &mut Jailed, state: &str| -> Result<Duration> {
            let began = Instant::now();
            vm.call("PATCH", "/vm", &json!({ "state": state }))?;
            Ok(began.elapsed())
        };
        way.pause.time(state(&mut vm, "Paused")?);
        way.resume.time(state(&mut vm, "Resumed")?);
        way.own.value(usage::own_pss_mib(vm.child.id() as i32, MEMORY_MIB)?);
        let began = Instant::now();
        state(&mut vm, "Paused")?;
        let create = json!({ "snapshot_type": "Full", "snapshot_path": "devices.state",
            "mem_file_path": "memory.img" });
        vm.call("PUT", "/snapshot/create", &create)?;
        way.snapshot.time(began.elapsed());
        self.keep(&root)?;
        way.kept.time(began.elapsed());
        let began = Instant::now();
        vm.stop()?;
        way.stop.time(began.elapsed());

        let again = self.jail("again")?;
        for name in ["rootfs.img", "upper.img", "devices.state", "memory.img"] {
            fs::rename(root.join(name), again.join(name))?;
        }
        let began = Instant::now();
        let mut vm = self.start("again", &again)?;
        let load = json!({ "snapshot_path": "devices.state", "resume_vm": true,
            "mem_backend": { "backend_type": "File", "backend_path": "memory.img" } });
        vm.call("PUT", "/snapshot/load", &load)?;
        way.restore.time(began.elapsed());
        vm.stop()
    }

    /// Keeps a snapshot as one that has to be there after a crash of the machine: out of the jail, without
    /// its zeros, synced.
    fn keep(&self, root: &Path) -> Result<()> {
        let kept = self.dir.path().join("kept");
        fs::create_dir(&kept)?;
        let names = ["devices.state", "upper.img", "memory.img"];
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").args(names.map(|name| root.join(name))).arg(&kept);
        ensure!(copy.status().context("cp could not be started")?.success(), "cp failed");
        for path in names.map(|name| kept.join(name)).iter().chain([&kept]) {
            fs::File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    /// An empty jail; answers what will be the VMM's `/`.
    fn jail(&self, id: &str) -> Result<PathBuf> {
        let program = self.programs.firecracker.file_name().context("no program")?;
        let root = self.dir.path().join(program).join(id).join("root");
        fs::create_dir_all(&root)?;
        own(&root)?;
        Ok(root)
    }

    /// Starts a Firecracker and connects to it.
    fn start(&self, id: &str, root: &Path) -> Result<Jailed> {
        let user = UID.to_string();
        let child = Command::new(&self.programs.jailer)
            .args(["--id", id, "--uid", &user, "--gid", &user])
            .arg("--exec-file")
            .arg(&self.programs.firecracker)
            .arg("--chroot-base-dir")
            .arg(self.dir.path())
            .args(["--netns", &format!("/run/netns/{}", self.namespace)])
            .args(["--resource-limit", "no-file=1024", "--", "--api-sock", "api.sock"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("the jailer could not be started")?;
        // From here on, dropping it kills it.
        let mut starting = Starting(Some(child));
        let began = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(root.join("api.sock")) {
                break stream;
            }
            ensure!(began.elapsed() < SOON, "Firecracker has no socket after {SOON:?}");
            thread::sleep(LOOK);
        };
        stream.set_read_timeout(Some(SOON))?;
        let child = starting.0.take().context("it was started")?;
        Ok(Jailed { child, api: Http::of(stream) })
    }
}

impl Jailed {
    fn boot(&mut self) -> Result<()> {
        self.call(
            "PUT",
            "/machine-config",
            &json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB }),
        )?;
        let boot = json!({ "kernel_image_path": "vmlinux", "initrd_path": "initramfs.img",
            "boot_args": "console=ttyS0 quiet reboot=k panic=1 pci=off" });
        self.call("PUT", "/boot-source", &boot)?;
        for (id, path, read_only) in [("root", "rootfs.img", true), ("upper", "upper.img", false)] {
            let drive = json!({ "drive_id": id, "path_on_host": path, "is_root_device": false,
                "is_read_only": read_only });
            self.call("PUT", &format!("/drives/{id}"), &drive)?;
        }
        let network = json!({ "iface_id": "net", "host_dev_name": TAP, "guest_mac": GUEST_MAC });
        self.call("PUT", "/network-interfaces/net", &network)?;
        self.call("PUT", "/entropy", &json!({}))?;
        self.call("PUT", "/balloon", &json!({ "amount_mib": 0, "deflate_on_oom": true }))?;
        self.call("PUT", "/actions", &json!({ "action_type": "InstanceStart" }))
    }

    fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, answer) = self.api.call(request.as_bytes())?;
        let refused = || format!("{method} {path}: {status}: {}", String::from_utf8_lossy(answer));
        ensure!((200..300).contains(&status), refused());
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        // Usually it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that nobody waits for yet.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The tap goes with its namespace.
        if let Err(error) = ip(&["netns", "delete", &self.namespace]) {
            eprintln!("{error:#}");
        }
    }
}

fn own(path: &Path) -> Result<()> {
    std::os::unix::fs::chown(path, Some(UID), Some(UID)).with_context(|| path.display().to_string())
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("ip could not be started")?;
    ensure!(status.success(), "ip {} failed", args.join(" "));
    Ok(())
}
