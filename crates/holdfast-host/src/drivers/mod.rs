//! The drivers. Each knows its own VMM and nothing of another; what they share is [`crate::host`].

pub mod firecracker;
pub mod qemu;
pub mod sim;
