//! Sessions are made whole, once.

use holdfast_core::{Generation, SessionState, VmState};

use super::{
    Pair,
    sample::{self, key, new_session, owner},
};
use crate::{Change, StoreError};

pub(super) async fn what_was_created_is_read_back_whole(Pair { first, second }: Pair) {
    let new = new_session(owner());
    let created = first.create_session(new.clone()).await.expect("created");
    assert!(!created.replayed);
    assert_eq!((&created.session, &created.vm), (&new.session, &new.vm));
    // Readable at once, also through another server.
    for store in [first, second] {
        assert_eq!(store.session(new.session.id).await.expect("read"), Some(new.session.clone()));
        assert_eq!(store.vm(new.vm.id).await.expect("read"), Some(new.vm.clone()));
        let events = store.events(new.session.id, 0, 10).await.expect("read");
        let bodies: Vec<_> = events.into_iter().map(|e| e.body).collect();
        assert_eq!(bodies, new.events);
    }
}

pub(super) async fn session_vm_and_tie_stand_or_fall_together(Pair { first, .. }: Pair) {
    let taken = sample::create(&*first).await;
    let mut new = new_session(owner());
    // The VM serves another session already, so the whole creation is refused.
    new.session.vm = Some(taken.vm.id);
    new.vm = taken.vm.clone();
    let refused = first.create_session(new.clone()).await;
    assert!(matches!(refused, Err(StoreError::Stale { .. })), "{refused:?}");
    assert_eq!(first.session(new.session.id).await.expect("read"), None);
    assert_eq!(first.events(new.session.id, 0, 10).await.expect("read"), []);
    assert_eq!(first.vm(taken.vm.id).await.expect("read"), Some(taken.vm));
}

pub(super) async fn a_vm_from_a_pool_is_tied_once(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await;
    let mut pooled = made.vm.clone();
    pooled.session = None;
    let change = Change { vm: Some(pooled), ..Change::default() };
    let pooled = first.apply(change).await.expect("untied").vm.expect("written");
    // The session that had it lets go of it.
    let mut session = made.session;
    session.vm = None;
    let change = Change { session: Some(session), ..Change::default() };
    first.apply(change).await.expect("untied");

    let mut stale = new_session(owner());
    stale.vm = pooled.clone();
    stale.vm.generation = Generation::FIRST;
    let refused = first.create_session(stale).await;
    assert!(matches!(refused, Err(StoreError::Stale { what: "vm" })), "{refused:?}");

    let mut new = new_session(owner());
    new.vm = pooled.clone();
    let created = first.create_session(new.clone()).await.expect("tied");
    assert_eq!(created.session.vm, Some(pooled.id));
    assert_eq!(created.vm.session, Some(new.session.id));
    assert_eq!(created.vm.generation, pooled.generation.next());
    assert_eq!(first.vm(pooled.id).await.expect("read"), Some(created.vm));

    let mut late = new_session(owner());
    late.vm = pooled;
    let refused = first.create_session(late).await;
    assert!(matches!(refused, Err(StoreError::Stale { .. })), "{refused:?}");
}

pub(super) async fn a_repeated_request_is_answered_with_what_was_made(
    Pair { first, second }: Pair,
) {
    let owner = owner();
    let request = || {
        let mut new = new_session(owner);
        new.key = Some(key("k", "a"));
        new
    };
    let asked = async || second.made_with(owner, key("k", "a")).await.expect("read");
    assert!(asked().await.is_none());
    let made = first.create_session(request()).await.expect("created");
    let moved = sample::walk(&*first, made.session, &[SessionState::Starting]).await;
    let vm = sample::walk_vm(&*first, made.vm, &[VmState::Preparing]).await;
    let again = second.create_session(request()).await.expect("replayed");
    assert!(again.replayed);
    assert_eq!((again.session, again.vm), (moved.clone(), vm.clone()));
    let made = asked().await.expect("it was made");
    assert!(made.replayed);
    assert_eq!((made.session, made.vm), (moved, vm));
    let filter = crate::SessionFilter { owner: Some(owner), ..Default::default() };
    assert_eq!(first.sessions(filter).await.expect("read").len(), 1);
}

pub(super) async fn a_key_with_another_request_is_refused(Pair { first, .. }: Pair) {
    let owner = owner();
    let mut new = new_session(owner);
    new.key = Some(key("k", "a"));
    first.create_session(new).await.expect("created");
    let mut other = new_session(owner);
    other.key = Some(key("k", "b"));
    let refused = first.create_session(other.clone()).await;
    assert!(matches!(refused, Err(StoreError::KeyReused)), "{refused:?}");
    let refused = first.made_with(owner, key("k", "b")).await;
    assert!(matches!(refused, Err(StoreError::KeyReused)), "{refused:?}");
    assert_eq!(first.session(other.session.id).await.expect("read"), None);
}

pub(super) async fn a_key_belongs_to_its_owner(Pair { first, .. }: Pair) {
    for _ in 0..2 {
        let mut new = new_session(owner());
        new.key = Some(key("k", "a"));
        let created = first.create_session(new).await.expect("created");
        assert!(!created.replayed);
    }
}

pub(super) async fn a_race_with_one_key_makes_one_session(Pair { first, second }: Pair) {
    let owner = owner();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = if n % 2 == 0 { first.clone() } else { second.clone() };
        tasks.spawn(async move {
            let mut new = new_session(owner);
            new.key = Some(key("k", "a"));
            store.create_session(new).await.expect("answered")
        });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|a| !a.replayed).count(), 1);
    assert!(answers.iter().all(|a| a.session == answers[0].session && a.vm == answers[0].vm));
    let filter = crate::SessionFilter { owner: Some(owner), ..Default::default() };
    assert_eq!(first.sessions(filter).await.expect("read").len(), 1);
}

pub(super) async fn a_failed_creation_leaves_its_key_free(Pair { first, .. }: Pair) {
    let owner = owner();
    let mut failing = new_session(owner);
    failing.key = Some(key("k", "a"));
    failing.vm.generation = Generation(7);
    let refused = first.create_session(failing).await;
    assert!(matches!(refused, Err(StoreError::NotFound { what: "vm", .. })), "{refused:?}");
    let mut new = new_session(owner);
    new.key = Some(key("k", "a"));
    assert!(!first.create_session(new).await.expect("created").replayed);
}
