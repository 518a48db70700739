//! Watching a VM in use: probes its health and climbs the ladder of `holdfast_core::health`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use holdfast_agent_api::{Health, ServiceState, VNC_PORT};
use holdfast_core::{
    Actor, SessionState, Timestamp, VmId, VmState,
    health::{Finding, Ladder, Rung},
    plan::ProcessSeen,
};
use holdfast_host::{
    driver::{Driver, GuestStream, Stop},
    guest::AgentClient,
};
use jiff::SignedDuration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    ControlError, Live,
    actor::Next,
    board::Entry,
    control::{Inner, commit, note},
    guest_clock::{self, Reading},
    machine::{Look, agent, look, operate},
    records::{Edit, chain},
    teardown::keep_console,
};

/// Deadline of a probe: far above what a busy guest needs, so that load does not look like death.
const PROBE_DEADLINE: Duration = Duration::from_secs(4);
/// Time between looks at the browser until its first page is there.
const BROWSER_INTERVAL: Duration = Duration::from_millis(500);
/// How long after a start the browser's first page is waited for.
const BROWSER_PATIENCE: Duration = Duration::from_mins(3);
/// A guest's clock that was off by this much is told of when it is set.
const CLOCK_TOLD: SignedDuration = SignedDuration::from_secs(1);

/// What an actor remembers of its VM's health between probes.
#[derive(Default)]
pub(crate) struct Watcher {
    ladder: Ladder,
    browser_seen_in: Option<u32>,
    /// Incarnation, and how often each of its services was started again.
    restarts: (u32, HashMap<String, u32>),
    last_detail: Option<String>,
}

impl Watcher {
    pub(crate) async fn watch(
        &mut self,
        inner: &Arc<Inner>,
        entry: &Entry,
        live: &Live,
    ) -> Result<Next, ControlError> {
        let finding = self.probe(inner, entry, live).await;
        let now = inner.clock.now();
        let patience = inner.config.patience;
        // One that was taken for a fork is of any age: what is on the disk is newer.
        let is_recent = !inner.config.checkpoint_interval.is_zero();
        let has_checkpoint = is_recent && live.session.checkpoint.is_some();
        let rung = self.ladder.next(&finding, has_checkpoint, &patience, now);
        entry.set_standing(self.ladder.standing(now, finding.clone(), rung.clone()));
        if rung == Rung::Fine {
            return self.fine(inner, entry, live).await;
        }
        metrics::counter!("holdfast_failed_probes_total").increment(1);
        if self.ladder.is_degraded(&patience) || matches!(rung, Rung::ColdBoot | Rung::GiveUp) {
            degrade(inner, entry, &finding).await?;
        }
        self.climb(inner, entry, &rung, &finding).await
    }

