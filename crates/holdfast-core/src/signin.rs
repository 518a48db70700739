//! A sign-in: the durable object between a provider's name and its credentials.
//!
//! ```text
//!  machine ─> tool ─> link ─> sign_in ─> credentials ─> done{succeeded}
//!     ^        │ ^      │        │            │
//!     │        │ └──────┴────────┴────────────┘ the machine was started again: a new run
//!     │        └────────────> done{refused | expired | failed} ─> tool (retry: a new run)
//! ```
//!
//! A run has a number. A link, a code and an outcome belong to one run; a new run clears them, so
//! an old link is never served.

use std::fmt;

use crate::{Generation, SessionId, Timestamp, provider::Flow};

/// What the sign-in is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignInStep {
    /// The machine is being made.
    Machine,
    /// The tool is being started.
    Tool,
    /// The tool runs; its link is waited for.
    Link,
    /// The link was caught; the person is waited for.
    SignIn,
    /// The tool succeeded; the credentials are being sealed.
    Credentials,
    /// Over; the outcome says how.
    Done,
}

impl SignInStep {
    /// Every step, in order.
    pub const ALL: [Self; 6] =
        [Self::Machine, Self::Tool, Self::Link, Self::SignIn, Self::Credentials, Self::Done];

    /// Whether a sign-in may go from this step to `to`.
    pub const fn can_become(self, to: Self) -> bool {
        use SignInStep::{Credentials, Done, Link, Machine, SignIn, Tool};
        matches!(
            (self, to),
            (Machine, Tool | Done)
                | (Tool, Tool | Link | Done)
                | (Link, Tool | SignIn | Credentials | Done)
                | (SignIn, Tool | Credentials | Done)
                | (Credentials, Tool | Done)
                | (Done, Tool)
        )
    }

    /// The name used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Tool => "tool",
            Self::Link => "link",
            Self::SignIn => "sign_in",
            Self::Credentials => "credentials",
            Self::Done => "done",
        }
    }

    /// The step of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

impl fmt::Display for SignInStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignInOutcome {
    /// The credentials are sealed.
    Succeeded,
    /// The person, or the provider, refused.
    Refused,
    /// The link, the code or the deadline ran out.
    Expired,
    /// The tool failed.
    Failed,
}

impl SignInOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Refused, Self::Expired, Self::Failed];

    /// The name used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }

    /// The outcome of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.as_str() == name)
    }
}

/// Where the end of a sign-in is announced.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// An http or https address.
    pub url: String,
    /// Key of the signature.
    pub secret: String,
}

// The secret must not reach a log through `{:?}`.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A sign-in as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// The session that it belongs to; one sign-in a session.
    pub session: SessionId,
    /// Name of the provider.
    pub provider: String,
    /// How consent comes back.
    pub flow: Flow,
    /// Number of the current run, from 1; 0 before the first.
    pub run: u32,
    /// What it is doing.
    pub step: SignInStep,
    /// When the step began.
    pub step_since: Timestamp,
    /// The link of the current run.
    pub url: Option<String>,
    /// The code of the current run, to be typed on the provider's page.
    pub user_code: Option<String>,
    /// The tool asks for a code now.
    pub wants_input: bool,
    /// How the current run ended.
    pub outcome: Option<SignInOutcome>,
    /// Why, as a sentence.
    pub why: Option<String>,
    /// The last output of the tool as text, without credentials; at most 4 KiB, and none once it
    /// succeeded.
    pub output: String,
    /// age public keys that the credentials are sealed to.
    pub recipients: Vec<String>,
    /// Where its end is announced.
    pub webhook: Option<Webhook>,
    /// Until when the person is waited for.
    pub expires_at: Option<Timestamp>,
    /// Counts its writes.
    pub generation: Generation,
}

impl SignIn {
    /// Begins a new run: what belonged to the run before is forgotten.
    pub fn begin_run(&mut self, now: Timestamp) {
        self.run += 1;
        self.step = SignInStep::Tool;
        self.step_since = now;
        self.url = None;
        self.user_code = None;
        self.wants_input = false;
        self.outcome = None;
        self.why = None;
        self.output.clear();
        self.expires_at = None;
    }

    /// Whether nothing happens any more unless somebody asks for a retry.
    pub fn is_done(&self) -> bool {
        self.step == SignInStep::Done
    }
}

/// Sealed credentials, without their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedInfo {
    /// Files in it: path relative to the home directory, bytes, mode.
    pub files: Vec<SealedFile>,
    /// When they were sealed.
    pub sealed_at: Timestamp,
    /// When they are destroyed if nobody fetched them.
    pub expires_at: Timestamp,
    /// When they were handed over, and destroyed.
    pub fetched_at: Option<Timestamp>,
}

/// A file in sealed credentials.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SealedFile {
    /// Path relative to the home directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Mode on the person's own machine.
    pub mode: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_table_is_exactly_this() {
        use SignInStep::*;
        let allowed: [(SignInStep, &[SignInStep]); 6] = [
            (Machine, &[Tool, Done]),
            (Tool, &[Tool, Link, Done]),
            (Link, &[Tool, SignIn, Credentials, Done]),
            (SignIn, &[Tool, Credentials, Done]),
            (Credentials, &[Tool, Done]),
            (Done, &[Tool]),
        ];
        for (from, targets) in allowed {
            for to in SignInStep::ALL {
                assert_eq!(from.can_become(to), targets.contains(&to), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn a_new_run_forgets_the_link_of_the_one_before() {
        let now = Timestamp::UNIX_EPOCH;
        let mut sign_in = SignIn {
            session: SessionId::from_uuid(uuid::Uuid::nil()),
            provider: "codex".into(),
            flow: Flow::Loopback,
            run: 1,
            step: SignInStep::Done,
            step_since: now,
            url: Some("https://old.example".into()),
            user_code: Some("OLD".into()),
            wants_input: true,
            outcome: Some(SignInOutcome::Failed),
            why: Some("old".into()),
            output: "old".into(),
            recipients: Vec::new(),
            webhook: None,
            expires_at: Some(now),
            generation: Generation::FIRST,
        };
        sign_in.begin_run(now);
        assert_eq!((sign_in.run, sign_in.step), (2, SignInStep::Tool));
        assert!(sign_in.url.is_none() && sign_in.user_code.is_none() && sign_in.outcome.is_none());
        assert!(sign_in.output.is_empty() && sign_in.why.is_none() && !sign_in.wants_input);
    }
}
