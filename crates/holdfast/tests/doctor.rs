//! `holdfast doctor` where a driver was asked for that cannot run: one failed check, with what to do; and
//! that what it or the server tries does not outlive them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// A configuration for Firecracker, where the programs say this of themselves, and otherwise do this.
fn configuration(dir: &Path, firecracker: &str, jailer: &str, does: &str) -> PathBuf {
    let program = |name: &str, says: &str| {
        let path = dir.join(name);
        let version = format!("[ \"$1\" = --version ] && exec echo '{says}'");
        fs::write(&path, format!("#!/bin/sh\n{version}\nexec {does}\n")).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        path
    };
    let config = dir.join("holdfast.toml");
    let text = format!(
        "driver = \"firecracker\"\nstate_dir = \"{0}/state\"\ncache_dir = \"{0}/cache\"\n\
         [firecracker]\nprogram = \"{1}\"\njailer = \"{2}\"\n",
        dir.display(),
        program("firecracker", firecracker).display(),
        program("jailer", jailer).display(),
    );
    fs::write(&config, text).expect("a configuration");
    config
}

/// The check of Firecracker, of a machine where the programs say this of themselves.
fn doctor(dir: &Path, firecracker: &str, jailer: &str) -> Value {
    let config = configuration(dir, firecracker, jailer, "false");
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["doctor", "--json", "--config"])
        .arg(&config)
        .output()
        .expect("it runs");
    assert!(!output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks").iter();
    let drivers: Vec<_> =
        checks.filter(|c| ["firecracker", "qemu"].iter().any(|d| c["name"] == *d)).collect();
    let [check] = drivers[..] else { panic!("{drivers:?}") };
    assert_eq!(check["status"], "fail", "{check}");
    check.clone()
}

#[test]
fn versions_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["1.11.0", "0.25.2", "2.0.0"] {
        let check =
            doctor(dir.path(), &format!("Firecracker v{version}"), &format!("Jailer v{version}"));
        let remedy = check["remedy"].as_str().expect("what to do");
        assert!(remedy.contains(&format!("Firecracker v{version} is not supported")), "{remedy}");
        assert!(remedy.contains("1.12 and later 1.x are"), "{remedy}");
        assert!(remedy.contains("curl -fsSL https://github.com/firecracker-microvm"), "{remedy}");
    }
    let mixed = doctor(dir.path(), "Firecracker v1.13.0", "Jailer v1.12.1");
    let detail = mixed["detail"].as_str().expect("why");
    assert!(detail.contains("both have to be of one release"), "{detail}");
}

/// What the processes of a trial are marked with, whoever runs it.
fn marked(runner: u32) -> Vec<i32> {
    let mark = format!("HOLDFAST_VM=trial-{runner}-");
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let text = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        text.split(|byte| *byte == 0).any(|word| word.starts_with(mark.as_bytes()))
    })
    .collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_mins(1), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Interrupted by a person, or killed: what it was booting does not outlive it, or the next one.
#[test]
fn what_it_tries_ends_with_it() {
    let home = tempfile::tempdir().expect("a directory");
    let state = home.path().join("state");
    fs::create_dir(&state).expect("a directory");
    // It prints nothing, for as long as it is let.
    let config = configuration(home.path(), "Firecracker v1.13.0", "Jailer v1.13.0", "sleep 600");
    let run = |what: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(what).arg("--config").arg(&config);
        let mut running = command.stdout(Stdio::null()).spawn().expect("it runs");
        until("something is tried", || {
            let ended = running.try_wait().expect("how it is");
            assert_eq!(ended, None, "it ended without trying anything");
            !marked(running.id()).is_empty()
        });
        running
    };
    let start = || run(&["doctor"]);
    let left = |runner: u32| {
        let dirs = fs::read_dir(&state).expect("the state directory").flatten();
        let of_trials =
            |entry: &fs::DirEntry| entry.file_name().to_string_lossy().contains("trial");
        let dirs = dirs.filter(of_trials).count();
        let group = format!("holdfast-trial-{runner}-");
        let groups = ["", "memory", "pids", "cpu"].map(|of| Path::new("/sys/fs/cgroup").join(of));
        let groups = groups.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let ours = groups.filter(|entry| entry.file_name().to_string_lossy().starts_with(&group));
        (marked(runner).len(), dirs, ours.count())
    };
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut doctor = start();
        rustix::process::kill_process(Pid::from_child(&doctor), signal).expect("a signal");
        assert_eq!(doctor.wait().expect("its end").code(), Some(code));
        assert_eq!(left(doctor.id()), (0, 0, 0), "after {signal:?}");
    }
    // The server tries beside its work whether a driver works that it was told to use.
    let mut server = run(&["serve", "--listen", "127.0.0.1:0", "--log", "error"]);
    rustix::process::kill_process(Pid::from_child(&server), Signal::TERM).expect("a signal");
    assert!(server.wait().expect("its end").success());
    assert_eq!(left(server.id()), (0, 0, 0), "after a server");
    let mut killed = start();
    killed.kill().expect("a signal");
    killed.wait().expect("its end");
    assert!(left(killed.id()).0 > 0 && left(killed.id()).1 > 0, "it was not in the middle of it");
    let mut next = start();
    assert_eq!(marked(killed.id()), [] as [i32; 0]);
    rustix::process::kill_process(Pid::from_child(&next), Signal::INT).expect("a signal");
    next.wait().expect("its end");
    assert_eq!(left(killed.id()), (0, 0, 0));
}

/// A command, a package or a file: nothing that only the source has.
#[test]
fn what_to_do_can_be_done_where_only_the_command_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    // A server that is there and cannot work.
    std::thread::spawn(move || {
        let says = r#"{"ready":false,"checks":[{"name":"store","ok":false,"detail":"away"}]}"#;
        for stream in listener.incoming() {
            let mut stream = stream?;
            let _ = stream.read(&mut [0; 4096])?;
            let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json";
            let length = says.len();
            write!(
                stream,
                "{head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{says}"
            )?;
        }
        std::io::Result::Ok(())
    });
    let config = configuration(dir.path(), "Firecracker v1.13.0", "Jailer v1.13.0", "false");
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["doctor", "--json", "--url", &url, "--config"])
        .arg(&config)
        // So little of what it needs is found.
        .env("PATH", "")
        .env("HOLDFAST_CACHE_DIR", dir.path())
        .output()
        .expect("it runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let remedies: Vec<_> = checks.iter().filter_map(|check| check["remedy"].as_str()).collect();
    assert!(remedies.len() > 3, "{report:#}");
    for remedy in remedies {
        assert!(!remedy.contains("docs/") && !remedy.contains("packaging/"), "{remedy}");
    }
    let server = checks.iter().find(|check| check["name"] == "server").expect("it is looked at");
    assert!(server["remedy"].as_str().is_some_and(|r| r.contains("journalctl")), "{server}");
}
