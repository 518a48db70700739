//! Delete wins, at every step of a creation, and nothing is left.

use std::sync::Arc;

use holdfast_api::Code;
use holdfast_host::driver::Driver;
use holdfast_server::{Replaced, SimulatedImages, open_driver};

use crate::{
    gates::Gated,
    server::{self, DEADLINE, TestServer, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn delete_wins_at_every_step_of_a_creation() {
    for step in [
        "before create",
        "after create",
        "before connect",
        "after connect",
        "before start",
        "after start",
        "dial",
        "before destroy",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = server::config(&dir);
        let driver = open_driver(&config, "sim").unwrap();
        let gated = Arc::new(Gated::new(Arc::clone(&driver), &[step]));
        let replaced = Replaced {
            driver: Some(Arc::clone(&gated) as Arc<dyn Driver>),
            images: Some(Arc::new(SimulatedImages::new(&config.cache_dir))),
            ..Replaced::default()
        };
        let server = TestServer::listen(config, replaced, dir).await;
        server.ready().await;
        let session = server.create().await;
        if step == "before destroy" {
            server.client.end_session(session.id).await.unwrap();
        }
        tokio::time::timeout(DEADLINE, gated.reached(step)).await.expect(step);
        let accepted = server.client.end_session(session.id).await.unwrap();
        assert_eq!(accepted.expect(step).state, "ending", "{step}");
        // Again, in the middle of it.
        server.client.end_session(session.id).await.unwrap();
        let vm = server.client.session_vm(session.id).await.unwrap_err();
        assert_eq!(vm.code(), Some(Code::Gone), "{step}");
        gated.open();
        until(step, async || {
            server.client.session(session.id).await.is_err_and(|e| e.code() == Some(Code::Gone))
        })
        .await;
        let left = driver.list().await.unwrap();
        assert!(left.is_empty(), "{step}: {left:?}");
        assert!(server.client.vms().await.unwrap().vms.is_empty(), "{step}");
        server.stop().await;
    }
}
