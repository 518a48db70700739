//! Sessions put away and brought back, with servers that die on the way.

use std::{sync::mpsc, time::Duration};

use holdfast_control::{ControlError, CreateRequest, Live, NewSignIn};
use holdfast_core::Actor;
use holdfast_host::drivers::sim::{Fault, Step};

use crate::bench::Bench;

async fn put_away(bench: &Bench, live: &Live) -> Live {
    bench.control.hibernate(live.session.id, Actor::User).await.unwrap();
    bench.until(live.session.id, "hibernated").await
}

async fn brought_back(bench: &Bench, live: &Live) -> Live {
    bench.control.resume(live.session.id, Actor::User).await.unwrap();
    bench.until(live.session.id, "ready").await
}

#[tokio::test]
async fn a_session_comes_back_as_it_was_on_another_vm() {
    let bench = Bench::new(|_| {}).await.start().await;
    let before = bench.ready().await;
    let boot_id = bench.boot_id(&before).await;
    let away = put_away(&bench, &before).await;
    assert!(away.session.checkpoint.is_some() && bench.snapshots() == 1);
    assert!(bench.machine.claim(before.vm.id).is_none(), "its VM is gone");
    let back = brought_back(&bench, &away).await;
    assert_ne!(back.vm.id, before.vm.id);
    let claim = bench.claim(&back);
    assert_eq!(claim.vm_id, back.vm.id.to_string());
    assert_eq!(claim.session_id, Some(back.session.id.to_string()));
    assert!(!claim.cloned, "it is the only one");
    assert_eq!(bench.boot_id(&back).await, boot_id);
    assert!(back.session.checkpoint.is_none(), "its own disk is newer now");
    bench.control.sweep().await.unwrap();
    assert_eq!(bench.snapshots(), 0);
    // And once more: the restored VM can be put away too.
    let again = put_away(&bench, &back).await;
    brought_back(&bench, &again).await;
    bench.control.stop().await;
}

