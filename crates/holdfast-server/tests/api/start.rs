//! A server listens before it can do its work, and says what is missing.

use std::sync::Arc;

use holdfast_api::{Code, client::Client};
use holdfast_server::Replaced;

use crate::{
    broken_store::Breakable,
    http::{raw, request},
    server::{self, TestServer},
};

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_while_its_store_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Breakable::new(server::store(&dir).await));
    store.break_it(true);
    let replaced = Replaced { store: Some(Arc::clone(&store) as _), ..Replaced::default() };
    let config = server::config(&dir);
    let server = TestServer::listen(config, replaced, dir).await;
    assert_eq!(server.get("/livez").await.status, 200);
    let readiness = server.client.readiness().await.unwrap();
    assert!(!readiness.ready);
    server::until("the store is named", async || {
        let checks = server.client.readiness().await.unwrap().checks;
        checks.iter().any(|c| c.name == "store" && !c.ok && c.detail.contains("not available"))
    })
    .await;
    let refused = server.client.sessions(None).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Unavailable));
    let page = raw(server.address, &request("GET", "/", &[], "")).await.unwrap();
    assert_eq!((page.status, page.header("retry-after")), (503, Some("1")));
    store.break_it(false);
    server.ready().await;
    server.create_ready().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_stopped_while_its_store_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Breakable::new(server::store(&dir).await));
    store.break_it(true);
    let replaced = Replaced { store: Some(store as _), ..Replaced::default() };
    let config = server::config(&dir);
    TestServer::listen(config, replaced, dir).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = TestServer::start().await;
    let file = server.config.token_file();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), server.token);
    let address = std::fs::read_to_string(server.config.address_file()).unwrap();
    let found = Client::new(address.trim(), Some(&server.token)).unwrap();
    assert!(found.version().await.unwrap().admin);
    let (config, _dir) = server.stop().await;
    assert!(!config.address_file().exists());
}
