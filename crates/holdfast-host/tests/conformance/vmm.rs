//! Promises of Firecracker alone: that it is told what is configured, says what it refuses, and writes of a
//! snapshot what changed.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use holdfast_core::VmId;
use holdfast_host::driver::{Driver, DriverError, Process, StartFrom, VmSpec};
use serde_json::{Value, json};

use crate::{
    bed::{Bed as _, FirecrackerBed, RealBed as _},
    jail::root,
    promises::{started, until},
    real::Small,
};

/// What Firecracker answers, without the driver.
fn call(bed: &FirecrackerBed, vm: VmId, method: &str, path: &str, body: &Value) -> (u16, Value) {
    // A path through an open directory has room for a state directory of any length.
    let dir = File::open(root(bed, vm)).unwrap();
    let socket = format!("/proc/self/fd/{}/api.sock", dir.as_raw_fd());
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let (mut text, mut part) = (String::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut part).unwrap();
        text.push_str(std::str::from_utf8(&part[..read]).unwrap());
        let Some((head, content)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        if content.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            return (status, serde_json::from_str(content).unwrap_or_default());
        }
    }
}

fn configured(bed: &FirecrackerBed, vm: VmId) -> Value {
    let (status, config) = call(bed, vm, "GET", "/vm/config", &Value::Null);
    assert_eq!(status, 200, "{config}");
    config
}

