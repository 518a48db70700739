//! Records to test with.

use std::net::Ipv4Addr;

use holdfast_core::{
    Actor, EventBody, Generation, HostId, OwnerId, Screen, Session, SessionId, SessionSpec,
    SessionState, Timestamp, Vm, VmId, VmState,
};
use uuid::Uuid;

use crate::{Change, Created, IdempotencyKey, NewSession, Store};

/// A time: this many seconds after some day in 2027, with nanoseconds that are not zero.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::new(1_800_000_000 + seconds, 123_456_789).expect("in range")
}

/// An owner that nobody had before.
pub fn owner() -> OwnerId {
    OwnerId::from_uuid(Uuid::now_v7())
}

/// A session in `requested` with a VM in `planned`, made at [`at`]`(0)`.
pub fn new_session(owner: OwnerId) -> NewSession {
    let id = SessionId::from_uuid(Uuid::now_v7());
    let vm_id = VmId::from_uuid(Uuid::now_v7());
    let session = Session {
        id,
        owner,
        spec: SessionSpec {
            provider: "desktop".into(),
            name: "Größe \"x\" 🖥".into(),
            screen: Screen::DEFAULT,
            start_url: Some("https://example.org/?a=1&b=2".into()),
            locale: "en-US".into(),
            timezone: "Europe/Berlin".into(),
            memory_mib: 2048,
            vcpus: 2,
        },
        state: SessionState::Requested,
        vm: Some(vm_id),
        end_reason: None,
        detail: None,
        attempts: 0,
        lease_expires_at: at(60),
        last_heartbeat_at: at(0),
        checkpoint: None,
        created_at: at(0),
        state_since: at(0),
        ready_at: None,
        ended_at: None,
        generation: Generation::FIRST,
    };
    let vm = Vm {
        id: vm_id,
        session: Some(id),
        host: HostId::from_uuid(Uuid::now_v7()),
        state: VmState::Planned,
        driver: "sim".into(),
        image: "sha256:0".into(),
        address: Some(Ipv4Addr::new(10, 91, 0, 7)),
        incarnation: 0,
        secret: Some("00ff".into()),
        created_at: at(0),
        state_since: at(0),
        generation: Generation::FIRST,
    };
    NewSession { session, vm, sign_in: None, events: vec![event("session.created")], key: None }
}

/// An event with this kind.
pub fn event(kind: &str) -> EventBody {
    EventBody {
        vm: None,
        at: at(0),
        kind: kind.into(),
        from: None,
        to: None,
        why: "because".into(),
        by: Actor::User,
    }
}

/// A key, with a digest of a request.
pub fn key(key: &str, request: &str) -> IdempotencyKey {
    IdempotencyKey { key: key.into(), request_sha256: request.into() }
}

/// Makes a session for a new owner.
pub async fn create(store: &dyn Store) -> Created {
    store.create_session(new_session(owner())).await.expect("created")
}

/// Moves a session through these states, each with an event.
pub async fn walk(store: &dyn Store, mut session: Session, states: &[SessionState]) -> Session {
    for state in states {
        session.state = *state;
        session.ended_at = (*state == SessionState::Ended).then(|| at(100));
        let events = vec![(session.id, event("session.state"))];
        let change = Change { session: Some(session), events, ..Change::default() };
        session = store.apply(change).await.expect("allowed").session.expect("written");
    }
    session
}

/// Moves a VM through these states.
pub async fn walk_vm(store: &dyn Store, mut vm: Vm, states: &[VmState]) -> Vm {
    for state in states {
        vm.state = *state;
        let change = Change { vm: Some(vm), ..Change::default() };
        vm = store.apply(change).await.expect("allowed").vm.expect("written");
    }
    vm
}

/// Ends a session and its VM at [`at`]`(100)`.
pub async fn end(store: &dyn Store, created: Created) -> Session {
    walk_vm(store, created.vm, &[VmState::Stopping, VmState::Gone]).await;
    walk(store, created.session, &[SessionState::Ending, SessionState::Ended]).await
}
