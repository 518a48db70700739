//! Sign-in runs: a tool in a PTY, its link caught and opened, its end judged by evidence, and its
//! credentials handed over encrypted.
//!
//! One run at a time. What belongs to a run (its link, its token, its processes) ends with it.

mod choice;
mod collect;
mod haste;
mod link;
mod redact;
mod rules;
mod run;
mod text;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{get, post},
};
use holdfast_agent_api::tool::{
    CollectRequest, Collected, OpenRequest, Outcome, ToolInput, ToolRequest, ToolState, ToolStatus,
};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use self::run::Run;
use crate::{guest::Guest, wire::Refusal};

/// Longest wait for a change of a run, in ms.
const LONGEST_WAIT: u64 = 30_000;

/// The runs of a guest: at most one at a time, the last one is kept.
pub struct Tools {
    guest: Guest,
    current: Mutex<Option<Arc<Run>>>,
    /// Held while a run takes the place of another.
    turn: tokio::sync::Mutex<()>,
}

/// What became of a link that a program wanted opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It came from the current run, which sees to it.
    ByRun,
    /// It is not opened, and why.
    Refused(String),
    /// It is an acceptable link of no current run: open it and no more.
    NotTheirs,
}

impl Tools {
    /// No run yet.
    pub fn new(guest: Guest) -> Arc<Self> {
        Arc::new(Self { guest, current: Mutex::default(), turn: tokio::sync::Mutex::default() })
    }

    fn current(&self) -> Option<Arc<Run>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The current run, which has to be number `run`.
    fn run(&self, run: u32) -> Result<Arc<Run>, Refusal> {
        let current = self.current().ok_or_else(|| Refusal::missing("there was no run yet"))?;
        if current.number() == run {
            Ok(current)
        } else {
            Err(Refusal::conflict(format!("the current run is number {}", current.number())))
        }
    }

    /// Takes a link from a program that carried `token`.
    pub fn caught(&self, token: Option<&str>, url: &str) -> Taken {
        let own = self.current().filter(|run| {
            let is_own = |token: &str| bool::from(token.as_bytes().ct_eq(run.token.as_bytes()));
            token.is_some_and(is_own) && !run.has_ended()
        });
        if let Some(run) = own {
            return run.caught(url);
        }
        // A person's own link may lead to a server on the guest itself.
        let is_web = ["http://", "https://"].iter().any(|scheme| {
            url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        });
        if !is_web {
            Taken::Refused("only http and https links are opened".to_owned())
        } else if url.len() > 8192 || url.chars().any(char::is_control) {
            Taken::Refused("this is not a link that can be opened".to_owned())
        } else {
            Taken::NotTheirs
        }
    }

    /// Starts a run, or answers for the one that has its number.
    async fn start(&self, request: ToolRequest) -> Result<ToolStatus, Refusal> {
        let compiled =
            rules::Compiled::new(&request).map_err(|error| Refusal::bad(error.to_string()))?;
        let _turn = self.turn.lock().await;
        let mut revision = 0;
        if let Some(before) = self.current() {
            if before.number() == request.run {
                return Ok(before.status());
            }
            if before.number() > request.run {
                let why = format!("run {} is newer than run {}", before.number(), request.run);
                return Err(Refusal::conflict(why));
            }
            // Nothing of it is left when the next one starts.
            before.end().await;
            revision = before.status().revision;
        }
        let run = Run::start(&self.guest, request, compiled, revision + 1);
        let status = run.status();
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
        Ok(status)
    }
}

/// The calls of the protocol that begin with `/v1/tool`.
pub fn router(tools: Arc<Tools>) -> Router {
    Router::new()
        .route("/v1/tool", get(status).post(start))
        .route("/v1/tool/input", post(input))
        .route("/v1/tool/open", post(open))
        .route("/v1/tool/collect", post(hand_over))
        .with_state(tools)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct After {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

async fn status(
    State(tools): State<Arc<Tools>>,
    Query(query): Query<After>,
) -> Result<Json<ToolStatus>, Refusal> {
    let run = tools.current().ok_or_else(|| Refusal::missing("there was no run yet"))?;
    let wait = Duration::from_millis(query.wait_ms.min(LONGEST_WAIT));
    Ok(Json(run.newer_than(query.after, wait).await))
}

async fn start(
    State(tools): State<Arc<Tools>>,
    Json(request): Json<ToolRequest>,
) -> Result<Json<ToolStatus>, Refusal> {
    // A host that hangs up does not leave half a change of runs.
    let work = tokio::spawn(async move { tools.start(request).await });
    work.await.map_err(Refusal::failed)?.map(Json)
}

async fn input(
    State(tools): State<Arc<Tools>>,
    Json(input): Json<ToolInput>,
) -> Result<Json<ToolStatus>, Refusal> {
    let run = tools.run(input.run)?;
    if input.text.chars().count() > 4096 || input.text.chars().any(char::is_control) {
        return Err(Refusal::bad("input is at most 4096 characters without control characters"));
    }
    if !run.type_text(input.text).await {
        return Err(Refusal::conflict("the run has ended"));
    }
    Ok(Json(run.status()))
}

async fn open(
    State(tools): State<Arc<Tools>>,
    Json(request): Json<OpenRequest>,
) -> Result<Json<ToolStatus>, Refusal> {
    let run = tools.run(request.run)?;
    if run.status().link.is_none() {
        return Err(Refusal::conflict("the run has no link yet"));
    }
    run.open().await;
    Ok(Json(run.status()))
}

async fn hand_over(
    State(tools): State<Arc<Tools>>,
    Json(request): Json<CollectRequest>,
) -> Result<Json<Collected>, Refusal> {
    let run = tools.run(request.run)?;
    let status = run.status();
    if status.state != ToolState::Ended || status.outcome != Some(Outcome::Succeeded) {
        return Err(Refusal::conflict("the run did not succeed, it has no credentials"));
    }
    let home = tools.guest.home.clone();
    let work = tokio::task::spawn_blocking(move || run.collect(&home, &request.recipients));
    work.await.map_err(Refusal::failed)?.map(Json).map_err(|error| {
        let why = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        if error.is_the_callers() { Refusal::bad(why) } else { Refusal::failed(why) }
    })
}
