//! Starts a VMM and waits until it runs the guest.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{OpenOptionsExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
};

use holdfast_core::VmId;
use rustix::fs::{MemfdFlags, OFlags, memfd_create};

use super::{
    QemuDriver, READY_DEADLINE, SOCKET,
    command::{self, Accel, Memory, Parts},
    qmp::Qmp,
};
use crate::{
    driver::{DriverError, Result, StartFrom, VmSpec},
    files,
    process::{Limits, Vmm},
    snapshot::take_disk,
    statedir::{SERIAL, UPPER, VmDir},
};

/// Name of the anonymous file that holds the memory of a VM that was booted.
pub(super) const MEMORY_NAME: &str = "holdfast-memory";
/// What is noted of such a VM's process; of another one, the checksum of the template that it maps.
pub(super) const SHARED: &str = "shared";

impl QemuDriver {
    pub(super) async fn launch(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        let dir = self.host.dir(vm);
        let spec = dir.spec()?;
        if !self.host.begin_start(vm, &dir).await? {
            return Ok(());
        }
        let started = match from {
            StartFrom::Boot => self.boot(&dir, &spec).await,
            StartFrom::Snapshot(path) => self.restore(&dir, &spec, path).await,
            StartFrom::DiskOf(path) => match take_disk(&dir, &spec, path).await {
                Ok(()) => self.boot(&dir, &spec).await,
                Err(error) => Err(error),
            },
        };
        self.host.end_start(vm, &dir, started).await
    }

    async fn boot(&self, dir: &VmDir, spec: &VmSpec) -> Result<()> {
        let memory = Memory::Shared(fresh_memory(spec)?);
        let upper = OpenOptions::new().read(true).write(true).open(dir.file(UPPER));
        let upper = upper.map_err(|e| DriverError::io("opening the disk", e))?;
        let mut qmp = self.spawn(dir, spec, memory, upper, false).await?;
        match qmp.status().await?.as_str() {
            "running" => Ok(()),
            // The guest is over already, and QEMU is about to be.
            "shutdown" => {
                let vm = spec.vm;
                Err(DriverError::Exited { vm, why: self.host.wait_exit(vm).await? })
            }
            // Pausing itself at an internal error, for instance.
            other => Err(DriverError::Refused {
                operation: format!("booting VM {}", spec.vm),
                message: format!("the VMM is `{other}`"),
            }),
        }
    }

    /// Starts the VMM and waits until it answers.
    pub(super) async fn spawn(
        &self,
        dir: &VmDir,
        spec: &VmSpec,
        memory: Memory,
        upper: File,
        incoming: bool,
    ) -> Result<Qmp> {
        let vm = spec.vm;
        let io = |source| DriverError::io(format!("preparing the VMM of VM {vm}"), source);
        let accel = self.accel(&spec.image).await?;
        let lease = self.host.lease(vm)?;
        let note = match &memory {
            Memory::Shared(_) => SHARED.to_owned(),
            Memory::Private(_, sum) => sum.clone(),
        };
        let line = command::line(Parts {
            spec,
            accel,
            memory,
            upper,
            serial: OpenOptions::new()
                .create(true)
                .append(true)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(dir.file(SERIAL))
                .map_err(io)?,
            qmp: listen(dir).map_err(io)?,
            tap: self.host.open_tap(vm).await?,
            incoming,
        })?;
        let disk = u64::from(spec.disk_mib) << 20;
        let program = self.host.config().qemu.clone();
        let vmm = Vmm {
            view: Some(command::view(&program, accel)?),
            program,
            args: line.args,
            handed: line.handed,
            mounts: Vec::new(),
            stdout: None,
            namespace: Some(self.host.namespace(vm)?),
            user: Some((self.host.uid(&lease), command::kvm_groups(accel))),
            limits: Limits {
                memory_mib: u64::from(spec.memory_mib) + command::overhead_mib(spec, incoming),
                vcpus: spec.vcpus,
                file_bytes: disk.max(u64::from(spec.memory_mib) << 20),
                batch: accel == Accel::Tcg,
            },
        };
        self.host.processes().spawn(dir, vmm, &note).await?;
        let socket = dir.file(SOCKET);
        tokio::select! {
            exit = self.host.wait_exit(vm) => Err(DriverError::Exited { vm, why: exit? }),
            qmp = Qmp::connect(&socket, READY_DEADLINE) => qmp,
        }
    }
}

/// Memory that exists as long as the VMM does and has no name to be left behind.
fn fresh_memory(spec: &VmSpec) -> Result<OwnedFd> {
    let io = |source: io::Error| DriverError::io("making the guest's memory", source);
    let file =
        File::from(memfd_create(MEMORY_NAME, MemfdFlags::CLOEXEC).map_err(|e| io(e.into()))?);
    file.set_len(u64::from(spec.memory_mib) << 20).map_err(io)?;
    Ok(file.into())
}

/// The VMM's own interface, listening already: only root can connect, and nobody can take its place.
fn listen(dir: &VmDir) -> io::Result<OwnedFd> {
    files::remove_if_there(&dir.file(SOCKET))?;
    let listener = UnixListener::bind(dir.file(SOCKET))?;
    fs::set_permissions(dir.file(SOCKET), fs::Permissions::from_mode(0o600))?;
    Ok(listener.into())
}
