//! Everything that touches the machine: namespaces, disks, processes, and the drivers that run VMs.
//!
//! Only this crate dials a guest, and only inside that VM's own network namespace: no address of a
//! guest ever leaves it. It must never know about sessions or the store.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

pub mod bake;
mod command;
pub mod disk;
pub mod driver;
pub mod drivers;
pub mod error;
mod files;
pub mod guest;
pub mod host;
pub mod image;
mod launch;
pub mod net;
mod news;
mod presence;
pub mod process;
pub mod registry;
pub mod snapshot;
pub mod statedir;
pub mod tiny;
pub mod warm;
