//! Where a session's machine stands on the ladder of repairs is said to whoever asks.

use std::{sync::Arc, time::Duration};

use holdfast_core::VmId;
use holdfast_host::drivers::sim::SimDriver;
use holdfast_server::Replaced;

use crate::server::{TestServer, until, until_state};

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_says_which_repair_is_under_way() {
    let machine = SimDriver::in_memory();
    let replaced = Replaced { driver: Some(Arc::new(machine.clone())), ..Replaced::default() };
    let server = TestServer::start_with(|_| {}, replaced).await;
    let session = server.create_ready().await;
    until("it was probed, and is fine", async || {
        let health = server.client.explain(session.id).await.unwrap().health;
        health.is_some_and(|health| health.rung == "fine" && health.failing_since.is_none())
    })
    .await;

    machine.set_boot_time(Duration::from_secs(3));
    assert!(machine.crash(VmId::from_uuid(session.vm_id.unwrap()), "the test ended it"));
    until("it is being booted", async || {
        let explanation = server.client.explain(session.id).await.unwrap();
        let Some(health) = explanation.health.filter(|health| health.rung == "boot") else {
            return false;
        };
        assert!(health.finding.contains("the test ended it"), "{health:?}");
        assert!(health.failing_since.is_some() && health.boots == 1, "{health:?}");
        assert!(
            explanation.summary.contains("booted again on its disk"),
            "{}",
            explanation.summary
        );
        true
    })
    .await;
    until_state(&server.client, session.id, "ready").await;
    until("it is fine again", async || {
        let explanation = server.client.explain(session.id).await.unwrap();
        let fine = explanation.health.is_some_and(|health| health.rung == "fine");
        assert!(!fine || !explanation.summary.contains("wrong"), "{}", explanation.summary);
        fine
    })
    .await;
    server.stop().await;
}
