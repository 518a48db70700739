//! End to end: the real command as a process, real VMs, real viewers.
//!
//! Needs root and an image; `cargo xtask test --only e2e` sees to both. Each test has a server, a
//! state directory and VMs of its own, and ends with a census that must find nothing.

mod bad_start;
mod browser;
mod clones;
mod crash;
mod egress;
mod fixture;
mod herd;
mod hibernation;
mod isolation;
mod ladder;
mod links;
mod long;
mod outage;
mod pool;
mod repair;
mod session;
mod signin;
mod soak;
mod viewers;
mod watch;
