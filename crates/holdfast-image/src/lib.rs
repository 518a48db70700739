//! Builds the image of the guest and keeps the library of built images.
//!
//! An image is a directory `<cache>/images/<digest>/` with [`manifest.json`](Manifest), `rootfs.img`
//! (ext4, used read-only), `vmlinux` and `initramfs.img`. Its digest is the content address of what
//! it is made *from*, so the same inputs are found again instead of being built again.
//!
//! What is expensive is kept as a layer, `<cache>/layers/<name>-<key>/`, addressed by its own inputs:
//! the Debian packages, the tools from npm, and the system made of both. A new configuration costs
//! half a minute, a new agent seconds.
//!
//! Nothing half-made is ever used: everything is built under `<cache>/building/` and renamed into
//! place when it is complete and synced. One builder at a time holds `<cache>/build.lock`; whatever
//! an interrupted one left is removed by the next. Programs run in a process namespace that ends
//! with this process, so a killed builder leaves no process and no mount behind.
//!
//! Must never know about sessions or VMs: whether an image is in use is asked through a callback.

mod base;
mod build;
mod command;
mod config;
mod cpio;
mod digest;
mod error;
mod initramfs;
mod kernel;
mod layer;
mod library;
mod manifest;
mod progress;
mod recipe;
mod rootfs;
mod system;
mod tools;

pub use build::{BuildRequest, Built, build};
pub use error::ImageError;
pub use library::{Library, Verified};
pub use manifest::{FileEntry, Inputs, Manifest, ToolVersion};
pub use progress::{Progress, Silent, Stage};
pub use recipe::Recipe;

/// Result of a call of this crate.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;
