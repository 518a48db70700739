//! What Prometheus is told.

use std::collections::HashMap;

use crate::{
    server::{TestServer, until, until_state},
    streams::Viewer,
};

/// Values by series, as Prometheus reads them.
async fn scrape(server: &TestServer) -> HashMap<String, String> {
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.to_owned())
        })
        .collect()
}

async fn value(server: &TestServer, series: &str) -> String {
    let mut values = scrape(server).await;
    values.remove(series).unwrap_or_else(|| panic!("{series} is not in {values:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_counted_from_its_creation_to_its_end() {
    let server = TestServer::start().await;
    let before = scrape(&server).await;
    // What did not happen yet is zero, and not absent.
    for series in [
        "holdfast_sessions_created_total",
        "holdfast_heartbeats_total",
        "holdfast_start_failures_total",
        "holdfast_teardown_retries_total",
        "holdfast_warm_failures_total",
        "holdfast_sessions_ended_total{reason=\"user_request\"}",
        "holdfast_sessions_ended_total{reason=\"failed\"}",
        "holdfast_repairs_total{rung=\"service\"}",
        "holdfast_repairs_total{rung=\"boot\"}",
        "holdfast_stream_drops_total{code=\"1006\"}",
        "holdfast_sign_ins_total{provider=\"gh\",outcome=\"failed\"}",
        "holdfast_quarantined_vms",
        "holdfast_leases{state=\"live\"}",
    ] {
        assert_eq!(before.get(series), Some(&"0".to_owned()), "{series}");
    }
    assert!(before.contains_key("holdfast_adoption_seconds"));

    let session = server.create_ready().await;
    server.client.heartbeat(session.id).await.unwrap();
    let now = scrape(&server).await;
    for (series, expected) in [
        ("holdfast_sessions_created_total", "1"),
        ("holdfast_heartbeats_total", "1"),
        ("holdfast_sessions{state=\"ready\"}", "1"),
        ("holdfast_leases{state=\"live\"}", "1"),
        ("holdfast_leases{state=\"expired\"}", "0"),
        ("holdfast_session_ready_seconds_count", "1"),
        ("holdfast_http_seconds_count{route=\"/api/sessions\",status=\"201\"}", "1"),
        ("holdfast_http_seconds_count{route=\"/api/sessions/{id}/heartbeat\",status=\"200\"}", "1"),
    ] {
        assert_eq!(now.get(series).map(String::as_str), Some(expected), "{series} in {now:#?}");
    }
    assert!(!now.keys().any(|series| series.contains(&session.id.to_string())), "{now:#?}");

    server.client.end_session(session.id).await.unwrap();
    until("it is counted as ended", async || {
        let ended = "holdfast_sessions_ended_total{reason=\"user_request\"}";
        value(&server, ended).await == "1"
    })
    .await;
    assert_eq!(value(&server, "holdfast_leases{state=\"live\"}").await, "0");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_a_drop_and_a_goodbye_is_none() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let broken = "holdfast_stream_drops_total{code=\"1006\"}";
    let open = "holdfast_open_streams{kind=\"desktop\"}";

    let mut polite = Viewer::desktop(&server, session.id).await.unwrap();
    polite.greeting().await;
    assert_eq!(value(&server, open).await, "1");
    polite.close().await;
    until("it is closed", async || value(&server, open).await == "0").await;
    assert_eq!(value(&server, broken).await, "0");

    let mut rude = Viewer::desktop(&server, session.id).await.unwrap();
    rude.greeting().await;
    drop(rude);
    until("its end is counted", async || value(&server, broken).await == "1").await;

    let mut last = Viewer::desktop(&server, session.id).await.unwrap();
    last.greeting().await;
    server.client.end_session(session.id).await.unwrap();
    assert_eq!(last.close_code().await, Some(4410));
    let ended = "holdfast_stream_drops_total{code=\"4410\"}";
    until("that it ended is counted", async || value(&server, ended).await == "1").await;
    assert_eq!(value(&server, broken).await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_is_counted_by_its_rung() {
    let machine = holdfast_host::drivers::sim::SimDriver::in_memory();
    let replaced = holdfast_server::Replaced {
        driver: Some(std::sync::Arc::new(machine.clone())),
        ..Default::default()
    };
    let server = TestServer::start_with(|_| {}, replaced).await;
    let session = server.create_ready().await;
    let vm = holdfast_core::VmId::from_uuid(session.vm_id.unwrap());
    assert!(machine.crash(vm, "the test ended it"));
    let boots = "holdfast_repairs_total{rung=\"boot\"}";
    until("its boot is counted", async || value(&server, boots).await == "1").await;
    until_state(&server.client, session.id, "ready").await;
    server.stop().await;
}
