//! `holdfast doctor` where a driver was asked for that cannot run: one failed check, with what to do.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use serde_json::Value;

/// The check of Firecracker, of a machine where the programs say this of themselves.
fn doctor(dir: &Path, firecracker: &str, jailer: &str) -> Value {
    let program = |name: &str, says: &str| {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).expect("a program");
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
