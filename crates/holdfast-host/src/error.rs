//! Errors of the host layer.

use std::{io, time::Duration};

use holdfast_core::VmId;

/// Why the machine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no such VM on this host.
    #[error("there is no VM {0} on this host")]
    NotFound(VmId),
    /// The VM exists with another specification.
    #[error("VM {0} exists already with another specification")]
    Conflict(VmId),
    /// The image cannot be used.
    #[error("the image at {path} cannot be used: {why}")]
    Image {
        /// Its directory.
        path: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The snapshot cannot be used.
    #[error("the snapshot at {path} cannot be used: {why}")]
    Snapshot {
        /// Its directory.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A program is not installed.
    #[error("{program} is not installed: {remedy}")]
    Missing {
        /// The program.
        program: String,
        /// What to do.
        remedy: String,
    },
    /// No space is left.
    #[error("no space is left for {what}: free some or move the state directory")]
    NoSpace {
        /// What was being written.
        what: String,
    },
    /// The kernel, or the VMM's own API, refused.
    #[error("{operation} was refused: {message}")]
    Refused {
        /// What was asked.
        operation: String,
        /// What it answered.
        message: String,
    },
    /// The VMM ended.
    #[error("{why}")]
    Exited {
        /// The VM.
        vm: VmId,
        /// How, as half a sentence, with the end of its log.
        why: String,
    },
    /// Nothing answered in time.
    #[error("{operation} did not answer within {after:?}")]
    Timeout {
        /// What was asked.
        operation: String,
        /// How long was waited.
        after: Duration,
    },
    /// This driver cannot do it.
    #[error("the {driver} driver cannot {operation}")]
    Unsupported {
        /// The driver.
        driver: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// An I/O operation failed.
    #[error("{operation} failed")]
    Io {
        /// What was tried.
        operation: String,
        /// Why.
        source: io::Error,
    },
}

impl DriverError {
    /// Wraps an I/O error, telling a full disk apart.
    pub fn io(operation: impl Into<String>, source: io::Error) -> Self {
        let operation = operation.into();
        if source.kind() == io::ErrorKind::StorageFull {
            return Self::NoSpace { what: operation };
        }
        Self::Io { operation, source }
    }

    /// The error with its sources, as one sentence.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        text
    }

    /// Whether trying again without a change on the host is useless.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Image { .. }
                | Self::Missing { .. }
                | Self::Unsupported { .. }
                | Self::Conflict(_)
        )
    }
}
