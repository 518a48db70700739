//! From a VMM that runs to a desktop that can be used, and what happens when that fails.

use std::{sync::Arc, time::Duration};

use holdfast_agent_api::{AssignRequest, ClaimRequest, Health, ScreenSize};
use holdfast_core::{Actor, SessionState, Timestamp, VmState, provider::DESKTOP};
use holdfast_host::{
    driver::Stop,
    guest::{AgentClient, GuestError},
};

use crate::{
    ControlError, Live,
    actor::Next,
    board::Entry,
    checkpoint,
    control::{Inner, commit, note, random_hex},
    guest_clock,
    machine::operate,
    probe::desktop_answers,
    records::{Edit, chain},
    teardown::keep_console,
};

/// Time between looks at a guest that is starting. Each look costs the guest little more than a
/// TCP connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);
/// Deadline of one look. A booting guest that drops packets must not hold up the next look.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);
/// Deadline of a claim: the guest sets clock, names and screen.
const CLAIM_DEADLINE: Duration = Duration::from_secs(30);

/// A browser waits this long for its own desktop: it takes every processor for seconds, and people wait for
/// a picture first.
const OWN_DESKTOP: Duration = Duration::from_millis(400);
/// And this long for each other one that comes up.
const OTHER_DESKTOP: Duration = Duration::from_millis(700);
/// But no longer than this.
const LONGEST_WAIT_OF_BROWSER: Duration = Duration::from_secs(12);

/// Beside a tool whose link is waited for, it waits for that link, or this long: it would take half of the
/// processors from the tool, for a page that is not known yet.
const BROWSER_AFTER_TOOL: Duration = Duration::from_secs(20);

