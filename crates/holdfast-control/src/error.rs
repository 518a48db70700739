//! Errors of control.

use holdfast_core::{EndReason, SessionId, SessionState, SignInStep, Timestamp};
use holdfast_host::driver::DriverError;
use holdfast_store::StoreError;

/// Why control did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The session never existed.
    #[error("there is no session {0}")]
    NotFound(SessionId),
    /// The session ended.
    #[error("the session ended: {}", reason.sentence())]
    Gone {
        /// Why.
        reason: EndReason,
        /// When, where it is over already.
        at: Option<Timestamp>,
    },
    /// The session lives, but this server does not drive it: it was not taken over yet.
    #[error("session {0} is not driven by this server (yet)")]
    Elsewhere(SessionId),
    /// The session's state does not allow it.
    #[error("the session is {state}: {why}")]
    State {
        /// Where it stands.
        state: SessionState,
        /// What is missing.
        why: &'static str,
    },
    /// The sign-in's step does not allow it.
    #[error("the sign-in is at the step {step}: {why}")]
    SignIn {
        /// What it is doing.
        step: SignInStep,
        /// What is missing.
        why: &'static str,
    },
    /// No checkpoint could be taken.
    #[error("no checkpoint could be taken: {0}")]
    Checkpoint(String),
    /// The guest refused a value.
    #[error("{0}")]
    Refused(String),
    /// This host will never have room for such a VM.
    #[error("{0}")]
    TooLarge(String),
    /// This host has no room, and no place in the queue.
    #[error("{0}")]
    Full(String),
    /// There is no image to boot.
    #[error("no image can be used: {0}")]
    NoImage(String),
    /// The server is being stopped or drained.
    #[error("this host takes no new sessions now: {0}")]
    Draining(&'static str),
    /// The store refused or could not be read.
    #[error("the store did not answer")]
    Store(#[from] StoreError),
    /// The machine refused.
    #[error("the host could not do it")]
    Driver(#[from] DriverError),
    /// The guest did not answer.
    #[error("the guest did not answer: {0}")]
    Guest(String),
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes")]
    Random(#[source] getrandom::Error),
}
