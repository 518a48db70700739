//! Counts of what passed and failed, part by part.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Outcome of one part of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Its name.
    pub(crate) name: String,
    /// Tests or checks that passed.
    pub(crate) passed: u64,
    /// Tests or checks that failed.
    pub(crate) failed: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Outcome of a whole run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    parts: Vec<Part>,
}

impl Tally {
    /// Adds a part.
    pub(crate) fn add(&mut self, name: &str, passed: u64, failed: u64, took: Duration) {
        self.parts.push(Part { name: name.to_owned(), passed, failed, took });
    }

    /// Adds work that nothing is counted of.
    pub(crate) fn note(&mut self, name: &str, took: Duration) {
        self.add(name, 0, 0, took);
    }

    /// Adds what another part of the run counted.
    pub(crate) fn append(&mut self, other: Self) {
        self.parts.extend(other.parts);
    }

    /// How much failed.
    pub(crate) fn failed(&self) -> u64 {
        self.parts.iter().map(|part| part.failed).sum()
    }

    /// The summary: a line for each part, and the sum alone on the last one.
    pub(crate) fn summary(&self) -> String {
        let mut lines: Vec<String> = self
            .parts
            .iter()
            .map(|part| {
                let Part { name, passed, failed, took } = part;
                let mark = if *failed == 0 { "ok    " } else { "FAILED" };
                let counts = match (passed, failed) {
                    (0, 0) => String::new(),
                    _ => format!("{passed:>4} passed {failed:>3} failed"),
                };
                format!("{mark} {name:<28} {counts:<22} {:>5} s", took.as_secs())
            })
            .collect();
        let passed: u64 = self.parts.iter().map(|part| part.passed).sum();
        lines.push(format!("{passed} passed, {} failed", self.failed()));
        lines.join("\n")
    }
}

/// Tests and failures in a JUnit file, as cargo-nextest writes it.
pub(crate) fn junit(path: &Path) -> Result<(u64, u64)> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let head = text
        .split_once("<testsuites")
        .and_then(|(_, rest)| rest.split_once('>'))
        .map(|(head, _)| head)
        .with_context(|| format!("{} is not a JUnit file", path.display()))?;
    let number = |name: &str| {
        head.split_once(&format!(" {name}=\""))
            .and_then(|(_, rest)| rest.split_once('"'))
            .and_then(|(value, _)| value.parse::<u64>().ok())
            .with_context(|| format!("{} has no number of {name}", path.display()))
    };
    let failed = number("failures")? + number("errors")?;
    Ok((number("tests")?.saturating_sub(failed), failed))
}

/// Tests and failures in a JSON report of vitest.
pub(crate) fn vitest(path: &Path) -> Result<(u64, u64)> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let report: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let number = |name: &str| {
        report[name].as_u64().with_context(|| format!("{} has no {name}", path.display()))
    };
    // A file that cannot be loaded has no tests that could fail.
    let suites = number("numFailedTestSuites")?;
    let tests = number("numFailedTests")?;
    Ok((number("numPassedTests")?, if tests == 0 { suites } else { tests }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sum_alone() {
        let mut tally = Tally::default();
        tally.add("lint", 3, 0, Duration::from_secs(1));
        tally.add("units", 40, 2, Duration::from_secs(61));
        let summary = tally.summary();
        assert_eq!(summary.lines().last(), Some("43 passed, 2 failed"));
        assert!(summary.contains("FAILED units"));
    }

    #[test]
    fn counts_are_read_from_junit() {
        let dir = std::env::temp_dir().join(format!("xtask-junit-{}", std::process::id()));
        fs::write(
            &dir,
            "<?xml version=\"1.0\"?>\n<testsuites name=\"nextest-run\" tests=\"7\" failures=\"1\" errors=\"1\" uuid=\"x\"><testsuite/></testsuites>",
        )
        .expect("written");
        let counts = junit(&dir);
        fs::remove_file(&dir).expect("removed");
        assert_eq!(counts.expect("read"), (5, 2));
    }
}
