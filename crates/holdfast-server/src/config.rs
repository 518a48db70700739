//! Configuration of a server, as read from `holdfast.toml`. Every key has a default.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use holdfast_control::ControlConfig;
use holdfast_core::provider::{self, Catalog};
use holdfast_host::{driver::EgressPolicy, drivers::firecracker::FirecrackerConfig};
use serde::{Deserialize, Serialize};

use crate::{ServerError, webhook::WebhookConfig};

/// Name of [`Config::address_file`].
pub(crate) const ADDRESS_FILE: &str = "address";

/// Longer than anything sensible, and short enough for every calculation with times.
const LONGEST: Duration = Duration::from_hours(24 * 3650);

/// Configuration of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address to listen on. Loopback unless told otherwise.
    pub listen: SocketAddr,
    /// `sqlite:` or `postgres:` URL; a SQLite file in the state directory when empty.
    pub store: String,
    /// Where VMs live.
    pub state_dir: PathBuf,
    /// Where images live.
    pub cache_dir: PathBuf,
    /// `auto` (chosen by booting something), `qemu`, `firecracker` or `sim`.
    pub driver: DriverChoice,
    /// Host names, besides `localhost` and IP addresses, under which the server may be reached.
    pub allowed_hosts: Vec<String>,
    /// Name servers given to guests; empty leaves the image's own (8.8.8.8 and 8.8.4.4).
    pub dns: Vec<IpAddr>,
    /// Lifetimes.
    pub session: SessionConfig,
    /// Sizes and numbers of VMs.
    pub vm: VmConfig,
    /// What guests may reach.
    pub egress: EgressConfig,
    /// The Firecracker driver.
    pub firecracker: FirecrackerSettings,
    /// A directory of providers (`*.toml`) besides those that ship; not read when empty.
    pub providers_dir: PathBuf,
    /// Where webhooks may go.
    pub webhooks: WebhookConfig,
}

/// Which driver runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverChoice {
    /// The best one that proves itself by booting something.
    Auto,
    /// QEMU, with KVM where that proves itself.
    Qemu,
    /// Firecracker.
    Firecracker,
    /// Simulated: no VM runs; for trying the API and for tests.
    Sim,
}

/// What happens to a session that nobody returned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnIdle {
    /// It ends.
    End,
    /// It is put away, and comes back when its page is opened again.
    Hibernate,
}

/// Lifetimes of sessions. Durations are written like `90s`, `30m`, `12h`, `7days`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// How long a heartbeat protects.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long after its lease an unattended session is kept.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Age at which a session ends in any case.
    #[serde(with = "humantime_serde")]
    pub max_lifetime: Duration,
    /// How long a session may be used by nobody although its page is open; `0s`: for ever.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// How long before a limit strikes the timeline says so.
    #[serde(with = "humantime_serde")]
    pub warn: Duration,
    /// How long an ended session answers 410 with its reason.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// What happens to a session that nobody returned to: `end`, or `hibernate`.
    pub on_idle: OnIdle,
    /// How long a hibernated session is kept.
    #[serde(with = "humantime_serde")]
    pub keep_hibernated: Duration,
    /// Time between checkpoints of a session in use, from which it is brought back when its machine
    /// dies; `0s` takes none.
    #[serde(with = "humantime_serde")]
    pub checkpoint_interval: Duration,
    /// How long sealed credentials that nobody fetches are kept.
    #[serde(with = "humantime_serde")]
    pub keep_credentials: Duration,
    /// Deadline from switching a VM on until its desktop can be used.
    #[serde(with = "humantime_serde")]
    pub boot_deadline: Duration,
}

