//! Admission: which requested sessions may begin, within this host's real means.
//!
//! Oldest first, but owners take turns: of two waiting sessions, the one whose owner has fewer
//! VMs goes first, and of two such owners the one whose last turn is longer ago, so nobody can
//! fill the host by asking often. The queue has an end: who comes
//! when it is full is refused, and knows it at once.
//!
//! Two measures of memory hold at the same time. The budget counts what VMs may ever take, by
//! their sizes; what the host has available is measured whenever a VM is about to begin, so a host
//! that something else fills is not filled further.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_core::{OwnerId, Session, SessionId, Timestamp};

use crate::config::ControlConfig;

/// Memory that the host could give to a new VM now without taking it from anything that is in use, in
/// MiB. `None` where it is not known, or does not matter: then the budget alone decides.
pub type MemoryProbe = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// Clones share what they do not change. In use, they were seen to change less than this part of
/// their memory: one in so many.
const CHANGED_BY_CLONES: u64 = 4;

/// Memory of the host that a VM of this size takes when it begins, in MiB.
pub(crate) fn needs(memory_mib: u32, is_clone: bool) -> u64 {
    u64::from(memory_mib) / if is_clone { CHANGED_BY_CLONES } else { 1 }
}

#[derive(Debug, Clone, Copy)]
struct Ticket {
    owner: OwnerId,
    memory_mib: u64,
    /// Memory of the host that it takes when it begins. What was adopted has taken it already.
    needs_mib: u64,
    created_at: Timestamp,
}

#[derive(Default)]
struct State {
    waiting: HashMap<SessionId, Ticket>,
    admitted: HashMap<SessionId, Ticket>,
    starting: HashSet<SessionId>,
    /// Turns that were taken, and which was the last of each owner that has something here.
    turns: u64,
    last_turn: HashMap<OwnerId, u64>,
}

/// What admission answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may begin. `more`: another one perhaps too.
    Admitted { more: bool },
    /// It waits: its place in the queue, from 1, and for what.
    Queued { position: usize, cause: Cause, why: String },
}

/// What a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// One VM fewer.
    Number,
    /// Room within the budget of memory.
    Budget,
    /// An end of another start.
    Starts,
    /// Those that come first.
    Turn,
    /// Memory of the host. Nobody says when there is some, so it has to be looked at again.
    HostMemory,
}

pub(crate) struct Admission {
    max_vms: usize,
    max_starting: usize,
    max_waiting: usize,
    memory_mib: u64,
    reserve_mib: u64,
    available: MemoryProbe,
    state: Mutex<State>,
}

impl Admission {
    pub(crate) fn new(config: &ControlConfig, available: MemoryProbe) -> Self {
        Self {
            max_vms: config.max_vms,
            max_starting: config.max_starting,
            max_waiting: config.max_waiting,
            memory_mib: config.memory_budget_mib,
            reserve_mib: config.memory_reserve_mib,
            available,
            state: Mutex::default(),
        }
    }

    /// Whether a VM of this size could ever run here.
    pub(crate) fn could_fit(&self, memory_mib: u32) -> Result<(), String> {
        if u64::from(memory_mib) > self.memory_mib {
            return Err(format!(
                "a VM of {memory_mib} MiB does not fit: this host gives {} MiB to all VMs together",
                self.memory_mib
            ));
        }
        Ok(())
    }

    /// Counts a session that exists already, such as one adopted after a restart of the server.
    pub(crate) fn adopt(&self, session: &Session, starting: bool) {
        let mut state = self.lock();
        state.admitted.insert(session.id, ticket(session, 0));
        if starting {
            state.starting.insert(session.id);
        }
    }

    /// Counts a VM that waits for a session.
    pub(crate) fn hold(
        &self,
        id: SessionId,
        owner: OwnerId,
        memory_mib: u32,
        created_at: Timestamp,
    ) {
        let ticket = Ticket { owner, memory_mib: memory_mib.into(), needs_mib: 0, created_at };
        self.lock().admitted.insert(id, ticket);
    }

