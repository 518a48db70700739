//! Share links: who has one sees one desktop, and can do nothing else.

use holdfast_api::{Code, CreateShare, NewShare};
use uuid::Uuid;

use crate::{
    http::{raw, request},
    server::{TestServer, until},
    streams::Viewer,
};

async fn share(server: &TestServer, id: Uuid, view_only: bool) -> (NewShare, String) {
    let made = server.client.share(id, &CreateShare { view_only, minutes: 5 }).await.unwrap();
    let secret = made.url.split("share=").nth(1).unwrap().to_owned();
    assert_eq!(made.url, format!("/?session={id}&share={secret}"));
    (made, secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_shows_one_session_and_opens_nothing_else() {
    let server = TestServer::start().await;
    let (shown, other) = (server.create_ready().await, server.create_ready().await);
    let (_, secret) = share(&server, shown.id, true).await;
    let statuses = async |method: &str, path: String| {
        let by_header = request(method, &path, &[("X-Holdfast-Share", &secret)], "");
        let by_query = request(method, &format!("{path}?share={secret}"), &[], "");
        let first = raw(server.address, &by_header).await.unwrap().status;
        assert_eq!(raw(server.address, &by_query).await.unwrap().status, first, "{method} {path}");
        first
    };
    let (id, elsewhere) = (shown.id, other.id);
    for path in [format!("/api/sessions/{id}"), format!("/api/sessions/{id}/events")] {
        assert_eq!(statuses("GET", path).await, 200);
    }
    for path in [format!("/api/sessions/{elsewhere}"), format!("/api/sessions/{elsewhere}/events")]
    {
        assert_eq!(statuses("GET", path).await, 404);
    }
    for (method, path) in [
        ("GET", "/api/sessions".to_owned()),
        ("GET", "/api/events".to_owned()),
        ("GET", format!("/api/sessions/{id}/vm")),
        ("GET", format!("/api/sessions/{id}/explain")),
        ("GET", format!("/api/sessions/{id}/console")),
        ("GET", format!("/api/sessions/{id}/shares")),
        ("POST", format!("/api/sessions/{id}/heartbeat")),
        ("POST", format!("/api/sessions/{id}/shares")),
        ("POST", format!("/api/sessions/{id}/exec")),
        ("POST", format!("/api/sessions/{id}/hibernate")),
        ("DELETE", format!("/api/sessions/{id}")),
    ] {
        assert_eq!(statuses(method, path.clone()).await, 401, "{method} {path}");
    }
    let terminal = format!("/api/sessions/{id}/terminal?share={secret}");
    assert_eq!(Viewer::open(&server, &terminal, "", false).await.unwrap_err().0, 403);
    // A token does not make more of it.
    let body = server.ask("", "GET", &format!("/api/sessions/{id}?share={secret}"), "").await;
    let session: holdfast_api::Session = serde_json::from_slice(&body.body).unwrap();
    assert_eq!((session.id, session.owner.as_str()), (id, ""));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_sees_and_cannot_type() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let (_, secret) = share(&server, session.id, true).await;
    let before = server.client.session(session.id).await.unwrap();
    let mut viewer = Viewer::shown(&server, session.id, &secret).await.unwrap();
    viewer.greeting().await;
    viewer.picture().await;
    // Keys, clicks and the clipboard go nowhere: the simulated server would take them too, so what
    // is passed on is proven where it is decided, in the gateway's reader of RFB.
    viewer.say(&[4, 1, 0, 0, 0, 0, 0, 97]).await;
    viewer.say(&[5, 1, 0, 10, 0, 10]).await;
    viewer.ping_and_pong().await;
    // It neither counts as a stream nor as a heartbeat.
    let explained = server.client.explain(session.id).await.unwrap();
    assert_eq!((explained.lease.streams, explained.lease.expires_at), (0, before.expires_at));
    // A message that is not known is not guessed at.
    viewer.say(&[252, 1, 2, 3]).await;
    assert_eq!(viewer.close_code().await, Some(4403));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_link_ends_what_was_opened_with_it() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let (made, secret) = share(&server, session.id, true).await;
    let (_, kept) = share(&server, session.id, false).await;
    assert_eq!(server.client.shares(session.id).await.unwrap().shares.len(), 2);
    let mut viewer = Viewer::shown(&server, session.id, &secret).await.unwrap();
    let mut stays = Viewer::shown(&server, session.id, &kept).await.unwrap();
    viewer.greeting().await;
    stays.greeting().await;
    server.client.revoke_share(session.id, made.share.id).await.unwrap();
    assert_eq!(viewer.close_code().await, Some(4401));
    assert_eq!(Viewer::shown(&server, session.id, &secret).await.unwrap_err().0, 401);
    server.client.revoke_share(session.id, made.share.id).await.unwrap();
    let unknown = server.client.revoke_share(session.id, Uuid::nil()).await.unwrap_err();
    assert_eq!(unknown.code(), Some(Code::NotFound));
    stays.ping_and_pong().await;
    server.client.end_session(session.id).await.unwrap();
    assert_eq!(stays.close_code().await, Some(4410));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_owner_shares_and_only_sensibly() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let bob = server.owner("bob").await;
    let wanted = CreateShare::default();
    assert_eq!(bob.share(session.id, &wanted).await.unwrap_err().code(), Some(Code::NotFound));
    assert_eq!(bob.shares(session.id).await.unwrap_err().code(), Some(Code::NotFound));
    for minutes in [0, 10_081] {
        let refused = server.client.share(session.id, &CreateShare { minutes, ..wanted }).await;
        assert_eq!(refused.unwrap_err().code(), Some(Code::Invalid), "{minutes}");
    }
    server.client.end_session(session.id).await.unwrap();
    until("it ended", async || server.client.session(session.id).await.is_err()).await;
    let refused = server.client.share(session.id, &wanted).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Gone));
    server.stop().await;
}

/// What was opened with a token does not outlive it.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_its_streams() {
    let server = TestServer::start().await;
    let body = holdfast_api::CreateToken { owner: "ann".into(), ..Default::default() };
    let token = server.client.create_token(&body).await.unwrap();
    let ann = server.with_token(&token.secret);
    let session = crate::server::create(&ann).await;
    crate::server::until_state(&ann, session.id, "ready").await;
    let path = format!("/api/sessions/{}", session.id);
    let mut desktop =
        Viewer::open(&server, &format!("{path}/desktop"), &token.secret, false).await.unwrap();
    let mut terminal =
        Viewer::open(&server, &format!("{path}/terminal"), &token.secret, false).await.unwrap();
    let mut events = ann.follow(session.id, 0).await.unwrap();
    desktop.greeting().await;
    server.client.revoke_token(token.token.id).await.unwrap();
    assert_eq!(desktop.close_code().await, Some(4401));
    assert_eq!(terminal.close_code().await, Some(4401));
    let over = async { while let Ok(Some(_)) = events.next().await {} };
    tokio::time::timeout(crate::server::DEADLINE, over).await.expect("the timeline ends");
    server.stop().await;
}
