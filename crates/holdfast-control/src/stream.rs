//! Streams into a guest: which VM they lead to, and when they have to end.
//!
//! A stream belongs to one incarnation of one VM. Where it leads is read before the guest is
//! dialled and compared again after, and the stream is told to close as soon as the session's
//! route is another.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use holdfast_agent_api::{AGENT_PORT, VNC_PORT};
use holdfast_core::{SessionId, SessionState, Timestamp};
use holdfast_host::{
    driver::{DriverError, GuestStream},
    guest::AgentClient,
};
use tokio::sync::watch;

use crate::{
    Control, ControlError, Route,
    board::Entry,
    control::{Inner, gone},
    records::chain,
};

/// Deadline of reaching a port of a guest.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// Ports that may be reached from outside, by what they serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPort {
    /// The desktop, as RFB.
    Desktop,
    /// The agent, for terminals and commands.
    Agent,
}

impl GuestPort {
    const fn number(self) -> u16 {
        match self {
            Self::Desktop => VNC_PORT,
            Self::Agent => AGENT_PORT,
        }
    }
}

/// Proof that a stream is attached to a session. While it exists and [`Attached::alive`] is called,
/// the session is protected.
pub struct Attached {
    inner: Arc<Inner>,
    /// Somebody who was only shown the session: does not keep it alive.
    guest: bool,
    entry: Arc<Entry>,
    opened_on: Route,
    route: watch::Receiver<Option<Route>>,
}

impl Attached {
    /// The other side was heard from: extends the lease.
    pub fn alive(&self) -> Timestamp {
        if self.guest {
            return self.entry.session().lease_expires_at;
        }
        let now = self.inner.clock.now();
        self.inner.leases.extend(&self.entry, now, now + self.inner.config.lease)
    }

    /// Somebody does something through the stream, so the session is not idle.
    pub fn used(&self) {
        if !self.guest {
            self.entry.used(self.inner.clock.now());
        }
    }

    /// Where the stream leads.
    pub fn route(&self) -> Route {
        self.opened_on
    }

    /// Follows whether the stream may go on.
    pub fn watch(&self) -> RouteWatch {
        RouteWatch {
            entry: Arc::clone(&self.entry),
            opened_on: self.opened_on,
            route: self.route.clone(),
        }
    }
}

/// Says when a stream has to end.
pub struct RouteWatch {
    entry: Arc<Entry>,
    opened_on: Route,
    route: watch::Receiver<Option<Route>>,
}

impl RouteWatch {
    /// Waits until the stream has to end, and says where the session stands then.
    pub async fn ended(&mut self) -> SessionState {
        let opened_on = self.opened_on;
        // The sender lives in the entry that `self` holds, so waiting cannot fail.
        let _ = self.route.wait_for(|route| *route != Some(opened_on)).await;
        self.entry.session().state
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.guest {
            return;
        }
        self.entry.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Control {
    /// Opens a connection to the guest of a session.
    pub async fn open(
        &self,
        id: SessionId,
        port: GuestPort,
    ) -> Result<(GuestStream, Attached), ControlError> {
        self.dial(self.attach(id, false).await?, port).await
    }

    /// Opens the desktop for somebody whom the session is only shown to: that neither extends its
    /// lease nor counts as use.
    pub async fn open_shown(&self, id: SessionId) -> Result<(GuestStream, Attached), ControlError> {
        self.dial(self.attach(id, true).await?, GuestPort::Desktop).await
    }

    async fn dial(
        &self,
        attached: Attached,
        port: GuestPort,
    ) -> Result<(GuestStream, Attached), ControlError> {
        let dialled = self.inner().driver.dial(attached.opened_on.vm, port.number());
        let stream = tokio::time::timeout(DIAL_DEADLINE, dialled).await.unwrap_or_else(|_| {
            Err(DriverError::Timeout { operation: "reaching it".into(), after: DIAL_DEADLINE })
        })?;
        // The VM may have been replaced while it was dialled.
        let now = *attached.route.borrow();
        if now != Some(attached.opened_on) {
            return Err(not_usable(&attached.entry));
        }
        Ok((stream, attached))
    }

    /// A client of the agent of a session's guest.
    pub async fn agent(&self, id: SessionId) -> Result<(AgentClient, Attached), ControlError> {
        let attached = self.attach(id, false).await?;
        attached.used();
        let secret = attached.entry.live().vm.secret.unwrap_or_default();
        let driver = Arc::clone(&self.inner().driver);
        Ok((AgentClient::new(driver, attached.opened_on.vm, secret), attached))
    }

    /// The end of the console of a session's guest.
    pub async fn console(&self, id: SessionId, max_bytes: usize) -> Result<String, ControlError> {
        let vm = self.here(id).await?.live().vm.id;
        Ok(self.inner().driver.console(vm, max_bytes).await?)
    }

    async fn attach(&self, id: SessionId, guest: bool) -> Result<Attached, ControlError> {
        let inner = self.inner();
        let entry = self.here(id).await?;
        let route = entry.route();
        let current = *route.borrow();
        let Some(opened_on) = current else { return Err(not_usable(&entry)) };
        if !guest {
            entry.streams.fetch_add(1, Ordering::AcqRel);
        }
        let attached = Attached { inner: Arc::clone(inner), guest, entry, opened_on, route };
        attached.alive();
        Ok(attached)
    }
}

fn not_usable(entry: &Entry) -> ControlError {
    let session = entry.session();
    match session.state {
        SessionState::Ending | SessionState::Ended => gone(&session),
        state => ControlError::State { state, why: "its desktop cannot be reached now" },
    }
}

/// The error of a call to the agent, with its sources.
pub fn guest_error(error: &dyn std::error::Error) -> ControlError {
    ControlError::Guest(chain(error))
}
