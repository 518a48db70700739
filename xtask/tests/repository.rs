//! Rules of the repository, as tests: directions of dependencies, sizes, unsafe code, documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest source file. A longer one has more than one subject.
const MAX_LINES: usize = 620;

/// Which crates of the workspace each may use. Anything else is a change of the architecture, and
/// has to be made here and in ARCHITECTURE.md.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("holdfast-core", &[]),
    ("holdfast-api", &[]),
    ("holdfast-agent-api", &[]),
    ("holdfast-agent", &["holdfast-agent-api"]),
    ("holdfast-store", &["holdfast-core"]),
    ("holdfast-image", &["holdfast-core"]),
    ("holdfast-host", &["holdfast-agent-api", "holdfast-core"]),
    (
        "holdfast-control",
        &["holdfast-agent-api", "holdfast-core", "holdfast-host", "holdfast-store"],
    ),
    (
        "holdfast-server",
        &[
            "holdfast-agent-api",
            "holdfast-api",
            "holdfast-control",
            "holdfast-core",
            "holdfast-host",
            "holdfast-store",
        ],
    ),
    (
        "holdfast",
        &[
            "holdfast-api",
            "holdfast-control",
            "holdfast-core",
            "holdfast-host",
            "holdfast-image",
            "holdfast-server",
            "holdfast-store",
        ],
    ),
    ("xtask", &[]),
];

/// What must not be anywhere below a crate, directly or not.
const NEVER_BELOW: &[(&str, &[&str])] = &[
    ("holdfast-core", &["tokio", "sqlx", "http", "hyper", "axum", "rustix"]),
    ("holdfast-control", &["sqlx", "axum", "tower-http"]),
    ("holdfast-host", &["sqlx", "axum"]),
    ("holdfast-agent-api", &["tokio", "hyper", "axum", "sqlx"]),
    ("holdfast-api", &["axum", "sqlx"]),
    ("holdfast-agent", &["sqlx", "rtnetlink", "nftables"]),
];

/// Crates that may contain unsafe code.
const UNSAFE: &[&str] = &["crates/holdfast-host", "crates/holdfast-agent"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the root").to_path_buf()
}

/// Source files below these directories, relative to the root, with one of these extensions.
fn sources(dirs: &[&str], extensions: &[&str]) -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let skipped = ["target", "node_modules", "dist", ".git"];
            if skipped.iter().any(|skipped| name == *skipped) {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut paths = Vec::new();
    for dir in dirs {
        walk(&root.join(dir), &mut paths);
    }
    paths.sort();
    paths
        .into_iter()
        .filter(|path| {
            path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted))
        })
        .map(|path| {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            let name = path.strip_prefix(&root).expect("below the root").display().to_string();
            (name, text)
        })
        .collect()
}

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .args(["--offline", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// The workspace's packages with their dependencies, except those of tests.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let text = cargo(&["metadata", "--no-deps", "--format-version=1"]);
    let metadata: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let used = dependencies.iter().filter(|d| d["kind"] != "dev").map(name).collect();
            (name(package), used)
        })
        .collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let packages = packages();
    let allowed: BTreeMap<&str, &[&str]> = DIRECTIONS.iter().copied().collect();
    for (package, used) in &packages {
        // The harness may use everything, and nothing may use it.
        if package == "holdfast-testkit" {
            continue;
        }
        let allowed = allowed.get(package.as_str()).unwrap_or_else(|| {
            panic!("{package} is new: say in DIRECTIONS and ARCHITECTURE.md what it may use")
        });
        for used in used.iter().filter(|name| packages.contains_key(*name)) {
            assert!(allowed.contains(&used.as_str()), "{package} must not use {used}");
        }
    }
}

#[test]
fn what_must_be_pure_is_pure() {
    for (package, never) in NEVER_BELOW {
        let tree = cargo(&["tree", "--package", package, "--edges", "normal", "--prefix", "none"]);
        let below: BTreeSet<&str> =
            tree.lines().filter_map(|line| line.split(' ').next()).collect();
        for never in *never {
            assert!(!below.contains(never), "{package} uses {never}, directly or not");
        }
    }
}

#[test]
fn core_has_no_clock_no_randomness_and_no_io() {
    let words = ["::now()", "now_v7", "new_v4", "SystemTime", "Instant", "std::fs", "std::io"];
    for (name, text) in sources(&["crates/holdfast-core/src"], &["rs"]) {
        for word in words {
            assert!(!text.contains(word), "{name} contains `{word}`");
        }
    }
}

#[test]
fn control_knows_no_driver_and_no_sql() {
    for (name, text) in sources(&["crates/holdfast-control/src"], &["rs"]) {
        for word in ["drivers::", "SELECT ", "INSERT INTO", "UPDATE ", "DELETE FROM"] {
            assert!(!text.contains(word), "{name} contains `{word}`");
        }
    }
}

