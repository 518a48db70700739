//! HTTP request and response types, error codes and a typed client.
//!
//! These are the types of the wire: JSON in camelCase, converted by hand from and to the domain's
//! at the server's edge. This crate must never depend on the store, the host or the domain types.

pub mod client;
pub mod problem;
pub mod share;
pub mod signin;
pub mod types;

pub use problem::{Code, Problem};
pub use share::*;
pub use signin::*;
pub use types::*;
