//! What a machine needs is missing, broken or full: the server says so in a sentence, the timeline explains
//! it, nothing stays behind, and whoever works already goes on.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_api::Session;
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    wait,
};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::fixture::{self, BOOT, SOON};

/// Programs of the host that a server runs, without a VMM.
const TOOLS: [&str; 3] = ["ip", "nft", "mke2fs"];

/// A directory of images with one in it, whose files are links to those of the real one.
struct Images {
    dir: TempDir,
    real: PathBuf,
}

impl Images {
    fn new() -> Result<Self> {
        let cache = std::env::var_os("HOLDFAST_CACHE_DIR").context("HOLDFAST_CACHE_DIR")?;
        let current = Path::new(&cache).join("images/current");
        let real = current.canonicalize().with_context(|| current.display().to_string())?;
        let dir = tempfile::Builder::new().prefix("holdfast-images-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir, real })
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("images").join(self.real.file_name().unwrap_or_default())
    }

    /// Makes it as the real one is.
    fn restore(&self) -> Result<()> {
        let image = self.image();
        if image.exists() {
            fs::remove_dir_all(&image)?;
        }
        fs::create_dir_all(&image)?;
        for name in ["manifest.json", "vmlinux", "initramfs.img", "rootfs.img"] {
            symlink(self.real.join(name), image.join(name))?;
        }
        let current = self.dir.path().join("images/current");
        if !current.is_symlink() {
            symlink(self.real.file_name().unwrap_or_default(), current)?;
        }
        Ok(())
    }

    /// Makes it as the real one is but for one file.
    fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        self.restore()?;
        let file = self.image().join(name);
        fs::remove_file(&file)?;
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).map_err(Into::into)
    }

    fn options(&self) -> Options {
        Options {
            config: "[vm]\nwarm = false".to_owned(),
            env: vec![(
                "HOLDFAST_CACHE_DIR".to_owned(),
                self.dir.path().to_string_lossy().into_owned(),
            )],
            ..Options::default()
        }
    }
}

/// One check of readiness is red, with this text in it.
async fn is_red(api: &Api, check: &str, text: &str) -> Result<()> {
    wait::until(&format!("{check} is red with {text:?}"), SOON, async || {
        let answer = api.get("/readyz").await?;
        let readiness: holdfast_api::Readiness = answer.json(503)?;
        let red = readiness.checks.iter().find(|found| found.name == check && !found.ok);
        Ok(red.filter(|found| found.detail.contains(text)).map(drop))
    })
    .await
    .with_context(|| "see /readyz")
}

/// Waits until a session has failed for a reason with this text in it, which its timeline holds too.
async fn fails(api: &Api, session: &Session, text: &str) -> Result<String> {
    let id = session.id;
    let failed = wait::until(&format!("session {id} has failed"), BOOT, async || {
        let now = api.session(id).await?;
        ensure!(now.state != "ready", "it is ready");
        Ok((now.state == "failed").then_some(now))
    })
    .await;
    let failed = api.explained(id, failed).await?;
    let why = failed.detail.unwrap_or_default();
    ensure!(why.contains(text), "{why:?} does not say {text:?}");
    reads_well(&why)?;
    let told = api.events(id).await?.into_iter().any(|event| event.why == why);
    ensure!(told, "not told: {}", api.timeline(id).await);
    Ok(why)
}

/// A sentence for people: no value as a program prints it for programmers.
fn reads_well(text: &str) -> Result<()> {
    let odd = ["{ ", "Some(", "Err(", "panicked", "\n", "\\n", "::"];
    let odd = odd.iter().find(|odd| text.contains(**odd));
    ensure!(odd.is_none() && text.ends_with('.'), "{odd:?} in {text:?}");
    Ok(())
}

/// Nothing of it is on the machine although it has not ended, and it ends.
async fn leaves_nothing(server: &mut ServerProcess, api: &Api, session: &Session) -> Result<()> {
    server.scope.remember(session.id);
    server.scope.remember(session.vm_id.context("a VM")?);
    server.clean().await?;
    api.end(session.id).await?;
    let problem = api.gone(session.id, SOON).await?;
    ensure!(problem.reason.as_deref() == Some("user_request"), "{problem:?}");
    Ok(())
}

