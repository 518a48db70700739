//! Figures of the guest, from /proc.

use std::{fs, io};

use holdfast_agent_api::Metrics;

use crate::guest::Guest;

pub(super) fn read(guest: &Guest) -> io::Result<Metrics> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let load = fs::read_to_string("/proc/loadavg")?;
    let disk = rustix::fs::statvfs(&guest.root)?;
    Ok(Metrics {
        memory_total_kib: kib("MemTotal"),
        memory_available_kib: kib("MemAvailable"),
        load1: load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0),
        disk_total_bytes: disk.f_blocks * disk.f_frsize,
        disk_free_bytes: disk.f_bavail * disk.f_frsize,
        cpu_busy_ms: busy_ms()?,
    })
}

/// Processor time that was not idle since boot, of all processors together, in ms.
pub(super) fn busy_ms() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, steal, in hundredths of a second (USER_HZ).
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let busy = ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4 | 7));
    Ok(busy.map(|(_, ticks)| ticks * 10).sum())
}
