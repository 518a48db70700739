//! Reconciler, executor, health ladder, leases and placement, over the Store and Driver traits.
//!
//! Owns what happens to a session from its request to its end. Every live session has one actor
//! ([`actor`]): the only writer of that session's progress, which plans the next step from the
//! records and the machine, executes it, and writes the outcome under the generation it read.
//!
//! This crate must never know a concrete driver, SQL or HTTP. Memory here is only a cache of the
//! store: everything in it can be lost at any instruction and is rebuilt by [`Control::start`].

mod actor;
mod admission;
mod board;
mod bringup;
mod checkpoint;
mod clock;
pub mod config;
mod control;
mod create;
mod error;
mod guest_clock;
mod lease;
mod limits;
mod machine;
mod pool;
mod probe;
mod records;
mod signin;
mod signin_calls;
mod stream;
mod sweep;
mod teardown;

pub use admission::MemoryProbe;
pub use board::{Live, Notice, Route};
pub use clock::Clock;
pub use config::{ControlConfig, OnIdle};
pub use control::{Control, ImageSource, Parts};
pub use create::{CreateRequest, NewSignIn};
pub use error::ControlError;
pub use limits::Limits;
pub use stream::{Attached, GuestPort, RouteWatch, guest_error};
pub use sweep::SweepReport;