/// Without a VMM the server answers, and says what to install; so does every session.
#[tokio::test(flavor = "multi_thread")]
async fn without_qemu() -> Result<()> {
    let programs = tempfile::Builder::new().prefix("holdfast-path-").tempdir()?;
    for tool in TOOLS {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output()?;
        let found = String::from_utf8(found.stdout)?;
        symlink(found.trim(), programs.path().join(tool))?;
    }
    let path = programs.path().to_string_lossy().into_owned();
    let config = "[vm]\nwarm = false".to_owned();
    let options = Options { config, env: vec![("PATH".to_owned(), path)], ..Options::default() };
    let mut server = ServerProcess::start_unready(options).await?;
    let api = server.api()?;
    is_red(&api, "driver", "qemu-system-x86_64 is not installed").await?;
    is_red(&api, "driver", "apt-get install qemu-system-x86").await?;
    let session = api.create(&fixture::named("no VMM")).await?;
    let why = fails(&api, &session, "qemu-system-x86_64 is not installed").await?;
    ensure!(why.contains("apt-get install qemu-system-x86"), "{why}");
    // Trying again would change nothing.
    let events = api.events(session.id).await?;
    ensure!(!events.iter().any(|event| event.kind == "step.retry"), "it was tried again");
    leaves_nothing(&mut server, &api, &session).await?;
    server.finish().await
}

/// An image that is missing, of another version, or damaged is refused before a session is made; put right,
/// it is used without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_whole_image() -> Result<()> {
    let images = Images::new()?;
    let mut server = ServerProcess::start_unready(images.options()).await?;
    let api = server.api()?;
    let refused = async |why: &str| {
        is_red(&api, "image", why).await?;
        let answer = api.post("/api/sessions", &fixture::named("no image")).await?;
        let problem: holdfast_api::Problem = answer.json(503)?;
        ensure!(problem.error.contains(why), "{problem:?}");
        ensure!(problem.error.contains("`holdfast image build`"), "{problem:?}");
        reads_well(&problem.error).with_context(|| why.to_owned())
    };
    refused("there is none in").await?;
    images.replace("rootfs.img", &[0; 4096])?;
    refused("it is damaged: rootfs.img has 4096 bytes instead of").await?;
    images.replace("vmlinux", b"")?;
    refused("it is damaged: vmlinux has 0 bytes instead of").await?;
    images.restore()?;
    fs::remove_file(images.image().join("initramfs.img"))?;
    refused("it is damaged: initramfs.img: No such file").await?;
    let manifest = fs::read_to_string(images.real.join("manifest.json"))?;
    let newer = manifest.replacen("\"format\": ", "\"format\": 9", 1);
    images.replace("manifest.json", newer.as_bytes())?;
    refused("it was built by another version of Holdfast").await?;
    images.replace("manifest.json", &manifest.as_bytes()[..manifest.len() / 2])?;
    refused("its manifest.json cannot be understood").await?;
    let sessions: holdfast_api::SessionList = api.get("/api/sessions").await?.json(200)?;
    ensure!(sessions.sessions.is_empty(), "{sessions:?}");

    images.restore()?;
    server.ready().await?;
    let session = api.create(&fixture::named("a whole image")).await?;
    wait::until("its machine is being made", SOON, async || {
        let events = api.events(session.id).await?;
        Ok(events.iter().any(|event| event.kind == "step.disk").then_some(()))
    })
    .await?;
    api.end(session.id).await?;
    api.gone(session.id, SOON).await?;
    server.finish().await
}

/// A guest that panics, a VMM that is killed while it boots, and a disk that is full, beside a session in use.
#[tokio::test(flavor = "multi_thread")]
async fn starts_that_fail_beside_a_session_in_use() -> Result<()> {
    let images = Images::new()?;
    images.restore()?;
    let mut server = ServerProcess::start_on_disk(images.options(), 256).await?;
    let api = server.api()?;
    a_nearly_full_disk(&server, &api).await.context("a nearly full disk")?;
    let other = fixture::ready(&api, "in use").await?;
    let boot = fixture::boot_id(&api, other.id).await?;
    let goes_on = async || {
        let now = fixture::boot_id(&api, other.id).await?;
        ensure!(now == boot, "it was booted again: {}", api.timeline(other.id).await);
        Ok(())
    };

    a_kernel_that_panics(&api, &images).await.context("a kernel that panics")?;
    goes_on().await?;
    a_vmm_killed_while_booting(&mut server, &api).await.context("a VMM killed while booting")?;
    goes_on().await?;
    a_full_disk(&server, &api, &other).await.context("a full disk")?;
    goes_on().await?;
    a_disk_filled_in_use(&server, &api, &other).await.context("a disk filled in use")?;
    goes_on().await?;
    server.finish().await
}

/// Three attempts, each with what the guest's kernel said; then nothing of them is left.
async fn a_kernel_that_panics(api: &Api, images: &Images) -> Result<()> {
    // As long as the real one, so that only the guest finds out.
    let length = fs::metadata(images.real.join("initramfs.img"))?.len();
    images.replace("initramfs.img", &vec![0; usize::try_from(length)?])?;
    let session = api.create(&fixture::named("panic")).await?;
    let why = fails(api, &session, "kernel panic: ").await?;
    ensure!(why.starts_with("The machine could not be started: "), "{why}");
    let events = api.events(session.id).await?;
    let retries = events.iter().filter(|event| event.kind == "step.retry").count();
    ensure!(retries == 2, "{retries} attempts were repeated");
    let console = events.iter().find(|event| event.kind == "vm.console");
    ensure!(console.is_some_and(|event| event.why.contains("Kernel panic")), "no console is kept");
    images.restore()?;
    goes(api, &session).await
}

