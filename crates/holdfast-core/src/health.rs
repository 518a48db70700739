//! The health ladder: what to do next about a VM that does not answer.
//!
//! ```text
//!  probe again (3 failures) ─> degraded ─> restart the service ─> resume ─> restore the checkpoint
//!                                                      ─> cold boot on the same disk ─> give up
//! ```
//!
//! A rung that loses something (restore, cold boot) is climbed only on evidence: the VMM is proven
//! gone, or the guest was silent for [`Patience::silence`] with its desktop silent too. What cannot
//! be determined never climbs.

use std::{fmt, time::Duration};

use crate::Timestamp;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Agent and desktop answer.
    Healthy,
    /// The agent answers and says that this service is not up.
    ServiceDown(String),
    /// The agent does not answer.
    AgentSilent {
        /// The desktop's port still accepts connections: the user can work.
        desktop_answers: bool,
    },
    /// The VMM's process is stopped, or its processors are.
    Stopped,
    /// The VMM keeps the guest from running until something outside of it is put right, such as a full
    /// disk of the host. Nothing is lost meanwhile.
    Halted(String),
    /// The VMM is proven gone.
    Exited(String),
    /// Nothing could be determined.
    Unknown(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("it answers"),
            Self::ServiceDown(name) => write!(f, "{name} is not running in the guest"),
            Self::AgentSilent { desktop_answers: true } => {
                f.write_str("the guest's agent does not answer; the desktop does")
            }
            Self::AgentSilent { desktop_answers: false } => {
                f.write_str("the guest does not answer")
            }
            Self::Stopped => f.write_str("the machine is stopped"),
            Self::Halted(why) => write!(f, "the machine stands still because {why}"),
            Self::Exited(why) => write!(f, "the machine ended ({why})"),
            Self::Unknown(why) => write!(f, "its state could not be determined ({why})"),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// Nothing is wrong.
    Fine,
    /// Probe again after [`Patience::interval`].
    ProbeAgain,
    /// Restart this service through the agent.
    RestartService(String),
    /// Let the VM's processors run again.
    Resume,
    /// Restore the last checkpoint.
    Restore,
    /// Boot again on the same disk.
    ColdBoot,
    /// Everything was tried.
    GiveUp,
}

impl Rung {
    /// Its name in the API, from bottom to top: `fine`, `probe`, `service`, `resume`, `restore`,
    /// `boot`, `given_up`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::ProbeAgain => "probe",
            Self::RestartService(_) => "service",
            Self::Resume => "resume",
            Self::Restore => "restore",
            Self::ColdBoot => "boot",
            Self::GiveUp => "given_up",
        }
    }
}

/// Where a VM stood on the ladder after its last probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// When it was probed.
    pub at: Timestamp,
    /// What was found.
    pub finding: Finding,
    /// What was done about it.
    pub rung: Rung,
    /// Probes in a row that found something wrong.
    pub failures: u32,
    /// Since when something is wrong.
    pub failing_since: Option<Timestamp>,
    /// Restarts of a service in the guest since it was last well.
    pub service_restarts: u32,
    /// Attempts since then to let its processors run again.
    pub resumes: u32,
    /// Boots since then.
    pub boots: u32,
}

/// How patient the ladder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Time between probes of a VM that did not answer.
    pub interval: Duration,
    /// Failures in a row that make a session `degraded`.
    pub failures: u32,
    /// Silence of agent and desktop after which a running VMM counts as hung. Well above the time
    /// that the guest's own watchdog needs to bring a hung agent back (15 s).
    pub silence: Duration,
    /// Cold boots without a healthy probe in between before giving up.
    pub boots: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            failures: 3,
            silence: Duration::from_secs(90),
            boots: 3,
        }
    }
}

/// Where a VM stands on the ladder. Lost in a crash of the server, which only starts it from the
/// bottom again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ladder {
    failures: u32,
    failing_since: Option<Timestamp>,
    service_restarts: u32,
    resumes: u32,
    restored: bool,
    boots: u32,
}

