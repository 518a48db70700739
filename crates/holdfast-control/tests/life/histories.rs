//! Random histories: people come and go, servers are killed, the machine and the store fail. After
//! each step the promises hold, and once everything is well again nothing is lost and nothing left.
//!
//! The same histories each time, and a few others. `HOLDFAST_HISTORIES=500` runs that many others
//! instead. A failure names the seed that they came from, for `HOLDFAST_HISTORY_SEED`; the history
//! that failed is kept in `histories.regressions` and run first from then on.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use holdfast_control::{Attached, ControlError};
use holdfast_core::{Actor, EndReason, Session, SessionId, SessionState, Timestamp};
use holdfast_host::{
    driver::GuestStream,
    drivers::sim::{Fault, Step},
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    promises,
    world::{World, config},
};

/// Histories in a normal run: the same each time.
const CASES: u32 = 48;
/// Histories in a normal run: others each time.
const OTHERS: u32 = 6;
/// Sessions in a history.
const SESSIONS: usize = 4;
/// How often a session was put away, brought back, and forked.
static DONE: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

#[derive(Debug, Clone)]
enum Command {
    Create,
    Heartbeat(usize),
    OpenStream(usize),
    CloseStream(usize),
    End(usize),
    Wait(Duration),
    /// The server is killed, and another starts.
    Kill,
    Fault(Step, Fault, usize),
    CrashVmm(usize),
    /// The guest stops answering, or answers again.
    Silence(usize, bool),
    /// A session is put away, or brought back.
    Hibernate(usize),
    Resume(usize),
    /// Another session begins where this one is.
    Fork(usize),
    /// The host takes no new sessions, or takes them again.
    Drain(bool),
    /// The store goes away, or comes back.
    StoreAway(bool),
}

fn command() -> impl Strategy<Value = Command> {
    let which = 0..4_usize;
    prop_oneof![
        4 => Just(Command::Create),
        4 => which.clone().prop_map(Command::Heartbeat),
        3 => which.clone().prop_map(Command::OpenStream),
        2 => which.clone().prop_map(Command::CloseStream),
        2 => which.clone().prop_map(Command::End),
        8 => wait().prop_map(Command::Wait),
        4 => Just(Command::Kill),
        4 => (step(), fault(), 1..4_usize).prop_map(|(s, f, n)| Command::Fault(s, f, n)),
        2 => which.clone().prop_map(Command::CrashVmm),
        2 => (which.clone(), any::<bool>()).prop_map(|(i, silent)| Command::Silence(i, silent)),
        4 => which.clone().prop_map(Command::Hibernate),
        4 => which.clone().prop_map(Command::Resume),
        2 => which.prop_map(Command::Fork),
        1 => any::<bool>().prop_map(Command::Drain),
        2 => any::<bool>().prop_map(Command::StoreAway),
    ]
}

/// From within one call of the store to longer than most limits.
fn wait() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (0..200_u64).prop_map(Duration::from_millis),
        4 => (1..30_u64).prop_map(Duration::from_secs),
        2 => (1..8_u64).prop_map(Duration::from_mins),
        1 => (8..40_u64).prop_map(Duration::from_mins),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    proptest::sample::select(vec![
        Step::Create,
        Step::Connect,
        Step::Start,
        Step::Resume,
        Step::Snapshot,
        Step::Stop,
        Step::Destroy,
        Step::Inspect,
        Step::List,
        Step::Dial,
    ])
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Fail("it was told to fail".into())),
        Just(Fault::DoneButFailed("it was done".into())),
        Just(Fault::Hang),
        (1..90_u64).prop_map(|s| Fault::Slow(Duration::from_secs(s))),
        Just(Fault::Unknown("it cannot be read".into())),
    ]
}

/// What the outside knows of a session.
struct Known {
    id: SessionId,
    /// Somebody was attached then.
    seen_at: Timestamp,
    /// An end was accepted.
    ended: bool,
    streams: Vec<(GuestStream, Attached)>,
}

fn one_of(known: &mut [Known], i: usize) -> Option<&mut Known> {
    let count = known.len().max(1);
    known.get_mut(i % count)
}

