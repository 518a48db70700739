//! `holdfast doctor`: checks this machine, one thing after the other, and says what to do.

use std::{fmt, path::Path, process::ExitCode, time::Duration};

use holdfast_host::process;
use holdfast_server::{Config, DriverChoice};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{DoctorArgs, Global},
    connect, output, programs, settings,
};

/// Free space below which VMs or a build would soon fail, in bytes.
const STATE_SPACE: u64 = 10 << 30;
const CACHE_SPACE: u64 = 8 << 30;
/// Deadline of a driver's proof.
const PROBE_DEADLINE: Duration = Duration::from_mins(2);
/// Programs that running VMs needs, with the package of Debian that has them.
const TO_RUN: [(&str, &str); 3] =
    [("ip", "iproute2"), ("nft", "nftables"), ("mke2fs", "e2fsprogs")];
/// Programs that building the image needs.
const TO_BUILD: [(&str, &str); 5] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("zstd", "zstd"),
    ("npm", "npm"),
];

/// Where a server says what is wrong with it.
const LOG: &str = "its log tells more: `journalctl --unit=holdfast` where it is a service, else what \
                   `holdfast serve` printed";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// It works, with a remark.
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        write!(f, "{mark}  {:<12}  {}", self.name, self.detail)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\n                    -> {remedy}")?;
        }
        Ok(())
    }
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, detail: detail.into(), remedy: None }
}

fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, status: Status::Warn, detail: detail.into(), remedy: Some(remedy.into()) }
}

fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, status: Status::Fail, detail: detail.into(), remedy: Some(remedy.into()) }
}

/// Ctrl-C and SIGTERM end it in an orderly way: what is being booted would outlive it.
pub async fn run(global: &Global, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        checked = check(global, args) => checked,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

async fn check(global: &Global, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let (config, _) = settings::load(&args.config)?;
    let mut report = Report { print: !global.json, checks: Vec::new() };
    report.add(system());
    report.add(memory());
    for check in before_up(&config) {
        report.add(check);
    }
    if config.driver != DriverChoice::Sim {
        report.add(kvm());
        report.add(builder());
        report.add(image(&config));
        if args.quick {
            report.add(warn("driver", "not tried", "run `holdfast doctor` without --quick"));
        } else {
            drivers(&config, &mut report).await;
        }
    }
    report.add(store(&config).await);
    report.add(server(global).await);
    if let Some(check) = unit() {
        report.add(check);
    }
    let failed = report.checks.iter().filter(|check| check.status == Status::Fail).count();
    if global.json {
        output::json(&serde_json::json!({ "ok": failed == 0, "checks": report.checks }))?;
    } else if failed == 0 {
        println!("\nThis machine is ready.");
    } else {
        println!("\n{failed} of {} checks failed.", report.checks.len());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints each check when it is done: some take long.
struct Report {
    print: bool,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, check: Check) {
        if self.print {
            println!("{check}");
        }
        self.checks.push(check);
    }
}

/// What has to be right before a server can start here; quick.
pub fn before_up(config: &Config) -> Vec<Check> {
    let mut checks = vec![
        directory("state", &config.state_dir, STATE_SPACE),
        directory("cache", &config.cache_dir, CACHE_SPACE),
    ];
    if config.driver != DriverChoice::Sim {
        checks.push(rights());
        checks.push(needs("programs", &TO_RUN));
    }
    checks
}

fn system() -> Check {
    let name = rustix::system::uname();
    let detail = format!(
        "{} {} on {}",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    );
    if std::env::consts::ARCH == "x86_64" {
        ok("system", detail)
    } else {
        fail("system", detail, "use a machine with x86-64 processors: images are made for those")
    }
}

fn memory() -> Check {
    let info = rustix::system::sysinfo();
    // Both fields are as wide as a machine word, whose width differs between targets.
    #[allow(clippy::unnecessary_cast)]
    let bytes = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let detail = format!("{} in total", output::bytes(bytes));
    if bytes >= 3 << 30 {
        ok("memory", detail)
    } else {
        warn("memory", detail, "a desktop takes 2 GiB; give this machine more, or sessions less")
    }
}

/// Where systemd runs the server: whether stopping the service would end machines.
fn unit() -> Option<Check> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let shown = std::process::Command::new("systemctl")
        .args([
            "show",
            "holdfast.service",
            "--property=LoadState,KillMode,Delegate,StartLimitIntervalUSec",
        ])
        .output()
        .ok()?;
    judge_unit(&String::from_utf8_lossy(&shown.stdout))
}

fn judge_unit(properties: &str) -> Option<Check> {
    let value = |name: &str| {
        let mut pairs = properties.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    };
    if value("LoadState") != "loaded" {
        return None;
    }
    let set = |what: &str| format!("`systemctl edit holdfast.service`, and write {what} into it");
    Some(if value("KillMode") != "process" {
        let detail = format!(
            "KillMode={}: stopping the service can end machines with it",
            value("KillMode")
        );
        fail("unit", detail, set("[Service] KillMode=process"))
    } else if value("Delegate") == "yes" {
        let detail = "Delegate=yes: a restart fails with 219/CGROUP while machines are below it";
        fail("unit", detail, set("[Service] Delegate=no"))
    } else if !["", "0"].contains(&value("StartLimitIntervalUSec")) {
        let detail = "after some quick ends in a row systemd starts the service no more";
        warn("unit", detail, set("[Unit] StartLimitIntervalSec=0"))
    } else {
        ok("unit", "stopping or upgrading the service leaves machines running")
    })
}

fn rights() -> Check {
    if rustix::process::geteuid().is_root() {
        ok("rights", "run by root")
    } else {
        fail("rights", "not run by root", "use sudo: namespaces and virtual networks need it")
    }
}

fn kvm() -> Check {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match opened {
        Ok(_) => ok("kvm", "/dev/kvm opens; whether it works shows when something is booted"),
        Err(error) => warn(
            "kvm",
            format!("/dev/kvm: {error}"),
            "machines will run without hardware virtualisation, several times slower; \
             enable it in the firmware, or nested virtualisation on a virtual host",
        ),
    }
}

fn needs(name: &'static str, list: &[(&str, &str)]) -> Check {
    let missing: Vec<_> =
        list.iter().filter(|(program, _)| programs::find(program).is_none()).collect();
    if missing.is_empty() {
        let all: Vec<_> = list.iter().map(|(program, _)| *program).collect();
        return ok(name, format!("{} are installed", all.join(", ")));
    }
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    fail(
        name,
        format!("missing: {}", programs.join(", ")),
        format!("apt-get install {}", packages.join(" ")),
    )
}

/// Building is not needed where an image is there.
fn builder() -> Check {
    let mut check = needs("builder", &TO_BUILD);
    if check.status == Status::Fail {
        check.status = Status::Warn;
    }
    check
}

fn directory(name: &'static str, dir: &Path, space: u64) -> Check {
    let Some(there) = dir.ancestors().find(|dir| dir.exists()) else {
        return fail(
            name,
            format!("{} cannot be reached", dir.display()),
            "choose another directory",
        );
    };
    if rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        return fail(
            name,
            format!("{} cannot be written", there.display()),
            format!("use sudo, or choose another directory with --{name}-dir"),
        );
    }
    match rustix::fs::statvfs(there) {
        Err(error) => warn(name, format!("{}: {error}", there.display()), "check the file system"),
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let detail = format!("{}, {} free", dir.display(), output::bytes(free));
            if free >= space {
                ok(name, detail)
            } else {
                let remedy = format!(
                    "free {} or choose another directory with --{name}-dir",
                    output::bytes(space - free)
                );
                warn(name, detail, remedy)
            }
        }
    }
}

