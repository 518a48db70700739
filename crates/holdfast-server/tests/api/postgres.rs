//! On PostgreSQL: a database that stops and comes back, and two servers on one database.

use holdfast_api::{Code, CreateSession};
use holdfast_server::Replaced;
use holdfast_testkit::TempPostgres;
use uuid::Uuid;

use crate::{
    server::{TestServer, until, until_state},
    streams::Viewer,
};

async fn server_on(url: &str) -> TestServer {
    TestServer::start_with(|config| config.store = url.to_owned(), Replaced::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_takes_nothing_with_it() {
    let mut postgres = TempPostgres::new();
    let url = postgres.database();
    let server = server_on(&url).await;
    let live = server.create_ready().await;
    let ended = server.create_ready().await;
    server.client.end_session(ended.id).await.unwrap();
    until("it ended", async || server.client.session(ended.id).await.is_err()).await;
    let mut viewer = Viewer::desktop(&server, live.id).await.unwrap();
    viewer.greeting().await;
    assert_eq!(holdfast_store::check_url(&url).await.code, "ok");

    postgres.stop();
    until("readiness is red", async || !server.client.readiness().await.unwrap().ready).await;
    assert_eq!(holdfast_store::check_url(&url).await.code, "cannot_connect");
    // What lives goes on.
    viewer.ping_and_pong().await;
    assert_eq!(server.client.session(live.id).await.unwrap().state, "ready");
    server.client.heartbeat(live.id).await.unwrap();
    Viewer::desktop(&server, live.id).await.unwrap().greeting().await;
    // What has to be written or looked up is refused for now, and never called gone.
    let key = Uuid::new_v4().to_string();
    let made = server.client.create_session(&CreateSession::default(), &key).await.unwrap_err();
    assert_eq!(made.code(), Some(Code::Unavailable));
    for (method, path) in [("DELETE", live.id), ("GET", ended.id), ("GET", Uuid::now_v7())] {
        let path = format!("/api/sessions/{path}");
        let answer = server.ask(&server.token, method, &path, "").await;
        assert_eq!((answer.status, answer.code()), (503, Code::Unavailable), "{method} {path}");
        assert!(answer.header("retry-after").is_some());
    }

    postgres.start();
    server.ready().await;
    let after = until_state(&server.client, live.id, "ready").await;
    assert_eq!((after.vm_id, after.ready_at), (live.vm_id, live.ready_at));
    viewer.ping_and_pong().await;
    // Whether the refused request was written or not, repeating it makes one session.
    let again = server.client.create_session(&CreateSession::default(), &key).await.unwrap();
    until_state(&server.client, again.id, "ready").await;
    assert_eq!(server.client.session(ended.id).await.unwrap_err().code(), Some(Code::Gone));
    server.client.end_session(live.id).await.unwrap();
    assert_eq!(viewer.close_code().await, Some(4410));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_database_leave_each_other_alone() {
    let postgres = TempPostgres::new();
    let url = postgres.database();
    let (one, two) = (server_on(&url).await, server_on(&url).await);
    let mine = one.create_ready().await;
    let theirs = two.create_ready().await;
    let mut viewer = Viewer::desktop(&one, mine.id).await.unwrap();
    viewer.greeting().await;
    // Each reads both, from the store.
    for server in [&one, &two] {
        for session in [&mine, &theirs] {
            assert_eq!(server.client.session(session.id).await.unwrap().id, session.id);
            assert_eq!(
                server.client.session_vm(session.id).await.unwrap().vm_id,
                session.vm_id.unwrap()
            );
        }
        assert_eq!(server.client.sessions(None).await.unwrap().sessions.len(), 2);
    }
    // Streams and changes belong to the server that runs the machine, and that is said.
    let path = format!("/api/sessions/{}/desktop", mine.id);
    let (status, problem) = Viewer::open(&two, &path, &two.token, false).await.unwrap_err();
    assert_eq!((status, problem.unwrap().code), (503, Code::Unavailable));
    let mut refused = Viewer::open(&two, &path, &two.token, true).await.unwrap();
    assert_eq!(refused.close_code().await, Some(4503));
    for answer in [
        two.client.heartbeat(mine.id).await.map(|_| ()).unwrap_err(),
        two.client.end_session(mine.id).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(answer.code(), Some(Code::Unavailable));
    }
    // One rule for all that needs the machine: elsewhere is not gone.
    for (method, what, body) in [
        ("POST", "heartbeat", "{}"),
        ("POST", "hibernate", "{}"),
        ("POST", "resume", "{}"),
        ("POST", "fork", "{}"),
        ("POST", "sign-in/open", "{}"),
        ("POST", "sign-in/retry", "{}"),
        ("POST", "exec", r#"{"command":["true"]}"#),
        ("GET", "console", ""),
    ] {
        let path = format!("/api/sessions/{}/{what}", mine.id);
        let answer = two.ask(&two.token, method, &path, body).await;
        assert_eq!((answer.status, answer.code()), (503, Code::Unavailable), "{method} {path}");
        assert!(answer.header("retry-after").is_some(), "{path}");
    }
    // A server that comes back takes over its own alone, and sweeps nothing of the other.
    let (config, dir) = two.stop().await;
    let two = TestServer::listen(config, Replaced::default(), dir).await;
    two.ready().await;
    assert_eq!(two.client.heartbeat(mine.id).await.unwrap_err().code(), Some(Code::Unavailable));
    two.client.heartbeat(theirs.id).await.unwrap();
    two.client.end_session(theirs.id).await.unwrap();
    until("theirs ended", async || two.client.session(theirs.id).await.is_err()).await;
    viewer.ping_and_pong().await;
    let still = one.client.session(mine.id).await.unwrap();
    assert_eq!((still.state.as_str(), still.vm_id), ("ready", mine.vm_id));
    assert_eq!(one.client.session(theirs.id).await.unwrap_err().code(), Some(Code::Gone));
    one.stop().await;
    two.stop().await;
}
