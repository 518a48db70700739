//! Room, and the queue of those that wait for some.

use std::{sync::atomic::Ordering, time::Duration};

use holdfast_control::{ControlConfig, ControlError, CreateRequest};
use holdfast_core::{Actor, EndReason, SessionId, SessionState};
use holdfast_store::{IdempotencyKey, SessionFilter};

use crate::world::{World, config, spec};

/// What the timeline says of the queue, oldest first.
async fn queued(world: &World, id: SessionId) -> Vec<String> {
    let events = world.control.events(id, 0, 10_000).await.unwrap();
    let told = events.into_iter().filter(|event| event.body.kind == "session.queued");
    told.map(|event| event.body.why).collect()
}

async fn end(world: &World, id: SessionId) {
    world.control.end(id, EndReason::UserRequest, Actor::User).await.unwrap();
    world.until(id, &["ended"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_timeline_tells_the_place_in_the_queue_and_an_end_frees_one() {
    let world = World::new(ControlConfig { max_vms: 1, ..config() }).await;
    let first = world.create().await.unwrap().id;
    world.until(first, &["ready"]).await;
    let second = world.create().await.unwrap().id;
    let third = world.create().await.unwrap().id;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waits = |place| {
        format!("Waiting for room, place {place} in the queue: all 1 places for VMs are taken.")
    };
    assert_eq!(queued(&world, second).await, [waits(1)]);
    assert_eq!(queued(&world, third).await, [waits(2)]);
    assert_eq!(world.stored(third).unwrap().detail, Some(waits(2)));

    end(&world, first).await;
    world.until(second, &["ready"]).await;
    assert_eq!(queued(&world, third).await, [waits(2), waits(1)]);
    assert_eq!(world.stored(third).unwrap().state, SessionState::Requested);
    end(&world, second).await;
    let ready = world.until(third, &["ready"]).await;
    assert_eq!(ready.detail, None);
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_keep_their_order_when_the_server_is_killed() {
    let mut world = World::new(ControlConfig { max_vms: 1, ..config() }).await;
    let first = world.create().await.unwrap().id;
    world.until(first, &["ready"]).await;
    let second = world.create().await.unwrap().id;
    let third = world.create().await.unwrap().id;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.restart().await;
    end(&world, first).await;
    world.until(second, &["ready"]).await;
    assert_eq!(world.stored(third).unwrap().state, SessionState::Requested);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_refuses_and_forgets_nobody() {
    let world = World::new(ControlConfig { max_vms: 1, max_waiting: 1, ..config() }).await;
    let key = |key: &str| Some(IdempotencyKey { key: key.into(), request_sha256: "0".into() });
    let ask = async |name: &str| {
        let (owner, key) = (world.owner, key(name));
        let request = CreateRequest { owner, spec: spec(), sign_in: None, key };
        world.control.create(request).await
    };
    let first = ask("a").await.unwrap().0.session.id;
    let second = ask("b").await.unwrap().0.session.id;
    let Err(ControlError::Full(why)) = ask("c").await else { panic!("it is not full") };
    assert!(why.contains("1 sessions wait"), "{why}");
    // Nothing of what was refused is left, and what was made is answered again.
    let sessions = world.control.list(SessionFilter::default()).await.unwrap();
    assert_eq!(sessions.len(), 2);
    let (again, replayed) = ask("b").await.unwrap();
    assert!(replayed && again.session.id == second);
    end(&world, first).await;
    world.until(second, &["ready"]).await;
    let (third, replayed) = ask("c").await.unwrap();
    assert!(!replayed);
    end(&world, second).await;
    world.until(third.session.id, &["ready"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_waits_for_memory_that_something_else_uses() {
    let world = World::new(config()).await;
    world.available.store(1000, Ordering::Relaxed);
    let id = world.create().await.unwrap().id;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let told = queued(&world, id).await;
    assert_eq!(told.len(), 1, "said once: {told:?}");
    assert!(
        told[0].contains("place 1") && told[0].contains("other programs use this host"),
        "{told:?}"
    );
    // Nobody says that there is memory again.
    world.available.store(2000, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_ne!(world.stored(id).unwrap().state, SessionState::Requested);
    world.until(id, &["ready"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_made_also_when_who_asked_hangs_up() {
    let world = World::new(config()).await;
    // A call of the store takes 2 ms each way: it has written, and nobody hears its answer.
    let asked = tokio::time::timeout(Duration::from_millis(3), world.create()).await;
    assert!(asked.is_err(), "the answer came too early for this test");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sessions = world.control.list(SessionFilter::default()).await.unwrap();
    assert_eq!(sessions.len(), 1);
    world.until(sessions[0].id, &["ready"]).await;
}
