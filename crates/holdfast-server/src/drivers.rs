//! Which driver runs the VMs: the best one that proves itself by booting something.
//!
//! A device file or a program on the disk proves nothing, so the choice is made by probing. A
//! verdict holds until the machine is booted again, another version of the server asks, or what the
//! driver says its verdict depends on (VMM, kernel, image) is another.

use std::{collections::BTreeMap, collections::BTreeSet, fs, sync::Arc};

use holdfast_control::ImageSource as _;
use holdfast_host::{
    driver::{Driver, Probe},
    drivers::{firecracker::FirecrackerDriver, qemu::QemuDriver, sim::SimDriver},
    host::HostConfig,
    net::Range,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Config, ImageLibrary, ServerError, config::DriverChoice, state_dir::StateDir,
    wiring::VerdictWatch,
};

/// Drivers that `auto` tries, best first.
const BEST_FIRST: [&str; 2] = ["firecracker", "qemu"];
/// Environment variable: every how many changes of a simulated machine one fails.
const SIM_FAULTS: &str = "HOLDFAST_SIM_FAULT_EVERY";
/// Keeps verdicts between starts of the server.
const VERDICTS: &str = "probes.json";

/// What is known of the driver in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it proved itself; `None` while that is being found out.
    pub usable: Option<bool>,
    /// Why it was chosen, and the evidence.
    pub reason: String,
}

/// A verdict that needs no proof.
pub(crate) fn settled(reason: &str) -> VerdictWatch {
    watch::channel(Verdict { usable: Some(true), reason: reason.to_owned() }).1
}

/// Chooses the driver and puts it together. `in_use` names the drivers of VMs that run here
/// already: they need theirs, whatever would be best for new ones.
pub(crate) async fn choose(
    config: &Config,
    dir: &StateDir,
    in_use: &BTreeSet<String>,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(Arc<dyn Driver>, VerdictWatch), ServerError> {
    let asked = match config.driver {
        DriverChoice::Auto => None,
        DriverChoice::Qemu => Some("qemu"),
        DriverChoice::Firecracker => Some("firecracker"),
        DriverChoice::Sim => Some("sim"),
    };
    if let Some(other) = in_use.iter().find(|name| asked.is_some_and(|asked| asked != **name)) {
        return Err(ServerError::Config {
            key: "driver",
            why: format!(
                "sessions on this host run on the {other} driver; start with driver = \"{other}\" and end them first"
            ),
        });
    }
    if let Some(name) = asked {
        let driver = open_driver(config, name)?;
        let reason = "the configuration asks for it".to_owned();
        return Ok((Arc::clone(&driver), probe_beside(driver, reason, dir).await));
    }
    if let Some(name) = in_use.first() {
        let driver = open_driver(config, name)?;
        let reason = "VMs that run here already use it".to_owned();
        return Ok((Arc::clone(&driver), probe_beside(driver, reason, dir).await));
    }
    let mut passed_over = Vec::new();
    // What runs a small guest need not run the kernel of an image, and only the last can do without KVM.
    let has_image = ImageLibrary::new(&config.cache_dir).current().is_ok();
    let candidates = if has_image { &BEST_FIRST[..] } else { &BEST_FIRST[BEST_FIRST.len() - 1..] };
    for name in candidates.iter().copied() {
        let driver = match open_driver(config, name) {
            Ok(driver) => driver,
            Err(error) => {
                passed_over.push(format!("{name}: {}", crate::error::chain(&error)));
                continue;
            }
        };
        say(format!("{name} is being tried: something small is booted and watched"));
        let probe = probe(driver.as_ref(), dir).await;
        if probe.usable {
            let mut reason = describe(&probe);
            if !passed_over.is_empty() {
                reason.push_str(". Passed over: ");
                reason.push_str(&passed_over.join("; "));
            }
            tracing::info!(driver = name, reason, "driver chosen");
            return Ok((driver, watch::channel(Verdict { usable: Some(true), reason }).1));
        }
        passed_over.push(format!("{name}: {}", describe(&probe)));
    }
    Err(ServerError::NoDriver(passed_over.join("; ")))
}

/// Puts a driver together by its name. Nothing is booted by that.
pub fn open_driver(config: &Config, name: &str) -> Result<Arc<dyn Driver>, ServerError> {
    match name {
        "firecracker" => {
            let probe_image = ImageLibrary::new(&config.cache_dir).current().ok();
            let host = HostConfig { probe_image, ..host_config(config)? };
            Ok(Arc::new(FirecrackerDriver::open(host, config.firecracker())?))
        }
        "qemu" => Ok(Arc::new(QemuDriver::open(host_config(config)?)?)),
        "sim" => {
            let driver = SimDriver::open(config.state_dir.join("sim"))?;
            driver.faults().inject_every(sim_faults()?);
            Ok(Arc::new(driver))
        }
        _ => Err(ServerError::UnknownDriver(name.to_owned())),
    }
}

/// How often simulated machines fail: every so many changes, never when 0. For trying what a client does
/// about it.
fn sim_faults() -> Result<u64, ServerError> {
    match std::env::var(SIM_FAULTS) {
        Ok(text) => text
            .parse()
            .map_err(|_| ServerError::Config { key: SIM_FAULTS, why: "not a number".to_owned() }),
        Err(_) => Ok(0),
    }
}

/// Where and how VMs run on this host.
fn host_config(config: &Config) -> Result<HostConfig, ServerError> {
    let address_range = config
        .vm
        .address_range
        .parse::<Range>()
        .map_err(|error| ServerError::Config { key: "vm.address_range", why: error.to_string() })?;
    Ok(HostConfig {
        uid_base: config.vm.uid_base,
        address_range,
        ..HostConfig::new(&config.state_dir)
    })
}

/// Probes while the server works already: sessions that run do not wait for it.
async fn probe_beside(driver: Arc<dyn Driver>, chosen: String, dir: &StateDir) -> VerdictWatch {
    let key = driver.probe_key().await;
    if let Some(probe) = Verdicts::load(dir).usable(driver.name(), &key) {
        return settled(&format!("{chosen}; {}", describe(probe)));
    }
    let first = Verdict { usable: None, reason: format!("{chosen}; it is being tried") };
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let probe = driver.probe().await;
        if !probe.usable {
            tracing::error!(
                driver = driver.name(),
                evidence = describe(&probe),
                "the driver does not work"
            );
        }
        let reason = format!("{chosen}; {}", describe(&probe));
        sender.send_replace(Verdict { usable: Some(probe.usable), reason });
    });
    receiver
}