    /// Whether a session waits for room.
    pub(crate) fn somebody_waits(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Whether a clone of this size fits besides what is admitted, with room for another of its size.
    pub(crate) fn room_beside(&self, memory_mib: u32) -> bool {
        let state = self.lock();
        state.admitted.len() + 1 < self.max_vms
            && used(&state) + 2 * u64::from(memory_mib) <= self.memory_mib
            && self.spare(&state) >= 2 * needs(memory_mib, true)
    }

    /// Gives a session that is about to be made its place in the queue, or says why there is none.
    /// Those that can begin at once take no place of those that wait.
    pub(crate) fn enter(&self, session: &Session, needs_mib: u64) -> Result<(), String> {
        let ticket = ticket(session, needs_mib);
        let mut state = self.lock();
        let at_once = self.places(&state, &ticket);
        if state.waiting.len() >= self.max_waiting.saturating_add(at_once) {
            return Err(format!(
                "this host has no room, and {} sessions wait for some already: end sessions that are not needed, or try again later",
                state.waiting.len()
            ));
        }
        state.waiting.insert(session.id, ticket);
        Ok(())
    }

    /// Puts a session that waited under an earlier server back into the queue.
    pub(crate) fn enter_again(&self, session: &Session) {
        let needs_mib = needs(session.spec.memory_mib, false);
        self.lock().waiting.insert(session.id, ticket(session, needs_mib));
    }

    /// Asks for room; called again whenever room may have appeared.
    pub(crate) fn ask(&self, session: &Session, needs_mib: u64) -> Verdict {
        let mut state = self.lock();
        if state.admitted.contains_key(&session.id) {
            return Verdict::Admitted { more: false };
        }
        let ticket = ticket(session, needs_mib);
        state.waiting.insert(session.id, ticket);
        let position = position(&state, session.id);
        let used = used(&state);
        let (cause, why) = if state.admitted.len() >= self.max_vms {
            (Cause::Number, format!("all {} places for VMs are taken", self.max_vms))
        } else if used + ticket.memory_mib > self.memory_mib {
            (Cause::Budget, format!("{used} of {} MiB for VMs are taken", self.memory_mib))
        } else if state.starting.len() >= self.max_starting {
            (Cause::Starts, format!("{} VMs are starting now", state.starting.len()))
        } else if position > 1 {
            (Cause::Turn, "others came first".to_owned())
        } else if self.spare(&state) < needs_mib {
            let spare = self.spare(&state);
            let why = format!(
                "other programs use this host's memory; {spare} MiB are left for VMs and {needs_mib} are needed"
            );
            (Cause::HostMemory, why)
        } else {
            state.waiting.remove(&session.id);
            state.admitted.insert(session.id, ticket);
            state.starting.insert(session.id);
            state.turns += 1;
            let turn = state.turns;
            state.last_turn.insert(ticket.owner, turn);
            let more = !state.waiting.is_empty()
                && state.admitted.len() < self.max_vms
                && state.starting.len() < self.max_starting;
            return Verdict::Admitted { more };
        };
        Verdict::Queued { position, cause, why }
    }

    /// The session's VM is up: another may start.
    pub(crate) fn started(&self, id: SessionId) {
        self.lock().starting.remove(&id);
    }

    /// Sessions whose VMs are coming up, or wait to.
    pub(crate) fn coming_up(&self) -> usize {
        let state = self.lock();
        state.starting.len() + state.waiting.len()
    }

    /// The session holds nothing any more.
    pub(crate) fn release(&self, id: SessionId) {
        let mut state = self.lock();
        let State { waiting, admitted, starting, last_turn, .. } = &mut *state;
        let waited = waiting.remove(&id);
        let held = admitted.remove(&id);
        starting.remove(&id);
        if let Some(Ticket { owner, .. }) = held.or(waited)
            && !waiting.values().chain(admitted.values()).any(|ticket| ticket.owner == owner)
        {
            last_turn.remove(&owner);
        }
    }

    /// How many such sessions could begin now.
    fn places(&self, state: &State, ticket: &Ticket) -> usize {
        let by_number = self.max_vms.saturating_sub(state.admitted.len());
        let by_starts = self.max_starting.saturating_sub(state.starting.len());
        let by_budget = self.memory_mib.saturating_sub(used(state)) / ticket.memory_mib.max(1);
        let by_host = self.spare(state) / ticket.needs_mib.max(1);
        let by_memory = usize::try_from(by_budget.min(by_host)).unwrap_or(usize::MAX);
        by_number.min(by_starts).min(by_memory)
    }

    /// Memory of the host for another VM, in MiB, beyond what those that are starting will take.
    fn spare(&self, state: &State) -> u64 {
        let Some(available) = (self.available)() else { return u64::MAX };
        let starting = state.starting.iter().filter_map(|id| state.admitted.get(id));
        let promised: u64 = starting.map(|ticket| ticket.needs_mib).sum();
        available.saturating_sub(self.reserve_mib).saturating_sub(promised)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ticket(session: &Session, needs_mib: u64) -> Ticket {
    Ticket {
        owner: session.owner,
        memory_mib: u64::from(session.spec.memory_mib),
        needs_mib,
        created_at: session.created_at,
    }
}

fn used(state: &State) -> u64 {
    state.admitted.values().map(|ticket| ticket.memory_mib).sum()
}

/// The place of a waiting session, from 1, when owners take turns.
fn position(state: &State, id: SessionId) -> usize {
    let mut held: HashMap<OwnerId, usize> = HashMap::new();
    for ticket in state.admitted.values() {
        *held.entry(ticket.owner).or_default() += 1;
    }
    let mut order: Vec<_> = state.waiting.iter().map(|(id, t)| (t.created_at, *id, t)).collect();
    order.sort_unstable_by_key(|(created_at, id, _)| (*created_at, *id));
    let mut order: Vec<_> = order
        .into_iter()
        .map(|(created_at, id, ticket)| {
            // An owner's second waits for the first of everybody else.
            let held = held.entry(ticket.owner).or_default();
            *held += 1;
            (*held, state.last_turn.get(&ticket.owner), created_at, id)
        })
        .collect();
    order.sort_unstable();
    order.iter().position(|(_, _, _, other)| *other == id).map_or(1, |index| index + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use holdfast_core::{Generation, Screen, SessionSpec, SessionState};
    use uuid::Uuid;

    use super::*;

    const MIB: u32 = 1024;

    /// A host with room for so many VMs, of which any number may start at once.
    fn host(max_vms: usize) -> ControlConfig {
        ControlConfig { max_vms, max_starting: max_vms, ..ControlConfig::default() }
    }

    fn admission(config: &ControlConfig) -> Admission {
        Admission::new(config, Arc::new(|| None))
    }

    /// A session of this owner; `n` is its age and its id.
    fn session(owner: u128, n: u32) -> Session {
        let at = Timestamp::from_second(i64::from(n)).unwrap();
        Session {
            id: SessionId::from_uuid(Uuid::from_u128(n.into())),
            owner: OwnerId::from_uuid(Uuid::from_u128(owner)),
            spec: SessionSpec {
                provider: "desktop".into(),
                name: String::new(),
                screen: Screen::DEFAULT,
                start_url: None,
                locale: "en-US".into(),
                timezone: "Etc/UTC".into(),
                memory_mib: MIB,
                vcpus: 1,
            },
            state: SessionState::Requested,
            vm: None,
            end_reason: None,
            detail: None,
            attempts: 0,
            lease_expires_at: at,
            last_heartbeat_at: at,
            checkpoint: None,
            created_at: at,
            state_since: at,
            ready_at: None,
            ended_at: None,
            generation: Generation::FIRST,
        }
    }

    fn ask(admission: &Admission, session: &Session) -> Verdict {
        admission.ask(session, u64::from(MIB))
    }

    fn begins(admission: &Admission, session: &Session) -> bool {
        matches!(ask(admission, session), Verdict::Admitted { .. })
    }

    fn waits(admission: &Admission, session: &Session) -> (usize, Cause) {
        match ask(admission, session) {
            Verdict::Queued { position, cause, .. } => (position, cause),
            Verdict::Admitted { .. } => panic!("{} may begin", session.id),
        }
    }

    #[test]
    fn owners_take_turns() {
        let admission = admission(&host(1));
        let running = session(9, 1);
        assert!(begins(&admission, &running));
        let of_a: Vec<_> = (2..12).map(|n| session(1, n)).collect();
        let of_b = session(2, 12);
        for waiting in of_a.iter().chain([&of_b]) {
            ask(&admission, waiting);
        }
        assert_eq!(waits(&admission, &of_b), (2, Cause::Number), "after the first of A");
        let mut places: Vec<_> = of_a.iter().map(|session| waits(&admission, session).0).collect();
        assert_eq!(places, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11], "A's own, oldest first");
        places.push(waits(&admission, &of_b).0);
        places.sort_unstable();
        assert_eq!(places, (1..=11).collect::<Vec<_>>(), "each place is somebody's");

        // What the queue says is what happens.
        let mut queue: Vec<_> = of_a.iter().chain([&of_b]).collect();
        let mut ended = running.id;
        for turn in 1..=11 {
            admission.release(ended);
            let order: Vec<_> = queue.iter().filter(|s| begins(&admission, s)).collect();
            assert_eq!(order.len(), 1, "one place, one of them");
            ended = order[0].id;
            assert_eq!(ended == of_b.id, turn == 2);
            queue.retain(|session| session.id != ended);
        }
    }

    #[test]
    fn an_owner_with_vms_lets_others_go_first() {
        let admission = admission(&host(2));
        assert!(begins(&admission, &session(1, 1)) && begins(&admission, &session(1, 2)));
        let (of_a, of_b) = (session(1, 3), session(2, 4));
        assert_eq!(waits(&admission, &of_a), (1, Cause::Number));
        assert_eq!(waits(&admission, &of_b), (1, Cause::Number));
        assert_eq!(waits(&admission, &of_a), (2, Cause::Number));
        admission.release(session(1, 1).id);
        assert_eq!(waits(&admission, &of_a), (2, Cause::Turn));
        assert_eq!(ask(&admission, &of_b), Verdict::Admitted { more: false });
        // Who is in asks as often as it likes.
        assert!(begins(&admission, &of_b));
    }

    #[test]
    fn no_limit_is_passed() {
        let number = admission(&host(2));
        let budget =
            admission(&ControlConfig { memory_budget_mib: u64::from(2 * MIB + 1023), ..host(9) });
        let starts = admission(&ControlConfig { max_starting: 2, ..host(9) });
        for (admission, cause) in
            [(&number, Cause::Number), (&budget, Cause::Budget), (&starts, Cause::Starts)]
        {
            assert!(begins(admission, &session(1, 1)) && begins(admission, &session(2, 2)));
            assert_eq!(waits(admission, &session(3, 3)), (1, cause));
        }
        assert!(budget.could_fit(2 * MIB).is_ok());
        assert!(budget.could_fit(3 * MIB).is_err());
        // A start that came to its end makes room for a start, and for nothing else.
        for admission in [&number, &budget, &starts] {
            admission.started(session(1, 1).id);
        }
        assert_eq!(waits(&number, &session(3, 3)), (1, Cause::Number));
        assert_eq!(waits(&budget, &session(3, 3)), (1, Cause::Budget));
        assert!(begins(&starts, &session(3, 3)));
        for admission in [&number, &budget] {
            admission.release(session(1, 1).id);
            assert!(begins(admission, &session(3, 3)));
        }
    }

    #[test]
    fn one_that_begins_says_whether_another_may_too() {
        let admission = admission(&host(2));
        let (first, second, third) = (session(1, 1), session(2, 2), session(3, 3));
        for session in [&first, &second, &third] {
            admission.enter(session, 1).unwrap();
        }
        assert_eq!(waits(&admission, &second), (2, Cause::Turn));
        assert_eq!(ask(&admission, &first), Verdict::Admitted { more: true });
        assert_eq!(ask(&admission, &second), Verdict::Admitted { more: false });
        assert_eq!(waits(&admission, &third), (1, Cause::Number));
    }

    #[test]
    fn what_was_adopted_counts() {
        let admission = admission(&ControlConfig { max_starting: 1, ..host(3) });
        admission.adopt(&session(1, 1), true);
        assert_eq!(waits(&admission, &session(2, 3)), (1, Cause::Starts));
        admission.started(session(1, 1).id);
        admission.adopt(&session(1, 2), false);
        admission.hold(session(8, 8).id, session(8, 8).owner, MIB, Timestamp::UNIX_EPOCH);
        assert_eq!(waits(&admission, &session(2, 3)), (1, Cause::Number));
        admission.release(session(8, 8).id);
        // One that waited under the server before keeps its place.
        let older = session(3, 0);
        admission.enter_again(&older);
        assert_eq!(waits(&admission, &session(2, 3)), (2, Cause::Turn));
        assert!(begins(&admission, &older));
    }

    #[test]
    fn the_queue_has_an_end() {
        let admission = admission(&ControlConfig { max_waiting: 2, ..host(3) });
        let enter = |n| admission.enter(&session(n, n as u32), u64::from(MIB));
        // Three begin at once, and take no place of those that wait.
        for n in 1..=5 {
            enter(n).unwrap();
        }
        let why = enter(6).unwrap_err();
        assert!(why.contains("5 sessions wait") && why.contains("try again"), "{why}");
        for n in 1..=3 {
            assert!(begins(&admission, &session(n, n as u32)));
        }
        assert!(enter(6).is_err());
        admission.release(session(4, 4).id);
        enter(6).unwrap();
        assert!(enter(7).is_err());
        admission.release(session(1, 1).id);
        enter(7).unwrap();
    }

    #[test]
    fn nobody_has_to_wait_where_nobody_may() {
        let admission = admission(&ControlConfig { max_waiting: 0, ..host(1) });
        admission.enter(&session(1, 1), 1).unwrap();
        assert!(admission.enter(&session(2, 2), 1).is_err());
        assert!(begins(&admission, &session(1, 1)));
        assert!(admission.enter(&session(2, 2), 1).is_err());
    }

    #[test]
    fn memory_that_something_else_uses_is_not_given_away() {
        let available = Arc::new(AtomicU64::new(3 * u64::from(MIB)));
        let probe = Arc::clone(&available);
        let config = ControlConfig { memory_reserve_mib: 512, max_waiting: 1, ..host(9) };
        let admission =
            Admission::new(&config, Arc::new(move || Some(probe.load(Ordering::Relaxed))));
        // 3 GiB are there: two VMs and the reserve. The first has not taken its own yet.
        assert!(begins(&admission, &session(1, 1)) && begins(&admission, &session(2, 2)));
        let third = session(3, 3);
        assert_eq!(waits(&admission, &third), (1, Cause::HostMemory));
        let Verdict::Queued { why, .. } = ask(&admission, &third) else { unreachable!() };
        assert_eq!(
            why,
            "other programs use this host's memory; 512 MiB are left for VMs and 1024 are needed"
        );
        // A clone takes less of it.
        assert_eq!(needs(MIB, true), 256);
        assert!(!admission.room_beside(4 * MIB) && admission.room_beside(MIB));
        assert!(matches!(
            admission.ask(&third, needs(MIB, true)),
            Verdict::Admitted { more: false }
        ));
        // They have started: what they take is seen now.
        for n in 1..=3 {
            admission.started(session(n, n as u32).id);
        }
        available.store(u64::from(MIB) + 511, Ordering::Relaxed);
        admission.enter(&session(4, 4), u64::from(MIB)).unwrap();
        assert!(admission.enter(&session(5, 5), u64::from(MIB)).is_err());
        assert_eq!(waits(&admission, &session(4, 4)), (1, Cause::HostMemory));
        available.store(u64::from(MIB) + 512, Ordering::Relaxed);
        assert!(begins(&admission, &session(4, 4)));
    }
}
