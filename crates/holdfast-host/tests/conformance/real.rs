//! Promises of drivers whose VMs are real processes.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use holdfast_host::{
    driver::{Driver, DriverError, Process, StartFrom, Stop, VmSpec},
    tiny::{BANNER, Then},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    bed::RealBed,
    promises::{pid, started, until},
};

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

async fn ticks(driver: &Arc<dyn Driver>, spec: &VmSpec) {
    let before = driver.console(spec.vm, 1 << 20).await.unwrap().len();
    until("the guest goes on", async || {
        driver.console(spec.vm, 1 << 20).await.unwrap().len() > before
    })
    .await;
}

pub async fn clones_go_on_where_the_snapshot_was(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    ticks(&driver, &spec).await;
    until("the banner", async || {
        driver.console(spec.vm, 4096).await.unwrap().contains(&format!("{BANNER}."))
    })
    .await;
    let dest = bed.dir().join("snapshot");
    driver.snapshot(spec.vm, &dest).await.unwrap();
    let still = driver.console(spec.vm, 1 << 20).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
    assert!(still.starts_with(BANNER));
    let clone = VmSpec { vm: bed.spec().vm, ..spec };
    driver.create(&clone).await.unwrap();
    driver.connect(clone.vm).await.unwrap();
    driver.start(clone.vm, &StartFrom::Snapshot(dest)).await.unwrap();
    ticks(&driver, &clone).await;
    let console = driver.console(clone.vm, 1 << 20).await.unwrap();
    assert!(console.chars().all(|c| c == '.'), "the clone booted: {console}");
    driver.destroy(clone.vm).await.unwrap();
}

pub async fn a_clone_can_be_snapshotted(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    ticks(&driver, &spec).await;
    let mut from = bed.dir().join("snapshot-0");
    driver.snapshot(spec.vm, &from).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
    // From a booted VM's, from a clone's, and from a clone's clone's.
    for generation in 1..=3 {
        let clone = VmSpec { vm: bed.spec().vm, ..spec.clone() };
        driver.create(&clone).await.unwrap();
        driver.connect(clone.vm).await.unwrap();
        driver.start(clone.vm, &StartFrom::Snapshot(from)).await.unwrap();
        ticks(&driver, &clone).await;
        from = bed.dir().join(format!("snapshot-{generation}"));
        driver.snapshot(clone.vm, &from).await.unwrap();
        // A second one without running in between.
        driver.snapshot(clone.vm, &from.with_extension("again")).await.unwrap();
        driver.resume(clone.vm).await.unwrap();
        ticks(&driver, &clone).await;
        driver.destroy(clone.vm).await.unwrap();
    }
}

