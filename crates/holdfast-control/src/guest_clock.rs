//! Keeps the clocks of guests right. A guest's clock stands while its VMM is stopped or being saved, and the
//! time that a claim carries is old by what its way into a guest takes that runs its first instructions.
//!
//! It is compared as NTP does it: the guest read its clock between two of the host's times. It is then
//! shifted by a difference, which does not age on the way. Nothing here may fail a session.

use std::time::Duration;

use holdfast_agent_api::ClockShift;
use holdfast_core::Timestamp;
use holdfast_host::guest::AgentClient;
use jiff::SignedDuration;

/// A clock that was just set may differ from the host's by this.
const SET: SignedDuration = SignedDuration::from_millis(50);
/// A clock that runs may differ from the host's by this.
const KEPT: SignedDuration = SignedDuration::from_millis(100);
/// Shifts until a clock counts as set. Each but the first is needed only where the answer to the one before
/// it took so long that it says little.
const SHIFTS: usize = 5;
/// Deadline of one shift.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is known of a guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The guest's clock is this far behind the host's; ahead where negative.
    behind: SignedDuration,
    /// More or less this.
    doubt: SignedDuration,
}

impl Reading {
    /// The guest read `guest` after it was asked at `asked` and before its answer came at `answered`.
    pub(crate) fn between(asked: Timestamp, guest: Timestamp, answered: Timestamp) -> Self {
        let doubt = answered.duration_since(asked) / 2;
        Self { behind: answered.duration_since(guest) - doubt, doubt }
    }

    /// Whether it is right within `tolerance`, beyond doubt.
    fn is_right(self, tolerance: SignedDuration) -> bool {
        self.behind.abs() + self.doubt <= tolerance
    }

    /// How far the clock is off, where that is beyond what a running clock may be, and beyond doubt.
    pub(crate) fn is_off(self) -> Option<SignedDuration> {
        (self.behind.abs() > KEPT + self.doubt).then_some(self.behind)
    }
}

/// Shifts the guest's clock until it is right; `told` is what it read just before the answer came that is
/// here now, of a call that took nobody knows how long.
pub(crate) async fn set_after(agent: &AgentClient, told: Timestamp) {
    let behind = Timestamp::now().duration_since(told);
    set(agent, Reading { behind, doubt: SignedDuration::ZERO }).await;
}

/// Shifts the guest's clock until it is right.
pub(crate) async fn set(agent: &AgentClient, first: Reading) {
    let mut reading = first;
    for _ in 0..SHIFTS {
        if reading.is_right(SET) {
            return;
        }
        let by_us = i64::try_from(reading.behind.as_micros()).unwrap_or_default();
        let asked = Timestamp::now();
        match agent.shift_clock(&ClockShift { by_us }, DEADLINE).await {
            Ok(answer) => reading = Reading::between(asked, answer.time, Timestamp::now()),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a guest's clock stays off"
                );
                return;
            }
        }
    }
    tracing::debug!(?reading, "a guest answers too slowly for its clock to be set exactly");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + ms).expect("a time")
    }

    const fn ms(ms: i64) -> SignedDuration {
        SignedDuration::from_millis(ms)
    }

    #[test]
    fn a_clock_is_known_as_well_as_the_answer_was_quick() {
        let right = Reading::between(at(0), at(5), at(10));
        assert_eq!(right, Reading { behind: ms(0), doubt: ms(5) });
        assert!(right.is_right(SET));
        let behind = Reading::between(at(0), at(-295), at(10));
        assert_eq!(behind.behind, ms(300));
        assert!(!behind.is_right(SET));
        assert_eq!(behind.is_off(), Some(ms(300)));
        let ahead = Reading::between(at(0), at(2005), at(10));
        assert_eq!(ahead.is_off(), Some(ms(-2000)));
    }

    #[test]
    fn a_slow_answer_says_little() {
        let slow = Reading::between(at(0), at(500), at(1000));
        assert!(!slow.is_right(SET), "it may be off by half a second");
        assert_eq!(slow.is_off(), None);
        assert_eq!(Reading::between(at(0), at(-50), at(1000)).is_off(), None, "by 50 to 1050 ms");
        assert_eq!(Reading::between(at(0), at(-150), at(1000)).is_off(), Some(ms(650)));
    }
}
