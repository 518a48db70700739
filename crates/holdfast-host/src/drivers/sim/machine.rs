//! The simulated machine: its VMs, in memory and, where it has one, in a directory.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_agent_api::ClaimRequest;
use holdfast_core::{Screen, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    faults::Faults,
    guest::{Guest, Memory},
    tool::SimTool,
};
use crate::{
    driver::{DriverError, Observed, Process, Result, StartFrom, Usage, VmSpec},
    files,
    net::Range,
};

/// Above every pid of a real process (PID_MAX_LIMIT is 2^22).
const FIRST_PID: i32 = 1 << 23;

/// Machines with a directory, so that all drivers of it in this process are one machine.
static MACHINES: LazyLock<Mutex<HashMap<PathBuf, Weak<Machine>>>> = LazyLock::new(Mutex::default);

/// What is kept of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    spec: VmSpec,
    created_at: Timestamp,
    address: Option<Ipv4Addr>,
    process: Option<Started>,
    exit: Option<String>,
    paused: bool,
    memory: Memory,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Started {
    pid: i32,
    start_ticks: u64,
}

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
struct Saved {
    image: String,
    memory_mib: u32,
    memory: Memory,
}

struct Vm {
    record: Record,
    /// Set when the process has ended.
    exit: watch::Sender<Option<String>>,
    guest: Option<Arc<Guest>>,
}

/// A guest that runs.
pub(super) struct Running {
    pub(super) guest: Arc<Guest>,
    pub(super) screen: Screen,
    pub(super) exit: watch::Receiver<Option<String>>,
}

pub(super) struct Machine {
    me: Weak<Machine>,
    dir: Option<PathBuf>,
    vms: Mutex<BTreeMap<VmId, Vm>>,
    boot_time: Mutex<Duration>,
    hold_tools: AtomicBool,
    pub(super) faults: Faults,
}

