//! Warm images, checkpoints, forks and the pool, on simulated machines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bench;
mod clones;
mod forks;
mod hibernation;
mod waiting;
