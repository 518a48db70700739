//! Sessions cloned from the warm image, and what happens when that fails.

use std::time::{Duration, Instant};

use holdfast_host::drivers::sim::{Fault, Step};

use crate::bench::Bench;

/// Far below the pauses between attempts at a start.
const QUICK: Duration = Duration::from_secs(2);

#[tokio::test]
async fn clones_are_told_that_they_are_clones() {
    let bench = Bench::new(|_| {}).await.start().await;
    let cold = bench.ready().await;
    assert!(!bench.claim(&cold).cloned, "nothing was baked yet");
    bench.bake().await;
    let (one, two) = (bench.ready().await, bench.ready().await);
    for live in [&one, &two] {
        assert!(bench.claim(live).cloned);
        let timeline = bench.timeline(live.session.id).await;
        assert!(timeline.contains("cloned from the warm image"), "{timeline}");
    }
    let (first, second) = (bench.claim(&one), bench.claim(&two));
    assert_ne!(first.entropy, second.entropy);
    assert_ne!(first.secret, second.secret);
    assert_ne!(first.hostname, second.hostname);
    assert_ne!(bench.boot_id(&one).await, bench.boot_id(&two).await);
    bench.control.stop().await;
}

#[tokio::test]
async fn a_damaged_warm_image_costs_one_quick_attempt() {
    let bench = Bench::new(|_| {}).await.start().await;
    let warm = bench.bake().await;
    std::fs::write(warm.join("manifest.json"), "{").unwrap();
    let began = Instant::now();
    let live = bench.ready().await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert!(!bench.claim(&live).cloned);
    assert_eq!(bench.count(live.session.id, "step.cold").await, 1);
    let failures = bench.images.failures.lock().unwrap().clone();
    assert!(failures.len() == 1 && failures[0].0, "{failures:?}");
    bench.control.stop().await;
}

#[tokio::test]
async fn a_clone_that_does_not_answer_boots_instead() {
    let bench = Bench::new(|config| config.restore_deadline = Duration::from_millis(300)).await;
    let bench = bench.start().await;
    bench.bake().await;
    bench.machine.faults().inject(Step::Dial, None, Fault::Hang, 1);
    let began = Instant::now();
    let live = bench.ready().await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert_eq!(bench.count(live.session.id, "step.cold").await, 1);
    let failures = bench.images.failures.lock().unwrap().clone();
    assert!(failures.len() == 1 && !failures[0].0, "{failures:?}");
    bench.control.stop().await;
}

#[tokio::test]
async fn a_clone_is_ended_like_any_other() {
    let bench = Bench::new(|_| {}).await.start().await;
    let warm = bench.bake().await;
    let live = bench.ready().await;
    let id = live.session.id;
    bench
        .control
        .end(id, holdfast_core::EndReason::UserRequest, holdfast_core::Actor::User)
        .await
        .unwrap();
    bench.until(id, "ended").await;
    assert!(warm.is_dir(), "the warm image belongs to nobody");
    bench.control.stop().await;
}
