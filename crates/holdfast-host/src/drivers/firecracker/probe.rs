//! Whether Firecracker runs guests here: found out by booting, never by looking.
//!
//! The tiny guest has to print, and, where an image is known, that image's own kernel: a KVM that is
//! itself emulated does the first and not the second. The trial runs jailed, as a VM does.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::system::uname;

use super::{
    FirecrackerDriver,
    api::{BootSource, ConfigFile, MachineConfig},
    jail::{CONFIG, Jail, KERNEL, LOG, open_written},
};
use crate::{
    driver::{DriverError, ImageRef, Probe, Result},
    image::Image,
    process::{Limits, Mark, Trial, trial, trial_dir},
    tiny::{self, Then},
};

/// The tiny guest prints some tens of milliseconds after Firecracker started; a busy host takes longer.
const TINY_DEADLINE: Duration = Duration::from_secs(10);
/// A kernel with hardware virtualisation prints within a second.
const KERNEL_DEADLINE: Duration = Duration::from_secs(6);
const KERNEL_BANNER: &str = "Linux version";
/// Of Firecracker's log, this many bytes are shown when a trial failed.
const LOG_SHOWN: u64 = 2000;
const KVM: &str = "/dev/kvm";
/// There when the host's KVM runs guests without hardware virtualisation.
const SOFTWARE_KVM: &str = "/sys/module/kvm_pvm";
const USE_QEMU: &str =
    "use QEMU here (driver = \"auto\" or \"qemu\"), which translates where KVM is of no use";

impl FirecrackerDriver {
    pub(super) async fn probe_now(&self) -> Probe {
        let unusable = |version: Option<String>, evidence: String, remedy: String| Probe {
            usable: false,
            evidence,
            version,
            accelerated: false,
            remedy: Some(remedy),
        };
        let version = match self.version().await {
            Ok(version) => version,
            Err(DriverError::Missing { program, remedy }) => {
                return unusable(None, format!("{program} cannot be used."), remedy);
            }
            Err(error) => return unusable(None, format!("{error}."), self.config.remedy()),
        };
        if !Path::new(KVM).exists() {
            let evidence = format!("{version}: KVM is absent: there is no {KVM}.");
            return unusable(Some(version), evidence, USE_QEMU.to_owned());
        }
        match self.judge().await {
            Ok((true, why)) => Probe {
                usable: true,
                evidence: format!("{version}: {why}."),
                version: Some(version),
                accelerated: true,
                remedy: None,
            },
            Ok((false, why)) => {
                unusable(Some(version.clone()), format!("{version}: {why}."), USE_QEMU.to_owned())
            }
            Err(error) => {
                let evidence = format!("{version}: {}.", chain(&error));
                unusable(Some(version), evidence, USE_QEMU.to_owned())
            }
        }
    }

    /// What a verdict depends on besides the host's boot.
    pub(super) async fn key(&self) -> String {
        let version = self.version().await.unwrap_or_else(|error| error.to_string());
        let image = self.host.config().probe_image.as_ref();
        let image = image.map_or("none", |image| image.digest.as_str());
        let access = fs::metadata(KVM).map_or(0, |meta| meta.mode());
        let release = uname().release().to_string_lossy().into_owned();
        format!("{release}, {version}, kvm {access:o}, image {image}")
    }

    async fn judge(&self) -> Result<(bool, String)> {
        let tiny = self.tiny().await?;
        let tiny_says = tiny.says("the tiny guest");
        if !tiny.passed {
            return Ok((false, tiny_says));
        }
        let Some(image) = self.host.config().probe_image.clone() else {
            return Ok((true, format!("{tiny_says}; no image's kernel was tried")));
        };
        let full = self.kernel_of(&image).await?;
        let full_says = full.says("the image's kernel");
        if full.passed {
            return Ok((true, format!("{tiny_says}; {full_says}")));
        }
        let why = if Path::new(SOFTWARE_KVM).exists() {
            "KVM here is software-emulated (kvm_pvm) and cannot run the image's kernel"
        } else {
            "KVM here cannot run the image's kernel"
        };
        Ok((false, format!("{why}: {tiny_says}, but {full_says}")))
    }

    async fn tiny(&self) -> Result<Trial> {
        let io = |source| DriverError::io("making the tiny guest", source);
        let dir = trial_dir(self.host.state().root()).map_err(io)?;
        tiny::image(dir.path(), Then::Tick).map_err(io)?;
        let kernel = File::open(dir.path().join(KERNEL)).map_err(io)?;
        self.run(&kernel, tiny::BANNER, TINY_DEADLINE).await
    }

    async fn kernel_of(&self, image: &ImageRef) -> Result<Trial> {
        self.run(&Image::open(image)?.kernel, KERNEL_BANNER, KERNEL_DEADLINE).await
    }

    async fn run(&self, kernel: &File, wanted: &str, deadline: Duration) -> Result<Trial> {
        let io = |source| DriverError::io("trying Firecracker", source);
        // Where VMs are, too: elsewhere the file system may allow no devices.
        let dir = Arc::new(trial_dir(self.host.state().root()).map_err(io)?);
        let config = ConfigFile {
            boot_source: BootSource {
                kernel_image_path: KERNEL,
                initrd_path: None,
                boot_args: "console=ttyS0 earlyprintk=ttyS0 reboot=k panic=1 pci=off".to_owned(),
            },
            drives: [],
            machine_config: MachineConfig {
                vcpu_count: 1,
                mem_size_mib: 256,
                track_dirty_pages: false,
            },
        };
        let config = serde_json::to_vec(&config).map_err(|e| io(e.into()))?;
        // As a VM's VMM would run: what root may do proves nothing.
        let uid = self.host.config().uid_base;
        let mark = Mark::new().map_err(io)?;
        let mut jail = Jail::of(&self.config, dir.path().join("jail"), mark.name(), uid);
        jail.make()?;
        jail.show(kernel, KERNEL, true)?;
        jail.put(CONFIG, &config)?;
        jail.put(LOG, b"")?;
        let root = jail.root().to_owned();
        let limits = Limits { memory_mib: 512, vcpus: 1, file_bytes: 64 << 20, batch: false };
        // Without a log of its own, Firecracker would write into the middle of what the guest prints.
        let args = ["--no-api", "--config-file", CONFIG, "--log-path", LOG, "--level", "Warn"];
        let vmm = jail.vmm(&self.config, &args, limits);
        let mut trial = trial(vmm, mark, &dir, wanted, deadline).await.map_err(io)?;
        if !trial.passed
            && let Ok(log) = open_written(&root, LOG)
        {
            // What cannot be read as text explains nothing.
            let _ = log.take(LOG_SHOWN).read_to_string(&mut trial.output);
        }
        Ok(trial)
    }
}

fn chain(error: &DriverError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
