//! Ids, states, transition tables and planning: pure decisions, no I/O, no clock, no randomness.
//!
//! This crate owns what Holdfast *decides*: which state may follow which, what the next step
//! towards a goal is, how far a sick VM is from being given up. It must never perform I/O, read
//! a clock or draw random numbers: callers pass in times and ids, so every decision can be tested
//! exhaustively and replayed.

pub mod event;
pub mod health;
pub mod id;
pub mod plan;
pub mod printable;
pub mod provider;
pub mod record;
pub mod session;
pub mod signin;
pub mod vm;

pub use event::{Actor, Event, EventBody};
pub use id::{HostId, OwnerId, SessionId, SnapshotId, VmId};
pub use jiff::Timestamp;
pub use record::{Checkpoint, Generation, Screen, Session, SessionSpec, Vm};
pub use session::{EndReason, SessionState};
pub use signin::{SignIn, SignInOutcome, SignInStep};
pub use vm::VmState;
