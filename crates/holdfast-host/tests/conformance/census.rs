//! Looks for leftovers without help from the code under test.

use std::{fs, process::Command};

use holdfast_host::statedir::StateDir;

/// Fails when anything on the machine carries the instance's mark.
pub fn nothing_of(state: &StateDir) {
    let instance = state.instance();
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let marked = [environment, line]
            .iter()
            .zip([format!("HOLDFAST_VM={instance} "), format!("\0{instance}-")])
            .any(|(text, mark)| String::from_utf8_lossy(text).contains(&mark));
        if marked {
            left.push(format!("process {}", entry.path().display()));
        }
    }
    for (what, tool, args) in
        [("link", "ip", vec!["-d", "-o", "link", "show"]), ("table", "nft", vec!["list", "tables"])]
    {
        let output = Command::new(tool).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        left.extend(text.lines().filter(|l| l.contains(instance)).map(|l| format!("{what} {l}")));
    }
    for dir in ["/run/holdfast", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if text.contains(instance) || entry.file_name().to_string_lossy().contains(instance) {
                left.push(entry.path().display().to_string());
            }
        }
    }
    for entry in fs::read_dir(state.root().join("vms")).unwrap().flatten() {
        left.push(entry.path().display().to_string());
    }
    let root = state.root().display().to_string();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(&root)).map(str::to_owned));
    assert!(left.is_empty(), "left behind: {left:#?}");
}
