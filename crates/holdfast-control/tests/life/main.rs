//! The life of sessions through real control, a real SQLite store and the simulated driver:
//! random histories ([`histories`]), and a process that dies at every failpoint ([`crash`]).
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on fails")]

mod crash;
mod gate;
mod histories;
mod leases;
mod lives;
mod promises;
mod queue;
mod world;
