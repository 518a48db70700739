//! Drives a session's sign-in: one task beside the session's actor, and the only writer of the
//! sign-in's progress (a person's retry writes too, under the same generation).
//!
//! It plans from the record and what the guest's agent says of the current run, so a server killed
//! anywhere goes on with the same run. A guest that does not know the run was started again; then a
//! new run begins and the link before is void. Credentials are sealed in the guest and pass through
//! here as ciphertext only.
//!
//! A guest may be somebody else's by now: its link is looked at again, its text is made fit to be shown,
//! and only what the provider declares is taken for credentials.

use std::{sync::Arc, time::Duration};

use base64::Engine as _;
use holdfast_agent_api::tool as wire;
use holdfast_agent_api::{
    link,
    tool::{
        CollectRequest, CredentialFile, LinkRules, OutcomeRules, Prompt, ToolRequest, ToolStatus,
    },
};
use holdfast_core::{
    Actor, EndReason, EventBody, SessionState, SignIn, SignInOutcome, SignInStep, printable,
    provider::{self, Flow},
    signin::{SealedFile, SealedInfo},
};
use holdfast_host::guest::{AgentClient, GuestError};
use holdfast_store::{Change, Delivery, Sealed, StoreError};
use uuid::Uuid;

use crate::{
    ControlError,
    board::Entry,
    control::{Inner, end_entry},
    machine::agent,
    records::{chain, event},
};

/// How long one look at the tool waits for news.
const NEWS_WAIT: Duration = Duration::from_secs(20);
/// Deadline of a call to the agent that does not wait.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a call that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Most of the tool's output that is kept, in bytes.
const OUTPUT: usize = 4 << 10;
/// Most of a guest's sentence, in bytes.
const SENTENCE: usize = 500;
/// Longest code to be typed on a provider's page, in bytes.
const USER_CODE: usize = 64;
/// How many refused links of a run are told of.
const REFUSALS: usize = 16;

/// What was taken in of the current run. Another server looks at it anew, which is harmless.
#[derive(Default)]
struct Seen {
    run: u32,
    revision: u64,
    /// Links that were refused, at most [`REFUSALS`].
    refused: Vec<String>,
}

enum Next {
    Again,
    /// Until the person asks for something.
    Wait,
    Over,
}

