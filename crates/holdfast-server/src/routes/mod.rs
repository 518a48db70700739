//! Handlers of the HTTP API, one module per subject.

pub(crate) mod checkpoints;
pub(crate) mod drain;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod meta;
pub(crate) mod sessions;
pub(crate) mod shares;
pub(crate) mod signin;
pub(crate) mod streams;
pub(crate) mod tokens;
