//! The rate of the host's time stamp counter, which is also the guest's under TCG.
//!
//! A kernel on microvm can only measure it against the old timer chip, and on a busy host that
//! measurement fails; a kernel that does not know the rate then waits for ticks that never come and does
//! not boot. So it is told.

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// With reads some tens of nanoseconds apart, an error below 5 in a million: far less than what the
/// kernel's own measurement has.
const SPAN: Duration = Duration::from_millis(50);
/// The clock is read between two reads of the counter; of this many, the tightest counts.
const READS: usize = 16;

/// The rate in kHz. Takes 50 ms the first time.
pub(super) fn khz() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (ticks, at) = read();
        thread::sleep(SPAN);
        let (later_ticks, later) = read();
        let nanoseconds = later.duration_since(at).as_nanos().max(1);
        (u128::from(later_ticks.wrapping_sub(ticks)) * 1_000_000 / nanoseconds) as u64
    })
}

/// The counter and the clock at one instant.
fn read() -> (u64, Instant) {
    let one = || {
        let before = counter();
        let at = Instant::now();
        (counter().wrapping_sub(before), before, at)
    };
    let (width, before, at) =
        (0..READS).map(|_| one()).min_by_key(|(width, ..)| *width).unwrap_or_else(one);
    (before.wrapping_add(width / 2), at)
}

#[allow(unsafe_code, reason = "reading the counter is an intrinsic")]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
