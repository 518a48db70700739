//! Which images are removed: those that nobody needs, and no others.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use serde_json::json;

const CURRENT: char = 'a';
const PUT_AWAY: char = 'b';
const OLD: char = 'c';

fn digest(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn write(path: &Path, content: &serde_json::Value) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, content.to_string()).expect("written");
}

fn image(cache: &Path, letter: char) {
    let inputs = json!({ "format": 1, "revision": "1", "base": "1", "tools": null, "config": "2",
        "modules": [], "agent": "3", "resolvers": [] });
    let file = json!({ "bytes": 4096, "diskBytes": 4096, "sha256": "4" });
    let manifest = json!({ "digest": digest(letter), "createdAt": "2026-01-01T00:00:00Z",
        "builder": "0.1.0", "inputs": inputs, "kernel": "6.1", "packages": {}, "tools": [],
        "files": { "rootfs.img": file } });
    write(&cache.join("images").join(digest(letter)).join("manifest.json"), &manifest);
}

fn run(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(line.split(' '))
        .env("HOLDFAST_STATE_DIR", dir.join("state"))
        .env("HOLDFAST_CACHE_DIR", dir.join("cache"))
        .env("HOME", dir)
        .env_remove("HOLDFAST_URL")
        .env_remove("HOLDFAST_TOKEN")
        .env_remove("HOLDFAST_CONFIG")
        .output()
        .expect("it runs")
}

#[test]
fn only_images_that_nobody_needs_are_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cache, state) = (dir.path().join("cache"), dir.path().join("state"));
    for letter in [CURRENT, PUT_AWAY, OLD] {
        image(&cache, letter);
    }
    symlink(digest(CURRENT), cache.join("images/current")).expect("linked");
    let fits = json!({ "vmm": "QEMU 7 (tcg)", "image": digest(PUT_AWAY), "memory_mib": 1, "vcpus": 1,
        "disk_mib": 1 });
    let checkpoint = state.join("snapshots/01a220db-1727-77ca-bee5-8f18cd4be953/manifest.json");
    write(&checkpoint, &json!({ "format": 2, "fits": fits, "files": [] }));
    let there = || {
        let letters = [CURRENT, PUT_AWAY, OLD].into_iter();
        letters.filter(|l| cache.join("images").join(digest(*l)).exists()).collect::<String>()
    };

    for letter in [CURRENT, PUT_AWAY] {
        let refused = run(dir.path(), &format!("image rm {}", digest(letter)));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(&digest(letter)), "{said}");
        assert_eq!(said.contains("checkpoint 01a220db"), letter == PUT_AWAY, "{said}");
    }
    // Of a machine whose intent cannot be read, nobody knows which image it needs.
    let intent = state.join("vms/01a220db-0b28-72f0-8c93-31dd3f0a1a01/intent.json");
    write(&intent, &json!({}));
    let unknown = run(dir.path(), "image prune");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && said.contains("intent of VM 01a220db-0b28"), "{said}");
    assert_eq!(there(), "abc");
    fs::remove_dir_all(state.join("vms")).expect("removed");
    // A checkpoint that is damaged needs none.
    fs::create_dir_all(state.join("snapshots/damaged")).expect("made");
    fs::write(state.join("snapshots/damaged/manifest.json"), "{").expect("written");

    let would = run(dir.path(), "image prune --dry-run");
    assert_eq!(String::from_utf8_lossy(&would.stdout).trim(), digest(OLD));
    assert_eq!(there(), "abc");
    let done = run(dir.path(), "image prune");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.contains("1 image"), "{said}");
    assert_eq!(there(), "ab");
    let again = run(dir.path(), "image prune");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("Nothing is there that nobody needs"), "{said}");
}
