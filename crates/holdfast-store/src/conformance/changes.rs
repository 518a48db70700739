//! Changes: compare-and-set, all or nothing, along the tables of core.

use holdfast_core::{EndReason, Generation, SessionState, VmState};

use super::{
    Pair,
    sample::{self, at, event, new_session, owner},
};
use crate::{Change, StoreError};

pub(super) async fn a_change_writes_both_records_and_counts_generations(
    Pair { first, second }: Pair,
) {
    let made = sample::create(&*first).await;
    let (mut session, mut vm) = (made.session.clone(), made.vm.clone());
    session.state = SessionState::Starting;
    session.attempts = 1;
    session.detail = Some("detail".into());
    session.state_since = at(5);
    session.ready_at = Some(at(6));
    session.ended_at = Some(at(7));
    session.end_reason = Some(EndReason::Completed);
    vm.state = VmState::Preparing;
    vm.address = None;
    vm.incarnation = 3;
    vm.secret = Some("11".into());
    vm.image = "sha256:1".into();
    vm.state_since = at(5);
    let change = Change {
        session: Some(session.clone()),
        vm: Some(vm.clone()),
        events: vec![(session.id, event("session.state"))],
        ..Change::default()
    };
    let done = first.apply(change).await.expect("applied");
    session.generation = made.session.generation.next();
    vm.generation = made.vm.generation.next();
    assert_eq!((done.session, done.vm), (Some(session.clone()), Some(vm.clone())));
    assert_eq!(second.session(session.id).await.expect("read"), Some(session.clone()));
    assert_eq!(second.vm(vm.id).await.expect("read"), Some(vm));
    assert_eq!(second.events(session.id, 0, 10).await.expect("read").len(), 2);
}

pub(super) async fn a_stale_generation_changes_nothing(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await;
    let current = sample::walk_vm(&*first, made.vm.clone(), &[VmState::Preparing]).await;
    let mut session = made.session.clone();
    session.state = SessionState::Starting;
    let change = Change {
        session: Some(session),
        vm: Some(made.vm),
        events: vec![(made.session.id, event("never"))],
        ..Change::default()
    };
    let refused = first.apply(change).await;
    assert!(matches!(refused, Err(StoreError::Stale { what: "vm" })), "{refused:?}");
    // The session was written first; that is undone.
    let id = made.session.id;
    assert_eq!(first.session(id).await.expect("read"), Some(made.session.clone()));
    assert_eq!(first.vm(current.id).await.expect("read"), Some(current));
    assert_eq!(first.events(id, 0, 10).await.expect("read").len(), 1);

    let mut future = made.session;
    future.generation = Generation(99);
    let refused = first.apply(Change { session: Some(future), ..Change::default() }).await;
    assert!(matches!(refused, Err(StoreError::Stale { what: "session" })), "{refused:?}");
}

pub(super) async fn of_many_writers_one_wins(Pair { first, second }: Pair) {
    let made = sample::create(&*first).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16_u32 {
        let store = if n % 2 == 0 { first.clone() } else { second.clone() };
        let mut session = made.session.clone();
        session.state = SessionState::Starting;
        session.attempts = n;
        tasks.spawn(async move {
            let events = vec![(session.id, event(&format!("writer.{n}")))];
            store.apply(Change { session: Some(session), events, ..Change::default() }).await
        });
    }
    let (won, lost): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for error in lost {
        assert!(matches!(error, Err(StoreError::Stale { what: "session" })), "{error:?}");
    }
    let winner = won.into_iter().next().expect("one").expect("ok").session.expect("written");
    assert_eq!(first.session(winner.id).await.expect("read"), Some(winner.clone()));
    let events = first.events(winner.id, 0, 100).await.expect("read");
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].body.kind, format!("writer.{}", winner.attempts));
}

pub(super) async fn a_missing_record_is_not_found(Pair { first, .. }: Pair) {
    let never = new_session(owner());
    let change = Change { session: Some(never.session), ..Change::default() };
    let refused = first.apply(change).await;
    assert!(matches!(refused, Err(StoreError::NotFound { what: "session", .. })), "{refused:?}");
    let change = Change { vm: Some(never.vm), ..Change::default() };
    let refused = first.apply(change).await;
    assert!(matches!(refused, Err(StoreError::NotFound { what: "vm", .. })), "{refused:?}");
}

pub(super) async fn transitions_outside_the_tables_are_refused(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await;
    let mut session = made.session.clone();
    session.state = SessionState::Ready;
    let refused = first.apply(Change { session: Some(session), ..Change::default() }).await;
    let Err(StoreError::Transition { what: "session", from, to }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((from.as_str(), to.as_str()), ("requested", "ready"));
    let mut vm = made.vm;
    vm.state = VmState::Running;
    let refused = first.apply(Change { vm: Some(vm), ..Change::default() }).await;
    assert!(matches!(refused, Err(StoreError::Transition { what: "vm", .. })), "{refused:?}");
    assert_eq!(first.session(made.session.id).await.expect("read"), Some(made.session));
}

/// Every state that core has can be stored, and every step is judged as core does.
pub(super) async fn the_whole_table_of_sessions_is_enforced(Pair { first, .. }: Pair) {
    for from in SessionState::ALL {
        let mut new = new_session(owner());
        new.session.state = from;
        let mut session = first.create_session(new).await.expect("any state").session;
        for to in SessionState::ALL {
            let mut next = session.clone();
            next.state = to;
            let done = first.apply(Change { session: Some(next), ..Change::default() }).await;
            let allowed = session.state == to || session.state.can_become(to);
            assert_eq!(done.is_ok(), allowed, "{} -> {to}: {done:?}", session.state);
            if let Ok(done) = done {
                session = done.session.expect("written");
            }
        }
    }
}

pub(super) async fn a_change_never_writes_what_was_asked_for(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await;
    let mut session = made.session.clone();
    session.owner = owner();
    session.spec.name = "other".into();
    session.created_at = at(-9);
    let change = Change { session: Some(session), ..Change::default() };
    let done = first.apply(change).await.expect("applied").session.expect("written");
    let mut expected = made.session;
    expected.generation = expected.generation.next();
    assert_eq!(done, expected);
    assert_eq!(first.session(expected.id).await.expect("read"), Some(expected));
}

/// Two sessions written in opposite orders by many tasks: a deadlock would be `Unavailable`.
pub(super) async fn opposite_orders_do_not_wait_for_each_other(Pair { first, second }: Pair) {
    let (a, b) = (sample::create(&*first).await, sample::create(&*first).await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..12 {
        let store = if n % 2 == 0 { first.clone() } else { second.clone() };
        let mut ids = [a.session.id, b.session.id];
        if n % 2 == 0 {
            ids.reverse();
        }
        tasks.spawn(async move {
            let events = ids.map(|id| (id, event("both"))).to_vec();
            store.apply(Change { events, ..Change::default() }).await.expect("applied");
        });
    }
    tasks.join_all().await;
    assert_eq!(first.events(a.session.id, 0, 100).await.expect("read").len(), 13);
    assert_eq!(first.events(b.session.id, 0, 100).await.expect("read").len(), 13);
}