#[tokio::test]
async fn a_full_disk_lets_the_session_go_on() {
    let bench = Bench::new(|_| {}).await.start().await;
    let live = bench.ready().await;
    let id = live.session.id;
    bench.machine.faults().inject(Step::Snapshot, None, Fault::DoneButFailed("full".into()), 1);
    bench.control.hibernate(id, Actor::User).await.unwrap();
    let began = std::time::Instant::now();
    while bench.count(id, "hibernate.failed").await == 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", bench.timeline(id).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = bench.until(id, "ready").await;
    assert_eq!(after.vm.id, live.vm.id);
    assert!(after.session.checkpoint.is_none() && bench.snapshots() == 0);
    bench.boot_id(&after).await;
    bench.control.stop().await;
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_boots_its_disk() {
    let bench = Bench::new(|_| {}).await.start().await;
    let away = put_away(&bench, &bench.ready().await).await;
    bench.machine.faults().inject(Step::Start, None, Fault::Fail("checksum differs".into()), 1);
    let back = brought_back(&bench, &away).await;
    let timeline = bench.timeline(back.session.id).await;
    assert!(timeline.contains("checksum differs"), "{timeline}");
    assert!(timeline.contains("with the disk of its checkpoint"), "{timeline}");
    bench.control.stop().await;
}

#[tokio::test]
async fn a_checkpoint_that_is_gone_fails_with_its_reason() {
    let bench = Bench::new(|config| config.start_attempts = 2).await.start().await;
    let away = put_away(&bench, &bench.ready().await).await;
    std::fs::remove_dir_all(&bench.config.snapshot_dir).unwrap();
    bench.control.resume(away.session.id, Actor::User).await.unwrap();
    let failed = bench.until(away.session.id, "failed").await;
    let why = failed.session.detail.unwrap();
    assert!(why.contains("cannot be used"), "{why}");
    bench.control.stop().await;
}

/// The server dies at this point of putting a session away; the next one completes it.
async fn dies_at(point: &str) {
    let mut bench = Bench::new(|_| {}).await.start().await;
    let live = bench.ready().await;
    let id = live.session.id;
    let (sender, died) = mpsc::channel();
    fail::cfg_callback(point, move || {
        let _ = sender.send(());
        panic!("killed by the test");
    })
    .unwrap();
    bench.control.hibernate(id, Actor::User).await.unwrap();
    tokio::task::spawn_blocking(move || died.recv_timeout(Duration::from_secs(20)).unwrap())
        .await
        .unwrap();
    fail::remove(point);
    bench.restart().await;
    let away = bench.until(id, "hibernated").await;
    bench.control.sweep().await.unwrap();
    assert_eq!(bench.snapshots(), 1, "what was half written is gone");
    let back = brought_back(&bench, &away).await;
    assert_eq!(bench.claim(&back).session_id, Some(id.to_string()));
    bench.control.stop().await;
}

#[tokio::test]
async fn dies_before_the_checkpoint_is_written() {
    dies_at("checkpoint.save").await;
}

#[tokio::test]
async fn dies_after_the_checkpoint_was_written() {
    dies_at("checkpoint.saved").await;
}

#[tokio::test]
async fn dies_while_the_vm_is_removed() {
    dies_at("step.destroy").await;
}

#[tokio::test]
async fn dies_after_the_vm_was_removed() {
    dies_at("checkpoint.away").await;
}

#[tokio::test]
async fn dies_while_the_guest_takes_its_new_identity() {
    let mut bench = Bench::new(|_| {}).await.start().await;
    let away = put_away(&bench, &bench.ready().await).await;
    let id = away.session.id;
    for point in ["step.claim", "step.ready"] {
        let (sender, died) = mpsc::channel();
        fail::cfg_callback(point, move || {
            let _ = sender.send(());
            panic!("killed by the test");
        })
        .unwrap();
        if point == "step.claim" {
            bench.control.resume(id, Actor::User).await.unwrap();
        } else {
            bench.restart().await;
        }
        tokio::task::spawn_blocking(move || died.recv_timeout(Duration::from_secs(20)).unwrap())
            .await
            .unwrap();
        fail::remove(point);
    }
    bench.restart().await;
    let back = bench.until(id, "ready").await;
    assert_eq!(Some(bench.claim(&back).secret), back.vm.secret);
    bench.control.stop().await;
}

#[tokio::test]
async fn periodic_checkpoints_wait_for_their_interval_also_after_a_failure() {
    let interval = Duration::from_millis(600);
    let bench = Bench::new(|config| {
        config.checkpoint_interval = interval;
        config.probe_interval = Duration::from_millis(20);
    })
    .await
    .start()
    .await;
    let live = bench.ready().await;
    let id = live.session.id;
    bench.machine.faults().inject(Step::Snapshot, None, Fault::Fail("full".into()), 3);
    let began = std::time::Instant::now();
    while bench.count(id, "checkpoint.taken").await == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", bench.timeline(id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.count(id, "checkpoint.failed").await, 3);
    assert!(began.elapsed() >= 3 * interval, "{:?}", began.elapsed());
    // A machine that dies comes back from it, with a clock and randomness of its own.
    bench.until(id, "ready").await;
    let before = bench.claim(&live);
    bench.machine.crash(live.vm.id, "test");
    while bench.count(id, "repair.restore").await == 0 {
        assert!(began.elapsed() < Duration::from_secs(40), "{}", bench.timeline(id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = bench.until(id, "ready").await;
    assert_eq!(back.vm.id, live.vm.id);
    let after = bench.claim(&back);
    assert!(after.time > before.time && after.entropy != before.entropy, "{after:?}");
    bench.control.stop().await;
}

#[tokio::test]
async fn a_sign_in_is_never_saved() {
    let bench = Bench::new(|config| {
        config.checkpoint_interval = Duration::from_millis(100);
        config.probe_interval = Duration::from_millis(20);
    })
    .await
    .start()
    .await;
    bench.machine.hold_tools();
    let mut request = bench.request();
    request.spec.provider = "codex".into();
    request.sign_in = Some(NewSignIn { recipients: vec!["age1".into()], webhook: None });
    let fork = CreateRequest { sign_in: None, ..request.clone() };
    let id = bench.control.create(request).await.unwrap().0.session.id;
    bench.until(id, "ready").await;
    let refused = [
        bench.control.hibernate(id, Actor::User).await.err(),
        bench.control.fork(id, fork).await.err(),
        bench.control.checkpoint(id).await.err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(ControlError::State { .. })), "{error:?}");
    }
    // While another session is saved twice, it is not once.
    let other = bench.ready().await.session.id;
    let began = std::time::Instant::now();
    while bench.count(other, "checkpoint.taken").await < 2 {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", bench.timeline(other).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let timeline = bench.timeline(id).await;
    assert!(!timeline.contains("checkpoint.") && !timeline.contains("hibernat"), "{timeline}");
    assert!(bench.until(id, "ready").await.session.checkpoint.is_none());
    bench.control.stop().await;
}
