//! Errors of the store.

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another write came between the read and this write.
    #[error("the {what} was changed by another writer")]
    Stale {
        /// `session` or `vm`.
        what: &'static str,
    },
    /// The record to write does not exist.
    #[error("there is no {what} {id}")]
    NotFound {
        /// `session` or `vm`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The state tables do not allow it.
    #[error("a {what} cannot go from {from} to {to}")]
    Transition {
        /// `session` or `vm`.
        what: &'static str,
        /// State in the store.
        from: String,
        /// State asked for.
        to: String,
    },
    /// An idempotency key came again with another request.
    #[error("the idempotency key was used before with another request")]
    KeyReused,
    /// The store cannot be reached, or does not accept writes now. Says nothing about any record.
    #[error("the store is not available")]
    Unavailable {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record cannot be understood.
    #[error("the store holds a {what} that cannot be read: {why}")]
    Corrupt {
        /// What kind of record.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The schema is not the one this version needs.
    #[error("the schema does not fit this version: {why}")]
    Schema {
        /// What is wrong and what to do.
        why: String,
    },
    /// The URL or the credentials are wrong.
    #[error("the store cannot be opened: {why}")]
    Config {
        /// What is wrong and what to do.
        why: String,
    },
}

impl StoreError {
    /// Whether trying the same call later can help.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