/// What a clone has not changed stays one file on disk, which needs no other snapshot and no other name.
pub async fn snapshots_of_clones_share_what_they_have_in_common(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    ticks(&driver, &spec).await;
    let [booted, cloned] = ["of-booted", "of-clone"].map(|name| bed.dir().join(name));
    driver.snapshot(spec.vm, &booted).await.unwrap();
    driver.stop(spec.vm, Stop::Force).await.unwrap();
    driver.start(spec.vm, &StartFrom::Snapshot(booted.clone())).await.unwrap();
    ticks(&driver, &spec).await;
    // On another file system, where the file can have no other name.
    let small = Small::mounted(bed, "size=64m");
    let elsewhere = small.0.join("snapshot");
    driver.snapshot(spec.vm, &elsewhere).await.unwrap();
    driver.resume(spec.vm).await.unwrap();
    driver.snapshot(spec.vm, &cloned).await.unwrap();
    driver.stop(spec.vm, Stop::Force).await.unwrap();

    let file = |dir: &Path, name: &str| fs::metadata(dir.join(name)).unwrap();
    let memory = file(&booted, "memory.img");
    let same = |meta: &fs::Metadata| (meta.dev(), meta.ino()) == (memory.dev(), memory.ino());
    assert!(same(&file(&cloned, "base.img")) && !same(&file(&elsewhere, "base.img")));
    let changed = file(&cloned, "changed.img").len();
    assert!(
        (4096..1 << 20).contains(&changed),
        "{changed} bytes were changed by a guest that prints"
    );
    let all: u64 = fs::read_dir(&cloned)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    assert_eq!(driver.snapshot_bytes(&cloned).await.unwrap(), all - memory.blocks() * 512);

    driver.discard_snapshot(&booted).await.unwrap();
    for from in [elsewhere, cloned] {
        // As after a restart of the server: nothing is remembered of what was read.
        let driver = bed.another();
        driver.start(spec.vm, &StartFrom::Snapshot(from)).await.unwrap();
        ticks(&driver, &spec).await;
        driver.stop(spec.vm, Stop::Force).await.unwrap();
    }
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_snapshot_fits_what_is_said(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    let said = driver.fits(&spec).await.unwrap().expect("several VMs start from one snapshot");
    started(&driver, &spec).await;
    let dest = bed.dir().join("snapshot");
    driver.snapshot(spec.vm, &dest).await.unwrap();
    let manifest: Value =
        serde_json::from_slice(&fs::read(dest.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["fits"], serde_json::to_value(said).unwrap());
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_damaged_snapshot_is_refused(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let dests = ["of-booted", "of-clone"].map(|name| bed.dir().join(name));
    for dest in &dests {
        // A clone's checkpoint holds what the clone wrote, and between two ticks it has written.
        ticks(&driver, &spec).await;
        ticks(&driver, &spec).await;
        driver.snapshot(spec.vm, dest).await.unwrap();
        driver.stop(spec.vm, Stop::Force).await.unwrap();
        driver.start(spec.vm, &StartFrom::Snapshot(dest.clone())).await.unwrap();
    }
    driver.stop(spec.vm, Stop::Force).await.unwrap();
    for dest in dests {
        let refuses = async |what: &str| {
            let from = StartFrom::Snapshot(dest.clone());
            let refused = driver.start(spec.vm, &from).await.unwrap_err();
            assert!(matches!(refused, DriverError::Snapshot { .. }), "{what}: {refused}");
            let process = driver.inspect(spec.vm).await.unwrap().process;
            assert_eq!(process, Process::NotStarted, "{what}");
        };
        let names = fs::read_dir(&dest).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.filter(|name| name != "manifest.json").collect();
        assert!(names.len() >= 3, "{names:?}");
        for name in names {
            let path = dest.join(&name);
            let what = path.display();
            let file = fs::File::options().read(true).write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            let (mut byte, at) = ([0], length.min(2048) / 2);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            refuses(&format!("{what}, one bit changed")).await;
            file.write_all_at(&byte, at).unwrap();
            file.set_len(length - 1).unwrap();
            refuses(&format!("{what}, one byte short")).await;
            fs::rename(&path, dest.join("away")).unwrap();
            refuses(&format!("{what}, missing")).await;
            fs::rename(dest.join("away"), &path).unwrap();
            file.set_len(length).unwrap();
        }
        fs::write(dest.join("manifest.json"), b"{").unwrap();
        refuses("manifest").await;
    }
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn an_unusable_image_is_refused(bed: &impl RealBed) {
    let driver = bed.driver();
    let mut spec = bed.spec();
    spec.image.path = bed.dir().join("nowhere");
    let refused = driver.create(&spec).await.unwrap_err();
    assert!(refused.is_permanent() && matches!(refused, DriverError::Image { .. }), "{refused}");
    let spec = bed.spec_of(Then::Flood);
    fs::write(spec.image.path.join("vmlinux"), b"no kernel").unwrap();
    let refused = driver.create(&spec).await.unwrap_err();
    assert!(refused.is_permanent() && matches!(refused, DriverError::Image { .. }), "{refused}");
    // It looks like a kernel, and only the VMM finds out.
    let spec = bed.spec_of(Then::Fault);
    fs::write(spec.image.path.join("vmlinux"), [&b"\x7fELF"[..], &[2; 200]].concat()).unwrap();
    driver.create(&spec).await.unwrap();
    driver.connect(spec.vm).await.unwrap();
    let ended = driver.start(spec.vm, &StartFrom::Boot).await.unwrap_err();
    assert!(matches!(ended, DriverError::Exited { .. } | DriverError::Refused { .. }), "{ended}");
    let words = ended.to_string().to_lowercase();
    assert!(words.contains("kernel"), "the VMM's own words are missing: {ended}");
    assert_eq!(driver.inspect(spec.vm).await.unwrap().process, Process::NotStarted);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_killed_vmm_is_seen_and_starts_again(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let waiting = {
        let (driver, vm) = (bed.driver(), spec.vm);
        tokio::spawn(async move { driver.wait_exit(vm).await })
    };
    signal(pid(&driver, spec.vm).await, Signal::KILL);
    let why =
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap().unwrap();
    assert!(why.contains("signal: 9"), "{why}");
    let seen = driver.inspect(spec.vm).await.unwrap().process;
    assert!(matches!(&seen, Process::Exited { why } if why.contains("signal: 9")), "{seen:?}");
    assert!(matches!(driver.pause(spec.vm).await, Err(DriverError::Exited { .. })));
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    ticks(&driver, &spec).await;
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_stopped_vmm_is_not_dead(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    signal(pid, Signal::STOP);
    let seen = driver.inspect(spec.vm).await.unwrap().process;
    assert!(matches!(seen, Process::Running { .. }), "{seen:?}");
    driver.resume(spec.vm).await.unwrap();
    ticks(&driver, &spec).await;
    signal(pid, Signal::STOP);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_guest_that_resets_ends_its_vmm(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec_of(Then::Fault));
    driver.create(&spec).await.unwrap();
    driver.connect(spec.vm).await.unwrap();
    // It may be over before QEMU was asked how it is.
    let start = driver.start(spec.vm, &StartFrom::Boot).await;
    let why = match start {
        Ok(()) => tokio::time::timeout(Duration::from_secs(30), driver.wait_exit(spec.vm))
            .await
            .unwrap()
            .unwrap(),
        Err(DriverError::Exited { why, .. }) => why,
        Err(other) => panic!("{other}"),
    };
    assert!(why.contains("exit status: 0") && why.contains(BANNER.trim()), "{why}");
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_process_that_nobody_recorded_is_found(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let before = pid(&driver, spec.vm).await;
    // As after a crash between fork and the second record.
    let record = bed.host().dir(spec.vm).file("process.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    content["identity"] = Value::Null;
    fs::write(&record, content.to_string()).unwrap();
    let another = bed.another();
    assert_eq!(pid(&another, spec.vm).await, before);
    another.start(spec.vm, &StartFrom::Boot).await.unwrap();
    assert_eq!(pid(&another, spec.vm).await, before);
    another.destroy(spec.vm).await.unwrap();
}

pub async fn a_process_without_a_directory_is_found(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let before = pid(&driver, spec.vm).await;
    fs::remove_dir_all(bed.host().dir(spec.vm).path()).unwrap();
    let another = bed.another();
    let listed = another.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(!listed[0].directory && listed[0].network);
    assert_eq!(pid(&another, spec.vm).await, before);
    another.destroy(spec.vm).await.unwrap();
}

pub async fn a_missing_tap_is_said(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    driver.create(&spec).await.unwrap();
    driver.connect(spec.vm).await.unwrap();
    let name = format!("hf-{}", spec.vm);
    let removed = Command::new("ip").args(["-n", &name, "link", "delete", "tap0"]).status();
    assert!(removed.unwrap().success());
    let refused = driver.start(spec.vm, &StartFrom::Boot).await.unwrap_err();
    assert!(refused.to_string().contains("connect the VM again"), "{refused}");
    driver.connect(spec.vm).await.unwrap();
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
}

/// A file system that is soon full.
pub struct Small(pub PathBuf);

impl Small {
    pub fn mounted(bed: &impl RealBed, size: &str) -> Self {
        let at = bed.dir().join("small");
        fs::create_dir(&at).unwrap();
        let options = ["-t", "tmpfs", "-o", size, "tmpfs"];
        assert!(Command::new("mount").args(options).arg(&at).status().unwrap().success());
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

pub async fn a_full_disk_is_said(bed: &impl RealBed) {
    let small = Small::mounted(bed, "size=128k");
    let driver = bed.driver_at(&small.0.join("state"));
    let spec = bed.spec();
    let full = driver.create(&spec).await.unwrap_err();
    let destroyed = driver.destroy(spec.vm).await;
    let left = driver.list().await;
    drop((driver, small));
    assert!(matches!(full, DriverError::NoSpace { .. }), "{full}");
    destroyed.unwrap();
    assert_eq!(left.unwrap(), []);
}

pub async fn a_snapshot_that_has_no_room_leaves_nothing(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let small = Small::mounted(bed, "size=64k");
    let full = driver.snapshot(spec.vm, &small.0.join("snapshot")).await.unwrap_err();
    assert!(matches!(full, DriverError::NoSpace { .. }), "{full}");
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);
    drop(small);
    driver.resume(spec.vm).await.unwrap();
    ticks(&driver, &spec).await;
    // The next one is whole.
    let dest = bed.dir().join("snapshot");
    driver.snapshot(spec.vm, &dest).await.unwrap();
    driver.stop(spec.vm, Stop::Force).await.unwrap();
    driver.start(spec.vm, &StartFrom::Snapshot(dest)).await.unwrap();
    ticks(&driver, &spec).await;
    driver.destroy(spec.vm).await.unwrap();
}

/// What a manifest says of a file: docs of `holdfast_host::snapshot`.
fn sum(content: &[u8]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&(content.len() as u64).to_le_bytes());
    for (number, chunk) in content.chunks(64 << 10).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            hash.update(&(number as u64 * (64 << 10)).to_le_bytes());
            hash.update(blake3::hash(chunk).as_bytes());
        }
    }
    hash.finalize().to_hex().to_string()
}

pub async fn a_state_that_the_vmm_refuses_is_said(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let dest = bed.dir().join("snapshot");
    driver.snapshot(spec.vm, &dest).await.unwrap();
    driver.stop(spec.vm, Stop::Force).await.unwrap();
    // Nobody's damage, as the checksums say, and no state either.
    let mut state = fs::read(dest.join("devices.state")).unwrap();
    state.fill(b'x');
    fs::write(dest.join("devices.state"), &state).unwrap();
    let manifest = dest.join("manifest.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let files = content["files"].as_array_mut().unwrap();
    let entry = files.iter_mut().find(|file| file["name"] == "devices.state").unwrap();
    entry["sum"] = sum(&state).into();
    fs::write(&manifest, content.to_string()).unwrap();
    let refused = driver.start(spec.vm, &StartFrom::Snapshot(dest)).await.unwrap_err();
    assert!(
        matches!(refused, DriverError::Exited { .. } | DriverError::Refused { .. }),
        "{refused}"
    );
    let words = refused.to_string().to_lowercase();
    assert!(["snapshot", "migration"].iter().any(|word| words.contains(word)), "{refused}");
    assert_eq!(driver.inspect(spec.vm).await.unwrap().process, Process::NotStarted);
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_chatty_guest_does_not_fill_the_disk(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec_of(Then::Flood));
    started(&driver, &spec).await;
    let dir = bed.host().dir(spec.vm);
    let mut cut = 0;
    // Twice, so that what was kept is replaced and not added to.
    until("the console is cut twice", async || {
        let kept = fs::metadata(dir.file("serial.old")).and_then(|meta| meta.modified());
        let newest = kept.map_or(0, |at| at.elapsed().map_or(0, |age| age.as_millis()));
        cut += usize::from(newest > 0 && newest < 20);
        cut >= 2
    })
    .await;
    let kept = fs::metadata(dir.file("serial.old")).unwrap().len();
    assert!(kept <= 256 << 10, "{kept}");
    assert!(driver.console(spec.vm, 1000).await.unwrap().len() <= 1000);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_console_is_cut_while_the_guest_writes(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let dir = bed.host().dir(spec.vm);
    let console = fs::File::options().append(true).open(dir.file("serial.log")).unwrap();
    (&console).write_all(&vec![b'x'; 2 << 20]).unwrap();
    // What was cut is kept first, so the file that keeps it says nothing yet.
    let length = || fs::metadata(dir.file("serial.log")).unwrap().len();
    until("the console is cut", async || length() < 1 << 20).await;
    ticks(&driver, &spec).await;
    let now = fs::read(dir.file("serial.log")).unwrap();
    assert!(now.len() < 1 << 20 && !now.contains(&0), "the guest does not go on at the new end");
    assert!(fs::metadata(dir.file("serial.old")).unwrap().len() <= 256 << 10);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_hung_vmm_is_said(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    signal(pid, Signal::STOP);
    let hung = driver.pause(spec.vm).await.unwrap_err();
    assert!(matches!(hung, DriverError::Timeout { .. }), "{hung}");
    // It is asked in vain, and then killed.
    driver.stop(spec.vm, Stop::Graceful(Duration::from_millis(50))).await.unwrap();
    assert_eq!(driver.inspect(spec.vm).await.unwrap().process, Process::NotStarted);
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn another_instance_is_left_alone(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let other = bed.driver_at(&bed.dir().join("other"));
    assert_eq!(other.list().await.unwrap(), []);
    let refused = other.destroy(spec.vm).await.unwrap_err();
    assert!(refused.to_string().contains("another Holdfast"), "{refused}");
    let seen = other.inspect(spec.vm).await.unwrap();
    assert!(!seen.network && seen.process == Process::NotStarted);
    let theirs = VmSpec { vm: bed.spec().vm, ..spec.clone() };
    other.create(&theirs).await.unwrap();
    let (ours, address) =
        (driver.inspect(spec.vm).await.unwrap(), other.connect(theirs.vm).await.unwrap());
    assert_ne!(ours.address, Some(address));
    other.destroy(theirs.vm).await.unwrap();
    ticks(&driver, &spec).await;
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_dial_into_a_silent_guest_has_a_deadline(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let began = std::time::Instant::now();
    let refused = driver.dial(spec.vm, 8080).await.err().unwrap();
    assert!(began.elapsed() < Duration::from_secs(8));
    assert!(matches!(refused, DriverError::Timeout { .. } | DriverError::Io { .. }), "{refused}");
    driver.destroy(spec.vm).await.unwrap();
}
