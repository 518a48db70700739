//! Leases are written by touches alone and only ever get longer.

use holdfast_core::{SessionId, SessionState};
use uuid::Uuid;

use super::{
    Pair,
    sample::{self, at},
};
use crate::{Change, LeaseTouch};

fn touch(session: SessionId, seconds: i64) -> LeaseTouch {
    LeaseTouch { session, heartbeat_at: at(seconds), expires_at: at(seconds + 60) }
}

pub(super) async fn a_lease_never_gets_shorter(Pair { first, .. }: Pair) {
    let id = sample::create(&*first).await.session.id;
    first.touch_leases(vec![touch(id, 50)]).await.expect("touched");
    first.touch_leases(vec![touch(id, 20)]).await.expect("touched");
    // One batch with the same session more than once.
    first.touch_leases(vec![touch(id, 30), touch(id, 55), touch(id, 10)]).await.expect("touched");
    let session = first.session(id).await.expect("read").expect("there");
    assert_eq!((session.last_heartbeat_at, session.lease_expires_at), (at(55), at(115)));
    // Each of the two times by itself.
    let mixed = LeaseTouch { session: id, heartbeat_at: at(70), expires_at: at(80) };
    first.touch_leases(vec![mixed]).await.expect("touched");
    let session = first.session(id).await.expect("read").expect("there");
    assert_eq!((session.last_heartbeat_at, session.lease_expires_at), (at(70), at(115)));
}

pub(super) async fn only_touches_write_leases(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await.session;
    first.touch_leases(vec![touch(made.id, 50)]).await.expect("touched");
    // The writer read the session before the touch: it is not stale, and does not undo the touch.
    let mut session = made.clone();
    session.state = SessionState::Starting;
    let change = Change { session: Some(session), ..Change::default() };
    let done = first.apply(change).await.expect("not stale").session.expect("written");
    assert_eq!(done.generation, made.generation.next());
    assert_eq!((done.last_heartbeat_at, done.lease_expires_at), (at(50), at(110)));
    assert_eq!(first.session(made.id).await.expect("read"), Some(done));
}

pub(super) async fn unknown_ids_are_passed_over(Pair { first, .. }: Pair) {
    let id = sample::create(&*first).await.session.id;
    let unknown = SessionId::from_uuid(Uuid::now_v7());
    first.touch_leases(vec![touch(unknown, 50), touch(id, 50)]).await.expect("touched");
    let session = first.session(id).await.expect("read").expect("there");
    assert_eq!(session.lease_expires_at, at(110));
    assert_eq!(first.session(unknown).await.expect("read"), None);
    first.touch_leases(Vec::new()).await.expect("nothing to do");
}

pub(super) async fn touches_from_two_servers_do_not_wait_for_each_other(
    Pair { first, second }: Pair,
) {
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(sample::create(&*first).await.session.id);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..20 {
        let (store, mut ids) = (first.clone(), ids.clone());
        let store = if round % 2 == 0 { store } else { second.clone() };
        if round % 2 == 0 {
            ids.reverse();
        }
        tasks.spawn(async move {
            let touches = ids.into_iter().map(|id| touch(id, 100 + round)).collect();
            store.touch_leases(touches).await.expect("touched");
        });
    }
    tasks.join_all().await;
    for id in ids {
        let session = first.session(id).await.expect("read").expect("there");
        assert_eq!(session.last_heartbeat_at, at(119));
    }
}
