//! VMs that wait for a session.

use std::time::{Duration, Instant};

use crate::bench::Bench;

async fn with_pool(size: usize) -> Bench {
    let bench = Bench::new(|config| {
        config.pool_min = size;
        config.pool_max = size;
    })
    .await;
    bench.bake().await;
    bench.start().await
}

#[tokio::test]
async fn a_session_gets_the_vm_that_waits() {
    let bench = with_pool(1).await;
    let waiting = bench.waiting(1).await;
    let began = Instant::now();
    let live = bench.ready().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(live.vm.id, waiting[0].id);
    let claim = bench.claim(&live);
    assert!(claim.cloned && claim.session_id == Some(live.session.id.to_string()));
    // Another takes its place.
    assert_ne!(bench.waiting(1).await[0].id, live.vm.id);
    bench.control.stop().await;
}

/// On a host with no more processors than one VM has, whoever got one has them for its first use.
#[tokio::test]
async fn another_is_made_once_it_disturbs_nobody() {
    let bench = Bench::new(|config| {
        config.pool_min = 1;
        config.pool_max = 1;
        config.processors = usize::from(config.pool_vcpus);
    })
    .await;
    bench.bake().await;
    let bench = bench.start().await;
    bench.waiting(1).await;
    let live = bench.ready().await;
    let next = bench.waiting(1).await;
    let after = next[0].created_at.duration_since(live.session.created_at);
    assert!(after.as_secs() >= 10, "{after}");
    bench.control.stop().await;
}

#[tokio::test]
async fn two_sessions_never_get_the_same_vm() {
    let bench = with_pool(2).await;
    bench.waiting(2).await;
    let made = futures::future::join_all((0..6).map(|_| bench.create())).await;
    let mut vms: Vec<_> = made.into_iter().map(|live| live.unwrap().vm.id).collect();
    vms.sort();
    vms.dedup();
    assert_eq!(vms.len(), 6);
    bench.control.stop().await;
}

#[tokio::test]
async fn the_next_server_takes_the_waiting_vms_over() {
    let mut bench = with_pool(1).await;
    let waiting = bench.waiting(1).await;
    bench.restart().await;
    let live = bench.ready().await;
    assert_eq!(live.vm.id, waiting[0].id);
    bench.control.stop().await;
}

#[tokio::test]
async fn a_server_without_a_pool_removes_those_of_before() {
    let mut bench = with_pool(2).await;
    let waiting = bench.waiting(2).await;
    (bench.config.pool_min, bench.config.pool_max) = (0, 0);
    bench.restart().await;
    bench.waiting(0).await;
    let began = Instant::now();
    while waiting.iter().any(|vm| bench.machine.claim(vm.id).is_some()) {
        assert!(began.elapsed() < Duration::from_secs(20), "they are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.control.stop().await;
}

#[tokio::test]
async fn none_waits_on_a_drained_host() {
    let bench = with_pool(2).await;
    bench.waiting(2).await;
    bench.control.set_draining(true);
    bench.waiting(0).await;
    bench.control.set_draining(false);
    bench.waiting(2).await;
    bench.control.stop().await;
}

#[tokio::test]
async fn one_that_ended_is_replaced() {
    let bench = with_pool(1).await;
    let first = bench.waiting(1).await;
    assert!(bench.machine.crash(first[0].id, "test"));
    let began = Instant::now();
    loop {
        let now = bench.waiting(1).await;
        if now[0].id != first[0].id {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it is not replaced");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bench.machine.claim(first[0].id).is_none(), "nothing of it is left");
    bench.control.stop().await;
}

#[tokio::test]
async fn waiting_vms_make_room_for_sessions() {
    let bench = Bench::new(|config| {
        config.pool_min = 2;
        config.pool_max = 2;
        config.max_vms = 4;
    })
    .await;
    bench.bake().await;
    let bench = bench.start().await;
    bench.waiting(2).await;
    let made = futures::future::join_all((0..4).map(|_| bench.create())).await;
    for live in made {
        bench.until(live.unwrap().session.id, "ready").await;
    }
    bench.control.stop().await;
}
