//! Test harness: servers in this process and as processes of their own, viewers, a throw-away
//! PostgreSQL, a census of leaks.
//!
//! Owns what tests of several crates share. It must never be a dependency of anything but tests,
//! must never use a fixed port or name, and everything that it starts is gone when it is dropped.

#[cfg(feature = "harness")]
pub mod api;
pub mod census;
pub mod page;
pub mod ports;
pub mod postgres;
#[cfg(feature = "harness")]
pub mod process;
pub mod rfb;
#[cfg(feature = "harness")]
pub mod server;
pub mod terminal;
pub mod tls;
pub mod wait;
pub mod ws;

pub use postgres::TempPostgres;
