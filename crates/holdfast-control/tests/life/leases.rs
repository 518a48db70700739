//! Leases, the idle limit and the lifetime.

use std::{sync::atomic::Ordering, time::Duration};

use holdfast_control::ControlConfig;
use holdfast_core::{Actor, EndReason, SessionState};

use crate::world::{World, config};

async fn kinds(world: &World, id: holdfast_core::SessionId) -> Vec<String> {
    let events = world.control.events(id, 0, 10_000).await.unwrap();
    events.into_iter().map(|event| event.body.kind).collect()
}

#[tokio::test(start_paused = true)]
async fn heartbeats_by_the_thousand_are_one_write_a_second() {
    let mut config = config();
    (config.max_vms, config.memory_budget_mib) = (200, 1 << 20);
    let world = World::new(config).await;
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(world.create().await.unwrap().id);
    }
    for id in &ids {
        world.until(*id, &["ready"]).await;
    }
    world.database.lease_writes.store(0, Ordering::SeqCst);
    let (began, clock) = (world.now(), std::time::Instant::now());
    // 100 sessions, 30 heartbeats a second each, for 10 s.
    for _ in 0..300 {
        for id in &ids {
            world.control.heartbeat(*id).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(33)).await;
    }
    let seconds = world.now().duration_since(began).as_secs_f64();
    let writes = world.database.lease_writes.load(Ordering::SeqCst);
    println!(
        "{:.0} heartbeats a second: {:.1} writes a second, {:.2} s of real time for {seconds:.1} s",
        30_000.0 / seconds,
        writes as f64 / seconds,
        clock.elapsed().as_secs_f64()
    );
    assert!(writes as f64 <= seconds + 2.0, "{writes} writes in {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn no_lease_runs_out_while_the_server_is_away() {
    let mut world = World::new(config()).await;
    let id = world.create().await.unwrap().id;
    world.until(id, &["ready"]).await;
    world.control.heartbeat(id).await.unwrap();
    // Killed before the heartbeat was written, and away for longer than lease and grace.
    world.database.set_away(true);
    world.restart().await;
    tokio::time::sleep(Duration::from_mins(30)).await;
    world.database.set_away(false);
    assert!(world.started().await);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(world.stored(id).unwrap().state, SessionState::Ready);
    }
    let ended = world.until(id, &["ended"]).await;
    assert_eq!(ended.end_reason, Some(EndReason::LeaseExpired));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_no_use_but_input_is() {
    let idle = Duration::from_mins(20);
    let world = World::new(ControlConfig { idle, ..config() }).await;
    let id = world.create().await.unwrap().id;
    let ready = world.until(id, &["ready"]).await;
    let (_stream, attached) = world.open(id).await.unwrap();
    for _ in 0..14 {
        tokio::time::sleep(Duration::from_mins(1)).await;
        world.control.heartbeat(id).await.unwrap();
    }
    attached.used();
    let used_at = world.now();
    let session = world.control.find(id).await.unwrap().unwrap().session;
    assert_eq!(world.control.limits(&session).unwrap().idle_at, Some(used_at + idle));
    assert!(!kinds(&world, id).await.contains(&"limit.idle".to_owned()));
    while world.now() < used_at + idle - Duration::from_secs(1) {
        world.control.heartbeat(id).await.unwrap();
        assert_eq!(world.stored(id).unwrap().state, SessionState::Ready);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(kinds(&world, id).await.contains(&"limit.idle".to_owned()), "announced");
    let ended = world.until(id, &["ended"]).await;
    assert_eq!(ended.end_reason, Some(EndReason::Idle));
    assert!(ended.ended_at.unwrap() >= ready.ready_at.unwrap() + idle);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_is_announced_and_ends_also_what_is_used() {
    let world = World::new(config()).await;
    let session = world.create().await.unwrap();
    world.until(session.id, &["ready"]).await;
    let (_stream, attached) = world.open(session.id).await.unwrap();
    let ends_at = session.created_at + world.config.max_lifetime;
    assert_eq!(world.control.limits(&session).unwrap().ends_at, ends_at);
    while world.now() < ends_at - Duration::from_secs(1) {
        attached.alive();
        attached.used();
        assert_eq!(world.stored(session.id).unwrap().state, SessionState::Ready);
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    assert!(kinds(&world, session.id).await.contains(&"limit.lifetime".to_owned()), "announced");
    let ended = world.until(session.id, &["ended"]).await;
    assert_eq!(ended.end_reason, Some(EndReason::MaxLifetime));
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_begins_again_when_a_session_is_brought_back() {
    let world = World::new(config()).await;
    let id = world.create().await.unwrap().id;
    world.until(id, &["ready"]).await;
    world.control.hibernate(id, Actor::User).await.unwrap();
    let away = world.until(id, &["hibernated"]).await;
    let limits = world.control.limits(&away).unwrap();
    assert_eq!(limits.ends_at, away.state_since + world.config.keep_hibernated);
    // Longer than it would have lived.
    tokio::time::sleep(world.config.max_lifetime * 2).await;
    let back_at = world.now();
    world.control.resume(id, Actor::User).await.unwrap();
    world.until(id, &["ready"]).await;
    let session = world.control.find(id).await.unwrap().unwrap().session;
    let ends_at = world.control.limits(&session).unwrap().ends_at;
    assert!(ends_at >= back_at + world.config.max_lifetime);
    while world.now() < ends_at - Duration::from_secs(1) {
        world.control.heartbeat(id).await.unwrap();
        assert_eq!(world.stored(id).unwrap().state, SessionState::Ready);
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    let ended = world.until(id, &["ended"]).await;
    assert_eq!(ended.end_reason, Some(EndReason::MaxLifetime));
}

#[tokio::test(start_paused = true)]
async fn one_who_is_only_shown_a_session_does_not_keep_it() {
    let world = World::new(config()).await;
    let id = world.create().await.unwrap().id;
    world.until(id, &["ready"]).await;
    let before = world.control.find(id).await.unwrap().unwrap().session.lease_expires_at;
    let (_stream, shown) = world.control.open_shown(id).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(shown.alive(), before);
    assert_eq!(world.control.streams(id), 0);
    let ended = world.until(id, &["ended"]).await;
    assert_eq!(ended.end_reason, Some(EndReason::LeaseExpired));
}
