//! Slots: small numbers that are unique among all VMs of a machine, also those of other instances.
//!
//! Addresses, link names and user ids are computed from a slot, so they cannot collide. Owns
//! `/run/holdfast/<vm-id>.json`, one file per VM that has a slot, written before anything of it exists
//! in the kernel; it says which instance a namespace or link belongs to even when the VM's directory
//! is gone. The files vanish with the namespaces at a reboot; `lease.json` in the VM's directory then
//! says which slot to prefer.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use holdfast_core::VmId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    driver::{DriverError, Result},
    files,
    net::{self, Range},
    statedir::{StateDir, VmDir},
};

const LEASE: &str = "lease.json";

/// What a VM holds on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The VM.
    pub vm: VmId,
    /// The instance that it belongs to.
    pub instance: String,
    /// Its number on this machine, from 0.
    pub slot: u32,
    /// Its host-side address; the host's end of the link has the address below it.
    pub address: Ipv4Addr,
}

impl Lease {
    /// Name of the host's end of its link: at most ten characters.
    pub fn link(&self) -> String {
        link_name(self.slot)
    }

    /// Address of the host's end of its link.
    pub fn host_end(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() - 1)
    }
}

fn link_name(slot: u32) -> String {
    format!("hfv{slot}")
}

/// Hands out slots.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
    instance: String,
    range: Range,
}

impl Registry {
    /// Opens the machine's registry for an instance.
    pub fn open(dir: &Path, state: &StateDir, range: Range) -> Result<Self> {
        fs::create_dir_all(dir)
            .map_err(|e| DriverError::io(format!("making {}", dir.display()), e))?;
        Ok(Self { dir: dir.to_owned(), instance: state.instance().to_owned(), range })
    }

    fn mark(&self, vm: VmId) -> String {
        net::mark(&self.instance, vm)
    }

    fn file(&self, vm: VmId) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }

    fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join("lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// The lease of a VM of this instance, where it has one.
    pub fn find(&self, vm: VmId) -> Result<Option<Lease>> {
        self.find_of(&self.instance, vm)
    }

    /// The same of another instance.
    pub(crate) fn find_of(&self, instance: &str, vm: VmId) -> Result<Option<Lease>> {
        let held = read(&self.file(vm))
            .map_err(|e| DriverError::io(format!("reading the lease of VM {vm}"), e))?;
        Ok(held.and_then(|held| held.lease).filter(|lease| lease.instance == instance))
    }

    /// Gives a VM a slot: the one that it has, the one that its directory remembers, or the lowest
    /// free one.
    pub fn acquire(&self, dir: &VmDir) -> Result<Lease> {
        let vm = dir.id();
        let io = |source| DriverError::io(format!("taking a slot for VM {vm}"), source);
        let _one_at_a_time = self.lock().map_err(io)?;
        if let Some(lease) = self.find(vm)? {
            return Ok(lease);
        }
        let taken = self.all().map_err(io)?;
        let free = |slot: u32, address: Ipv4Addr| {
            let held = taken.iter().any(|other| {
                other.slot == slot || other.address == address || other.host_end() == address
            });
            // A link without a lease belongs to somebody whose lease was lost.
            !held && net::link_owner(&link_name(slot)).is_none_or(|owner| owner == self.mark(vm))
        };
        // It is only preferred, so one that cannot be understood is as good as none.
        let remembered = files::read_json::<Lease>(&dir.file(LEASE)).ok().flatten();
        let remembered = remembered.map(|lease| lease.slot);
        let (slot, address) = remembered
            .into_iter()
            .chain(0..self.range.slots())
            .filter_map(|slot| Some((slot, self.range.address(slot)?)))
            .find(|(slot, address)| free(*slot, *address))
            .ok_or_else(|| DriverError::Refused {
                operation: "taking an address".to_owned(),
                message: format!("all of {} is in use; configure a larger range", self.range),
            })?;
        let lease = Lease { vm, instance: self.instance.clone(), slot, address };
        files::write_json(&self.file(vm), &lease).map_err(io)?;
        files::write_json(&dir.file(LEASE), &lease).map_err(io)?;
        Ok(lease)
    }

    /// Gives the slot back; there need not be one. Everything that was named by it must be gone.
    pub fn release(&self, vm: VmId) -> Result<()> {
        self.release_of(&self.instance, vm)
    }

    /// The same of another instance.
    pub(crate) fn release_of(&self, instance: &str, vm: VmId) -> Result<()> {
        let error = |e| DriverError::io(format!("giving back the slot of VM {vm}"), e);
        let held = read(&self.file(vm)).map_err(error)?;
        // One that says nothing of its owner was of whoever owned the rest.
        if held.is_some_and(|held| held.instance.is_none_or(|owner| owner == instance)) {
            files::remove_if_there(&self.file(vm)).map_err(error)?;
        }
        Ok(())
    }

    /// Every VM of this instance that has a slot.
    pub fn list(&self) -> Result<Vec<VmId>> {
        self.list_of(&self.instance)
    }

    /// The same of another instance.
    pub(crate) fn list_of(&self, instance: &str) -> Result<Vec<VmId>> {
        let held = self.held().map_err(|e| DriverError::io("listing the leases", e))?;
        let of = |held: Held| (held.instance.as_deref() == Some(instance)).then_some(held.vm);
        Ok(held.into_iter().filter_map(of).collect())
    }

    /// The instance that holds a slot for this VM, where that is known.
    pub fn holder(&self, vm: VmId) -> Result<Option<String>> {
        let held = read(&self.file(vm))
            .map_err(|e| DriverError::io(format!("reading the lease of VM {vm}"), e))?;
        Ok(held.and_then(|held| held.instance))
    }

    fn all(&self) -> io::Result<Vec<Lease>> {
        Ok(self.held()?.into_iter().filter_map(|held| held.lease).collect())
    }

    fn held(&self) -> io::Result<Vec<Held>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json") {
                // One given back meanwhile is gone.
                all.extend(read(&path).unwrap_or_else(|error| {
                    tracing::warn!(path = %path.display(), %error, "a lease cannot be read");
                    of_name(&path).map(|vm| Held { vm, instance: None, lease: None })
                }));
            }
        }
        Ok(all)
    }
}

/// A lease as far as it can be understood: another version may have written it, or the disk not give it
/// back, and it must not stand in the way of all others.
struct Held {
    vm: VmId,
    instance: Option<String>,
    lease: Option<Lease>,
}

fn of_name(path: &Path) -> Option<VmId> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn read(path: &Path) -> io::Result<Option<Held>> {
    let Some(vm) = of_name(path) else { return Ok(None) };
    let value: serde_json::Value = match files::read_json(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => serde_json::Value::Null,
        read => match read? {
            Some(value) => value,
            None => return Ok(None),
        },
    };
    let instance = value["instance"].as_str().map(str::to_owned);
    Ok(Some(Held { vm, instance, lease: serde_json::from_value(value).ok() }))
}