fn image(config: &Config) -> Check {
    let library = holdfast_image::Library::new(&config.cache_dir);
    let current = library.current().map(|digest| (library.path(&digest), library.inspect(&digest)));
    let current = current.map(|(path, manifest)| match manifest {
        Ok(manifest) => holdfast_host::image::check(&path)
            .map(|()| manifest)
            .map_err(|why| format!("{} is of no use: {why}", path.display())),
        Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
    });
    match current {
        Some(Ok(manifest)) => ok(
            "image",
            format!(
                "{}, built {} ago",
                &manifest.digest[..manifest.digest.len().min(16)],
                output::ago(manifest.created_at)
            ),
        ),
        Some(Err(why)) => fail("image", why, "holdfast image build"),
        None => fail(
            "image",
            format!("there is none in {}", config.cache_dir.display()),
            "holdfast image build (takes some minutes, once)",
        ),
    }
}

/// Boots something with each driver. In a directory of its own, so that a server that runs is not
/// disturbed.
async fn drivers(config: &Config, report: &mut Report) {
    let names: &[&'static str] = match config.driver {
        DriverChoice::Firecracker => &["firecracker"],
        DriverChoice::Qemu => &["qemu"],
        DriverChoice::Auto | DriverChoice::Sim => &["firecracker", "qemu"],
    };
    // What a doctor that was killed left, wherever it worked.
    for base in [config.state_dir.clone(), std::env::temp_dir()] {
        process::end_trials(&base);
    }
    let one_is_enough = names.len() > 1;
    let steps = output::Steps::new("Trying to boot something");
    let mut found = Vec::new();
    for name in names {
        steps.now(&format!("Trying to boot something with {name}"));
        found.push(probe(config, name).await);
    }
    steps.finish();
    let any = found.iter().any(|check| check.status == Status::Ok);
    for mut check in found {
        if any && one_is_enough && check.status == Status::Fail {
            check.status = Status::Warn;
        }
        report.add(check);
    }
}