impl Machine {
    pub(super) fn new(dir: Option<PathBuf>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            dir,
            vms: Mutex::default(),
            boot_time: Mutex::default(),
            hold_tools: AtomicBool::new(false),
            faults: Faults::default(),
        })
    }

    pub(super) fn open(dir: &Path) -> Result<Arc<Self>> {
        let io = |source| DriverError::io(format!("opening {}", dir.display()), source);
        fs::create_dir_all(dir).map_err(io)?;
        let dir = fs::canonicalize(dir).map_err(io)?;
        let mut machines = locked(&MACHINES);
        machines.retain(|_, machine| machine.strong_count() > 0);
        if let Some(machine) = machines.get(&dir).and_then(Weak::upgrade) {
            return Ok(machine);
        }
        let machine = Self::new(Some(dir.clone()));
        for entry in fs::read_dir(&dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|e| e == "json")
                && let Some(record) = files::read_json::<Record>(&path).map_err(io)?
            {
                machine.adopt(record);
            }
        }
        machines.insert(dir, Arc::downgrade(&machine));
        Ok(machine)
    }

    fn adopt(&self, record: Record) {
        let vm = record.spec.vm;
        let exit = watch::Sender::new(record.exit.clone());
        let runs = record.process.is_some() && record.exit.is_none();
        // It had time to boot while nobody looked.
        let guest = runs.then(|| self.make_guest(vm, record.memory.clone(), Duration::ZERO));
        if let Some(guest) = &guest {
            guest.answers.send_replace(!record.paused);
        }
        locked(&self.vms).insert(vm, Vm { record, exit, guest });
    }

    fn make_guest(&self, vm: VmId, memory: Memory, boot: Duration) -> Arc<Guest> {
        let (keeper, ender) = (self.me.clone(), self.me.clone());
        let keep = move |memory: &Memory| {
            if let Some(machine) = keeper.upgrade() {
                // Another process of the same VM has another guest.
                let _ = machine.change(vm, |it| {
                    it.record.memory = memory.clone();
                    Ok(())
                });
            }
        };
        let power_off = move || {
            if let Some(machine) = ender.upgrade() {
                machine.exit(vm, "the guest powered off");
            }
        };
        let held = self.hold_tools.load(Ordering::SeqCst);
        Arc::new(Guest::new(memory, boot, held, Arc::new(keep), Box::new(power_off)))
    }

    pub(super) fn hold_tools(&self) {
        self.hold_tools.store(true, Ordering::SeqCst);
    }

    pub(super) fn tool(&self, vm: VmId) -> Option<SimTool> {
        let vms = locked(&self.vms);
        vms.get(&vm).and_then(|it| it.guest.as_ref()).map(|guest| guest.tool.clone())
    }

    pub(super) fn set_boot_time(&self, time: Duration) {
        *locked(&self.boot_time) = time;
    }

    fn file(&self, vm: VmId) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{vm}.json")))
    }

    fn save(&self, record: &Record) -> Result<()> {
        match self.file(record.spec.vm) {
            None => Ok(()),
            // What is simulated ends with the machine, as processes do.
            Some(file) => files::replace_json(&file, record)
                .map_err(|e| DriverError::io(format!("writing {}", file.display()), e)),
        }
    }

    /// Changes a VM and keeps what was changed.
    fn change<T>(&self, vm: VmId, change: impl FnOnce(&mut Vm) -> Result<T>) -> Result<T> {
        let mut vms = locked(&self.vms);
        let it = vms.get_mut(&vm).ok_or(DriverError::NotFound(vm))?;
        let done = change(it)?;
        self.save(&it.record)?;
        Ok(done)
    }

    pub(super) fn create(&self, spec: &VmSpec) -> Result<()> {
        let mut vms = locked(&self.vms);
        if let Some(existing) = vms.get(&spec.vm) {
            let same = existing.record.spec == *spec;
            return if same { Ok(()) } else { Err(DriverError::Conflict(spec.vm)) };
        }
        let record = Record {
            spec: spec.clone(),
            created_at: Timestamp::now(),
            address: None,
            process: None,
            exit: None,
            paused: false,
            memory: Memory::default(),
        };
        self.save(&record)?;
        vms.insert(spec.vm, Vm { record, exit: watch::Sender::new(None), guest: None });
        Ok(())
    }

    pub(super) fn connect(&self, vm: VmId) -> Result<Ipv4Addr> {
        let taken: HashSet<_> =
            locked(&self.vms).values().filter_map(|it| it.record.address).collect();
        self.change(vm, |it| {
            let range = Range::default();
            let free = || (0..range.slots()).filter_map(|slot| range.address(slot));
            let address = it.record.address.or_else(|| free().find(|a| !taken.contains(a)));
            it.record.address = address;
            address.ok_or_else(|| refused("connect", "no address is free"))
        })
    }

    pub(super) fn start(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        let boot_time = *locked(&self.boot_time);
        let highest = locked(&self.vms)
            .values()
            .filter_map(|it| it.record.process.as_ref())
            .map(|process| process.pid)
            .max();
        self.change(vm, |it| {
            if it.guest.is_some() {
                return Ok(());
            }
            if it.record.address.is_none() {
                return Err(refused("start", "it has no network yet"));
            }
            let (memory, boot) = match from {
                StartFrom::Boot => {
                    (Memory { boot_id: boot_id(), claim: None, tool: None }, boot_time)
                }
                StartFrom::DiskOf(path) => {
                    read_saved(path, &it.record.spec)?;
                    (Memory { boot_id: boot_id(), claim: None, tool: None }, boot_time)
                }
                StartFrom::Snapshot(path) => (read_saved(path, &it.record.spec)?, Duration::ZERO),
            };
            let pid = highest.unwrap_or(FIRST_PID) + 1;
            it.record.process = Some(Started { pid, start_ticks: pid as u64 });
            it.record.memory = memory.clone();
            (it.record.exit, it.record.paused) = (None, false);
            it.exit = watch::Sender::new(None);
            it.guest = Some(self.make_guest(vm, memory, boot));
            Ok(())
        })
    }

    pub(super) fn set_paused(&self, vm: VmId, paused: bool) -> Result<()> {
        self.change(vm, |it| {
            let guest = it.guest.as_ref().ok_or_else(|| not_running(vm, &it.record))?;
            guest.answers.send_replace(!paused);
            it.record.paused = paused;
            Ok(())
        })
    }

    pub(super) fn silence(&self, vm: VmId, silent: bool) -> bool {
        let vms = locked(&self.vms);
        let guest = vms.get(&vm).and_then(|it| it.guest.as_ref());
        guest.map(|guest| guest.answers.send_replace(!silent)).is_some()
    }

    pub(super) fn snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        self.set_paused(vm, true)?;
        let saved = self.change(vm, |it| {
            let spec = &it.record.spec;
            let (image, memory_mib) = (spec.image.digest.clone(), spec.memory_mib);
            Ok(Saved { image, memory_mib, memory: it.record.memory.clone() })
        })?;
        let io = |source| DriverError::io(format!("writing {}", dest.display()), source);
        if dest.exists() {
            return Err(refused("snapshot", "something of that name exists already"));
        }
        fs::create_dir_all(dest).map_err(io)?;
        files::write_json(&dest.join("manifest.json"), &saved).map_err(io)
    }

    /// Ends a process; `false` when there is none.
    pub(super) fn exit(&self, vm: VmId, why: &str) -> bool {
        self.change(vm, |it| {
            let ran = it.guest.take().is_some();
            if ran {
                let why = format!("the VMM ended ({why})");
                it.record.exit = Some(why.clone());
                it.exit.send_replace(Some(why));
            }
            Ok(ran)
        })
        .unwrap_or(false)
    }

    pub(super) fn stop(&self, vm: VmId) -> Result<()> {
        self.exit(vm, "it was stopped");
        match self.change(vm, |it| {
            (it.record.process, it.record.exit) = (None, None);
            Ok(())
        }) {
            Err(DriverError::NotFound(_)) => Ok(()),
            done => done,
        }
    }

    pub(super) fn destroy(&self, vm: VmId) -> Result<()> {
        self.exit(vm, "it was removed");
        if let Some(file) = self.file(vm) {
            files::remove_if_there(&file)
                .map_err(|e| DriverError::io(format!("removing {}", file.display()), e))?;
        }
        locked(&self.vms).remove(&vm);
        Ok(())
    }

    pub(super) fn inspect(&self, vm: VmId) -> Observed {
        locked(&self.vms).get(&vm).map_or_else(|| nothing(vm), observe)
    }

    pub(super) fn list(&self) -> Vec<Observed> {
        locked(&self.vms).values().map(observe).collect()
    }

    pub(super) fn exit_of(&self, vm: VmId) -> Result<watch::Receiver<Option<String>>> {
        let vms = locked(&self.vms);
        let it = vms.get(&vm).ok_or(DriverError::NotFound(vm))?;
        match it.record.process {
            Some(_) => Ok(it.exit.subscribe()),
            None => Err(refused("wait_exit", "it was not started")),
        }
    }

    pub(super) fn guest(&self, vm: VmId) -> Result<Running> {
        let vms = locked(&self.vms);
        let it = vms.get(&vm).ok_or(DriverError::NotFound(vm))?;
        let guest = it.guest.clone().ok_or_else(|| not_running(vm, &it.record))?;
        Ok(Running { guest, screen: it.record.spec.screen, exit: it.exit.subscribe() })
    }

    pub(super) fn claim(&self, vm: VmId) -> Option<ClaimRequest> {
        locked(&self.vms).get(&vm).and_then(|it| it.record.memory.claim.clone())
    }

    pub(super) fn console(&self, vm: VmId) -> Result<String> {
        let vms = locked(&self.vms);
        let it = vms.get(&vm).ok_or(DriverError::NotFound(vm))?;
        Ok(format!("Simulated console of {vm}, boot {}\n", it.record.memory.boot_id))
    }

    pub(super) fn usage(&self, vm: VmId) -> Result<Usage> {
        let vms = locked(&self.vms);
        let it = vms.get(&vm).ok_or(DriverError::NotFound(vm))?;
        Ok(match &it.guest {
            Some(_) => {
                Usage { memory_pss_kib: 100 << 10, memory_rss_kib: 150 << 10, ..Usage::default() }
            }
            None => Usage::default(),
        })
    }
}

