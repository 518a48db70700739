//! What holds after each step of a history, and what holds once everything is well again.

use std::collections::{BTreeMap, HashMap};

use holdfast_core::{Event, SessionId, SessionState, VmId, VmState};
use holdfast_host::driver::Driver as _;

use crate::{gate::Database, world::World};

/// The timeline tells a walk through the tables of core, and ends where the records are.
pub fn timelines_are_complete(database: &Database, id: SessionId) {
    let events =
        database.ask(|store| Box::pin(async move { store.events(id, 0, 100_000).await })).unwrap();
    let session =
        database.ask(|store| Box::pin(async move { store.session(id).await })).unwrap().unwrap();
    let states = of_kind(&events, "session.state");
    let mut at: Option<SessionState> = None;
    for event in &states {
        let from = event.body.from.as_deref().and_then(SessionState::from_name);
        let to = event.body.to.as_deref().and_then(SessionState::from_name).unwrap();
        assert_eq!(from, at, "{id}: an event begins where the last one ended");
        assert!(from.is_none_or(|from| from.can_become(to)), "{id}: {from:?} -> {to}");
        assert!(!event.body.why.is_empty(), "{id}: {to} is not explained");
        at = Some(to);
    }
    assert_eq!(at, Some(session.state), "{id}: its timeline tells another end");
    let mut vms: HashMap<VmId, VmState> = HashMap::new();
    for event in of_kind(&events, "vm.state") {
        let vm = event.body.vm.unwrap();
        let from = event.body.from.as_deref().and_then(VmState::from_name).unwrap();
        let to = event.body.to.as_deref().and_then(VmState::from_name).unwrap();
        assert_eq!(vms.get(&vm).copied().unwrap_or(VmState::Planned), from, "{vm}");
        assert!(from.can_become(to), "{vm}: {from} -> {to}");
        vms.insert(vm, to);
    }
    if let Some(id) = session.vm {
        let vm =
            database.ask(|store| Box::pin(async move { store.vm(id).await })).unwrap().unwrap();
        assert_eq!(vm.session, Some(session.id), "{id} is tied both ways");
        assert_eq!(vms.get(&id).copied().unwrap_or(VmState::Planned), vm.state, "{id}");
    }
}

fn of_kind<'a>(events: &'a [Event], kind: &str) -> Vec<&'a Event> {
    events.iter().filter(|event| event.body.kind == kind).collect()
}

/// No VM serves two sessions.
pub fn no_vm_is_shared(world: &World, ids: impl Iterator<Item = SessionId>) {
    let mut serves: BTreeMap<VmId, SessionId> = BTreeMap::new();
    for id in ids {
        if let Some(vm) = world.stored(id).unwrap().vm
            && let Some(other) = serves.insert(vm, id)
        {
            panic!("{vm} serves {id} and {other}");
        }
    }
}

/// The machine holds exactly what the records say.
pub async fn no_leftovers(world: &World) {
    let rows = world.database.ask(|store| Box::pin(async move { store.live_vms().await })).unwrap();
    let mut rows: Vec<VmId> = rows.into_iter().map(|vm| vm.id).collect();
    let mut found: Vec<VmId> =
        world.machine.list().await.unwrap().into_iter().map(|seen| seen.vm).collect();
    rows.sort();
    found.sort();
    assert_eq!(found, rows, "on the machine, and in the records");
}
