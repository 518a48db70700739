//! Promises that every driver keeps, also one that simulates.

use std::{sync::Arc, time::Duration};

use holdfast_core::VmId;
use holdfast_host::driver::{Driver, DriverError, Observed, Process, StartFrom, Stop, VmSpec};

use crate::bed::Bed;

/// Waits for a condition; a machine that is busy with other tests may take its time.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

pub async fn started(driver: &Arc<dyn Driver>, spec: &VmSpec) {
    driver.create(spec).await.unwrap();
    driver.connect(spec.vm).await.unwrap();
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
}

pub async fn pid(driver: &Arc<dyn Driver>, vm: VmId) -> i32 {
    match driver.inspect(vm).await.unwrap().process {
        Process::Running { pid, .. } => pid,
        other => panic!("{vm} does not run: {other:?}"),
    }
}

/// A VM that runs is paused and resumed, stopped, started again, and destroyed.
pub async fn obeys_to_its_end(driver: &Arc<dyn Driver>, vm: VmId) {
    driver.pause(vm).await.unwrap();
    driver.resume(vm).await.unwrap();
    driver.stop(vm, Stop::Force).await.unwrap();
    assert_eq!(driver.inspect(vm).await.unwrap().process, Process::NotStarted);
    driver.start(vm, &StartFrom::Boot).await.unwrap();
    driver.destroy(vm).await.unwrap();
}

pub async fn a_vm_lives_and_ends(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    driver.create(&spec).await.unwrap();
    let made = driver.inspect(spec.vm).await.unwrap();
    assert_eq!(made.process, Process::NotStarted);
    assert!(made.directory && !made.network && made.address.is_none());
    let address = driver.connect(spec.vm).await.unwrap();
    let connected = driver.inspect(spec.vm).await.unwrap();
    assert_eq!((connected.network, connected.address), (true, Some(address)));
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    pid(&driver, spec.vm).await;
    until("the console says something", async || {
        !driver.console(spec.vm, 4096).await.unwrap().is_empty()
    })
    .await;
    assert!(driver.usage(spec.vm).await.unwrap().memory_rss_kib > 0);
    assert_eq!(driver.list().await.unwrap().len(), 1);
    obeys_to_its_end(&driver, spec.vm).await;
    let gone = driver.inspect(spec.vm).await.unwrap();
    assert_eq!(gone, nothing(spec.vm));
}

