//! Whether QEMU runs guests here, and how: found out by booting, never by looking.
//!
//! KVM has to run the tiny guest and, where an image is known, to let that image's own kernel print its
//! banner: a KVM that is itself emulated does the first and not the second. The verdict on KVM is kept
//! in the state directory for as long as kernel, QEMU and image stay the same.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::system::uname;
use serde::{Deserialize, Serialize};

use super::{
    QemuDriver,
    command::{Accel, kvm_groups, kvm_is_closed, trial_line, view},
};
use crate::{
    driver::{DriverError, ImageRef, Probe, Result},
    files,
    image::Image,
    process::{Limits, Mark, TRIAL_LOG, Trial, Vmm, trial, trial_dir},
    tiny::{self, Then},
};

/// The tiny guest prints some tens of milliseconds after QEMU started; a busy host takes longer.
const TINY_DEADLINE: Duration = Duration::from_secs(10);
/// A kernel with hardware virtualisation prints within a second.
const KERNEL_DEADLINE: Duration = Duration::from_secs(6);
const KERNEL_BANNER: &str = "Linux version";
const KVM: &str = "/dev/kvm";

/// What is kept of a verdict on KVM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Verdict {
    key: String,
    usable: bool,
    why: String,
}

impl QemuDriver {
    pub(super) async fn probe_now(&self) -> Result<Probe> {
        let version = self.version().await?.to_owned();
        let tcg = self.tiny(Accel::Tcg).await?;
        let image = self.host.config().probe_image.clone();
        let kvm = self.judge_kvm(image.as_ref(), true).await?;
        let tcg_says = tcg.says("the tiny guest by translation");
        Ok(Probe {
            usable: kvm.usable || tcg.passed,
            evidence: format!("{version}: {}; {tcg_says}.", kvm.why),
            version: Some(version),
            accelerated: kvm.usable,
            remedy: (!kvm.usable && !tcg.passed).then(|| {
                "run `qemu-system-x86_64 -machine microvm -accel tcg` by hand to see what it lacks".to_owned()
            }),
        })
    }

    /// How guests of this image are run.
    pub(super) async fn accel(&self, image: &ImageRef) -> Result<Accel> {
        let verdict = self.judge_kvm(Some(image), false).await?;
        Ok(if verdict.usable { Accel::Kvm } else { Accel::Tcg })
    }

    /// The verdict on KVM: the kept one when nothing changed, unless a new one is wanted.
    async fn judge_kvm(&self, image: Option<&ImageRef>, anew: bool) -> Result<Verdict> {
        if !Path::new(KVM).exists() {
            let why = format!("KVM is absent: there is no {KVM}");
            return Ok(Verdict { key: String::new(), usable: false, why });
        }
        let mut known = self.kvm.lock().await;
        let key = self.key(image).await?;
        let file = self.host.state().root().join("kvm-verdict.json");
        if known.is_none() {
            // One that cannot be read is made again.
            *known = files::read_json(&file).ok().flatten();
        }
        if let Some(verdict) = known.as_ref().filter(|verdict| verdict.key == key && !anew) {
            return Ok(verdict.clone());
        }
        let (usable, why) = self.try_kvm(image).await?;
        tracing::info!(usable, why, "KVM was tried");
        let verdict = Verdict { key, usable, why };
        files::write_json(&file, &verdict)
            .map_err(|e| DriverError::io("keeping the verdict on KVM", e))?;
        *known = Some(verdict.clone());
        Ok(verdict)
    }

    async fn try_kvm(&self, image: Option<&ImageRef>) -> Result<(bool, String)> {
        if let Some(why) = kvm_is_closed() {
            return Ok((false, why));
        }
        let tiny = self.tiny(Accel::Kvm).await?;
        if !tiny.passed {
            return Ok((false, tiny.says("the tiny guest with KVM")));
        }
        let Some(image) = image else {
            return Ok((
                false,
                "KVM runs the tiny guest; it is not used before an image's kernel was tried"
                    .to_owned(),
            ));
        };
        let kernel = Image::open(image)?.kernel;
        let full = self.run(Accel::Kvm, kernel, KERNEL_BANNER, KERNEL_DEADLINE).await?;
        Ok((full.passed, full.says("the image's kernel with KVM")))
    }

    async fn tiny(&self, accel: Accel) -> Result<Trial> {
        let io = |source| DriverError::io("making the tiny guest", source);
        let dir = trial_dir(self.host.state().root()).map_err(io)?;
        tiny::image(dir.path(), Then::Tick).map_err(io)?;
        let kernel = File::open(dir.path().join("vmlinux")).map_err(io)?;
        self.run(accel, kernel, tiny::BANNER, TINY_DEADLINE).await
    }

    async fn run(
        &self,
        accel: Accel,
        kernel: File,
        wanted: &str,
        deadline: Duration,
    ) -> Result<Trial> {
        let io = |source| DriverError::io("trying QEMU", source);
        let dir = Arc::new(trial_dir(self.host.state().root()).map_err(io)?);
        let log = dir.path().join(TRIAL_LOG);
        let serial = File::options().create(true).append(true).open(&log).map_err(io)?;
        let line = trial_line(accel, &kernel, &serial)?;
        let program = self.host.config().qemu.clone();
        let vmm = Vmm {
            view: Some(view(&program, accel)?),
            program,
            args: line.args,
            handed: line.handed,
            mounts: Vec::new(),
            stdout: None,
            namespace: None,
            // As a VM's VMM would run: what root may do proves nothing.
            user: Some((self.host.config().uid_base, kvm_groups(accel))),
            limits: Limits { memory_mib: 1024, vcpus: 1, file_bytes: 1 << 20, batch: false },
        };
        trial(vmm, Mark::new().map_err(io)?, &dir, wanted, deadline).await.map_err(io)
    }

    pub(super) async fn key(&self, image: Option<&ImageRef>) -> Result<String> {
        let version = self.version().await?;
        let image = image.map_or("none", |image| image.digest.as_str());
        let access = fs::metadata(KVM).map_or(0, |m| std::os::unix::fs::MetadataExt::mode(&m));
        let release = uname().release().to_string_lossy().into_owned();
        Ok(format!("{release}, {version}, kvm {access:o}, image {image}"))
    }
}