fn observe(it: &Vm) -> Observed {
    let record = &it.record;
    let process = match (&record.process, &record.exit) {
        (None, _) => Process::NotStarted,
        (Some(_), Some(why)) => Process::Exited { why: why.clone() },
        (Some(started), None) => {
            Process::Running { pid: started.pid, start_ticks: started.start_ticks, stopped: false }
        }
    };
    Observed {
        vm: record.spec.vm,
        process,
        directory: true,
        network: record.address.is_some(),
        address: record.address,
        created_at: Some(record.created_at),
    }
}

fn nothing(vm: VmId) -> Observed {
    Observed {
        vm,
        process: Process::NotStarted,
        directory: false,
        network: false,
        address: None,
        created_at: None,
    }
}

fn read_saved(path: &Path, spec: &VmSpec) -> Result<Memory> {
    let bad = |why: String| DriverError::Snapshot { path: path.display().to_string(), why };
    let saved: Saved = files::read_json(&path.join("manifest.json"))
        .map_err(|error| bad(format!("its manifest cannot be read: {error}")))?
        .ok_or_else(|| bad("it has no manifest".to_owned()))?;
    if saved.image != spec.image.digest || saved.memory_mib != spec.memory_mib {
        return Err(bad("it was made for another image or memory size".to_owned()));
    }
    Ok(saved.memory)
}

fn boot_id() -> String {
    Uuid::new_v4().to_string()
}

fn not_running(vm: VmId, record: &Record) -> DriverError {
    match &record.exit {
        Some(why) => DriverError::Exited { vm, why: why.clone() },
        None => refused("reaching the guest", "the VM was not started"),
    }
}

fn refused(operation: &str, message: &str) -> DriverError {
    DriverError::Refused { operation: operation.to_owned(), message: message.to_owned() }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