struct History {
    world: World,
    known: Vec<Known>,
}

impl History {
    async fn step(&mut self, command: &Command) {
        match command {
            Command::Create => {
                if self.known.len() < SESSIONS {
                    let _ = self.world.create().await;
                    self.discover();
                }
            }
            Command::Hibernate(i) => {
                self.comes_to(*i, SessionState::Ready).await;
                let Some(known) = self.known(*i) else { return };
                let _ = self.world.control.hibernate(known.id, Actor::User).await;
            }
            Command::Resume(i) => {
                self.comes_to(*i, SessionState::Hibernated).await;
                let Some(known) = one_of(&mut self.known, *i) else { return };
                let was_away = self.world.stored(known.id).unwrap().state;
                let resumed = self.world.control.resume(known.id, Actor::User).await;
                if resumed.is_ok() && was_away == SessionState::Hibernated {
                    known.seen_at = self.world.now();
                }
            }
            Command::Fork(i) => {
                self.comes_to(*i, SessionState::Ready).await;
                let Some(known) = self.known(*i).filter(|_| self.known.len() < SESSIONS) else {
                    return;
                };
                let fork = self.world.control.fork(known.id, self.world.request());
                // Who waits too long hangs up.
                if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(20), fork).await {
                    DONE[2].fetch_add(1, Ordering::Relaxed);
                }
                self.discover();
            }
            Command::Drain(draining) => self.world.control.set_draining(*draining),
            Command::Heartbeat(i) => {
                let Some(known) = one_of(&mut self.known, *i) else { return };
                match self.world.control.heartbeat(known.id).await {
                    Ok(_) => known.seen_at = self.world.now(),
                    Err(ControlError::NotFound(id)) => panic!("{id} is not known any more"),
                    Err(_) => {}
                }
            }
            Command::OpenStream(i) => {
                let Some(known) = one_of(&mut self.known, *i) else { return };
                if let Ok(open) = self.world.open(known.id).await {
                    known.seen_at = self.world.now();
                    known.streams.push(open);
                }
            }
            Command::CloseStream(i) => {
                let Some(known) = one_of(&mut self.known, *i) else { return };
                if let Some((_, attached)) = known.streams.pop() {
                    attached.alive();
                    known.seen_at = self.world.now();
                }
            }
            Command::End(i) => {
                let Some(known) = one_of(&mut self.known, *i) else { return };
                let by = EndReason::UserRequest;
                let ended = self.world.control.end(known.id, by, Actor::User).await;
                known.ended |= ended.is_ok();
            }
            Command::Wait(time) => tokio::time::sleep(*time).await,
            Command::Kill => self.kill().await,
            Command::Fault(step, fault, times) => {
                self.world.machine.faults().inject(*step, None, fault.clone(), *times);
            }
            Command::CrashVmm(i) => {
                if let Some(vm) = self.vm(*i) {
                    self.world.machine.crash(vm, "signal 9");
                }
            }
            Command::Silence(i, silent) => {
                if let Some(vm) = self.vm(*i) {
                    self.world.machine.silence(vm, *silent);
                }
            }
            Command::StoreAway(away) => {
                self.world.database.set_away(*away);
                self.take_over().await;
            }
        }
    }

    /// Whatever is in the store has to be kept, also when nobody got its answer.
    fn discover(&mut self) {
        for session in self.world.all().into_iter().rev() {
            if self.known.iter().all(|known| known.id != session.id) {
                self.known.push(Known {
                    id: session.id,
                    seen_at: session.created_at,
                    ended: false,
                    streams: Vec::new(),
                });
            }
        }
    }

    /// One of those that there are.
    fn known(&self, i: usize) -> Option<&Known> {
        self.known.get(i % self.known.len().max(1))
    }

    /// Gives a session some time to be where something can be asked of it.
    async fn comes_to(&self, i: usize, state: SessionState) {
        let Some(known) = self.known(i) else { return };
        for _ in 0..60 {
            let now = self.world.stored(known.id).unwrap().state;
            if now == state || now.is_final() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn vm(&self, i: usize) -> Option<holdfast_core::VmId> {
        self.known(i).and_then(|known| self.world.stored(known.id)?.vm)
    }

    async fn kill(&mut self) {
        for known in &mut self.known {
            // They end with their server, without a word.
            known.streams.clear();
        }
        self.world.restart().await;
        self.leases_start_afresh();
    }

    async fn take_over(&mut self) {
        if !self.world.control.is_started() && self.world.started().await {
            self.leases_start_afresh();
        }
    }

    fn leases_start_afresh(&mut self) {
        if !self.world.control.is_started() {
            return;
        }
        for known in &mut self.known {
            let state = self.world.stored(known.id).unwrap().state;
            if !matches!(state, SessionState::Ending | SessionState::Ended) {
                known.seen_at = self.world.now();
            }
        }
    }

    async fn check(&self) {
        for known in &self.known {
            let (id, now) = (known.id, self.world.now());
            match self.world.control.find(id).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{id} is not known any more"),
                Err(error) => assert!(self.world.database.is_away(), "{id} is unknown: {error}"),
            }
            let session = self.world.stored(id).expect("the id is not dangling");
            let over = matches!(session.state, SessionState::Ending | SessionState::Ended);
            if known.ended {
                assert!(over, "{id} was ended and is {}", session.state);
            } else if over {
                self.may_be_over(known, session.end_reason.expect("a reason"));
            } else if session.state == SessionState::Hibernated {
                let checkpoint = session.checkpoint.as_ref().expect("what it comes back from");
                let name = checkpoint.snapshot.to_string();
                assert!(self.world.snapshots().contains(&name), "{id} lost its checkpoint");
            } else {
                let lasts = self.began_at(&session) + self.world.config.max_lifetime;
                // The time of a probe, a step and what faults slow down.
                assert!(now < lasts + Duration::from_mins(15), "{id} is too old");
            }
            if matches!(session.state, SessionState::Ready | SessionState::Degraded) {
                let vm = session.vm.expect("a VM");
                let list = holdfast_host::driver::Driver::inspect(&self.world.machine, vm);
                // A fault of this very call says nothing.
                let there = tokio::time::timeout(Duration::from_secs(1), list).await;
                if let Ok(Ok(seen)) = there {
                    assert!(seen.directory, "{id} is {} without its disk", session.state);
                }
            }
            promises::timelines_are_complete(&self.world.database, id);
        }
        promises::no_vm_is_shared(&self.world, self.known.iter().map(|known| known.id));
    }

    /// When it was made, or brought back last.
    fn began_at(&self, session: &Session) -> Timestamp {
        session.created_at.max(self.world.vm(session).created_at)
    }

    /// Only a reason with its evidence ends what nobody asked to end.
    fn may_be_over(&self, known: &Known, reason: EndReason) {
        let id = known.id;
        let events = self
            .world
            .database
            .ask(|store| Box::pin(async move { store.events(id, 0, 100_000).await }));
        let at = events
            .unwrap()
            .into_iter()
            .find(|event| event.body.to.as_deref() == Some("ending"))
            .map(|event| event.body.at)
            .expect("an event says when it ended");
        let config = &self.world.config;
        match reason {
            EndReason::MaxLifetime => {
                let session = self.world.stored(id).unwrap();
                assert!(at >= self.began_at(&session) + config.max_lifetime, "{id}");
            }
            EndReason::LeaseExpired => {
                assert!(known.streams.is_empty(), "{id} ended under an open stream");
                let kept = known.seen_at + config.lease + config.grace;
                assert!(at >= kept, "{id} ended at {at} although it was kept until {kept}");
            }
            // Every retry was used up; the timeline has been checked to say so.
            EndReason::Failed => {}
            other => panic!("{id} ended: {other}"),
        }
    }

    /// Counts what this history really did, whatever was asked for.
    fn tally(&self) {
        for known in &self.known {
            let id = known.id;
            let call = self
                .world
                .database
                .ask(|store| Box::pin(async move { store.events(id, 0, 100_000).await }));
            let to = |state| {
                let became =
                    |event: &&holdfast_core::Event| event.body.to.as_deref() == Some(state);
                call.as_ref().unwrap().iter().filter(became).count()
            };
            DONE[0].fetch_add(to("hibernated"), Ordering::Relaxed);
            DONE[1].fetch_add(to("resuming"), Ordering::Relaxed);
        }
    }

    /// Everything is well again: all that live come up, and what is ended is gone.
    async fn converge(&mut self) {
        self.world.machine.faults().clear();
        self.world.database.set_away(false);
        for i in 0..self.known.len() {
            if let Some(vm) = self.vm(i) {
                self.world.machine.silence(vm, false);
            }
        }
        self.take_over().await;
        for _ in 0..60 {
            for known in &mut self.known {
                if self.world.control.heartbeat(known.id).await.is_ok() {
                    known.seen_at = self.world.now();
                }
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        self.check().await;
        for known in &self.known {
            let state = self.world.stored(known.id).unwrap().state;
            let rests = [
                SessionState::Ready,
                SessionState::Hibernated,
                SessionState::Failed,
                SessionState::Ended,
            ];
            assert!(rests.contains(&state), "{} stays {state}", known.id);
            assert!(!known.ended || state == SessionState::Ended, "{} stays {state}", known.id);
        }
        promises::no_leftovers(&self.world).await;
        // What was put away comes back.
        for known in &mut self.known {
            if self.world.stored(known.id).unwrap().state == SessionState::Hibernated {
                self.world.control.resume(known.id, Actor::User).await.unwrap();
                known.seen_at = self.world.now();
                self.world.until(known.id, &["ready"]).await;
            }
        }
        promises::no_leftovers(&self.world).await;
        self.tally();
        for i in 0..self.known.len() {
            self.step(&Command::End(i)).await;
        }
        for known in &self.known {
            self.world.until(known.id, &["ended"]).await;
        }
        self.check().await;
        promises::no_leftovers(&self.world).await;
        self.world.control.sweep().await.unwrap();
        assert_eq!(self.world.snapshots(), Vec::<String>::new(), "checkpoints of nobody");
    }
}

fn live(commands: &[Command]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(config()).await;
        let mut history = History { world, known: Vec::new() };
        for command in commands {
            history.step(command).await;
            history.check().await;
        }
        history.converge().await;
    });
}

