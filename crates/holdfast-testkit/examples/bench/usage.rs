//! What processes use, as the kernel counts it.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result};

/// The unit of times in /proc, which is part of the kernel's interface: 1/USER_HZ.
const TICK_MS: f64 = 10.0;

/// Processor time of a process so far, in ms; its threads are in it.
pub(crate) fn cpu_ms(pid: i32) -> Result<f64> {
    times(pid, 13)
}

/// Two times of a process that stand together, such as user's and system's, added up, in ms.
fn times(pid: i32, after: usize) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, which may hold anything, is the second field.
    let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
    let mut fields = rest.split_whitespace().skip(after - 2);
    let mut next = || fields.next().and_then(|field| field.parse::<f64>().ok());
    let ticks = next().zip(next()).map(|(user, system)| user + system).context("no times")?;
    Ok(ticks * TICK_MS)
}

/// Processor time of all processes that work in this directory, in ms.
pub(crate) fn cpu_ms_within(dir: &Path) -> f64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let within = pids.filter(|pid| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
    });
    within.filter_map(|pid| cpu_ms(pid).ok()).sum()
}

/// Processor time of a process with its children, also those that ended, in ms.
pub(crate) fn cpu_ms_of_family(pid: i32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let living = children.split_whitespace().filter_map(|child| child.parse().ok());
    let ended = times(pid, 15).unwrap_or(0.0);
    cpu_ms(pid).unwrap_or(0.0) + ended + living.map(cpu_ms_of_family).sum::<f64>()
}

/// Time that all processors together had nothing to do so far, in ms.
pub(crate) fn idle_ms() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let idle = text.lines().next().and_then(|line| line.split_whitespace().nth(4)?.parse().ok());
    idle.map(|ticks: f64| ticks * TICK_MS).context("no times in /proc/stat")
}

/// Bytes that a process had written to disks.
pub(crate) fn written(pid: i32) -> Result<u64> {
    field(&format!("/proc/{pid}/io"), "write_bytes:")
}

/// Resident memory of a process, in MiB.
pub(crate) fn rss_mib(pid: i32) -> Result<f64> {
    Ok(field(&format!("/proc/{pid}/status"), "VmRSS:")? as f64 / 1024.0)
}

/// Private memory and its share of what is shared of a process, in MiB.
pub(crate) fn pss_mib(pid: i32) -> Result<f64> {
    Ok(field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")? as f64 / 1024.0)
}

/// Memory that programs could still take, in MiB.
pub(crate) fn available_mib() -> Result<f64> {
    Ok(field("/proc/meminfo", "MemAvailable:")? as f64 / 1024.0)
}

/// Proportional memory of a VMM besides its guest's memory, whose mapping has `guest_mib`, in MiB.
pub(crate) fn own_pss_mib(pid: i32, guest_mib: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let (mut sum, mut is_guest) = (0, false);
    for line in text.lines() {
        if line.starts_with("Size:") {
            is_guest = kib(line) >= Some(u64::from(guest_mib) << 10);
        } else if line.starts_with("Pss:") && !is_guest {
            sum += kib(line).unwrap_or(0);
        }
    }
    Ok(sum as f64 / 1024.0)
}

/// Space that a directory takes, in MiB: blocks, not lengths, and nothing that has a name elsewhere too.
pub(crate) fn disk_mib(dir: &Path) -> f64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_mib(&entry.path()),
        Ok(meta) if meta.nlink() > 1 => 0.0,
        // Units of 512 bytes, whatever the file system's own are: stat(2).
        Ok(meta) => meta.blocks() as f64 / 2048.0,
        // It may be gone by now.
        Err(_) => 0.0,
    });
    sizes.sum()
}

fn field(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let number = value.and_then(|value| value.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("{name} in {file}"))
}