    async fn fine(
        &mut self,
        inner: &Arc<Inner>,
        entry: &Entry,
        live: &Live,
    ) -> Result<Next, ControlError> {
        if live.session.state == SessionState::Degraded || live.vm.state == VmState::Unhealthy {
            let edit = Edit::new(&live.session, &live.vm, inner.clock.now())
                .detail(None)
                .vm_to(VmState::Running, "It answers again.", Actor::Guest)
                .session_to(
                    SessionState::Ready,
                    "The desktop can be used again.",
                    Actor::Reconciler,
                );
            commit(inner, entry, edit).await?;
            tracing::info!(session = %entry.id, "session recovered");
        }
        self.last_detail = None;
        let waits_for_browser = self.browser_seen_in != Some(live.vm.incarnation)
            && inner.clock.now() < live.vm.state_since + BROWSER_PATIENCE;
        let wait = if waits_for_browser { BROWSER_INTERVAL } else { inner.config.probe_interval };
        // A VMM that ends is noticed at once, not at the next probe.
        tokio::select! {
            _ = inner.driver.wait_exit(live.vm.id) => {}
            () = entry.ending.cancelled() => {}
            () = entry.wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        Ok(Next::Again)
    }

    async fn climb(
        &mut self,
        inner: &Arc<Inner>,
        entry: &Entry,
        rung: &Rung,
        finding: &Finding,
    ) -> Result<Next, ControlError> {
        let Live { session, vm } = entry.live();
        let id = vm.id;
        let counted = !matches!(finding, Finding::Halted(_));
        if counted && matches!(rung, Rung::RestartService(_) | Rung::Resume | Rung::GiveUp) {
            metrics::counter!("holdfast_repairs_total", "rung" => rung.as_str()).increment(1);
        }
        match rung {
            Rung::Fine => {}
            Rung::ProbeAgain => return Ok(Next::After(inner.config.patience.interval)),
            Rung::RestartService(name) => {
                fail::fail_point!("repair.service");
                note(
                    inner,
                    entry,
                    "repair.service",
                    &format!("Restarting {name} in the guest."),
                    Actor::Reconciler,
                )
                .await;
                let agent = agent(inner, &vm);
                if let Err(error) = agent.restart_service(name, PROBE_DEADLINE).await {
                    let text = format!("{name} could not be restarted: {}.", chain(&error));
                    note(inner, entry, "repair.service", &text, Actor::Guest).await;
                }
                return Ok(Next::After(inner.config.patience.interval));
            }
            // Said once, when it was found; tried until it helps.
            Rung::Resume if matches!(finding, Finding::Halted(_)) => {
                let driver = Arc::clone(&inner.driver);
                let tried = operate(entry, "resuming", inner.config.step_deadline, async move {
                    driver.resume(id).await
                });
                if let Err(error) = tried.await {
                    tracing::debug!(session = %entry.id, error = chain(&error), "it still stands still");
                }
                return Ok(Next::After(inner.config.patience.interval));
            }
            Rung::Resume => {
                fail::fail_point!("repair.resume");
                note(
                    inner,
                    entry,
                    "repair.resume",
                    "Letting the machine run again.",
                    Actor::Reconciler,
                )
                .await;
                let driver = Arc::clone(&inner.driver);
                let resumed = operate(entry, "resuming", inner.config.step_deadline, async move {
                    driver.resume(id).await
                })
                .await;
                if let Err(error) = resumed {
                    let text = format!("The machine could not be resumed: {}.", chain(&error));
                    note(inner, entry, "repair.resume", &text, Actor::Host).await;
                    return Ok(Next::After(inner.config.patience.interval));
                }
                return Ok(Next::After(Duration::from_millis(500)));
            }
            Rung::Restore | Rung::ColdBoot => start_again(inner, entry, finding, rung).await?,
            Rung::GiveUp => {
                keep_console(inner, entry, id).await;
                let text = format!("Every repair was tried: {finding}.");
                let edit = Edit::new(&session, &vm, inner.clock.now())
                    .detail(Some(text.clone()))
                    .session_to(SessionState::Failed, &text, Actor::Reconciler);
                commit(inner, entry, edit).await?;
            }
        }
        Ok(Next::Again)
    }

    /// Says which services ended in the guest and were started again by its own supervisor, and what
    /// that lost.
    async fn tell_restarts(&mut self, inner: &Inner, entry: &Entry, live: &Live, health: &Health) {
        let counts = health.services.iter().map(|s| (s.name.clone(), s.restarts)).collect();
        let now = (live.vm.incarnation, counts);
        let (incarnation, before) = std::mem::replace(&mut self.restarts, now);
        if incarnation != live.vm.incarnation {
            return;
        }
        for service in &health.services {
            // A count that fell is that of a supervisor that was started again itself.
            if before.get(&service.name).is_none_or(|count| *count == service.restarts) {
                continue;
            }
            let why = service.last_error.as_deref().unwrap_or("ended");
            let lost = match service.name.as_str() {
                "agent" => "Programs and terminals went on.",
                "chromium" => "What was typed into its pages and not sent is lost.",
                "xvnc" => "Programs with windows were closed with it.",
                _ => "Programs went on.",
            };
            let text =
                format!("{} {why}, and was started again in the guest. {lost}", service.name);
            note(inner, entry, "guest.service", &text, Actor::Guest).await;
        }
    }

    async fn probe(&mut self, inner: &Inner, entry: &Entry, live: &Live) -> Finding {
        let Look { machine, stopped, why } = look(inner, live.vm.id).await;
        match machine.process {
            ProcessSeen::Running if stopped => return Finding::Stopped,
            ProcessSeen::Exited => return Finding::Exited(why.unwrap_or_default()),
            ProcessSeen::NotStarted => return Finding::Exited("it is not running".to_owned()),
            ProcessSeen::Unknown => return Finding::Unknown(why.unwrap_or_default()),
            ProcessSeen::Running => {}
        }
        if let Some(why) = why {
            tracing::debug!(session = %entry.id, why, "the VMM runs, with a remark");
        }
        let (agent, asked) = (agent(inner, &live.vm), Timestamp::now());
        match agent.health(PROBE_DEADLINE).await {
            Ok(health) => {
                let reading = Reading::between(asked, health.time, Timestamp::now());
                keep_clock(inner, entry, &agent, reading).await;
                self.tell_restarts(inner, entry, live, &health).await;
                if health.browser_ready && self.browser_seen_in != Some(live.vm.incarnation) {
                    self.browser_seen_in = Some(live.vm.incarnation);
                    let recent = inner.clock.now() < live.vm.state_since + BROWSER_PATIENCE;
                    if recent {
                        note(
                            inner,
                            entry,
                            "step.browser",
                            "The browser shows its first page.",
                            Actor::Guest,
                        )
                        .await;
                    }
                }
                if health.desktop_ready {
                    return Finding::Healthy;
                }
                let down = ["xvnc", "openbox"].into_iter().find(|name| {
                    health
                        .services
                        .iter()
                        .any(|s| s.name == *name && s.state != ServiceState::Running)
                });
                Finding::ServiceDown(down.unwrap_or("xvnc").to_owned())
            }
            Err(_) => match inner.driver.halted(live.vm.id).await {
                Ok(Some(why)) => Finding::Halted(why),
                _ => Finding::AgentSilent {
                    desktop_answers: desktop_answers(inner.driver.as_ref(), live.vm.id).await,
                },
            },
        }
    }
}

/// Sets a clock that is off, and says so where people may have noticed.
async fn keep_clock(inner: &Inner, entry: &Entry, agent: &AgentClient, reading: Reading) {
    let Some(behind) = reading.is_off() else { return };
    guest_clock::set(agent, reading).await;
    let (by, which) = (behind.abs(), if behind.is_positive() { "behind" } else { "ahead" });
    if by >= CLOCK_TOLD {
        let text =
            format!("The machine's clock was {:.1} s {which} and was set.", by.as_secs_f64());
        note(inner, entry, "guest.clock", &text, Actor::Host).await;
    }
}

/// Whether the VNC server greets: a stopped guest may still accept a connection in the host's kernel, but
/// it sends nothing.
pub(crate) async fn desktop_answers(driver: &dyn Driver, vm: VmId) -> bool {
    let greeting = async {
        let mut stream = driver.dial(vm, VNC_PORT).await.ok()?;
        let mut version = [0_u8; 12];
        stream.read_exact(&mut version).await.ok()?;
        // Some count every connection that ends before its handshake against its address, and refuse
        // everybody from there after a few: a probe may not keep people out.
        let _ = shake_hands(&mut stream, version).await;
        Some(version.starts_with(b"RFB "))
    };
    matches!(tokio::time::timeout(PROBE_DEADLINE, greeting).await, Ok(Some(true)))
}

/// RFB 3.8 up to where a viewer is let in.
async fn shake_hands(stream: &mut GuestStream, version: [u8; 12]) -> std::io::Result<()> {
    const NO_AUTHENTICATION: u8 = 1;
    stream.write_all(&version).await?;
    let mut kinds = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut kinds).await?;
    if kinds.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[NO_AUTHENTICATION]).await?;
        stream.read_u32().await?;
    }
    Ok(())
}