/// Why a guest did not come up.
enum Failure {
    /// The session is to end: somebody else says why.
    Ending,
    /// The VMM ended, or the deadline passed.
    Failed(String),
    /// The store did not take what happened.
    Control(ControlError),
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

/// Waits for agent and desktop, claims the guest, and makes the session ready.
pub(crate) async fn bring_up(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<Next, ControlError> {
    // A VM of the pool runs for longer than its session is there.
    let began = live.vm.state_since.max(live.session.state_since);
    let warm = checkpoint::cloned_from(inner, live);
    // Instead of a clone a VM can boot, which loses nothing: a clone is not waited for as long.
    let deadline = if warm.is_some() {
        inner.config.restore_deadline.min(inner.config.boot_deadline)
    } else {
        inner.config.boot_deadline
    };
    let left = Duration::try_from((began + deadline).duration_since(inner.clock.now()))
        .unwrap_or(Duration::ZERO);
    let work = async {
        tokio::select! {
            () = entry.ending.cancelled() => Err(Failure::Ending),
            exit = inner.driver.wait_exit(live.vm.id) => Err(Failure::Failed(match exit {
                Ok(why) => why,
                Err(error) => chain(&error),
            })),
            up = come_up(inner, entry, live) => up,
        }
    };
    let outcome = match tokio::time::timeout(left, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::Failed(format!(
            "the desktop was not up {} s after the machine was switched on",
            deadline.as_secs()
        ))),
    };
    match outcome {
        Ok(()) => {
            if let Some(warm) = warm {
                inner.images.warm_worked(&warm);
            }
            inner.admission.started(entry.id);
            inner.room.send_modify(|n| *n += 1);
            let took = inner.clock.now().duration_since(live.session.created_at);
            if live.session.ready_at.is_none() {
                metrics::histogram!("holdfast_session_ready_seconds").record(took.as_secs_f64());
            }
            tracing::info!(session = %entry.id, vm = %live.vm.id, "session is ready");
            Ok(Next::Again)
        }
        Err(Failure::Ending) => Ok(Next::Again),
        Err(Failure::Control(error)) => Err(error),
        Err(Failure::Failed(why)) => {
            if let Some(warm) = warm {
                inner.images.warm_failed(&warm, false, &why);
            }
            start_failed(inner, entry, live, &why, false).await
        }
    }
}

async fn come_up(inner: &Inner, entry: &Entry, live: &Live) -> Result<(), Failure> {
    let secret = live.vm.secret.clone().unwrap_or_default();
    let agent = AgentClient::new(Arc::clone(&inner.driver), live.vm.id, secret.clone());
    let is_clone = live.vm.state == VmState::Restoring && live.session.checkpoint.is_none();
    let mut desktop_ready = if is_clone {
        claim_clone(inner, entry, live, &agent, &secret).await?
    } else {
        let health = first_answer(&agent).await;
        note_answer(inner, entry, health.uptime_ms).await;
        if identify(inner, live, &agent, &health, secret).await? {
            note_identity(inner, entry).await;
        }
        health.desktop_ready
    };
    if live.vm.created_at < live.session.created_at && live.session.ready_at.is_none() {
        let request = assignment(live);
        let answer = agent.assign(&request, CLAIM_DEADLINE).await.map_err(|error| {
            Failure::Failed(format!("the guest refused its session: {}", chain(&error)))
        })?;
        guest_clock::set_after(&agent, answer.time).await;
        let why = "A waiting machine was given to the session.";
        note(inner, entry, "step.assign", why, Actor::Reconciler).await;
    }
    while !desktop_ready {
        tokio::time::sleep(LOOK_INTERVAL).await;
        desktop_ready = agent.health(LOOK_DEADLINE).await.is_ok_and(|health| health.desktop_ready);
    }
    fail::fail_point!("step.ready");
    let fresh = entry.live();
    let edit = Edit::new(&fresh.session, &fresh.vm, inner.clock.now())
        .note("step.desktop", "The desktop is up.", Actor::Guest)
        .with_session(|session| {
            session.attempts = 0;
            if checkpoint::used_up(&fresh) {
                session.checkpoint = None;
            }
        })
        .vm_to(VmState::Running, "The desktop is up.", Actor::Guest)
        .session_to(SessionState::Ready, "The desktop can be used.", Actor::Reconciler);
    commit(inner, entry, edit).await?;
    Ok(())
}

/// Gives a clone its identity with the first call, for it is up already. Says whether its desktop is.
async fn claim_clone(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
    agent: &AgentClient,
    secret: &str,
) -> Result<bool, Failure> {
    fail::fail_point!("step.claim");
    // The first handshake in a restored guest takes several times as long as any later one; beside the claim
    // it costs little, and is over when the first viewer comes.
    let (driver, vm) = (Arc::clone(&inner.driver), live.vm.id);
    tokio::spawn(async move { desktop_answers(driver.as_ref(), vm).await });
    let answer = loop {
        let request = claim_request(inner, live, secret.to_owned(), true)?;
        match agent.claim(&request, CLAIM_DEADLINE).await {
            Ok(answer) => break answer,
            Err(error @ GuestError::Refused { .. }) => return Err(refused_identity(&error)),
            Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    };
    guest_clock::set_after(agent, answer.time).await;
    note_answer(inner, entry, answer.uptime_ms).await;
    note_identity(inner, entry).await;
    Ok(answer.desktop_ready)
}

async fn note_answer(inner: &Inner, entry: &Entry, uptime_ms: u64) {
    let text = format!(
        "The guest's agent answered {:.1} s after its kernel started.",
        uptime_ms as f64 / 1000.0
    );
    note(inner, entry, "step.agent", &text, Actor::Guest).await;
}

async fn note_identity(inner: &Inner, entry: &Entry) {
    let text = "The guest was given its identity: secret, clock, entropy, names, screen.";
    note(inner, entry, "step.claim", text, Actor::Reconciler).await;
}

fn refused_identity(error: &GuestError) -> Failure {
    Failure::Failed(format!("the guest refused its identity: {}", chain(error)))
}

/// Gives the guest its identity, unless it has it already. Answers whether it was given.
async fn identify(
    inner: &Inner,
    live: &Live,
    agent: &AgentClient,
    health: &Health,
    secret: String,
) -> Result<bool, Failure> {
    fail::fail_point!("step.claim");
    let restored = live.vm.state == VmState::Restoring;
    let told = match (&live.session.checkpoint, &health.vm_id) {
        // The identity inside is that of the instant that was saved, with the clock and the
        // randomness of then.
        (Some(checkpoint), Some(_)) if restored => {
            let cloned = checkpoint.session != live.session.id;
            let request = claim_request(inner, live, secret, cloned)?;
            let before =
                AgentClient::new(Arc::clone(&inner.driver), live.vm.id, checkpoint.secret.clone());
            // A server killed after the guest took its new secret repeats the call with that one.
            match before.rebind(&request, CLAIM_DEADLINE).await {
                Err(GuestError::Refused { status: 401, .. }) => {
                    agent.rebind(&request, CLAIM_DEADLINE).await
                }
                other => other,
            }
        }
        (_, Some(id)) if *id == live.vm.id.to_string() => return Ok(false),
        (_, Some(id)) => {
            return Err(Failure::Failed(format!("the guest says that it is the VM {id}")));
        }
        (_, None) => {
            agent.claim(&claim_request(inner, live, secret, restored)?, CLAIM_DEADLINE).await
        }
    };
    let answer = told.map_err(|error| refused_identity(&error))?;
    guest_clock::set_after(agent, answer.time).await;
    Ok(true)
}

async fn first_answer(agent: &AgentClient) -> Health {
    loop {
        if let Ok(health) = agent.health(LOOK_DEADLINE).await {
            return health;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn assignment(live: &Live) -> AssignRequest {
    let spec = &live.session.spec;
    AssignRequest {
        session_id: live.session.id.to_string(),
        time: Timestamp::now(),
        locale: spec.locale.clone(),
        timezone: spec.timezone.clone(),
        screen: ScreenSize { width: spec.screen.width, height: spec.screen.height },
        start_url: spec.start_url.clone(),
    }
}

fn claim_request(
    inner: &Inner,
    live: &Live,
    secret: String,
    cloned: bool,
) -> Result<ClaimRequest, ControlError> {
    let spec = &live.session.spec;
    let vm = live.vm.id.to_string();
    let others = (inner.admission.coming_up() as u32).saturating_sub(1);
    let browser_after = if spec.provider == DESKTOP {
        (OWN_DESKTOP + OTHER_DESKTOP * others).min(LONGEST_WAIT_OF_BROWSER)
    } else {
        BROWSER_AFTER_TOOL
    };
    let browser_after_ms = browser_after.as_millis() as u32;
    Ok(ClaimRequest {
        // The last group of the id is random, so the names of two guests differ.
        hostname: format!("hf-{}", &vm[vm.len() - 12..]),
        vm_id: vm,
        session_id: Some(live.session.id.to_string()),
        secret,
        time: Timestamp::now(),
        entropy: random_hex::<64>()?,
        dns: inner.config.dns.clone(),
        locale: spec.locale.clone(),
        timezone: spec.timezone.clone(),
        screen: ScreenSize { width: spec.screen.width, height: spec.screen.height },
        start_url: spec.start_url.clone(),
        cloned,
        fresh_browser: inner.config.fresh_browser,
        browser_after_ms,
    })
}

fn cold_because(live: &Live) -> &'static str {
    match &live.session.checkpoint {
        Some(_) => {
            "The machine could not be restored from its checkpoint, so open programs are lost and files are kept"
        }
        None => "The machine could not be cloned from the warm image",
    }
}

/// An attempt at starting failed: unwinds what it made and tries again, or gives up. What a session
/// that was in use has on its disk is kept in either case until it is ended.
pub(crate) async fn start_failed(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
    why: &str,
    permanent: bool,
) -> Result<Next, ControlError> {
    if entry.ending.is_cancelled() {
        return Ok(Next::Again);
    }
    // What was written on the way here is newer than what the caller had read.
    let live = if entry.live().vm.id == live.vm.id { entry.live() } else { live.clone() };
    let attempt = live.session.attempts + 1;
    tracing::warn!(session = %entry.id, vm = %live.vm.id, attempt, why, "start failed");
    metrics::counter!("holdfast_start_failures_total").increment(1);
    keep_console(inner, entry, live.vm.id).await;
    let now = inner.clock.now();
    // What cannot be restored may still boot.
    let restoring = live.vm.state == VmState::Restoring;
    if !restoring && (permanent || attempt >= inner.config.start_attempts) {
        let text = format!("The machine could not be started: {why}.");
        let edit = Edit::new(&live.session, &live.vm, now)
            .with_session(|session| session.attempts = attempt)
            .detail(Some(text.clone()))
            .session_to(SessionState::Failed, &text, Actor::Reconciler);
        commit(inner, entry, edit).await?;
        return Ok(Next::Again);
    }
    let (driver, vm) = (Arc::clone(&inner.driver), live.vm.id);
    let was_in_use = live.session.ready_at.is_some();
    let unwound = operate(entry, "unwinding", inner.config.teardown_deadline, async move {
        if was_in_use { driver.stop(vm, Stop::Force).await } else { driver.destroy(vm).await }
    })
    .await;
    if let Err(error) = unwound {
        tracing::warn!(session = %entry.id, error = chain(&error), "unwinding failed; it is repeated at the end");
    }
    // A VM of the pool was running when its session got it.
    if live.vm.state == VmState::Running {
        let edit =
            Edit::new(&live.session, &live.vm, now).vm_to(VmState::Unhealthy, why, Actor::Host);
        commit(inner, entry, edit).await?;
    }
    let live = entry.live();
    let (kind, text) = if restoring {
        ("step.cold", format!("{}: {why}. It boots instead.", cold_because(&live)))
    } else {
        ("step.retry", format!("Attempt {attempt} failed: {why}. Trying again."))
    };
    let mut edit = Edit::new(&live.session, &live.vm, now)
        .with_session(|session| session.attempts = attempt)
        .note(kind, &text, Actor::Reconciler);
    if live.vm.state != VmState::Preparing {
        edit = edit.vm_to(VmState::Preparing, &text, Actor::Reconciler);
    }
    commit(inner, entry, edit).await?;
    if restoring {
        return Ok(Next::Again);
    }
    let pause = Duration::from_secs(1 << attempt.min(4));
    tokio::select! {
        () = entry.ending.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
    }
    Ok(Next::Again)
}