/// Restarts of a guest's service before the whole guest is restarted.
const SERVICE_RESTARTS: u32 = 3;
/// Attempts to resume a stopped VM before it is started again.
const RESUMES: u32 = 3;

impl Ladder {
    /// Whether the session is to be shown as `degraded`.
    pub fn is_degraded(&self, patience: &Patience) -> bool {
        self.failures >= patience.failures
    }

    /// Takes in a finding and says what to do next.
    pub fn next(
        &mut self,
        finding: &Finding,
        has_checkpoint: bool,
        patience: &Patience,
        now: Timestamp,
    ) -> Rung {
        match finding {
            Finding::Healthy => {
                *self = Self::default();
                return Rung::Fine;
            }
            // Unknown is not dead: neither counted nor acted on.
            Finding::Unknown(_) => return Rung::ProbeAgain,
            _ => {}
        }
        self.failures = self.failures.saturating_add(1);
        let since = *self.failing_since.get_or_insert(now);
        let silent_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        match finding {
            Finding::Exited(_) => {
                self.failures = self.failures.max(patience.failures);
                self.start_again(has_checkpoint, patience)
            }
            // However long it takes: it goes on where it was.
            Finding::Halted(_) => {
                self.failures = self.failures.max(patience.failures);
                // What was silent because it stood still gets its whole patience afterwards.
                self.failing_since = None;
                Rung::Resume
            }
            Finding::Stopped => {
                self.failures = self.failures.max(patience.failures);
                if self.resumes < RESUMES {
                    self.resumes += 1;
                    Rung::Resume
                } else {
                    self.start_again(has_checkpoint, patience)
                }
            }
            _ if self.failures < patience.failures => Rung::ProbeAgain,
            Finding::ServiceDown(name) => {
                if self.service_restarts < SERVICE_RESTARTS {
                    self.service_restarts += 1;
                    Rung::RestartService(name.clone())
                } else if silent_for >= patience.silence {
                    self.start_again(has_checkpoint, patience)
                } else {
                    Rung::ProbeAgain
                }
            }
            Finding::AgentSilent { desktop_answers: false } => {
                if self.resumes == 0 {
                    self.resumes += 1;
                    Rung::Resume
                } else if silent_for >= patience.silence {
                    self.start_again(has_checkpoint, patience)
                } else {
                    Rung::ProbeAgain
                }
            }
            // A desktop that answers means that the user can still work: nothing that loses state
            // is done about it.
            Finding::AgentSilent { desktop_answers: true }
            | Finding::Healthy
            | Finding::Unknown(_) => Rung::ProbeAgain,
        }
    }

    /// Where it stands now, after `finding` at `at` led to `rung`.
    pub fn standing(&self, at: Timestamp, finding: Finding, rung: Rung) -> Standing {
        // A boot starts the count of silence anew, but something is still wrong.
        let still = (rung != Rung::Fine).then_some(at);
        Standing {
            at,
            finding,
            rung,
            failures: self.failures,
            failing_since: self.failing_since.or(still),
            service_restarts: self.service_restarts,
            resumes: self.resumes,
            boots: self.boots,
        }
    }