/// Sizes and numbers of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// Memory of a VM that did not ask, in MiB.
    pub memory_mib: u32,
    /// Largest memory of a VM, in MiB.
    pub max_memory_mib: u32,
    /// Processors of a VM that did not ask.
    pub vcpus: u8,
    /// Most processors of a VM.
    pub max_vcpus: u8,
    /// Largest size of a VM's disk in MiB; it takes only what is written.
    pub disk_mib: u32,
    /// VMs at once; 0 means what memory allows.
    pub max_vms: usize,
    /// Memory for all VMs together in MiB, by their sizes; 0 means three quarters of the host's.
    pub memory_budget_mib: u64,
    /// Memory of the host in MiB that is left when a VM starts, whatever uses the rest; 0 means a
    /// sixteenth of it, at most 1024.
    pub memory_reserve_mib: u64,
    /// VMs that boot at once; 0 means one more than there are processors.
    pub max_starting: usize,
    /// Sessions that wait for room or for their start; one more is refused.
    pub max_waiting: usize,
    /// New sessions are cloned from a VM that was booted before, where the driver can. What is
    /// missing for that is made in the background.
    pub warm: bool,
    /// Each clone gets a browser of its own instead of the warm image's, which is told that its memory
    /// is a copy. Costs seconds and memory.
    pub fresh_browser: bool,
    /// Machines kept ready for the next sessions, at least. They take memory.
    pub pool_min: usize,
    /// Machines kept ready at most: as many as sessions were asked for in the last minutes.
    pub pool_max: usize,
    /// First of the user ids that VMMs run under; each VM gets one of its own.
    pub uid_base: u32,
    /// Network that host-side addresses of VMs are taken from.
    pub address_range: String,
}

/// The Firecracker driver; see docs/firecracker.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirecrackerSettings {
    /// Firecracker itself; that of PATH, else the one in `<cache_dir>/firecracker`, when empty.
    pub program: PathBuf,
    /// The jailer of the same release; found like the program when empty.
    pub jailer: PathBuf,
    /// Bytes per second that a guest reads from and writes to each of its disks; 0 is no limit.
    pub disk_bytes_per_second: u64,
    /// Bytes per second that a guest sends, and that it receives; 0 is no limit.
    pub network_bytes_per_second: u64,
    /// Of a guest's memory, a checkpoint makes Firecracker write only what changed. Remembering that slows
    /// the guest down.
    pub diff_snapshots: bool,
}

/// What guests may reach; see docs/configuration.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressConfig {
    /// Public addresses.
    pub internet: bool,
    /// TCP ports of services on this host, reached as `host.holdfast.internal`.
    pub host_ports: Vec<u16>,
    /// Private networks, as CIDR.
    pub private_networks: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            store: String::new(),
            state_dir: default_state_dir(),
            cache_dir: default_cache_dir(),
            driver: DriverChoice::Auto,
            allowed_hosts: Vec::new(),
            dns: Vec::new(),
            session: SessionConfig::default(),
            vm: VmConfig::default(),
            egress: EgressConfig::default(),
            firecracker: FirecrackerSettings::default(),
            providers_dir: PathBuf::new(),
            webhooks: WebhookConfig::default(),
        }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        let control = ControlConfig::default();
        Self {
            lease: control.lease,
            grace: control.grace,
            max_lifetime: control.max_lifetime,
            idle: control.idle,
            warn: control.warn,
            retention: control.retention,
            on_idle: OnIdle::End,
            keep_hibernated: control.keep_hibernated,
            checkpoint_interval: control.checkpoint_interval,
            keep_credentials: control.keep_credentials,
            boot_deadline: control.boot_deadline,
        }
    }
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            memory_mib: 2048,
            max_memory_mib: 8192,
            vcpus: 2,
            max_vcpus: 4,
            disk_mib: 8192,
            max_vms: 0,
            memory_budget_mib: 0,
            memory_reserve_mib: 0,
            max_starting: 0,
            max_waiting: 100,
            warm: true,
            fresh_browser: false,
            pool_min: 0,
            pool_max: 0,
            uid_base: 200_000,
            address_range: "10.213.0.0/16".to_owned(),
        }
    }
}

impl Default for EgressConfig {
    fn default() -> Self {
        let policy = EgressPolicy::default();
        Self {
            internet: policy.internet,
            host_ports: policy.host_ports,
            private_networks: policy.private_networks,
        }
    }
}