/// What Firecracker counted.
fn metrics(bed: &FirecrackerBed, vm: VmId) -> Value {
    let (status, answer) =
        call(bed, vm, "PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
    assert_eq!(status, 204, "{answer}");
    let text = fs::read_to_string(root(bed, vm).join("metrics.json")).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

pub async fn what_is_configured_is_what_runs(bed: &FirecrackerBed) {
    let (plain, spec) = (bed.driver(), VmSpec { vcpus: 2, ..bed.spec() });
    started(&plain, &spec).await;
    let config = configured(bed, spec.vm);
    assert_eq!(config["machine-config"]["vcpu_count"], 2);
    assert_eq!(config["machine-config"]["mem_size_mib"], spec.memory_mib);
    assert_eq!(config["machine-config"]["track_dirty_pages"], false);
    assert_eq!(config["boot-source"]["kernel_image_path"], "vmlinux");
    assert_eq!(config["boot-source"]["initrd_path"], "initramfs.img");
    let drives = config["drives"].as_array().unwrap();
    let about = |id: &str| drives.iter().find(|drive| drive["drive_id"] == id).unwrap();
    assert_eq!((&about("root")["is_read_only"], drives.len()), (&json!(true), 2));
    assert_eq!(about("upper")["is_read_only"], false);
    assert!(drives.iter().all(|drive| drive["rate_limiter"].is_null()), "{drives:?}");
    let network = &config["network-interfaces"][0];
    assert_eq!(
        (&network["host_dev_name"], &network["rx_rate_limiter"]),
        (&json!("tap0"), &Value::Null)
    );
    assert_eq!(config["balloon"]["amount_mib"], 0);
    assert_eq!(config["balloon"]["deflate_on_oom"], true);
    assert!(config["entropy"].is_object(), "{config}");
    assert!(metrics(bed, spec.vm)["utc_timestamp_ms"].as_u64() > Some(0));
    plain.destroy(spec.vm).await.unwrap();

    let limited = bed.driver_with(|config| {
        config.disk_bytes_per_second = Some(3_000_000);
        config.network_bytes_per_second = Some(5_000_000);
        config.diff_snapshots = true;
    });
    started(&limited, &spec).await;
    let config = configured(bed, spec.vm);
    let bucket = |limiter: &Value| {
        (limiter["bandwidth"]["size"].as_u64(), limiter["bandwidth"]["refill_time"].as_u64())
    };
    for drive in config["drives"].as_array().unwrap() {
        assert_eq!(bucket(&drive["rate_limiter"]), (Some(3_000_000), Some(1000)), "{drive}");
    }
    let network = &config["network-interfaces"][0];
    for direction in ["rx_rate_limiter", "tx_rate_limiter"] {
        assert_eq!(bucket(&network[direction]), (Some(5_000_000), Some(1000)), "{network}");
    }
    assert_eq!(config["machine-config"]["track_dirty_pages"], true);

    // A clone has what is configured when it starts, not what was when its snapshot was made.
    let snapshot = bed.dir().join("limited");
    limited.snapshot(spec.vm, &snapshot).await.unwrap();
    limited.destroy(spec.vm).await.unwrap();
    let changed = bed.driver_with(|config| config.disk_bytes_per_second = Some(7_000_000));
    let clone = VmSpec { vm: bed.spec().vm, ..spec };
    changed.create(&clone).await.unwrap();
    changed.connect(clone.vm).await.unwrap();
    changed.start(clone.vm, &StartFrom::Snapshot(snapshot)).await.unwrap();
    let config = configured(bed, clone.vm);
    for drive in config["drives"].as_array().unwrap() {
        assert_eq!(bucket(&drive["rate_limiter"]), (Some(7_000_000), Some(1000)), "{drive}");
    }
    let network = &config["network-interfaces"][0];
    for direction in ["rx_rate_limiter", "tx_rate_limiter"] {
        assert_eq!(network[direction], Value::Null, "{network}");
    }
    ticked(&changed, clone.vm).await;
    changed.destroy(clone.vm).await.unwrap();
}

/// Compares a snapshot's memory with all of what a paused VM has.
fn is_whole(bed: &FirecrackerBed, vm: VmId, snapshot: &Path) {
    let full = json!({ "snapshot_type": "Full", "snapshot_path": "all.state",
        "mem_file_path": "all.img" });
    let (status, answer) = call(bed, vm, "PUT", "/snapshot/create", &full);
    assert_eq!(status, 204, "{answer}");
    let [wanted, found] = [root(bed, vm).join("all.img"), snapshot.join("memory.img")]
        .map(|path| File::open(path).unwrap());
    let length = wanted.metadata().unwrap().len();
    assert_eq!(found.metadata().unwrap().len(), length);
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for offset in (0..length).step_by(1 << 20) {
        wanted.read_exact_at(&mut one, offset).unwrap();
        found.read_exact_at(&mut other, offset).unwrap();
        assert!(one == other, "the MiB at {offset:#x} differs");
    }
    fs::remove_file(root(bed, vm).join("all.img")).unwrap();
}

/// How long the last snapshots of both kinds took, in µs: it says which one was made since.
#[derive(PartialEq, Eq)]
struct Took {
    all: [Option<u64>; 2],
    changes: [Option<u64>; 2],
}

impl Took {
    fn now(bed: &FirecrackerBed, vm: VmId) -> Self {
        let latencies = &metrics(bed, vm)["latencies_us"];
        let of = |kind: &str| {
            ["", "vmm_"].map(|by| latencies[format!("{by}{kind}_create_snapshot")].as_u64())
        };
        Self { all: of("full"), changes: of("diff") }
    }

    /// What Firecracker wrote since.
    fn wrote(&self, bed: &FirecrackerBed, vm: VmId) -> &'static str {
        let now = Self::now(bed, vm);
        match (now.all == self.all, now.changes == self.changes) {
            (false, true) => "all",
            (true, false) => "changes",
            _ => "something else",
        }
    }
}

/// Takes a snapshot that is compared with the memory, and lets the guest go on.
async fn snapshot(
    bed: &FirecrackerBed,
    driver: &Arc<dyn Driver>,
    vm: VmId,
    to: &Path,
) -> &'static str {
    ticked(driver, vm).await;
    let before = Took::now(bed, vm);
    driver.snapshot(vm, to).await.unwrap();
    let wrote = before.wrote(bed, vm);
    is_whole(bed, vm, to);
    driver.resume(vm).await.unwrap();
    wrote
}