pub async fn a_probe_gives_evidence(bed: &impl Bed) {
    let (first, again) = (bed.driver().probe().await, bed.another().probe().await);
    assert!(first.usable, "{first:?}");
    assert!(first.evidence.ends_with('.') && first.version.is_some(), "{first:?}");
    assert_eq!(first.accelerated, again.accelerated, "{again:?}");
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

pub async fn every_call_may_be_repeated(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    for _ in 0..2 {
        driver.create(&spec).await.unwrap();
    }
    let address = driver.connect(spec.vm).await.unwrap();
    assert_eq!(driver.connect(spec.vm).await.unwrap(), address);
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    let first = pid(&driver, spec.vm).await;
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    driver.create(&spec).await.unwrap();
    assert_eq!(driver.connect(spec.vm).await.unwrap(), address);
    for _ in 0..2 {
        driver.pause(spec.vm).await.unwrap();
    }
    for _ in 0..2 {
        driver.resume(spec.vm).await.unwrap();
    }
    assert_eq!(pid(&driver, spec.vm).await, first);
    for _ in 0..2 {
        driver.stop(spec.vm, Stop::Graceful(Duration::from_millis(50))).await.unwrap();
    }
    for _ in 0..2 {
        driver.destroy(spec.vm).await.unwrap();
    }
}

pub async fn an_id_has_one_specification(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    driver.create(&spec).await.unwrap();
    let other = VmSpec { memory_mib: 512, ..spec.clone() };
    let refused = driver.create(&other).await.unwrap_err();
    assert!(matches!(refused, DriverError::Conflict(vm) if vm == spec.vm), "{refused}");
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn nothing_can_be_destroyed(bed: &impl Bed) {
    let (driver, vm) = (bed.driver(), bed.spec().vm);
    driver.destroy(vm).await.unwrap();
    driver.stop(vm, Stop::Force).await.unwrap();
    assert_eq!(driver.inspect(vm).await.unwrap(), nothing(vm));
    assert!(driver.wait_exit(vm).await.is_err());
    assert!(matches!(driver.connect(vm).await, Err(DriverError::NotFound(_))));
    assert!(matches!(driver.dial(vm, 8080).await.err(), Some(DriverError::NotFound(_))));
}

pub async fn no_start_without_a_network(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    driver.create(&spec).await.unwrap();
    let refused = driver.start(spec.vm, &StartFrom::Boot).await.unwrap_err();
    assert!(refused.to_string().contains("network"), "{refused}");
    assert_eq!(driver.inspect(spec.vm).await.unwrap().process, Process::NotStarted);
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn another_driver_adopts(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let before = driver.inspect(spec.vm).await.unwrap();
    let another = bed.another();
    assert_eq!(another.list().await.unwrap(), [before]);
    another.start(spec.vm, &StartFrom::Boot).await.unwrap();
    assert_eq!(pid(&another, spec.vm).await, pid(&driver, spec.vm).await);
    another.pause(spec.vm).await.unwrap();
    another.resume(spec.vm).await.unwrap();
    let waiting = {
        let (another, vm) = (bed.another(), spec.vm);
        tokio::spawn(async move { another.wait_exit(vm).await })
    };
    another.destroy(spec.vm).await.unwrap();
    let why = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(why.is_err() || why.is_ok_and(|why| why.contains("ended")));
    assert_eq!(driver.list().await.unwrap(), []);
}

pub async fn three_clones_of_one_snapshot(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let dest = bed.dir().join("snapshot");
    driver.snapshot(spec.vm, &dest).await.unwrap();
    assert!(driver.snapshot(spec.vm, &dest).await.is_err(), "a snapshot is never overwritten");
    driver.resume(spec.vm).await.unwrap();
    let cold = VmSpec { vm: bed.spec().vm, ..spec.clone() };
    driver.create(&cold).await.unwrap();
    driver.connect(cold.vm).await.unwrap();
    driver.start(cold.vm, &StartFrom::DiskOf(dest.clone())).await.unwrap();
    pid(&driver, cold.vm).await;
    driver.destroy(cold.vm).await.unwrap();
    let clones: Vec<VmSpec> =
        (0..3).map(|_| VmSpec { vm: bed.spec().vm, ..spec.clone() }).collect();
    let from = StartFrom::Snapshot(dest);
    let start = async |clone: &VmSpec| {
        driver.create(clone).await.unwrap();
        let address = driver.connect(clone.vm).await.unwrap();
        driver.start(clone.vm, &from).await.unwrap();
        address
    };
    let (a, b, c) = tokio::join!(start(&clones[0]), start(&clones[1]), start(&clones[2]));
    assert!(a != b && b != c && a != c);
    for clone in &clones {
        pid(&driver, clone.vm).await;
        driver.destroy(clone.vm).await.unwrap();
    }
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_foreign_snapshot_is_refused(bed: &impl Bed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let dest = bed.dir().join("snapshot");
    driver.snapshot(spec.vm, &dest).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
    let mut other_image = VmSpec { vm: bed.spec().vm, ..spec.clone() };
    other_image.image.digest = "another".to_owned();
    let other_size = VmSpec { vm: bed.spec().vm, memory_mib: 512, ..spec };
    for foreign in [other_image, other_size] {
        driver.create(&foreign).await.unwrap();
        driver.connect(foreign.vm).await.unwrap();
        let from = StartFrom::Snapshot(dest.clone());
        let refused = driver.start(foreign.vm, &from).await.unwrap_err();
        assert!(matches!(refused, DriverError::Snapshot { .. }), "{refused}");
        driver.destroy(foreign.vm).await.unwrap();
    }
}