pub(crate) async fn run(inner: Arc<Inner>, entry: Arc<Entry>) {
    let mut seen = Seen::default();
    loop {
        let next = tokio::select! {
            () = inner.stop.cancelled() => return,
            () = entry.ending.cancelled() => close(&inner, &entry).await,
            next = step(&inner, &entry, &mut seen) => next,
        };
        match next {
            Ok(Next::Again) | Err(ControlError::Store(StoreError::Stale { .. })) => {}
            Ok(Next::Wait) => tokio::select! {
                () = inner.stop.cancelled() => return,
                () = entry.ending.cancelled() => {}
                () = entry.sign_in_wake.notified() => {}
            },
            Ok(Next::Over) => return,
            Err(error) => {
                tracing::warn!(session = %entry.id, error = chain(&error), "a step of a sign-in could not be done; it is tried again");
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }
}

/// The session ends: what was not done never will be.
async fn close(inner: &Inner, entry: &Entry) -> Result<Next, ControlError> {
    if let Some(mut sign_in) = entry.sign_in()
        && !sign_in.is_done()
    {
        let reason = entry.session().end_reason.unwrap_or(EndReason::UserRequest);
        finish(inner, &mut sign_in, SignInOutcome::Failed, reason.sentence());
        let event = note(inner, "signin.done", reason.sentence(), Actor::Reconciler);
        let delivery = announce(inner, &sign_in, None);
        write(inner, entry, sign_in, vec![event], None, delivery).await?;
    }
    Ok(Next::Over)
}

async fn step(inner: &Inner, entry: &Entry, seen: &mut Seen) -> Result<Next, ControlError> {
    let Some(mut sign_in) = entry.sign_in() else { return Ok(Next::Over) };
    if sign_in.outcome == Some(SignInOutcome::Succeeded) {
        // The VM that holds the credentials in clear has no further use. A server that died, or lost its
        // store, after the hand-over left the end to this one.
        end_entry(inner, entry, EndReason::Completed, Actor::Reconciler).await?;
        return Ok(Next::Over);
    }
    if sign_in.is_done() {
        return Ok(Next::Wait);
    }
    let Some(tool) = inner.providers.find(&sign_in.provider).and_then(|p| p.tool.as_ref()) else {
        let why =
            format!("The provider {} is not known to this server any more.", sign_in.provider);
        return fail(inner, entry, sign_in, &why).await;
    };
    let mut route = entry.route();
    if route.borrow().is_none() {
        let session = entry.session();
        if session.state == SessionState::Failed {
            let why = session.detail.unwrap_or_else(|| "The machine could not be started.".into());
            return fail(inner, entry, sign_in, &why).await;
        }
        tokio::select! {
            // The sender lives in the entry.
            _ = route.changed() => {}
            // A session that fails has no route before and after.
            () = tokio::time::sleep(PAUSE) => {}
        }
        return Ok(Next::Again);
    }
    let agent = agent(inner, &entry.live().vm);
    match sign_in.step {
        SignInStep::Machine => {
            sign_in.begin_run(inner.clock.now());
            let event = note(inner, "signin.tool", "The tool is being started.", Actor::Reconciler);
            write(inner, entry, sign_in, vec![event], None, None).await?;
        }
        SignInStep::Tool => {
            fail::fail_point!("signin.tool");
            match agent.start_tool(&request(&sign_in, tool), CALL_DEADLINE).await {
                Ok(_) => {
                    to(&mut sign_in, SignInStep::Link, inner);
                    let why = "The tool runs; its link is waited for.";
                    let event = note(inner, "signin.started", why, Actor::Guest);
                    write(inner, entry, sign_in, vec![event], None, None).await?;
                }
                // A guest that does not take our secret is being given another one.
                Err(GuestError::Refused { status, message }) if status != 401 => {
                    let why = printable::line(&message, SENTENCE);
                    return fail(inner, entry, sign_in, &why).await;
                }
                Err(error) => return Err(ControlError::Guest(chain(&error))),
            }
        }
        SignInStep::Link | SignInStep::SignIn => {
            if seen.run != sign_in.run {
                *seen = Seen { run: sign_in.run, ..Seen::default() };
            }
            let after = seen.revision;
            let news = tokio::select! {
                news = agent.tool_status(after, NEWS_WAIT) => news,
                // Another incarnation of the VM has to be asked anew.
                _ = route.changed() => return Ok(Next::Again),
                () = entry.sign_in_wake.notified() => return Ok(Next::Again),
            };
            match news {
                Ok(status) if status.run == sign_in.run => {
                    take_in(inner, entry, sign_in, tool, &status, seen).await?;
                    seen.revision = status.revision;
                }
                Ok(_) | Err(GuestError::Refused { status: 404, .. }) => {
                    run_lost(inner, entry, sign_in).await?;
                }
                Err(error) => return Err(ControlError::Guest(chain(&error))),
            }
        }
        SignInStep::Credentials => return hand_over(inner, entry, sign_in, tool, &agent).await,
        SignInStep::Done => {}
    }
    Ok(Next::Again)
}

/// The guest does not know the run: it was started again.
async fn run_lost(inner: &Inner, entry: &Entry, mut sign_in: SignIn) -> Result<(), ControlError> {
    sign_in.begin_run(inner.clock.now());
    let why = "The machine was started again, and so is the tool; a link shown before is void.";
    let event = note(inner, "signin.restarted", why, Actor::Reconciler);
    write(inner, entry, sign_in, vec![event], None, None).await
}

/// Takes over what the agent says of the run.
async fn take_in(
    inner: &Inner,
    entry: &Entry,
    before: SignIn,
    tool: &provider::Tool,
    status: &ToolStatus,
    seen: &mut Seen,
) -> Result<(), ControlError> {
    let mut sign_in = before.clone();
    let mut events = Vec::new();
    let code = status.user_code.as_deref().map(|code| printable::line(code, USER_CODE));
    sign_in.user_code = code.filter(|code| !code.trim().is_empty());
    sign_in.wants_input = status.wants_input;
    sign_in.output = printable::end(&status.output, OUTPUT);
    let mut refused = None;
    if let Some(link) = &status.link
        && sign_in.url.as_ref() != Some(&link.url)
    {
        match link::acceptable(&link.url, &tool.allow) {
            Ok(()) => {
                sign_in.url = Some(link.url.clone());
                events.push(note(
                    inner,
                    "signin.link",
                    "The tool's link was caught.",
                    Actor::Guest,
                ));
            }
            Err(why) if seen.refused.len() < REFUSALS && !seen.refused.contains(&link.url) => {
                let why = format!(
                    "A link of the machine is not shown, for {why}: {}",
                    printable::line(&link.url, 200)
                );
                events.push(note(inner, "signin.link_refused", &why, Actor::Reconciler));
                refused = Some(link.url.clone());
            }
            Err(_) => {}
        }
    }
    let usable =
        sign_in.url.is_some() || (tool.flow == Flow::DeviceCode && sign_in.user_code.is_some());
    if usable && sign_in.step == SignInStep::Link {
        let now = inner.clock.now();
        let expires_at = status.started_at.max(before.step_since) + tool.deadline;
        to(&mut sign_in, SignInStep::SignIn, inner);
        sign_in.expires_at = Some(expires_at);
        // Waiting for the person counts as activity, until its deadline.
        inner.leases.extend(entry, now, expires_at);
    }
    match &status.outcome {
        None => {}
        Some(wire::Outcome::Succeeded) => {
            to(&mut sign_in, SignInStep::Credentials, inner);
            // What explains a failure is of no use now, and tools print what they were given.
            sign_in.output.clear();
            events.push(note(inner, "signin.succeeded", "The tool is signed in.", Actor::Guest));
        }
        Some(other) => {
            let (outcome, why) = match other {
                wire::Outcome::Refused => {
                    (SignInOutcome::Refused, "The sign-in was refused.".to_owned())
                }
                wire::Outcome::Expired => {
                    (SignInOutcome::Expired, "The sign-in was not finished in time.".to_owned())
                }
                wire::Outcome::Failed { why } => {
                    (SignInOutcome::Failed, printable::line(why, SENTENCE))
                }
                wire::Outcome::Succeeded => (SignInOutcome::Succeeded, String::new()),
            };
            finish(inner, &mut sign_in, outcome, &why);
            events.push(note(inner, "signin.done", &why, Actor::Guest));
        }
    }
    if sign_in == before && events.is_empty() {
        return Ok(());
    }
    let delivery = if sign_in.is_done() { announce(inner, &sign_in, None) } else { None };
    write(inner, entry, sign_in, events, None, delivery).await?;
    seen.refused.extend(refused);
    Ok(())
}

/// Has the credentials sealed in the guest and keeps the ciphertext.
async fn hand_over(
    inner: &Inner,
    entry: &Entry,
    mut sign_in: SignIn,
    tool: &provider::Tool,
    agent: &AgentClient,
) -> Result<Next, ControlError> {
    fail::fail_point!("signin.collect");
    let sealed = if tool.credentials.is_empty() {
        None
    } else {
        let request = CollectRequest { run: sign_in.run, recipients: sign_in.recipients.clone() };
        match agent.collect(&request, CALL_DEADLINE).await {
            Ok(collected) => match seal(inner, entry, tool, &collected) {
                Ok(sealed) => Some(sealed),
                Err(why) => return fail(inner, entry, sign_in, &why).await,
            },
            Err(GuestError::Refused { status: 404, .. }) => {
                run_lost(inner, entry, sign_in).await?;
                return Ok(Next::Again);
            }
            Err(GuestError::Refused { status, message }) if status != 401 => {
                let message = printable::line(&message, SENTENCE);
                let why = format!("The credentials could not be collected: {message}.");
                return fail(inner, entry, sign_in, &why).await;
            }
            Err(error) => return Err(ControlError::Guest(chain(&error))),
        }
    };
    finish(inner, &mut sign_in, SignInOutcome::Succeeded, "Signed in.");
    let info = sealed.as_ref().map(|s| &s.info);
    let delivery = announce(inner, &sign_in, info);
    let why = "The credentials were sealed to their recipient.";
    let event = note(inner, "signin.done", why, Actor::Guest);
    write(inner, entry, sign_in, vec![event], sealed, delivery).await?;
    fail::fail_point!("signin.sealed");
    Ok(Next::Again)
}

/// What the guest sealed, or why it is not taken. What is inside cannot be seen here; what is said to
/// be inside has to be what the provider hands over.
fn seal(
    inner: &Inner,
    entry: &Entry,
    tool: &provider::Tool,
    collected: &wire::Collected,
) -> Result<Sealed, String> {
    let ciphertext = base64::engine::general_purpose::STANDARD
        .decode(&collected.ciphertext)
        .map_err(|_| "The machine sealed the credentials in no known form.".to_owned())?;
    let mut files: Vec<SealedFile> = Vec::new();
    for file in &collected.files {
        if !tool.hands_over(&file.path, file.mode) || files.iter().any(|f| f.path == file.path) {
            return Err(format!(
                "The machine wanted to hand over `{}` with mode {:04o}, which the provider does not declare.",
                printable::line(&file.path, 200),
                file.mode
            ));
        }
        files.push(SealedFile { path: file.path.clone(), size: file.size, mode: file.mode });
    }
    let now = inner.clock.now();
    Ok(Sealed {
        session: entry.id,
        ciphertext,
        info: SealedInfo {
            files,
            sealed_at: now,
            expires_at: now + inner.config.keep_credentials,
            fetched_at: None,
        },
    })
}

async fn fail(
    inner: &Inner,
    entry: &Entry,
    mut sign_in: SignIn,
    why: &str,
) -> Result<Next, ControlError> {
    finish(inner, &mut sign_in, SignInOutcome::Failed, why);
    let event = note(inner, "signin.done", why, Actor::Guest);
    let delivery = announce(inner, &sign_in, None);
    write(inner, entry, sign_in, vec![event], None, delivery).await?;
    Ok(Next::Again)
}

fn to(sign_in: &mut SignIn, step: SignInStep, inner: &Inner) {
    sign_in.step = step;
    sign_in.step_since = inner.clock.now();
}

fn finish(inner: &Inner, sign_in: &mut SignIn, outcome: SignInOutcome, why: &str) {
    to(sign_in, SignInStep::Done, inner);
    sign_in.outcome = Some(outcome);
    sign_in.why = Some(why.to_owned());
    sign_in.wants_input = false;
    metrics::counter!("holdfast_sign_ins_total", "provider" => sign_in.provider.clone(), "outcome" => outcome.as_str()).increment(1);
}

/// What is sent to the webhook of the sign-in, if it has one.
fn announce(inner: &Inner, sign_in: &SignIn, sealed: Option<&SealedInfo>) -> Option<Delivery> {
    let webhook = sign_in.webhook.as_ref()?;
    let id = Uuid::now_v7();
    let body = serde_json::json!({
        "id": id,
        "type": "sign_in.done",
        "at": inner.clock.now(),
        "sessionId": sign_in.session.as_uuid(),
        "provider": sign_in.provider,
        "run": sign_in.run,
        "outcome": sign_in.outcome.map(SignInOutcome::as_str),
        "why": sign_in.why,
        "credentialsUntil": sealed.map(|s| s.expires_at),
    });
    Some(Delivery {
        id,
        session: sign_in.session,
        url: webhook.url.clone(),
        secret: webhook.secret.clone(),
        body: body.to_string(),
        attempts: 0,
        next_at: Some(inner.clock.now()),
        delivered_at: None,
        last_error: None,
    })
}

/// Writes the sign-in with what explains it, under the generation it carries.
pub(crate) async fn write(
    inner: &Inner,
    entry: &Entry,
    sign_in: SignIn,
    events: Vec<EventBody>,
    sealed: Option<Sealed>,
    delivery: Option<Delivery>,
) -> Result<(), ControlError> {
    fail::fail_point!("signin.write");
    let vm = entry.session().vm;
    let events = events.into_iter().map(|event| (entry.id, EventBody { vm, ..event })).collect();
    let change = Change { sign_in: Some(sign_in), sealed, delivery, events, ..Change::default() };
    match inner.store.apply(change).await {
        Ok(change) => {
            entry.set_sign_in(change.sign_in);
            inner.board.notify(entry.id);
            Ok(())
        }
        Err(error @ StoreError::Stale { .. }) => {
            entry.set_sign_in(inner.store.sign_in(entry.id).await?);
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn note(inner: &Inner, kind: &str, why: &str, by: Actor) -> EventBody {
    event(kind, why, by, inner.clock.now())
}

fn request(sign_in: &SignIn, tool: &provider::Tool) -> ToolRequest {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ToolRequest {
        run: sign_in.run,
        command: tool.command.clone(),
        env: tool.env.clone(),
        link: LinkRules {
            prefer: tool.prefer.clone(),
            ignore: tool.ignore.clone(),
            allow: tool.allow.clone(),
            settle_ms: ms(tool.settle),
        },
        flow: match tool.flow {
            Flow::Loopback => wire::Flow::Loopback,
            Flow::PasteCode => wire::Flow::PasteCode,
            Flow::DeviceCode => wire::Flow::DeviceCode,
        },
        user_code: tool.user_code.clone(),
        prompts: tool
            .prompts
            .iter()
            .map(|(pattern, send)| Prompt { pattern: pattern.clone(), send: send.clone() })
            .collect(),
        outcome: OutcomeRules {
            exit_code: tool.exit_code,
            files: tool.success_files.clone(),
            output: tool.success_output.clone(),
            refused: tool.refused.clone(),
            expired: tool.expired.clone(),
        },
        credentials: tool
            .credentials
            .iter()
            .map(|credential| CredentialFile {
                path: credential.path.clone(),
                mode: credential.mode,
                optional: credential.optional,
                output: credential.output.clone(),
            })
            .collect(),
        link_deadline_ms: ms(tool.link_deadline),
        deadline_ms: ms(tool.deadline),
    }
}
