//! The command line of a VMM. It names no path of ours: whatever QEMU may use it is handed open, so its
//! user needs no right to any file.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use crate::{
    driver::{DriverError, Result, VmSpec},
    image::Image,
    net::{GATEWAY, GUEST, GUEST_MAC},
    process::{Handed, View},
};

/// Space for translated code under TCG, in MiB. A desktop with its browser fills any: QEMU throws all of
/// it away when it is full, and translates anew what is still needed.
const TRANSLATED_MIB: u32 = 256;
/// The same for a VM that boots: kernel, desktop and browser start from nothing, and what is thrown away
/// meanwhile costs the first page a sixth of its time (27 to 31 s with 256, 23 to 25 s with 512).
const TRANSLATED_BOOT_MIB: u32 = 512;
/// The same for a VM that may take memory to be quick: start of the browser and first page fit in.
const TRANSLATED_EAGER_MIB: u32 = 1024;

fn translated_mib(spec: &VmSpec, incoming: bool) -> u32 {
    if spec.eager {
        TRANSLATED_EAGER_MIB
    } else if incoming {
        TRANSLATED_MIB
    } else {
        TRANSLATED_BOOT_MIB
    }
}

/// Memory that QEMU takes besides the guest's, in MiB: itself, device queues, translated code, and what
/// it keeps about that (a third of it, measured).
pub(super) fn overhead_mib(spec: &VmSpec, incoming: bool) -> u64 {
    let translated = u64::from(translated_mib(spec, incoming));
    256 + translated + translated / 2
}

const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Where the guest's memory is.
pub(super) enum Memory {
    /// In a file, in which the guest's changes are made too.
    Shared(OwnedFd),
    /// In a file that others map as well, a template; the guest's changes are its own. And its checksum.
    Private(OwnedFd, String),
}

/// Everything that a VMM is handed.
pub(super) struct Parts<'a> {
    pub(super) spec: &'a VmSpec,
    pub(super) accel: Accel,
    pub(super) memory: Memory,
    pub(super) upper: File,
    pub(super) serial: File,
    pub(super) qmp: OwnedFd,
    pub(super) tap: Handed,
    /// Waits for the state of another VM instead of booting.
    pub(super) incoming: bool,
}

/// A command line, and the files that belong to it.
#[derive(Default)]
pub(super) struct Line {
    pub(super) args: Vec<String>,
    pub(super) handed: Vec<Handed>,
}

impl Line {
    fn arg(&mut self, option: &str, value: impl Into<String>) {
        self.args.push(option.to_owned());
        self.args.push(value.into());
    }

    fn hand(&mut self, file: &impl AsFd) -> Result<&Handed> {
        self.keep(Handed::new(file).map_err(|e| DriverError::io("handing a file to the VMM", e))?)
    }

    fn keep(&mut self, file: Handed) -> Result<&Handed> {
        self.handed.push(file);
        self.handed
            .last()
            .ok_or_else(|| DriverError::io("handing a file", io::ErrorKind::Other.into()))
    }

    /// Hands a file as a set that QEMU opens by the path in the answer.
    fn set(&mut self, file: &impl AsFd) -> Result<String> {
        let number = self.hand(file)?.number();
        self.arg("-add-fd", format!("fd={number},set={number}"));
        Ok(format!("/dev/fdset/{number}"))
    }
}

/// The command line for a VM.
pub(super) fn line(parts: Parts<'_>) -> Result<Line> {
    let Parts { spec, accel, .. } = parts;
    let image = Image::open(&spec.image)?;
    let mut line = Line::default();
    line.args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    line.arg("-name", format!("holdfast-{}", spec.vm));
    line.arg("-display", "none");
    line.arg("-sandbox", SANDBOX);
    machine(&mut line, accel, translated_mib(spec, parts.incoming));
    line.arg("-global", "virtio-mmio.force-legacy=false");
    line.arg("-smp", spec.vcpus.to_string());
    line.arg("-m", format!("{}M", spec.memory_mib));
    line.arg("-rtc", "base=utc,clock=host");

    let size = spec.memory_mib;
    let (memory, share) = match &parts.memory {
        Memory::Shared(file) => (file, "on"),
        Memory::Private(file, _) => (file, "off"),
    };
    let path = line.hand(memory)?.path();
    line.arg(
        "-object",
        format!("memory-backend-file,id=mem,size={size}M,mem-path={path},share={share}"),
    );

    let kernel = line.hand(&image.kernel)?.path();
    line.arg("-kernel", kernel);
    let initramfs = line.hand(&image.initramfs)?.path();
    line.arg("-initrd", initramfs);
    line.arg("-append", kernel_line(spec, accel));

    let root = line.set(&image.root)?;
    line.arg(
        "-blockdev",
        format!("driver=file,node-name=root,filename={root},read-only=on,locking=off"),
    );
    line.arg("-device", "virtio-blk-device,id=disk-root,drive=root");
    let upper = line.set(&parts.upper)?;
    line.arg(
        "-blockdev",
        format!("driver=file,node-name=upper,filename={upper},locking=off,discard=unmap"),
    );
    line.arg("-device", "virtio-blk-device,id=disk-upper,drive=upper,discard=on");

    let tap = line.keep(parts.tap)?.number();
    line.arg("-netdev", format!("tap,id=net,fd={tap},vhost=off"));
    line.arg("-device", format!("virtio-net-device,id=nic,netdev=net,mac={GUEST_MAC}"));
    line.arg("-object", "rng-builtin,id=rng");
    line.arg("-device", "virtio-rng-device,id=random,rng=rng");

    let serial = line.set(&parts.serial)?;
    line.arg("-chardev", format!("file,id=serial,path={serial},append=on"));
    line.arg("-serial", "chardev:serial");
    let qmp = line.hand(&parts.qmp)?.number();
    line.arg("-chardev", format!("socket,id=qmp,fd={qmp},server=on,wait=off"));
    line.arg("-mon", "chardev=qmp,mode=control");
    // What a snapshot fits is written beside it; QEMU writes no such thing where a clone writes its devices.
    line.arg("-global", "migration.send-configuration=off");
    if parts.incoming {
        line.arg("-incoming", "defer");
    }
    Ok(line)
}

