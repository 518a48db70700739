//! Everything that touches the machine: namespaces, disks, processes, and the drivers that run VMs.
//!
//! Only this crate dials a guest, and only inside that VM's own network namespace: no address of a
//! guest ever leaves it. It must never know about sessions or the store.

pub mod driver;
pub mod error;
pub mod guest;
