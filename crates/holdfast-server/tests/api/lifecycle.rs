//! From its creation to 410, and what stands in between.

use std::time::Duration;

use holdfast_api::{Code, CreateSession, Exec};
use holdfast_server::{Config, Replaced};
use uuid::Uuid;

use crate::{
    http::{raw, request},
    server::{TestServer, until, until_state},
};

/// What is said when its end is near, takes half a minute: `e2e::browser`.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_no_use_of_a_session_unless_it_says_so() {
    let idle = Duration::from_mins(1);
    let server =
        TestServer::start_with(|config| config.session.idle = idle, Replaced::default()).await;
    let id = server.create_ready().await.id;
    let idle_at = async || server.client.session(id).await.unwrap().idle_at.unwrap();
    let first = idle_at().await;
    let beat = server.client.heartbeat(id).await.unwrap();
    assert_eq!((beat.idle_at, idle_at().await), (None, first), "it is not near");
    assert_eq!(server.client.keep(id).await.unwrap().idle_at, None);
    assert!(idle_at().await > first, "it was asked for");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_and_ends() {
    let server = TestServer::start().await;
    let made = server.create().await;
    // No dangling id: readable from the moment that POST answered.
    assert_eq!(server.client.session(made.id).await.unwrap().id, made.id);
    assert_eq!(made.url, format!("/?session={}", made.id));
    let ready = until_state(&server.client, made.id, "ready").await;
    assert!(ready.ready_at.is_some());

    let vm = server.client.session_vm(made.id).await.unwrap();
    assert_eq!(Some(vm.vm_id), ready.vm_id);
    assert_eq!(vm.state, "running");
    let beat = server.client.heartbeat(made.id).await.unwrap();
    assert!(beat.expires_at > ready.created_at);

    let command = ["echo", "hello"].map(str::to_owned).to_vec();
    let exec = Exec { command, timeout_ms: None, stdin: None, root: false };
    let result = server.client.exec(made.id, &exec).await.unwrap();
    assert_eq!((result.exit_code, result.timed_out), (0, false));

    let explained = server.client.explain(made.id).await.unwrap();
    assert!(explained.summary.starts_with("It is ready"), "{}", explained.summary);
    assert!(explained.machine.unwrap().process.starts_with("running"));

    assert!(server.client.end_session(made.id).await.unwrap().is_some());
    until("it is gone", async || {
        server.client.session(made.id).await.is_err_and(|e| e.code() == Some(Code::Gone))
    })
    .await;
    for path in ["", "/vm", "/oauth-url"] {
        let answer = server.get(&format!("/api/sessions/{}{path}", made.id)).await;
        let problem = answer.problem();
        assert_eq!((problem.code, problem.reason.as_deref()), (Code::Gone, Some("user_request")));
    }
    let beat = server.client.heartbeat(made.id).await.unwrap_err();
    assert_eq!(beat.code(), Some(Code::Gone));
    // Ending again is harmless; the timeline and the explanation stay.
    assert!(server.client.end_session(made.id).await.unwrap().is_none());
    let events = server.client.events(made.id, 0).await.unwrap();
    let states: Vec<_> = events.iter().filter(|e| e.kind == "session.state").collect();
    let to: Vec<_> = states.iter().filter_map(|event| event.to.as_deref()).collect();
    assert_eq!(to, ["requested", "starting", "ready", "ending", "ended"]);
    let explained = server.client.explain(made.id).await.unwrap();
    assert!(explained.summary.starts_with("It ended."), "{}", explained.summary);
    assert!(server.client.vms().await.unwrap().vms.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_existed_is_404_everywhere() {
    let server = TestServer::start().await;
    let id = Uuid::now_v7();
    for (method, path) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/heartbeat"),
        ("GET", "/vm"),
        ("GET", "/events"),
        ("GET", "/explain"),
        ("GET", "/console"),
        ("GET", "/oauth-url"),
    ] {
        let path = format!("/api/sessions/{id}{path}");
        let answer = server.ask(&server.token, method, &path, "").await;
        assert_eq!(answer.code(), Code::NotFound, "{method} {path}");
    }
    for path in ["/vm", "/heartbeat"] {
        let method = if path == "/vm" { "GET" } else { "POST" };
        let path = format!("/api/auth/session/{id}{path}");
        let answer = server.ask(&server.token, method, &path, "").await;
        assert_eq!(answer.code(), Code::NotFound, "{method} {path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prototypes_paths_are_served_by_the_same_handlers() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    for (alias, path) in [
        ("/api/auth/session/ID/vm", "/api/sessions/ID/vm"),
        ("/api/vm/auth/session/ID/oauth-url", "/api/sessions/ID/oauth-url"),
    ] {
        let id = session.id.to_string();
        let by_alias = server.get(&alias.replace("ID", &id)).await;
        let by_path = server.get(&path.replace("ID", &id)).await;
        assert_eq!(by_alias.status, by_path.status, "{alias}");
    }
    let path = format!("/api/auth/session/{}/heartbeat", session.id);
    let beat = server.ask(&server.token, "POST", &path, "").await;
    assert_eq!(beat.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_makes_one_session() {
    let server = TestServer::start().await;
    let named = |name: &str| CreateSession { name: Some(name.into()), ..CreateSession::default() };
    let key = Uuid::new_v4().to_string();
    let first = server.client.create_session(&named("a"), &key).await.unwrap();
    let second = server.client.create_session(&named("a"), &key).await.unwrap();
    assert_eq!(first.id, second.id);
    let other = server.client.create_session(&named("b"), &key).await.unwrap_err();
    assert_eq!(other.code(), Some(Code::IdempotencyKeyReused));
    // Another owner's key is another key.
    let owner = server.owner("somebody").await;
    let theirs = owner.create_session(&named("a"), &key).await.unwrap();
    assert_ne!(theirs.id, first.id);
    assert_eq!(server.client.sessions(None).await.unwrap().sessions.len(), 2);
    // At once: one wins, and everybody gets its session.
    let key = Uuid::new_v4().to_string();
    let body = CreateSession::default();
    let racing = (0..8).map(|_| server.client.create_session(&body, &key));
    let ids: std::collections::HashSet<_> =
        futures::future::join_all(racing).await.into_iter().map(|s| s.unwrap().id).collect();
    assert_eq!(ids.len(), 1);
    for bad in ["", "\u{1}", &"k".repeat(256)] {
        let headers = [
            ("Authorization", format!("Bearer {}", server.token)),
            ("Idempotency-Key", bad.to_owned()),
        ];
        let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let answer = raw(server.address, &request("POST", "/api/sessions", &headers, "")).await;
        assert!([400, 422].contains(&answer.unwrap().status), "{bad:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_checked_field_by_field() {
    let server = TestServer::start().await;
    for (body, field) in [
        (r#"{"provider":"nobody"}"#, "provider"),
        (r#"{"name":"a\u0000b"}"#, "name"),
        (r#"{"screen":{"width":1,"height":1}}"#, "screen"),
        (r#"{"startUrl":"file:///etc/passwd"}"#, "startUrl"),
        (r#"{"startUrl":"javascript:alert(1)"}"#, "startUrl"),
        (r#"{"locale":"../../etc"}"#, "locale"),
        (r#"{"timezone":"../../../etc/passwd"}"#, "timezone"),
        (r#"{"memoryMib":1}"#, "memoryMib"),
        (r#"{"memoryMib":4000000000}"#, "memoryMib"),
        (r#"{"vcpus":0}"#, "vcpus"),
    ] {
        let answer = server.ask(&server.token, "POST", "/api/sessions", body).await;
        let problem = answer.problem();
        assert_eq!(problem.code, Code::Invalid, "{body}");
        assert_eq!(problem.field.as_deref(), Some(field), "{body}");
    }
    assert!(server.client.sessions(None).await.unwrap().sessions.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_and_without_a_place_in_the_queue_says_so() {
    let limits = |config: &mut Config| (config.vm.max_vms, config.vm.max_waiting) = (1, 1);
    let server = TestServer::start_with(limits, Replaced::default()).await;
    let first = server.create_ready().await;
    let key = Uuid::new_v4().to_string();
    let body = CreateSession::default();
    let second = server.client.create_session(&body, &key).await.unwrap();
    let answer = server.ask(&server.token, "POST", "/api/sessions", "{}").await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("10")));
    let problem = answer.problem();
    assert_eq!((problem.code, problem.retry_after), (Code::Full, Some(10)));
    assert!(problem.error.contains("end sessions that are not needed"), "{}", problem.error);
    assert_eq!(server.client.sessions(None).await.unwrap().sessions.len(), 2);
    // Who repeats a request gets what it made.
    assert_eq!(server.client.create_session(&body, &key).await.unwrap().id, second.id);
    server.client.end_session(first.id).await.unwrap();
    until_state(&server.client, second.id, "ready").await;
    let third = server.create().await;
    assert_eq!(third.state, "requested");
    server.stop().await;
}