async fn probe(config: &Config, name: &'static str) -> Check {
    // Where machines run: another file system may forbid what theirs allows, such as devices.
    let base = Some(config.state_dir.clone()).filter(|dir| dir.is_dir());
    let base = base.unwrap_or_else(std::env::temp_dir);
    let dir = match process::trial_dir(&base) {
        Ok(dir) => dir,
        Err(error) => {
            let remedy = format!("make {} a directory that root can write to", base.display());
            return fail(name, format!("no directory to try it in: {error}"), remedy);
        }
    };
    let apart = Config { state_dir: dir.path().to_owned(), ..config.clone() };
    let driver = match holdfast_server::open_driver(&apart, name) {
        Ok(driver) => driver,
        Err(error) => {
            let remedy = format!("root has to be able to write to {} and /run", base.display());
            return fail(name, format!("{:#}", anyhow::Error::from(error)), remedy);
        }
    };
    match tokio::time::timeout(PROBE_DEADLINE, driver.probe()).await {
        Err(_) => {
            let detail = format!("there was no verdict within {} s", PROBE_DEADLINE.as_secs());
            fail(name, detail, "`dmesg` tells what holds a process or KVM up; then try again")
        }
        Ok(probe) => {
            let speed = if probe.accelerated { "with" } else { "without" };
            let version = probe
                .version
                .filter(|version| !probe.evidence.contains(version.as_str()))
                .map(|version| format!("{version}: "))
                .unwrap_or_default();
            let detail = format!("{version}{}", probe.evidence.trim_end_matches('.'));
            if probe.usable {
                ok(name, format!("{detail} ({speed} hardware virtualisation)"))
            } else {
                Check { name, status: Status::Fail, detail, remedy: probe.remedy }
            }
        }
    }
}

async fn store(config: &Config) -> Check {
    let url = config.store_url();
    if let Some(file) = url.strip_prefix("sqlite:")
        && !Path::new(file.split('?').next().unwrap_or(file)).exists()
    {
        return ok("store", "a new SQLite file is made at the first start");
    }
    let found = holdfast_store::check_url(&url).await;
    // The URL itself may hold a password and is not shown.
    let kind = url.split(':').next().unwrap_or_default();
    if found.ok {
        ok("store", format!("{kind}: {}", found.detail))
    } else {
        fail("store", format!("{kind}: {}", found.code), found.detail)
    }
}

async fn server(global: &Global) -> Check {
    let client = match connect::client(global) {
        Ok(client) => client,
        Err(error) => return warn("server", format!("{error:#}"), "see --url and HOLDFAST_URL"),
    };
    match client.readiness().await {
        Err(error) if error.is_temporary() => warn(
            "server",
            format!("none answers at {}", client.base()),
            "start one with `holdfast up`",
        ),
        Err(error) => fail("server", format!("{:#}", anyhow::Error::from(error)), LOG),
        Ok(readiness) if readiness.ready => ok("server", format!("ready at {}", client.base())),
        Ok(readiness) => {
            let missing = readiness.checks.iter().filter(|check| !check.ok);
            let missing: Vec<_> =
                missing.map(|check| format!("{}: {}", check.name, check.detail)).collect();
            fail("server", format!("not ready: {}", missing.join("; ")), LOG)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_would_end_machines_is_found() {
        let judge = |kill: &str, delegate: &str| {
            let text = format!("LoadState=loaded\nKillMode={kill}\nDelegate={delegate}\n");
            judge_unit(&text).map(|check| check.status)
        };
        assert_eq!(judge("process", "no"), Some(Status::Ok));
        assert_eq!(judge("control-group", "no"), Some(Status::Fail));
        assert_eq!(judge("mixed", "no"), Some(Status::Fail));
        assert_eq!(judge("process", "yes"), Some(Status::Fail));
        let absent = "LoadState=not-found\nKillMode=control-group\n";
        assert!(judge_unit(absent).is_none());
        let limited = "LoadState=loaded\nKillMode=process\nStartLimitIntervalUSec=10s\n";
        assert_eq!(judge_unit(limited).map(|check| check.status), Some(Status::Warn));
        let unlimited = limited.replace("10s", "0");
        assert_eq!(judge_unit(&unlimited).map(|check| check.status), Some(Status::Ok));
    }

    #[test]
    fn the_shipped_unit_keeps_machines_and_comes_back() {
        let shipped = include_str!("../../../packaging/holdfast.service");
        assert_eq!(
            judge_unit(&format!("LoadState=loaded\n{shipped}")).map(|c| c.status),
            Some(Status::Ok)
        );
        let of = |wanted: &str| {
            let sections = shipped.split("\n[").skip(1);
            sections
                .filter_map(|section| section.split_once("]\n"))
                .find_map(|(name, text)| (name == wanted).then(|| text.lines().collect::<Vec<_>>()))
                .unwrap_or_default()
        };
        // However often it is killed in a row.
        assert!(of("Unit").contains(&"StartLimitIntervalSec=0"));
        assert!(of("Service").contains(&"Restart=always"));
        // Where `holdfast image build` puts what it makes, when root runs it.
        assert!(of("Service").contains(&"Environment=HOME=/root"));
    }
}
