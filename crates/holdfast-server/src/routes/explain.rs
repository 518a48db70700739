//! Why a session is alive or dead: the records, the machine, the lease and the last events, side by
//! side.

use axum::{Json as JsonAnswer, extract::State};
use holdfast_api::{self as api, Problem};
use holdfast_control::Live;
use holdfast_core::{
    EndReason, SessionState, Timestamp,
    health::{Rung, Standing},
    plan::{Machine, ProcessSeen, Step, plan},
};
use holdfast_host::driver::{Observed, Process};

use crate::{auth::Principal, convert, extract::Id, problem::ApiResult, state::AppState};

/// How many of the last events are shown.
const EVENTS: usize = 40;
/// Events read at once.
const PAGE: u32 = 500;

/// Why the session is alive or dead, with the evidence. Also of one that ended.
#[utoipa::path(get, path = "/api/sessions/{id}/explain", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = api::Explanation), (status = 401, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn explain(
    State(state): State<AppState>,
    who: Principal,
    Id(id): Id,
) -> ApiResult<JsonAnswer<api::Explanation>> {
    let live = state.visible(&who, id).await?;
    let observed = state.control.observe(id).await;
    let now = state.control.now();
    let streams = state.control.streams(id);
    let standing = state.control.standing(id);
    let (machine, seen) = match observed {
        None => (None, None),
        Some(Ok(observed)) => (Some(machine(&observed)), Some(seen(&observed))),
        Some(Err(error)) => {
            let process = format!("unknown: {}", crate::error::chain(&error));
            let machine = api::MachineSeen { process, directory: None, network: None };
            (Some(machine), None)
        }
    };
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let page = state.control.events(id, after, PAGE).await?;
        after = page.last().map_or(after, |event| event.seq);
        let full = page.len() == PAGE as usize;
        events.extend(page);
        if !full {
            break;
        }
    }
    let events = events[events.len().saturating_sub(EVENTS)..].iter().map(convert::event).collect();
    let owner = state.owner_name(&who, live.session.owner).await;
    Ok(JsonAnswer(api::Explanation {
        summary: summary(&live, seen, streams, now, state.control.config().grace)
            + &wrong(standing.as_ref()),
        session: convert::session(&live.session, owner, state.control.limits(&live.session)),
        vm: convert::vm(&live.vm, None),
        machine,
        health: standing.map(health),
        lease: api::Lease {
            live: now < live.session.lease_expires_at || streams > 0,
            expires_at: live.session.lease_expires_at,
            streams,
        },
        attempts: live.session.attempts,
        generation: live.session.generation.0,
        events,
    }))
}

fn machine(observed: &Observed) -> api::MachineSeen {
    let process = match &observed.process {
        Process::NotStarted => "not started".to_owned(),
        Process::Running { pid, start_ticks, stopped } => {
            let how = if *stopped { "stopped by a signal" } else { "running" };
            format!("{how} as pid {pid}, started at tick {start_ticks}")
        }
        Process::Exited { why } => format!("proven gone: {why}"),
        Process::Unknown { why } => format!("unknown: {why}"),
    };
    api::MachineSeen {
        process,
        directory: Some(observed.directory),
        network: Some(observed.network),
    }
}

/// What is wrong and what was done about it last; nothing while it is well.
fn wrong(standing: Option<&Standing>) -> String {
    match standing {
        Some(Standing { failing_since: Some(since), finding, rung, .. }) => {
            let done = match rung {
                Rung::Fine | Rung::ProbeAgain => "it is probed again",
                Rung::RestartService(_) => "the service was restarted",
                Rung::Resume => "it was told to run again",
                Rung::Restore => "its checkpoint is being restored",
                Rung::ColdBoot => "it is being booted again on its disk",
                Rung::GiveUp => "every repair was tried",
            };
            format!(" Something is wrong since {}: {finding}; {done}.", at(*since))
        }
        _ => String::new(),
    }
}

fn health(standing: Standing) -> api::HealthSeen {
    api::HealthSeen {
        rung: standing.rung.as_str().to_owned(),
        finding: standing.finding.to_string(),
        probed_at: standing.at,
        failures: standing.failures,
        failing_since: standing.failing_since,
        service_restarts: standing.service_restarts,
        resumes: standing.resumes,
        boots: standing.boots,
    }
}

fn seen(observed: &Observed) -> Machine {
    let process = match observed.process {
        Process::NotStarted => ProcessSeen::NotStarted,
        Process::Running { .. } => ProcessSeen::Running,
        Process::Exited { .. } => ProcessSeen::Exited,
        Process::Unknown { .. } => ProcessSeen::Unknown,
    };
    Machine { process, directory: observed.directory, network: observed.network }
}

fn summary(
    live: &Live,
    seen: Option<Machine>,
    streams: usize,
    now: Timestamp,
    grace: std::time::Duration,
) -> String {
    let session = &live.session;
    if session.state == SessionState::Ended {
        let why = session.detail.as_deref().or(session.end_reason.map(EndReason::sentence));
        return format!("It ended. {}", why.unwrap_or_default()).trim_end().to_owned();
    }
    let lease = session.lease_expires_at;
    let protection = match streams {
        // Nobody uses it any more: it is there to be read.
        _ if session.state == SessionState::Failed => {
            format!("it is kept until {} for whoever reads why", at(session.state_since + grace))
        }
        0 if now < lease => format!("a heartbeat protects it until {}", at(lease)),
        0 => format!("nobody is attached; it is kept until {}", at(lease + grace)),
        1 => "an open stream protects it".to_owned(),
        _ => format!("{streams} open streams protect it"),
    };
    let unknown = Machine { process: ProcessSeen::Unknown, directory: true, network: true };
    let next = match plan(session, &live.vm, seen.unwrap_or(unknown)) {
        Step::Admit => "wait for room on the host",
        Step::BeginPreparing | Step::MakeDisk => "make its disk",
        Step::MakeNetwork => "make its network",
        Step::Save => "write its checkpoint",
        Step::PutAway => "free what its machine holds, after its checkpoint was written",
        Step::BeginStart | Step::StartVmm => "switch its machine on",
        Step::BringUp => "wait for its desktop",
        Step::StartFailed => "start its machine again, or give up",
        Step::Watch => "watch its health and its lease",
        Step::TearDown => "take it down",
        Step::Release => "free what its machine holds",
        Step::LookAgain => "look again: nothing is proven, so nothing is done",
        Step::Rest => "nothing until somebody asks",
    };
    format!("It is {}; {protection}. Next: {next}.", session.state)
}

/// A time for people, in whole seconds.
fn at(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}
