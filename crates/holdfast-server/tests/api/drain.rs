//! Taking a host out of use.

use holdfast_api::{Code, CreateSession, DrainSessions};
use holdfast_server::Replaced;

use crate::{
    server::{TestServer, until, until_state},
    streams::Viewer,
};

async fn refused(server: &TestServer) {
    let key = uuid::Uuid::new_v4().to_string();
    let made = server.client.create_session(&CreateSession::default(), &key).await.unwrap_err();
    assert_eq!(made.code(), Some(Code::Unavailable));
    assert!(made.to_string().contains("drained"), "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_host_takes_nothing_new_until_it_is_told_to() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let mut viewer = Viewer::desktop(&server, session.id).await.unwrap();
    viewer.greeting().await;
    let drain = server.client.drain(DrainSessions::Keep).await.unwrap();
    assert_eq!(drain.left, [session.id]);
    refused(&server).await;
    // What runs goes on.
    viewer.ping_and_pong().await;
    let (config, dir) = server.stop().await;

    let server = TestServer::listen(config, Replaced::default(), dir).await;
    server.ready().await;
    refused(&server).await;
    until("the host says so", async || {
        let hosts = server.client.hosts().await.unwrap().hosts;
        hosts.iter().any(|host| host.draining_since.is_some())
    })
    .await;
    let checks = server.client.readiness().await.unwrap().checks;
    let check = checks.iter().find(|check| check.name == "drain").unwrap();
    assert!(check.ok && check.detail.contains("no new sessions since"), "{check:?}");
    assert_eq!(server.client.session(session.id).await.unwrap().state, "ready");
    let bob = server.owner("bob").await;
    assert_eq!(bob.undrain().await.unwrap_err().code(), Some(Code::Forbidden));
    server.client.undrain().await.unwrap();
    server.create_ready().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_put_away_or_ended() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    server.client.drain(DrainSessions::Hibernate).await.unwrap();
    until_state(&server.client, session.id, "hibernated").await;
    assert_eq!(
        server.client.drain(DrainSessions::Hibernate).await.unwrap().left,
        Vec::<uuid::Uuid>::new()
    );
    server.client.drain(DrainSessions::End).await.unwrap();
    until("it ended", async || server.client.session(session.id).await.is_err()).await;
    server.stop().await;
}
