//! The clock of control: wall-clock time, or time that a test moves.

use holdfast_core::Timestamp;

/// Where control reads the time.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's wall clock.
    System,
    /// A start time plus tokio's clock, so that a test with paused time moves both together.
    Tokio(Timestamp, tokio::time::Instant),
}

impl Clock {
    /// A clock that begins at `start` and follows tokio's.
    pub fn tokio(start: Timestamp) -> Self {
        Self::Tokio(start, tokio::time::Instant::now())
    }

    /// The time now, in whole milliseconds as the store keeps it.
    pub fn now(&self) -> Timestamp {
        let now = match self {
            Self::System => Timestamp::now(),
            Self::Tokio(start, since) => *start + since.elapsed(),
        };
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }
}