async fn degrade(inner: &Inner, entry: &Entry, finding: &Finding) -> Result<(), ControlError> {
    let Live { session, vm } = entry.live();
    let text = format!("Something is wrong: {finding}. Repair is under way.");
    let edit = Edit::new(&session, &vm, inner.clock.now())
        .detail(Some(text.clone()))
        .vm_to(VmState::Unhealthy, &text, Actor::Host)
        .session_to(SessionState::Degraded, &text, Actor::Reconciler);
    commit(inner, entry, edit).await
}

/// Starts the guest again, from its checkpoint or on the same disk, and says what that loses.
async fn start_again(
    inner: &Inner,
    entry: &Entry,
    finding: &Finding,
    rung: &Rung,
) -> Result<(), ControlError> {
    let restore = *rung == Rung::Restore;
    let id = entry.live().vm.id;
    keep_console(inner, entry, id).await;
    fail::fail_point!("repair.stop");
    let driver = Arc::clone(&inner.driver);
    let stopped = operate(entry, "stopping the VMM", inner.config.teardown_deadline, async move {
        driver.stop(id, Stop::Force).await
    })
    .await;
    if let Err(error) = stopped {
        let text = format!("The machine could not be stopped: {}.", chain(&error));
        note(inner, entry, "repair.boot", &text, Actor::Host).await;
        return Ok(());
    }
    fail::fail_point!("repair.stopped");
    let Live { session, vm } = entry.live();
    let (kind, to) = if restore {
        ("repair.restore", SessionState::Resuming)
    } else {
        ("repair.boot", SessionState::Starting)
    };
    let text = match session.checkpoint.as_ref().filter(|_| restore) {
        Some(checkpoint) => format!(
            "Bringing the machine back to {} because {finding}. What was done since then is lost.",
            checkpoint.taken_at
        ),
        None => format!(
            "Starting the machine again from its disk because {finding}. Files are kept; open programs and unsaved work are lost."
        ),
    };
    metrics::counter!("holdfast_repairs_total", "rung" => rung.as_str()).increment(1);
    let edit = Edit::new(&session, &vm, inner.clock.now())
        .detail(Some(text.clone()))
        .note(kind, &text, Actor::Reconciler)
        .vm_to(VmState::Preparing, &text, Actor::Reconciler)
        .session_to(to, &text, Actor::Reconciler);
    commit(inner, entry, edit).await
}