async fn ticked(driver: &Arc<dyn Driver>, vm: VmId) {
    let said = async || driver.console(vm, 1 << 20).await.unwrap().len();
    let before = said().await;
    until("the guest writes to more of its memory", async || said().await > before + 3).await;
}

pub async fn snapshots_are_whole_though_only_changes_are_written(bed: &FirecrackerBed) {
    let open = || bed.driver_with(|config| config.diff_snapshots = true);
    let (driver, spec) = (open(), bed.spec());
    let restore = async |driver: &Arc<dyn Driver>, from: &Path| {
        let clone = VmSpec { vm: bed.spec().vm, ..spec.clone() };
        driver.create(&clone).await.unwrap();
        driver.connect(clone.vm).await.unwrap();
        driver.start(clone.vm, &StartFrom::Snapshot(from.to_owned())).await.unwrap();
        clone.vm
    };
    let at = |name: &str| bed.dir().join(name);
    started(&driver, &spec).await;
    for name in ["booted", "booted-2", "booted-3"] {
        assert_eq!(snapshot(bed, &driver, spec.vm, &at(name)).await, "changes", "{name}");
    }
    driver.destroy(spec.vm).await.unwrap();

    let clone = restore(&driver, &at("booted-3")).await;
    // It is needed no more, not even for what is written over it.
    driver.discard_snapshot(&at("booted-3")).await.unwrap();
    for name in ["restored", "restored-2"] {
        assert_eq!(snapshot(bed, &driver, clone, &at(name)).await, "changes", "{name}");
    }
    // Another server does not know what the memory was.
    let another = open();
    for (name, wrote) in [("adopted", "all"), ("adopted-2", "changes")] {
        assert_eq!(snapshot(bed, &another, clone, &at(name)).await, wrote, "{name}");
    }
    another.destroy(clone).await.unwrap();
    let again = restore(&another, &at("adopted-2")).await;
    ticked(&another, again).await;
    another.destroy(again).await.unwrap();
}

pub async fn a_refusal_is_passed_on(bed: &FirecrackerBed) {
    let spec = bed.spec();
    let refusals = [
        (VmSpec { vcpus: 33, ..spec.clone() }, "/machine-config", "vCPU"),
        (VmSpec { vcpus: 0, ..spec.clone() }, "/machine-config", "vCPU"),
        (VmSpec { memory_mib: 0, ..spec.clone() }, "/machine-config", "memory"),
        // The kernel has no room.
        (VmSpec { memory_mib: 8, ..spec.clone() }, "/actions", "kernel"),
        // More than a processor can address.
        (VmSpec { memory_mib: u32::MAX, ..spec }, "/actions", "memory"),
    ];
    let driver = bed.driver();
    for (spec, at, word) in refusals {
        let spec = VmSpec { vm: bed.spec().vm, ..spec };
        driver.create(&spec).await.unwrap();
        driver.connect(spec.vm).await.unwrap();
        let refused = driver.start(spec.vm, &StartFrom::Boot).await.unwrap_err();
        let DriverError::Refused { operation, message } = &refused else { panic!("{refused}") };
        let said = message.to_lowercase().contains(&word.to_lowercase());
        assert!(operation.contains(at) && said, "{refused}");
        assert_eq!(driver.inspect(spec.vm).await.unwrap().process, Process::NotStarted);
        driver.destroy(spec.vm).await.unwrap();
    }
}

pub async fn no_room_in_the_jail_is_said(bed: &FirecrackerBed) {
    // Less than the guest's memory, all of which Firecracker writes there.
    let small = Small::mounted(bed, "size=32m");
    let (driver, spec) = (bed.driver_at(&small.0.join("state")), bed.spec());
    started(&driver, &spec).await;
    let dest = bed.dir().join("snapshot");
    let full = driver.snapshot(spec.vm, &dest).await.unwrap_err();
    let resumed = driver.resume(spec.vm).await;
    driver.destroy(spec.vm).await.unwrap();
    drop((driver, small));
    assert!(matches!(full, DriverError::NoSpace { .. }), "{full}");
    assert!(!dest.exists());
    resumed.unwrap();
}
