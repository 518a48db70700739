//! Waiting for sessions, with what happens shown as it happens.

use std::time::Duration;

use anyhow::bail;
use holdfast_api::{
    Code, Session,
    client::{Client, ClientError, EventStream, Update},
};
use uuid::Uuid;

use crate::output::Steps;

/// How long a server may be away before following its session is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// A timeline that survives restarts of the server.
pub struct Follower<'a> {
    client: &'a Client,
    id: Uuid,
    stream: Option<EventStream>,
    last: i64,
}

impl<'a> Follower<'a> {
    pub fn new(client: &'a Client, id: Uuid) -> Self {
        Self { client, id, stream: None, last: 0 }
    }

    /// The next update. Reconnects where the stream broke.
    pub async fn next(&mut self) -> anyhow::Result<Update> {
        let mut pause = Duration::from_millis(200);
        let mut away = Duration::ZERO;
        loop {
            if self.stream.is_none() {
                match self.client.follow(self.id, self.last).await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error) if error.is_temporary() && away < PATIENCE => {
                        tokio::time::sleep(pause).await;
                        away += pause;
                        pause = (pause * 2).min(Duration::from_secs(4));
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(stream) = &mut self.stream else { continue };
            match stream.next().await {
                Ok(Some(update)) => {
                    self.last = stream.last();
                    return Ok(update);
                }
                Ok(None) | Err(ClientError::Broken { .. }) => self.stream = None,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits until the session's desktop can be used.
pub async fn until_ready(client: &Client, session: Session) -> anyhow::Result<Session> {
    let steps = Steps::new("Starting");
    let mut follower = Follower::new(client, session.id);
    let began = session.created_at;
    let mut said = String::new();
    let outcome = loop {
        let update = tokio::select! {
            update = follower.next() => update?,
            _ = tokio::signal::ctrl_c() => {
                steps.finish();
                bail!(
                    "not waiting any longer; the session {} goes on: end it with `holdfast session end {0}`",
                    session.id
                );
            }
        };
        match update {
            // Pages of a kernel's last words; `holdfast session logs` has them.
            Update::Event(event) if event.kind == "vm.console" => {}
            Update::Event(event) => {
                let after = event.at.duration_since(began).as_secs_f64();
                let mark = if event.kind == "step.retry" { "!" } else { "-" };
                // One thing that changes session and VM is two events, and one line.
                if said != event.why {
                    steps.done(&format!("{mark} {after:6.2} s  {}", event.why));
                }
                said.clone_from(&event.why);
                steps.now(next_after(&event.kind, event.to.as_deref()));
            }
            Update::Session(now) => match now.state.as_str() {
                "ready" | "degraded" => break Ok(*now),
                "failed" | "ending" | "ended" => break Err(*now),
                _ => {
                    if let Some(detail) = &now.detail {
                        steps.now(detail);
                    }
                }
            },
        }
    };
    steps.finish();
    match outcome {
        Ok(session) => Ok(session),
        Err(session) => bail!(
            "the session {}: {} `holdfast session explain {}` has the evidence",
            if session.state == "failed" {
                "failed".to_owned()
            } else {
                format!("is {}", session.state)
            },
            session.detail.unwrap_or_else(|| "no reason was given.".to_owned()),
            session.id
        ),
    }
}

/// What is being waited for after an event.
fn next_after(kind: &str, to: Option<&str>) -> &'static str {
    match (kind, to) {
        ("session.state", Some("requested")) => "Waiting for room",
        ("step.disk", _) => "Making its network",
        ("step.network", _) => "Switching it on",
        ("step.start", _) => "Booting",
        ("step.agent", _) => "Giving it its identity",
        ("step.claim", _) => "Waiting for the desktop",
        ("step.retry", _) => "Trying again",
        _ => "Starting",
    }
}

/// Waits until nothing of the session is left.
pub async fn until_ended(client: &Client, id: Uuid) -> anyhow::Result<()> {
    let mut follower = Follower::new(client, id);
    loop {
        match client.session(id).await {
            Err(error) if matches!(error.code(), Some(Code::Gone | Code::NotFound)) => {
                return Ok(());
            }
            Err(error) if !error.is_temporary() => return Err(error.into()),
            _ => {}
        }
        follower.next().await?;
    }
}