impl Config {
    /// The store's URL, with the default filled in.
    pub fn store_url(&self) -> String {
        if self.store.is_empty() {
            format!("sqlite:{}", self.state_dir.join("holdfast.db").display())
        } else {
            self.store.clone()
        }
    }

    /// The file that holds the administrator's access token.
    pub fn token_file(&self) -> PathBuf {
        self.state_dir.join(crate::auth::ADMIN_TOKEN_FILE)
    }

    /// The file that tells commands on this machine where the running server listens.
    pub fn address_file(&self) -> PathBuf {
        self.state_dir.join(ADDRESS_FILE)
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Reads a configuration from TOML.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// What the Firecracker driver is told.
    pub(crate) fn firecracker(&self) -> FirecrackerConfig {
        let (given, found) = (&self.firecracker, FirecrackerConfig::find(&self.cache_dir));
        let or = |given: &PathBuf, found: PathBuf| {
            if given.as_os_str().is_empty() { found } else { given.clone() }
        };
        let limit = |bytes: u64| (bytes > 0).then_some(bytes);
        FirecrackerConfig {
            firecracker: or(&given.program, found.firecracker),
            jailer: or(&given.jailer, found.jailer),
            download_dir: found.download_dir,
            disk_bytes_per_second: limit(given.disk_bytes_per_second),
            network_bytes_per_second: limit(given.network_bytes_per_second),
            diff_snapshots: given.diff_snapshots,
        }
    }

    /// The providers that ship, and those of the configured directory.
    pub fn providers(&self) -> Result<Catalog, ServerError> {
        let refuse = |why: String| ServerError::Config { key: "providers_dir", why };
        let mut catalog = Catalog::shipped().map_err(|error| refuse(error.to_string()))?;
        if self.providers_dir.as_os_str().is_empty() {
            return Ok(catalog);
        }
        let dir = self.providers_dir.display();
        let entries = std::fs::read_dir(&self.providers_dir)
            .map_err(|error| refuse(format!("{dir}: {error}")))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
        files.sort();
        for path in files {
            let named = |why: &dyn std::fmt::Display| refuse(format!("{}: {why}", path.display()));
            let text = std::fs::read_to_string(&path).map_err(|error| named(&error))?;
            catalog.add(provider::parse(&text).map_err(|error| named(&error))?);
        }
        Ok(catalog)
    }

    /// Refuses values that cannot work, before anything is touched.
    pub fn check(&self) -> Result<(), ServerError> {
        let refuse = |key, why: &str| Err(ServerError::Config { key, why: why.to_owned() });
        let (session, vm) = (&self.session, &self.vm);
        if session.lease < Duration::from_secs(15) {
            // Pages send a heartbeat every 10 s.
            return refuse("session.lease", "a lease has at least 15 seconds");
        }
        for (key, value) in [
            ("session.max_lifetime", session.max_lifetime),
            ("session.boot_deadline", session.boot_deadline),
        ] {
            if value < Duration::from_secs(1) {
                return refuse(key, "it has at least one second");
            }
        }
        if !session.idle.is_zero() && session.idle < Duration::from_mins(1) {
            return refuse("session.idle", "it is 0s, or at least one minute");
        }
        if [session.idle, session.lease, session.grace, session.max_lifetime, session.retention]
            .iter()
            .any(|value| *value > LONGEST)
        {
            return refuse("session", "no duration may be longer than ten years");
        }
        if !(256..=65_536).contains(&vm.memory_mib) {
            return refuse("vm.memory_mib", "memory is 256 to 65536 MiB");
        }
        if vm.max_memory_mib < vm.memory_mib || vm.max_memory_mib > 65_536 {
            return refuse("vm.max_memory_mib", "it is at least vm.memory_mib, and at most 65536");
        }
        if !(1..=32).contains(&vm.vcpus) {
            return refuse("vm.vcpus", "a VM has 1 to 32 processors");
        }
        if vm.max_vcpus < vm.vcpus || vm.max_vcpus > 32 {
            return refuse("vm.max_vcpus", "it is at least vm.vcpus, and at most 32");
        }
        if !(512..=1_048_576).contains(&vm.disk_mib) {
            return refuse("vm.disk_mib", "a disk has 512 to 1048576 MiB");
        }
        Ok(())
    }

    /// What control needs of it, for a host with these means.
    pub fn control(&self, cpus: usize, memory_mib: u64) -> ControlConfig {
        let budget = match self.vm.memory_budget_mib {
            0 => memory_mib * 3 / 4,
            given => given,
        };
        let reserve = match self.vm.memory_reserve_mib {
            0 => (memory_mib / 16).min(1024),
            given => given,
        };
        let max_vms = match self.vm.max_vms {
            // Clones of one image share most of their pages, so memory is not the only measure.
            0 => (budget / u64::from(self.vm.memory_mib.max(1))).max(1) as usize,
            given => given,
        };
        ControlConfig {
            lease: self.session.lease,
            grace: self.session.grace,
            max_lifetime: self.session.max_lifetime,
            idle: self.session.idle,
            warn: self.session.warn,
            retention: self.session.retention,
            boot_deadline: self.session.boot_deadline,
            keep_credentials: self.session.keep_credentials,
            on_idle: match self.session.on_idle {
                OnIdle::End => holdfast_control::OnIdle::End,
                OnIdle::Hibernate => holdfast_control::OnIdle::Hibernate,
            },
            keep_hibernated: self.session.keep_hibernated,
            checkpoint_interval: self.session.checkpoint_interval,
            snapshot_dir: self.state_dir.join("snapshots"),
            pool_min: self.vm.pool_min,
            pool_max: self.vm.pool_max,
            pool_memory_mib: self.vm.memory_mib,
            pool_vcpus: self.vm.vcpus,
            processors: cpus,
            max_vms,
            max_starting: if self.vm.max_starting == 0 { cpus + 1 } else { self.vm.max_starting },
            max_waiting: self.vm.max_waiting,
            memory_budget_mib: budget,
            memory_reserve_mib: reserve,
            disk_mib: self.vm.disk_mib,
            egress: EgressPolicy {
                internet: self.egress.internet,
                host_ports: self.egress.host_ports.clone(),
                private_networks: self.egress.private_networks.clone(),
            },
            dns: self.dns.clone(),
            fresh_browser: self.vm.fresh_browser,
            ..ControlConfig::default()
        }
    }
}

fn default_state_dir() -> PathBuf {
    if let Some(dir) = env_path("HOLDFAST_STATE_DIR") {
        return dir;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/holdfast");
    }
    env_path("XDG_STATE_HOME")
        .or_else(|| env_path("HOME").map(|dir| dir.join(".local/state")))
        .map_or_else(|| PathBuf::from("/var/lib/holdfast"), |dir| dir.join("holdfast"))
}

/// Where images and downloads are kept unless told otherwise.
pub fn default_cache_dir() -> PathBuf {
    cache_dir(env_path, rustix::process::geteuid().is_root())
}

/// Root's is the same with and without HOME, which services often lack.
fn cache_dir(env: impl Fn(&str) -> Option<PathBuf>, root: bool) -> PathBuf {
    let home = || env("HOME").or_else(|| root.then(|| PathBuf::from("/root")));
    env("HOLDFAST_CACHE_DIR")
        .or_else(|| env("XDG_CACHE_HOME").map(|dir| dir.join("holdfast")))
        .or_else(|| home().map(|dir| dir.join(".cache/holdfast")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/holdfast"))
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_s_cache_is_where_it_is_whether_a_service_or_a_shell_asks() {
        let of = |set: &[(&str, &str)], root| {
            let env = |name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            };
            cache_dir(env, root).display().to_string()
        };
        assert_eq!(of(&[], true), of(&[("HOME", "/root")], true));
        assert_eq!(of(&[("HOME", "/home/ada")], false), "/home/ada/.cache/holdfast");
        assert_eq!(of(&[], false), "/var/cache/holdfast");
        let all = [("HOLDFAST_CACHE_DIR", "/given"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/root")];
        assert_eq!(of(&all, true), "/given");
        assert_eq!(of(&all[1..], true), "/xdg/holdfast");
    }
}
