//! Sessions made from another one's state.

use holdfast_core::Actor;

use crate::bench::Bench;

#[tokio::test]
async fn a_fork_has_the_state_and_another_identity() {
    let bench = Bench::new(|_| {}).await.start().await;
    let first = bench.ready().await;
    let (fork, _) = bench.control.fork(first.session.id, bench.request()).await.unwrap();
    let fork = bench.until(fork.session.id, "ready").await;
    let (mine, theirs) = (bench.claim(&first), bench.claim(&fork));
    assert!(theirs.cloned && !mine.cloned);
    assert_ne!(mine.secret, theirs.secret);
    assert_ne!(mine.hostname, theirs.hostname);
    assert_eq!(theirs.session_id, Some(fork.session.id.to_string()));
    assert_ne!(bench.boot_id(&first).await, bench.boot_id(&fork).await);
    // The first goes on as it was, on the VM that it had.
    let again = bench.until(first.session.id, "ready").await;
    assert_eq!((again.vm.id, bench.claim(&again)), (first.vm.id, mine));
    bench.control.stop().await;
}

#[tokio::test]
async fn forks_of_a_hibernated_session_leave_it_alone() {
    let bench = Bench::new(|_| {}).await.start().await;
    let first = bench.ready().await;
    bench.control.hibernate(first.session.id, Actor::User).await.unwrap();
    let away = bench.until(first.session.id, "hibernated").await;
    for _ in 0..2 {
        let (fork, _) = bench.control.fork(away.session.id, bench.request()).await.unwrap();
        let fork = bench.until(fork.session.id, "ready").await;
        assert!(bench.claim(&fork).cloned);
        bench.control.sweep().await.unwrap();
        assert_eq!(bench.snapshots(), 1, "the hibernated session's checkpoint is kept");
    }
    bench.control.resume(away.session.id, Actor::User).await.unwrap();
    let back = bench.until(away.session.id, "ready").await;
    assert!(!bench.claim(&back).cloned);
    bench.control.stop().await;
}

#[tokio::test]
async fn a_fork_of_before_never_brings_its_session_back_to_then() {
    let bench = Bench::new(|_| {}).await.start().await;
    let first = bench.ready().await;
    let (fork, _) = bench.control.fork(first.session.id, bench.request()).await.unwrap();
    bench.until(fork.session.id, "ready").await;
    bench.machine.crash(first.vm.id, "test");
    let began = std::time::Instant::now();
    while bench.count(first.session.id, "repair.boot").await == 0 {
        let timeline = bench.timeline(first.session.id).await;
        assert!(!timeline.contains("repair.restore"), "{timeline}");
        assert!(began.elapsed().as_secs() < 30, "{timeline}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    bench.until(first.session.id, "ready").await;
    bench.control.stop().await;
}
