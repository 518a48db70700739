//! Promises of Firecracker alone: what its jail keeps in, and what a VMM may do to its own.

use std::{fs, os::unix::net::UnixListener, path::PathBuf, sync::mpsc, time::Duration};

use holdfast_host::{
    driver::{Driver as _, DriverError, StartFrom, Stop},
    drivers::firecracker::FirecrackerDriver,
    host::HostConfig,
};

use crate::{
    bed::{Bed as _, FirecrackerBed, RealBed as _, programs},
    promises::{pid, started},
};

pub fn root(bed: &FirecrackerBed, vm: holdfast_core::VmId) -> PathBuf {
    let host = bed.host();
    let id = format!("{}-{vm}", host.state().instance());
    host.dir(vm).file("jail").join("firecracker").join(id).join("root")
}

pub async fn a_vmm_sees_its_jail_alone(bed: &FirecrackerBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let pid = pid(&driver, spec.vm).await;
    let mut seen: Vec<_> = fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.sort();
    let wanted = [
        "api.sock",
        "dev",
        "firecracker",
        "firecracker.log",
        "firecracker.pid",
        "initramfs.img",
        "metrics.json",
        "rootfs.img",
        "run",
        "upper.img",
        "vmlinux",
    ];
    assert_eq!(seen, wanted);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let options = |name: &str| {
        let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(name)).unwrap_or_default();
        line.split(' ').nth(3).unwrap_or_default().split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    for shared in ["/rootfs.img", "/vmlinux", "/initramfs.img"] {
        assert!(options(shared).contains(&"ro".to_owned()), "{shared}: {mounts}");
    }
    assert!(options("/upper.img").contains(&"rw".to_owned()), "{mounts}");
    let ours = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!ours.contains("/jail/"), "the host sees the jail's mounts: {ours}");
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_lost_socket_is_said(bed: &FirecrackerBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    fs::remove_file(root(bed, spec.vm).join("api.sock")).unwrap();
    let lost = driver.pause(spec.vm).await.unwrap_err();
    assert!(matches!(&lost, DriverError::Io { operation, .. } if operation.contains("socket")));
    // It runs nevertheless, and nobody takes it for dead.
    pid(&driver, spec.vm).await;
    driver.stop(spec.vm, Stop::Force).await.unwrap();
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    driver.pause(spec.vm).await.unwrap();
    driver.destroy(spec.vm).await.unwrap();
}

pub async fn a_link_in_a_jail_leads_nowhere(bed: &FirecrackerBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let elsewhere = bed.dir().join("elsewhere.sock");
    let listener = UnixListener::bind(&elsewhere).unwrap();
    let (sender, connected) = mpsc::channel();
    std::thread::spawn(move || sender.send(listener.accept().map(drop)));
    let socket = root(bed, spec.vm).join("api.sock");
    fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &socket).unwrap();
    driver.pause(spec.vm).await.unwrap_err();
    assert!(connected.recv_timeout(Duration::from_millis(300)).is_err(), "the link was followed");
    driver.destroy(spec.vm).await.unwrap();
    assert!(elsewhere.exists());
}

pub async fn an_interrupted_start_is_made_anew(bed: &FirecrackerBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    started(&driver, &spec).await;
    let before = pid(&driver, spec.vm).await;
    // As after a crash between the spawn and the end of the start.
    fs::write(bed.host().dir(spec.vm).file("starting"), b"").unwrap();
    let another = bed.another();
    another.start(spec.vm, &StartFrom::Boot).await.unwrap();
    assert_ne!(pid(&another, spec.vm).await, before);
    another.destroy(spec.vm).await.unwrap();
}

pub async fn an_image_s_kernel_has_to_print(bed: &FirecrackerBed) {
    // It boots, and is no Linux.
    let image = bed.spec().image;
    let config =
        HostConfig { probe_image: Some(image), ..HostConfig::new(bed.host().state().root()) };
    let driver = FirecrackerDriver::open(config, programs()).unwrap();
    let verdict = driver.probe().await;
    assert!(!verdict.usable && !verdict.accelerated, "{verdict:?}");
    assert!(verdict.evidence.contains("cannot run the image's kernel"), "{verdict:?}");
    assert!(verdict.remedy.unwrap().contains("QEMU"));
    let other = bed.driver().probe_key().await;
    assert_ne!(driver.probe_key().await, other, "a verdict depends on the image");
}
