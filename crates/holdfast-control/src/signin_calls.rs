//! What people ask of a sign-in: read it, paste a code, open the link again, retry, fetch.

use holdfast_agent_api::tool::{OpenRequest, ToolInput};
use holdfast_core::{Actor, SessionId, SignIn, SignInOutcome, SignInStep, signin::SealedInfo};
use holdfast_host::guest::GuestError;
use holdfast_store::{StoreError, Taken};
use std::{sync::Arc, time::Duration};

use crate::{
    Control, ControlError,
    board::Entry,
    machine::agent,
    records::chain,
    signin::{note, write},
};

/// Deadline of a call to the agent.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

impl Control {
    /// The sign-in of a session, also of one that ended. `None`: it is not for a sign-in.
    pub async fn sign_in(&self, id: SessionId) -> Result<Option<SignIn>, ControlError> {
        match self.inner().board.get(id) {
            Some(entry) => Ok(entry.sign_in()),
            None => Ok(self.inner().store.sign_in(id).await?),
        }
    }

    /// Types a code that the provider showed, for the current run.
    pub async fn sign_in_input(&self, id: SessionId, text: String) -> Result<(), ControlError> {
        let (entry, sign_in) = self.open_sign_in(id).await?;
        if !matches!(sign_in.step, SignInStep::Link | SignInStep::SignIn) {
            return Err(step_error(&sign_in, "the tool takes no code now"));
        }
        let input = ToolInput { run: sign_in.run, text };
        answered(agent(self.inner(), &entry.live().vm).tool_input(&input, CALL_DEADLINE).await)?;
        // Whoever reads next is not asked for the same code again. What the task of the sign-in
        // learned in the meantime is newer.
        if sign_in.wants_input {
            let taken = SignIn { wants_input: false, ..sign_in };
            match write(self.inner(), &entry, taken, Vec::new(), None, None).await {
                Ok(()) | Err(ControlError::Store(StoreError::Stale { .. })) => {}
                Err(error) => {
                    tracing::warn!(session = %id, error = chain(&error), "a code was typed, but that could not be written");
                }
            }
        }
        Ok(())
    }

    /// Opens the current run's link in the VM's browser again.
    pub async fn sign_in_open(&self, id: SessionId) -> Result<(), ControlError> {
        let (entry, sign_in) = self.open_sign_in(id).await?;
        if sign_in.step != SignInStep::SignIn {
            return Err(step_error(&sign_in, "there is no link to open now"));
        }
        let request = OpenRequest { run: sign_in.run };
        answered(agent(self.inner(), &entry.live().vm).tool_open(&request, CALL_DEADLINE).await)
    }

    /// Starts the tool again in the same VM, as a new run; what belonged to the run before is void.
    pub async fn sign_in_retry(&self, id: SessionId) -> Result<SignIn, ControlError> {
        let entry = loop {
            let (entry, mut sign_in) = self.open_sign_in(id).await?;
            if sign_in.outcome == Some(SignInOutcome::Succeeded) {
                return Err(step_error(&sign_in, "it has succeeded already"));
            }
            if sign_in.step == SignInStep::Credentials {
                return Err(step_error(&sign_in, "the credentials are being sealed"));
            }
            if sign_in.step == SignInStep::Machine {
                return Ok(sign_in);
            }
            sign_in.begin_run(self.inner().clock.now());
            let event = note(
                self.inner(),
                "signin.retry",
                "The tool is started again; a link shown before is void.",
                Actor::User,
            );
            match write(self.inner(), &entry, sign_in, vec![event], None, None).await {
                Ok(()) => break entry,
                // The task of the sign-in learned something in between; what was read is new now.
                Err(ControlError::Store(StoreError::Stale { .. })) => {}
                Err(error) => return Err(error),
            }
        };
        entry.sign_in_wake.notify_one();
        entry.sign_in().ok_or(ControlError::NotFound(id))
    }

    /// What sealed credentials of a session there are, or were.
    pub async fn sealed_info(&self, id: SessionId) -> Result<Option<SealedInfo>, ControlError> {
        Ok(self.inner().store.sealed_info(id).await?)
    }

    /// Hands the sealed credentials over, once.
    pub async fn take_sealed(&self, id: SessionId) -> Result<Taken, ControlError> {
        let taken = self.inner().store.take_sealed(id, self.inner().clock.now()).await?;
        if matches!(taken, Taken::Now(_)) {
            let event = note(
                self.inner(),
                "signin.fetched",
                "The sealed credentials were handed over and destroyed here.",
                Actor::User,
            );
            if let Err(error) = self.inner().store.append_events(id, vec![event]).await {
                tracing::warn!(session = %id, error = chain(&error), "an event could not be written");
            }
            self.inner().board.notify(id);
        }
        Ok(taken)
    }

    async fn open_sign_in(&self, id: SessionId) -> Result<(Arc<Entry>, SignIn), ControlError> {
        let entry = self.entry(id).await?;
        match entry.sign_in() {
            Some(sign_in) => Ok((entry, sign_in)),
            None => {
                let state = entry.session().state;
                Err(ControlError::State { state, why: "it is not for a sign-in" })
            }
        }
    }
}

fn step_error(sign_in: &SignIn, why: &'static str) -> ControlError {
    ControlError::SignIn { step: sign_in.step, why }
}

fn answered<T>(answer: Result<T, GuestError>) -> Result<(), ControlError> {
    match answer {
        Ok(_) => Ok(()),
        Err(GuestError::Refused { status, message }) if status < 500 => {
            Err(ControlError::Refused(message))
        }
        Err(error) => Err(ControlError::Guest(chain(&error))),
    }
}
