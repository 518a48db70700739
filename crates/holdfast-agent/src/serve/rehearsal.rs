//! A machine of the pool shows its browser a page before anybody comes: whatever a first page costs
//! beyond the page itself (code that is read, translated and compiled, processes, the way to the
//! network) is paid while nobody waits.

use std::{
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::response::Html;
use tokio::time::sleep;

use super::Agent;
use crate::{browser, guest::Guest};

/// Path of the page on the agent's own port.
pub(super) const PATH: &str = "/v1/rehearsal";
/// How long the browser may take until it is there, and then until the page is.
const DEADLINE: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(250);

/// Text, a form, a picture, a style, a script and a request: what most pages are made of.
pub(super) async fn page() -> Html<&'static str> {
    Html(include_str!("rehearsal.html"))
}

/// Its address within the guest.
pub(super) fn url(guest: &Guest) -> String {
    format!("http://{}:{}{PATH}", Ipv4Addr::LOCALHOST, guest.listen.port())
}

impl Agent {
    /// Rehearses, unless a session comes first. Until its end the browser does not count as ready.
    pub(super) fn rehearse(self: &Arc<Self>) {
        let agent = Arc::clone(self);
        let turn = self.start_page.load(Ordering::SeqCst);
        self.rehearses.store(true, Ordering::SeqCst);
        tokio::spawn(async move {
            let all = async {
                while !browser::is_ready(&agent.guest).await {
                    sleep(LOOK).await;
                }
                let url = url(&agent.guest);
                if let Err(error) = browser::rehearse(&agent.guest, &url, DEADLINE).await {
                    tracing::warn!("the browser was not rehearsed: {error}");
                }
            };
            let assigned = async {
                while agent.start_page.load(Ordering::SeqCst) == turn {
                    sleep(LOOK).await;
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(DEADLINE, all) => {}
                () = assigned => {}
            }
            agent.rehearses.store(false, Ordering::SeqCst);
        });
    }
}