/// The command line of a trial: a kernel and a serial port, without disks or network.
pub(super) fn trial_line(accel: Accel, kernel: &File, serial: &File) -> Result<Line> {
    let mut line = Line::default();
    line.args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    line.arg("-display", "none");
    line.arg("-sandbox", SANDBOX);
    line.arg("-object", "memory-backend-ram,id=mem,size=256M");
    line.arg("-m", "256M");
    machine(&mut line, accel, TRANSLATED_MIB);
    let kernel = line.hand(kernel)?.path();
    line.arg("-kernel", kernel);
    line.arg("-append", "console=ttyS0 earlyprintk=ttyS0 panic=1 reboot=t");
    let serial = line.set(serial)?;
    line.arg("-chardev", format!("file,id=serial,path={serial},append=on"));
    line.arg("-serial", "chardev:serial");
    Ok(line)
}

/// Machine, accelerator and processor.
fn machine(line: &mut Line, accel: Accel, translated_mib: u32) {
    // Without interrupt controller and timer of old the kernel does not come up under TCG.
    line.arg("-machine", "microvm,rtc=on,acpi=on,memory-backend=mem");
    match accel {
        Accel::Kvm => {
            line.arg("-accel", "kvm");
            line.arg("-cpu", "host");
        }
        Accel::Tcg => {
            line.arg("-accel", format!("tcg,thread=multi,tb-size={translated_mib}"));
            // A string instruction is translated to a loop over its elements. Told that the one over bytes is
            // fast (ERMS), kernel and libc would clear and copy pages byte by byte instead of by words.
            line.arg("-cpu", "max,erms=off");
        }
    }
}

fn kernel_line(spec: &VmSpec, accel: Accel) -> String {
    let screen = spec.screen;
    let clock = match accel {
        Accel::Kvm => String::new(),
        // Every virtual processor reads the host's counter, which the kernel cannot know: it would count
        // ticks instead, lose them on a busy host, and never be idle.
        Accel::Tcg => format!(" tsc=reliable tsc_early_khz={}", super::tsc::khz()),
    };
    format!(
        "console=ttyS0 quiet panic=1 reboot=t random.trust_cpu=on{clock} \
         holdfast.screen={}x{} holdfast.net={GUEST}/30,{GATEWAY}",
        screen.width, screen.height
    )
}

/// What QEMU sees of the file system.
pub(super) fn view(program: &Path, accel: Accel) -> Result<View> {
    let devices: &[&str] = if accel == Accel::Kvm { &["/dev/kvm"] } else { &[] };
    View::of(program, devices).map_err(|e| DriverError::io("preparing what the VMM sees", e))
}

/// Groups that may open the KVM device. Never root's: what else that group may read is not for a VMM.
pub(super) fn kvm_groups(accel: Accel) -> Vec<u32> {
    match std::fs::metadata("/dev/kvm") {
        Ok(device) if accel == Accel::Kvm && device.gid() != 0 => vec![device.gid()],
        _ => Vec::new(),
    }
}

/// Why a VMM, which runs as a user of its own, could not open the KVM device whatever KVM can do.
pub(super) fn kvm_is_closed() -> Option<String> {
    let device = std::fs::metadata("/dev/kvm").ok()?;
    let (mode, group) = (device.mode() & 0o777, device.gid());
    let by_group = mode & 0o060 == 0o060 && group != 0;
    (!by_group && mode & 0o006 != 0o006).then(|| {
        format!(
            "/dev/kvm has mode {mode:03o} and group {group}, so that only root may open it and no VMM does; \
             run `groupadd -f --system kvm && chgrp kvm /dev/kvm && chmod 660 /dev/kvm` (udev keeps it so)"
        )
    })
}