    fn start_again(&mut self, has_checkpoint: bool, patience: &Patience) -> Rung {
        if has_checkpoint && !self.restored {
            self.restored = true;
            return Rung::Restore;
        }
        if self.boots < patience.boots {
            self.boots += 1;
            self.resumes = 0;
            self.service_restarts = 0;
            // The next boot gets the same patience as this one got.
            self.failing_since = None;
            return Rung::ColdBoot;
        }
        Rung::GiveUp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    fn climb(finding: &Finding, checkpoint: bool, seconds: i64) -> Vec<Rung> {
        let (mut ladder, patience) = (Ladder::default(), Patience::default());
        (0..seconds / 5).map(|i| ladder.next(finding, checkpoint, &patience, at(i * 5))).collect()
    }

    #[test]
    fn two_missed_probes_change_nothing() {
        let (mut ladder, patience) = (Ladder::default(), Patience::default());
        let silent = Finding::AgentSilent { desktop_answers: false };
        assert_eq!(ladder.next(&silent, false, &patience, at(0)), Rung::ProbeAgain);
        assert_eq!(ladder.next(&silent, false, &patience, at(5)), Rung::ProbeAgain);
        assert!(!ladder.is_degraded(&patience));
        assert_eq!(ladder.next(&Finding::Healthy, false, &patience, at(10)), Rung::Fine);
        assert_eq!(ladder, Ladder::default());
    }

    #[test]
    fn a_stopped_machine_goes_on_at_once() {
        let (mut ladder, patience) = (Ladder::default(), Patience::default());
        assert_eq!(ladder.next(&Finding::Stopped, true, &patience, at(0)), Rung::Resume);
        assert!(ladder.is_degraded(&patience));
        let standing = ladder.standing(at(0), Finding::Stopped, Rung::Resume);
        assert_eq!((standing.resumes, standing.boots), (1, 0));
        assert_eq!(standing.failing_since, Some(at(0)));
        assert_eq!(ladder.next(&Finding::Healthy, true, &patience, at(5)), Rung::Fine);
    }

    #[test]
    fn a_halted_machine_is_never_started_again() {
        let halted = Finding::Halted("no space is left".into());
        let rungs = climb(&halted, true, 3_600);
        assert!(rungs.iter().all(|rung| *rung == Rung::Resume));
        let (mut ladder, patience) = (Ladder::default(), Patience::default());
        ladder.next(&halted, true, &patience, at(0));
        assert!(ladder.is_degraded(&patience));
        // Silence is counted from when it could run again.
        let silent = Finding::AgentSilent { desktop_answers: false };
        assert_eq!(ladder.next(&silent, true, &patience, at(3_600)), Rung::Resume);
        assert_eq!(ladder.next(&silent, true, &patience, at(3_605)), Rung::ProbeAgain);
    }

    #[test]
    fn unknown_never_climbs() {
        let rungs = climb(&Finding::Unknown("unreadable".into()), true, 3_600);
        assert!(rungs.iter().all(|r| *r == Rung::ProbeAgain));
    }

    #[test]
    fn a_desktop_that_answers_is_never_restarted() {
        let rungs = climb(&Finding::AgentSilent { desktop_answers: true }, true, 3_600);
        assert!(rungs.iter().all(|r| *r == Rung::ProbeAgain));
    }

    #[test]
    fn a_silent_guest_is_resumed_then_given_time_then_booted_then_given_up() {
        let rungs = climb(&Finding::AgentSilent { desktop_answers: false }, false, 3_600);
        let steps: Vec<_> = rungs.iter().filter(|r| **r != Rung::ProbeAgain).collect();
        use Rung::{ColdBoot, GiveUp, Resume};
        let expected =
            [&Resume, &ColdBoot, &Resume, &ColdBoot, &Resume, &ColdBoot, &Resume, &GiveUp];
        assert_eq!(steps[..expected.len()], expected);
        let first_boot = rungs.iter().position(|r| *r == ColdBoot).expect("booted");
        assert!(first_boot * 5 >= 90, "booted after {} s", first_boot * 5);
    }

    #[test]
    fn a_dead_vmm_is_restored_first_and_booted_next() {
        let rungs = climb(&Finding::Exited("signal 9".into()), true, 30);
        assert_eq!(rungs[..2], [Rung::Restore, Rung::ColdBoot]);
        let rungs = climb(&Finding::Exited("signal 9".into()), false, 30);
        assert_eq!(rungs[..4], [Rung::ColdBoot, Rung::ColdBoot, Rung::ColdBoot, Rung::GiveUp]);
    }

    #[test]
    fn a_service_is_restarted_before_the_guest() {
        let rungs = climb(&Finding::ServiceDown("xvnc".into()), false, 300);
        let first = rungs.iter().find(|r| **r != Rung::ProbeAgain);
        assert_eq!(first, Some(&Rung::RestartService("xvnc".into())));
        assert!(rungs.contains(&Rung::ColdBoot));
    }
}