#[test]
fn a_driver_knows_no_other_driver() {
    let dir = "crates/holdfast-host/src/drivers";
    let drivers = ["qemu", "firecracker", "sim"];
    for (name, text) in sources(&[dir], &["rs"]) {
        let Some(own) = drivers.iter().find(|driver| {
            name.starts_with(&format!("{dir}/{driver}/")) || name == format!("{dir}/{driver}.rs")
        }) else {
            continue;
        };
        for other in drivers.iter().filter(|driver| *driver != own) {
            let uses = [format!("drivers::{other}"), format!("super::{other}::")];
            assert!(!uses.iter().any(|u| text.contains(u)), "{name} uses the driver {other}");
        }
    }
}

#[test]
fn unsafe_code_is_where_it_has_to_be() {
    for (name, text) in sources(&["crates"], &["rs"]) {
        if UNSAFE.iter().any(|dir| name.starts_with(&format!("{dir}/"))) {
            continue;
        }
        let found = text.lines().find(|line| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word))
        });
        assert_eq!(found, None, "{name} has unsafe code");
    }
}

#[test]
fn no_source_file_is_too_long() {
    let dirs = ["crates", "xtask", "web"];
    for (name, text) in sources(&dirs, &["rs", "ts", "svelte", "mjs", "css"]) {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{name} has {lines} lines: divide it");
    }
}

#[test]
fn nothing_is_left_to_be_done_in_a_comment() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let dirs = ["crates", "xtask", "web", "docs"];
    let extensions = ["rs", "ts", "svelte", "mjs", "css", "md", "toml", "sql", "sh"];
    for (name, text) in sources(&dirs, &extensions) {
        for mark in marks {
            assert!(!text.contains(mark), "{name} contains {mark}");
        }
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for (name, text) in sources(&["crates", "xtask"], &["rs"]) {
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        assert!(first.starts_with("//!"), "{name} has no module documentation");
    }
}

#[test]
fn every_package_inherits_the_workspace() {
    for (name, text) in sources(&["crates", "xtask"], &["toml"]) {
        if !name.ends_with("Cargo.toml") {
            continue;
        }
        for line in ["version.workspace = true", "[lints]\nworkspace = true"] {
            assert!(text.contains(line), "{name} lacks `{line}`");
        }
        let dependencies = text.split_once("[dependencies]").map_or("", |(_, rest)| rest);
        let own = dependencies.lines().take_while(|line| !line.starts_with('['));
        for line in own.filter(|line| line.contains('=') && !line.starts_with('#')) {
            let ours = line.contains("workspace = true") || line.contains("path = \".\"");
            assert!(ours, "{name}: `{line}` has a version of its own");
        }
    }
}

/// Names of metrics in a text: what begins with `holdfast_`, up to what cannot be part of a name.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("holdfast_") {
        let before = text[..at].chars().next_back();
        let name: String =
            text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != '/') {
            found.insert(name);
        }
    }
    found
}

/// Names of metrics in calls of these macros.
fn metrics_made(text: &str, macros: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in macros {
        for (at, call) in text.match_indices(&format!("{name}!(")) {
            if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            let argument = text[at + call.len()..].trim_start();
            let quoted = argument.strip_prefix('"').and_then(|rest| rest.split('"').next());
            found.extend(quoted.map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_metric_is_described_and_watched_by_its_name() {
    let code: String = sources(&["crates"], &["rs"])
        .into_iter()
        .filter(|(name, _)| name.contains("/src/"))
        .map(|(_, text)| text)
        .collect();
    let made = metrics_made(&code, &["counter", "gauge", "histogram"]);
    let described =
        metrics_made(&code, &["describe_counter", "describe_gauge", "describe_histogram"]);
    assert!(made.len() > 20, "{made:?}");
    assert_eq!(made, described, "made, and described in server/src/metrics.rs");
    for (file, text) in sources(&["packaging"], &["json", "yaml"]) {
        for name in metrics_in(&text) {
            // Of a histogram, Prometheus makes these.
            let base = ["_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let known = made.contains(&name) || base.is_some_and(|base| made.contains(base));
            assert!(known, "{file}: there is no metric {name}");
        }
    }
    // Counters without a label, and those with labels that are known, begin at zero.
    let counters = metrics_made(&code, &["counter"]);
    let (_, zeroed) = code.split_once("fn count_from_zero").expect("it is in the sources");
    let zeroed = metrics_in(zeroed.split("\n}\n").next().expect("a function ends"));
    let missing: Vec<_> = counters.difference(&zeroed).collect();
    assert_eq!(missing, ["holdfast_reconcile_steps_total"], "only the plan knows its steps");
}

#[test]
fn the_readme_names_the_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    for command in ["cargo xtask up", "cargo xtask test"] {
        assert!(readme.contains(command), "README.md does not name `{command}`");
    }
}

#[test]
fn every_crate_is_in_the_architecture() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    for package in packages().keys() {
        assert!(text.contains(package), "ARCHITECTURE.md does not name {package}");
    }
}
