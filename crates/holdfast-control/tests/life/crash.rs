//! A process that dies at every failpoint, twice in a row, and is started again: what it was doing
//! is done in the end, nothing is lost and nothing is left.
//!
//! This test's own program is the process: [`crate::lives`] does nothing unless asked to.

use std::{
    collections::BTreeSet, os::unix::process::ExitStatusExt as _, path::Path, process::Command,
};

use crate::{
    lives::{DIR, GOAL, POINT},
    world::fast_dir,
};

/// How a process ends that dies at a failpoint.
const SIGABRT: i32 = 6;

/// Points by what reaches them. All are reached again after the first death but these two, after which
/// what was to be done is done.
const CREATED: [&str; 1] = ["create.after"];
const HANDED_OVER: [&str; 1] = ["signin.sealed"];
const CREATE: [&str; 8] = [
    "create.before",
    "step.disk",
    "step.network",
    "step.start",
    "step.claim",
    "step.ready",
    "commit.before",
    "commit.after",
];
const ADOPT: [&str; 2] = ["adopt.read", "adopt.spawn"];
const REPAIR: [&str; 4] = ["repair.stop", "repair.stopped", "commit.before", "commit.after"];
const RESUME: [&str; 1] = ["repair.resume"];
const SERVICE: [&str; 1] = ["repair.service"];
const END: [&str; 6] =
    ["step.end", "step.destroy", "step.destroyed", "step.ended", "commit.before", "commit.after"];
const SWEEP: [&str; 1] = ["sweep.remove"];
const HIBERNATE: [&str; 7] = [
    "checkpoint.save",
    "checkpoint.saved",
    "checkpoint.away",
    "step.destroy",
    "step.destroyed",
    "commit.before",
    "commit.after",
];
const BRING_BACK: [&str; 5] =
    ["step.start", "step.claim", "step.ready", "commit.before", "commit.after"];
const POOL: [&str; 2] = ["pool.make", "pool.tie"];
const SIGN_IN: [&str; 3] = ["signin.tool", "signin.collect", "signin.write"];

#[test]
fn dies_while_a_session_is_made() {
    for point in CREATED {
        dies("ready", point, 1);
    }
    for point in CREATE {
        dies_twice("ready", point);
    }
}

#[test]
fn dies_while_sessions_are_adopted() {
    for point in ADOPT {
        dies_twice("adopted", point);
    }
}

#[test]
fn dies_while_a_machine_is_repaired() {
    for point in REPAIR {
        dies_twice("repaired", point);
    }
    for point in SERVICE {
        dies_twice("service", point);
    }
}

#[test]
fn dies_while_a_machine_is_resumed() {
    for point in RESUME {
        dies_twice("resumed", point);
    }
}

#[test]
fn dies_while_a_session_is_ended() {
    for point in END {
        dies_twice("ended", point);
    }
}

#[test]
fn dies_while_an_orphan_is_removed() {
    for point in SWEEP {
        dies_twice("swept", point);
    }
}

#[test]
fn dies_while_a_session_is_put_away() {
    for point in HIBERNATE {
        dies_twice("hibernated", point);
    }
}

#[test]
fn dies_while_a_session_is_brought_back() {
    for point in BRING_BACK {
        dies_twice("brought back", point);
    }
}

#[test]
fn dies_while_a_session_gets_a_machine_that_waits() {
    for point in CREATED {
        dies("pooled", point, 1);
    }
    for point in POOL {
        dies_twice("pooled", point);
    }
}

#[test]
fn dies_while_somebody_signs_in() {
    for point in HANDED_OVER {
        dies("signed in", point, 1);
    }
    for point in SIGN_IN {
        dies_twice("signed in", point);
    }
}

/// A failpoint that no test reaches proves nothing.
#[test]
fn every_failpoint_is_in_a_list() {
    let mut listed = BTreeSet::new();
    for list in [
        &CREATED[..],
        &CREATE,
        &ADOPT,
        &REPAIR,
        &RESUME,
        &SERVICE,
        &END,
        &SWEEP,
        &HIBERNATE,
        &POOL,
        &SIGN_IN,
        &HANDED_OVER,
    ] {
        listed.extend(list.iter().map(|name| (*name).to_owned()));
    }
    let mut found = BTreeSet::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in std::fs::read_dir(source).unwrap() {
        let file = file.unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        for part in text.split("fail_point!(\"").skip(1) {
            found.insert(part.split('"').next().unwrap().to_owned());
        }
    }
    assert_eq!(found, listed);
}

/// Failpoints are compiled into tests alone: the command is built without the feature.
#[test]
fn failpoints_are_in_no_program() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "--offline", "-p", "holdfast", "-e", "normal,build,features", "-i", "fail"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&tree.stdout);
    assert!(text.contains("fail v"), "{text}{}", String::from_utf8_lossy(&tree.stderr));
    assert!(!text.contains("failpoints"), "{text}");
}

fn dies_twice(goal: &str, point: &str) {
    dies(goal, point, 2);
}

fn dies(goal: &str, point: &str, times: u32) {
    let dir = fast_dir();
    for death in 1..=times {
        let output = process(dir.path(), goal, point);
        assert_eq!(
            output.status.signal(),
            Some(SIGABRT),
            "{goal}: {point} was not reached for death {death}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let output = process(dir.path(), goal, "");
    assert!(
        output.status.success(),
        "{goal} after dying at {point}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn process(dir: &Path, goal: &str, point: &str) -> std::process::Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lives::life_of_a_server", "--nocapture"])
        .env(DIR, dir)
        .env(GOAL, goal)
        .env(POINT, point)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}