/// It is started again, and its user gets a desktop.
async fn a_vmm_killed_while_booting(server: &mut ServerProcess, api: &Api) -> Result<()> {
    let session = api.create(&fixture::named("killed")).await?;
    let vm = session.vm_id.context("a VM")?;
    let own = server.pid();
    let vmm = wait::until("the VMM runs", SOON, async || {
        let found = server.scope.take(own).into_iter().find_map(|found| match found {
            holdfast_testkit::census::Found::Process(pid, command)
                if command.contains("qemu-system") && command.contains(&vm.to_string()) =>
            {
                rustix::process::Pid::from_raw(pid)
            }
            _ => None,
        });
        Ok(found)
    })
    .await?;
    kill_process(vmm, Signal::KILL)?;
    api.ready(session.id, BOOT).await?;
    let events = api.events(session.id).await?;
    let retry =
        events.iter().find(|event| event.kind == "step.retry").context("no retry is told")?;
    ensure!(retry.why.contains("the VMM ended (signal: 9"), "{}", retry.why);
    ensure!(api.vm(session.id).await?.vm_id == vm, "another VM took its place");
    goes(api, &session).await
}

/// A session that finds no room on the disk fails and gives back what it took; it can be ended all the same.
async fn a_full_disk(server: &ServerProcess, api: &Api, in_use: &Session) -> Result<()> {
    let full = Filler::fill(server)?;
    let session = api.create(&fixture::named("full")).await?;
    fails(api, &session, "no space is left for making the di").await?;
    goes(api, &session).await?;
    drop(full);
    // It stood still if it wrote meanwhile, which a probe finds.
    wait::until("the machine in use answers", SOON, async || {
        Ok(fixture::boot_id(api, in_use.id).await.ok())
    })
    .await
    .map(drop)
}

/// In the middle: the disk's own file is begun and finds no end. A machine in use would take the rest before.
async fn a_nearly_full_disk(server: &ServerProcess, api: &Api) -> Result<()> {
    let full = Filler::leave(server, 1 << 20)?;
    let session = api.create(&fixture::named("nearly full")).await?;
    let why = fails(api, &session, "no space is left for making the disk ").await?;
    ensure!(!why.contains("mke2fs"), "{why}");
    goes(api, &session).await?;
    drop(full);
    Ok(())
}

/// What a guest writes finds no room: it stands still and loses nothing, and goes on when there is some.
async fn a_disk_filled_in_use(server: &ServerProcess, api: &Api, session: &Session) -> Result<()> {
    let full = Filler::fill(server)?;
    let write = "setsid sh -c 'dd if=/dev/urandom of=/root/big bs=1M count=40; sync; echo done >/root/written' \
                 >/dev/null 2>&1 </dev/null &";
    // Its browser writes too: the machine may stand still before it can answer this.
    let asked = fixture::root_script(api, session.id, write).await;
    let degraded = wait::until("it stands still", BOOT, async || {
        let now = api.session(session.id).await?;
        Ok((now.state == "degraded").then_some(now))
    })
    .await?;
    let why = degraded.detail.unwrap_or_default();
    ensure!(why.contains("stands still because no space is left on the host"), "{why}");
    drop(full);
    api.ready(session.id, SOON).await?;
    if asked.is_err() {
        fixture::root_script(api, session.id, write).await?;
    }
    wait::until("everything is written", SOON, async || {
        let read = api.exec_as(session.id, &["cat", "/root/written"], true).await?;
        Ok((read.stdout.trim() == "done").then_some(()))
    })
    .await
}

/// It ends, although whatever made it fail is still so.
async fn goes(api: &Api, session: &Session) -> Result<()> {
    api.end(session.id).await?;
    api.gone(session.id, SOON).await.map(drop)
}

/// Takes the space of a server's disk; gives it back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn fill(server: &ServerProcess) -> Result<Self> {
        Self::leave(server, 0)
    }

    /// Leaves this many bytes.
    fn leave(server: &ServerProcess, bytes: u64) -> Result<Self> {
        let filler = Self(server.state_dir().with_file_name("fill"));
        let file = fs::File::create(&filler.0)?;
        loop {
            let disk = rustix::fs::fstatvfs(&file)?;
            let take = (disk.f_bfree * disk.f_frsize).saturating_sub(bytes);
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take) {
                // A guest took some of it meanwhile.
                Err(rustix::io::Errno::NOSPC) => file.set_len(0)?,
                taken => break taken?,
            }
        }
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}