async fn probe(driver: &dyn Driver, dir: &StateDir) -> Probe {
    Verdicts::load(dir).or_anew(driver, dir).await
}

fn describe(probe: &Probe) -> String {
    let mut text = probe.evidence.trim_end_matches('.').to_owned();
    if let Some(version) = &probe.version
        && !text.contains(version.as_str())
    {
        text = format!("{version}: {text}");
    }
    if let Some(remedy) = &probe.remedy {
        text.push_str(" (");
        text.push_str(remedy.trim_end_matches('.'));
        text.push(')');
    }
    text
}

/// Probes that found a driver usable. One that did not is repeated at the next start: what was
/// wrong may have been put right.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verdicts {
    boot_id: String,
    version: String,
    probes: BTreeMap<String, Kept>,
}

/// A verdict, and what it depends on.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    probe: Probe,
}

impl Verdicts {
    fn load(dir: &StateDir) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let kept: Option<Self> =
            dir.read(VERDICTS).ok().flatten().and_then(|text| serde_json::from_str(&text).ok());
        match kept {
            Some(kept) if kept.boot_id == boot_id && kept.version == version => kept,
            _ => Self { boot_id, version, probes: BTreeMap::new() },
        }
    }

    fn usable(&self, name: &str, key: &str) -> Option<&Probe> {
        let kept = self.probes.get(name)?;
        (kept.key == key && kept.probe.usable).then_some(&kept.probe)
    }

    /// The verdict that is kept, or a new one.
    async fn or_anew(&mut self, driver: &dyn Driver, dir: &StateDir) -> Probe {
        let (name, key) = (driver.name(), driver.probe_key().await);
        if let Some(probe) = self.usable(name, &key) {
            return probe.clone();
        }
        let probe = driver.probe().await;
        if probe.usable {
            self.probes.insert(name.to_owned(), Kept { key, probe: probe.clone() });
            self.save(dir);
        }
        probe
    }

    fn save(&self, dir: &StateDir) {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        if let Err(error) = dir.write(VERDICTS, &text) {
            tracing::warn!(error = crate::error::chain(&error), "verdicts could not be kept");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::FirecrackerSettings;

    fn config(dir: &Path, driver: DriverChoice) -> Config {
        Config {
            state_dir: dir.join("state"),
            cache_dir: dir.join("cache"),
            driver,
            ..Config::default()
        }
    }

    async fn chosen(config: &Config) -> (Arc<dyn Driver>, Verdict) {
        let dir = StateDir::lock(&config.state_dir).unwrap();
        let (driver, mut watch) =
            choose(config, &dir, &BTreeSet::new(), &mut |_| {}).await.unwrap();
        let settled = watch.wait_for(|verdict| verdict.usable.is_some()).await.unwrap().clone();
        (driver, settled)
    }

    #[tokio::test]
    async fn a_good_verdict_is_kept_until_what_it_depends_on_is_another() {
        let home = tempfile::tempdir().unwrap();
        let config = config(home.path(), DriverChoice::Sim);
        let driver = open_driver(&config, "sim").unwrap();
        let dir = StateDir::lock(&config.state_dir).unwrap();
        let probe = probe(driver.as_ref(), &dir).await;
        assert!(probe.usable);
        let kept: serde_json::Value =
            serde_json::from_str(&dir.read(VERDICTS).unwrap().unwrap()).unwrap();
        let evidence =
            |text: &serde_json::Value| text["probes"]["sim"]["probe"]["evidence"].clone();
        assert_eq!(evidence(&kept), probe.evidence);

        // What is answered, once this is what was kept.
        let answered = async |change: &dyn Fn(&mut serde_json::Value)| {
            let mut kept = kept.clone();
            kept["probes"]["sim"]["probe"]["evidence"] = "kept".into();
            change(&mut kept);
            dir.write(VERDICTS, &kept.to_string()).unwrap();
            super::probe(driver.as_ref(), &dir).await.evidence
        };
        assert_eq!(answered(&|_| {}).await, "kept");
        let of_others: [&dyn Fn(&mut serde_json::Value); 5] = [
            &|kept| kept["bootId"] = "another boot".into(),
            &|kept| kept["version"] = "another server".into(),
            &|kept| kept["probes"]["sim"]["key"] = "another kernel, VMM or image".into(),
            &|kept| kept["probes"]["sim"]["probe"]["usable"] = false.into(),
            &|kept| *kept = "nothing that can be understood".into(),
        ];
        for change in of_others {
            assert_eq!(answered(change).await, probe.evidence);
        }
    }

    #[tokio::test]
    async fn what_was_asked_for_and_cannot_run_is_said_with_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let nowhere = home.path().join("nowhere");
        let settings = FirecrackerSettings {
            program: nowhere.clone(),
            jailer: nowhere.clone(),
            ..FirecrackerSettings::default()
        };
        let config =
            Config { firecracker: settings, ..config(home.path(), DriverChoice::Firecracker) };
        let (driver, verdict) = chosen(&config).await;
        assert_eq!((driver.name(), verdict.usable), ("firecracker", Some(false)));
        let said = verdict.reason;
        for part in ["the configuration asks for it", &nowhere.display().to_string(), "curl -fsSL"]
        {
            assert!(said.contains(part), "`{part}` is missing: {said}");
        }
        // It is tried again at the next start: what was wrong may have been put right.
        let dir = StateDir::lock(&config.state_dir).unwrap();
        assert_eq!(dir.read(VERDICTS).unwrap(), None);
    }

    #[tokio::test]
    async fn vms_that_run_keep_their_driver() {
        let home = tempfile::tempdir().unwrap();
        let config = config(home.path(), DriverChoice::Sim);
        let dir = StateDir::lock(&config.state_dir).unwrap();
        let in_use = BTreeSet::from(["qemu".to_owned()]);
        let refused = choose(&config, &dir, &in_use, &mut |_| {}).await.err().unwrap();
        assert!(refused.to_string().contains("driver = \"qemu\""), "{refused}");
    }
}
