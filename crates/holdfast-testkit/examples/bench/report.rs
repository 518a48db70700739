//! The machine, sums of measurements, and the report.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What the figures were measured on.
pub(crate) fn machine() -> Value {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once([':', '=']).map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "processors": processors,
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "system": field("/etc/os-release", "PRETTY_NAME").trim_matches('"'),
        "at": jiff::Timestamp::now().to_string(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Smallest, median, largest, in ms.
pub(crate) fn summary(times: &[Duration]) -> Value {
    let mut ms: Vec<u128> = times.iter().map(Duration::as_millis).collect();
    ms.sort_unstable();
    json!({ "min": ms.first(), "median": ms.get(ms.len() / 2), "max": ms.last(), "runs": ms.len() })
}

/// Median and 99th percentile, in microseconds.
pub(crate) fn summary_us(times: &[Duration]) -> Value {
    let mut us: Vec<u128> = times.iter().map(Duration::as_micros).collect();
    us.sort_unstable();
    json!({ "p50": us.get(us.len() / 2), "p99": us.get(us.len() * 99 / 100), "runs": us.len() })
}

/// Writes `target/bench.json` and `docs/benchmarks.md`.
pub(crate) fn write(figures: &Value) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let write = |path: &str, text: String| {
        let path = root.join(path);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    };
    write("target/bench.json", format!("{figures:#}\n"))?;
    write("docs/benchmarks.md", page(figures))
}

fn page(figures: &Value) -> String {
    let (machine, sessions, gateway) =
        (&figures["machine"], &figures["sessions"], &figures["gateway"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut page = format!(
        "# Benchmarks\n\n\
         One run of `cargo xtask bench` of version {} at {}, repeated by that command.\n\n\
         Machine: {} processors ({}), {} of memory, Linux {}, {}. VMs: {}, because: {}\n\n\
         ## Sessions\n\n\
         One after the other on an idle server, each from its request to the first picture that is not\n\
         one colour, seen by an RFB viewer through the gateway. Every VM is booted from its kernel.\n\n\
         | | min | median | max | runs |\n|---|---|---|---|---|\n",
        text(&machine["version"]),
        text(&machine["at"]),
        machine["processors"],
        text(&machine["processor"]),
        text(&machine["memory"]),
        text(&machine["kernel"]),
        text(&machine["system"]),
        text(&sessions["driver"]),
        text(&sessions["driverReason"]),
    );
    for (title, key) in [
        ("request answered, ms", "coldAnsweredMs"),
        ("desktop can be used, ms", "coldReadyMs"),
        ("first picture, ms", "coldFirstFrameMs"),
    ] {
        let row = &sessions[key];
        let _ = writeln!(
            page,
            "| {title} | {} | {} | {} | {} |",
            row["min"], row["median"], row["max"], row["runs"]
        );
    }
    let _ = write!(
        page,
        "\nA VM with its browser open and nobody attached, a minute later: {} MiB of memory (PSS of the VMM),\n\
         {} MiB of disk, {:.1} % of one processor.\n\n\
         ## Gateway\n\n\
         Bytes from one local TCP server, read by the same client: directly, through the gateway, and through\n\
         Debian's websockify. Round trips are of 32 bytes. All of it shares this machine's processors.\n\n\
         | | Gbit/s | round trip p50, us | p99, us |\n|---|---|---|---|\n",
        sessions["idleMemoryPssMib"],
        sessions["idleDiskMib"],
        sessions["idlePercentOfOneCore"].as_f64().unwrap_or_default(),
    );
    for (title, key) in
        [("raw TCP", "rawTcp"), ("gateway", "gateway"), ("websockify", "websockify")]
    {
        let row = &gateway[key];
        let _ = writeln!(
            page,
            "| {title} | {:.2} | {} | {} |",
            row["gigabitsPerSecond"].as_f64().unwrap_or_default(),
            row["roundTripUs"]["p50"],
            row["roundTripUs"]["p99"]
        );
    }
    page
}
