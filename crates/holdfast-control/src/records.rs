//! Small helpers that change records the same way everywhere.

use holdfast_core::{
    Actor, EndReason, EventBody, Session, SessionId, SessionState, Timestamp, Vm, VmState,
};
use holdfast_store::Change;

/// A change in the making: records, and the events that explain it.
#[derive(Debug, Clone)]
pub(crate) struct Edit {
    pub session: Session,
    pub vm: Vm,
    session_touched: bool,
    vm_touched: bool,
    events: Vec<(SessionId, EventBody)>,
    now: Timestamp,
}

impl Edit {
    pub(crate) fn new(session: &Session, vm: &Vm, now: Timestamp) -> Self {
        Self {
            session: session.clone(),
            vm: vm.clone(),
            session_touched: false,
            vm_touched: false,
            events: Vec::new(),
            now,
        }
    }

    /// Moves the session and says why. Nothing happens when it is there already.
    pub(crate) fn session_to(mut self, to: SessionState, why: &str, by: Actor) -> Self {
        let from = self.session.state;
        if from == to {
            return self;
        }
        self.session.state = to;
        self.session.state_since = self.now;
        match to {
            SessionState::Ready => {
                self.session.ready_at.get_or_insert(self.now);
                self.session.detail = None;
            }
            SessionState::Ended => self.session.ended_at = Some(self.now),
            _ => {}
        }
        self.session_touched = true;
        let mut event = event("session.state", why, by, self.now);
        event.from = Some(from.as_str().into());
        event.to = Some(to.as_str().into());
        self.push(event)
    }

    /// Moves the VM and says why. Nothing happens when it is there already.
    pub(crate) fn vm_to(mut self, to: VmState, why: &str, by: Actor) -> Self {
        let from = self.vm.state;
        if from == to {
            return self;
        }
        self.vm.state = to;
        self.vm.state_since = self.now;
        self.vm_touched = true;
        let mut event = event("vm.state", why, by, self.now);
        event.from = Some(from.as_str().into());
        event.to = Some(to.as_str().into());
        self.push(event)
    }

    /// Adds an event that is no transition.
    pub(crate) fn note(self, kind: &str, why: &str, by: Actor) -> Self {
        let event = event(kind, why, by, self.now);
        self.push(event)
    }

    /// Sets the sentence that explains the session's state.
    pub(crate) fn detail(mut self, detail: Option<String>) -> Self {
        self.session_touched |= self.session.detail != detail;
        self.session.detail = detail;
        self
    }

    /// Sets the reason of the end.
    pub(crate) fn reason(mut self, reason: EndReason) -> Self {
        self.session.end_reason = Some(reason);
        self.session_touched = true;
        self
    }

    /// Changes other fields of the VM.
    pub(crate) fn with_vm(mut self, change: impl FnOnce(&mut Vm)) -> Self {
        change(&mut self.vm);
        self.vm_touched = true;
        self
    }

    /// Changes other fields of the session.
    pub(crate) fn with_session(mut self, change: impl FnOnce(&mut Session)) -> Self {
        change(&mut self.session);
        self.session_touched = true;
        self
    }

    /// What goes to the store.
    pub(crate) fn into_change(self) -> Change {
        Change {
            session: self.session_touched.then_some(self.session),
            vm: self.vm_touched.then_some(self.vm),
            events: self.events,
            ..Change::default()
        }
    }

    fn push(mut self, mut event: EventBody) -> Self {
        event.vm = Some(self.vm.id);
        self.events.push((self.session.id, event));
        self
    }
}

/// An event without states.
pub(crate) fn event(kind: &str, why: &str, by: Actor, at: Timestamp) -> EventBody {
    EventBody { vm: None, at, kind: kind.into(), from: None, to: None, why: why.into(), by }
}

/// An error with its sources, as one sentence: the chain is kept out of the texts themselves.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
