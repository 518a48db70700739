//! The guest program: init, service supervisor and HTTP agent in one binary.
//!
//! It owns everything that runs inside a VM and must never depend on a crate of the host. Four
//! processes of it run in a guest, so that a crash of one costs only what is its own:
//!
//! | process | owns | when it dies |
//! |---|---|---|
//! | `init` (PID 1) | mounts, network, the other three and their watchdog | the kernel stops |
//! | `serve` | the HTTP port, the claim, exec, figures | started again; nothing else notices |
//! | `supervise` | desktop services: Xvnc, Openbox, Chromium, xterm | started again with its services |
//! | `hold` | terminals and sign-in runs | started again; terminals and the run are gone |
//!
//! `serve` reaches the other two over HTTP on Unix sockets in `/run/holdfast`.

pub mod ansi;
pub mod browser;
pub mod census;
pub mod fork_detection;
pub mod guest;
pub mod hold;
pub mod init;
pub mod initramfs;
pub mod installation;
#[cfg(test)]
mod python;
pub mod serve;
pub mod shell;
pub mod shim;
pub mod spawn;
pub mod supervise;
pub mod terminal;
pub mod tool;
pub mod wire;
pub mod x11;
