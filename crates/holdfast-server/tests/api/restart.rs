//! The controller is disposable: another server on the same directories goes on.

use holdfast_api::Code;
use holdfast_server::Replaced;

use crate::{
    server::{TestServer, until_state},
    streams::Viewer,
};

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_streams_come_back_after_a_restart() {
    let server = TestServer::start().await;
    let ready = server.create_ready().await;
    let vm = server.client.session_vm(ready.id).await.unwrap();
    let mut viewer = Viewer::desktop(&server, ready.id).await.unwrap();
    viewer.greeting().await;
    server.stop.cancel();
    assert_eq!(viewer.close_code().await, Some(1012));
    let (config, dir) = server.stop().await;

    let server = TestServer::listen(config, Replaced::default(), dir).await;
    server.ready().await;
    let again = server.client.session(ready.id).await.unwrap();
    assert_eq!((again.state.as_str(), again.vm_id), ("ready", ready.vm_id));
    let same = server.client.session_vm(ready.id).await.unwrap();
    assert_eq!((same.vm_id, same.vm_ip, same.created), (vm.vm_id, vm.vm_ip, vm.created));
    let mut viewer = Viewer::desktop(&server, ready.id).await.unwrap();
    viewer.greeting().await;
    server.client.end_session(ready.id).await.unwrap();
    assert_eq!(viewer.close_code().await, Some(4410));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_starting_goes_on_starting() {
    let server = TestServer::start().await;
    let session = server.create().await;
    let (config, dir) = server.stop().await;
    let server = TestServer::listen(config, Replaced::default(), dir).await;
    server.ready().await;
    until_state(&server.client, session.id, "ready").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_survives_a_restart() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    server.client.end_session(session.id).await.unwrap();
    let (config, dir) = server.stop().await;
    let server = TestServer::listen(config, Replaced::default(), dir).await;
    server.ready().await;
    crate::server::until("it is gone", async || {
        server.client.session(session.id).await.is_err_and(|e| e.code() == Some(Code::Gone))
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_directory_is_refused() {
    let server = TestServer::start().await;
    let config = server.config.clone();
    let refused = holdfast_server::Server::start(config).await.err().expect("refused");
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
    assert!(server.client.readiness().await.unwrap().ready);
    server.stop().await;
}