/// Runs so many histories that come from this seed.
fn run(cases: u32, seed: [u8; 32]) {
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/life/histories.regressions",
        ))),
        max_shrink_iters: 400,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let histories = proptest::collection::vec(command(), 1..40);
    let outcome = runner.run(&histories, |commands| {
        live(&commands);
        Ok(())
    });
    if let Err(failed) = outcome {
        let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("HOLDFAST_HISTORY_SEED={seed} (and HOLDFAST_HISTORIES={cases}): {failed}");
    }
}

/// The seed that is asked for, or another each time.
fn other_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    match std::env::var("HOLDFAST_HISTORY_SEED") {
        Ok(hex) => {
            assert_eq!(hex.len(), 64, "a seed has 64 hexadecimal digits");
            for (byte, digits) in seed.iter_mut().zip(hex.as_bytes().chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
            }
        }
        Err(_) => getrandom::fill(&mut seed).unwrap(),
    }
    seed
}

#[test]
fn promises_hold_in_every_history() {
    match std::env::var("HOLDFAST_HISTORIES") {
        Ok(cases) => run(cases.parse().unwrap(), other_seed()),
        Err(_) => run(CASES, [7; 32]),
    }
    // A history of which nothing comes true proves nothing.
    let done = DONE.each_ref().map(|count| count.load(Ordering::Relaxed));
    println!("put away, brought back, forked: {done:?}");
    assert!(done.iter().all(|count| *count > 0), "{done:?}");
}

#[test]
fn promises_hold_in_other_histories() {
    if std::env::var_os("HOLDFAST_HISTORIES").is_none() {
        run(OTHERS, other_seed());
    }
}
