//! Who may call what: tokens, owners, administrators, cookies, other web pages.

use holdfast_api::{Code, CreateToken};

use crate::{
    http::{UPGRADE, raw, request},
    server::{TestServer, create, until_state},
};

#[tokio::test(flavor = "multi_thread")]
async fn owners_do_not_see_each_other() {
    let server = TestServer::start().await;
    let (ann, bob) = (server.owner("ann").await, server.owner("bob").await);
    let hers = create(&ann).await;
    until_state(&ann, hers.id, "ready").await;
    assert_eq!(hers.owner, "ann");
    let id = hers.id;
    let not_found = Some(Code::NotFound);
    assert_eq!(bob.session(id).await.unwrap_err().code(), not_found);
    assert_eq!(bob.session_vm(id).await.unwrap_err().code(), not_found);
    assert_eq!(bob.heartbeat(id).await.unwrap_err().code(), not_found);
    assert_eq!(bob.end_session(id).await.unwrap_err().code(), not_found);
    assert_eq!(bob.events(id, 0).await.unwrap_err().code(), not_found);
    assert_eq!(bob.console(id).await.unwrap_err().code(), not_found);
    assert_eq!(bob.explain(id).await.unwrap_err().code(), not_found);
    assert!(bob.sessions(None).await.unwrap().sessions.is_empty());
    assert_eq!(ann.sessions(None).await.unwrap().sessions.len(), 1);
    // The administrator sees and names everybody's.
    let all = server.client.sessions(None).await.unwrap().sessions;
    assert_eq!(all.iter().map(|s| s.owner.as_str()).collect::<Vec<_>>(), ["ann"]);
    let none = server.get("/api/sessions?owner=bob").await;
    assert!(String::from_utf8_lossy(&none.body).contains(r#""sessions":[]"#));
    // Administration is not for owners.
    assert_eq!(ann.vms().await.unwrap_err().code(), Some(Code::Forbidden));
    assert_eq!(ann.tokens().await.unwrap_err().code(), Some(Code::Forbidden));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_stops_working_at_once() {
    let server = TestServer::start().await;
    let body = CreateToken { owner: "ann".to_owned(), ..CreateToken::default() };
    let made = server.client.create_token(&body).await.unwrap();
    let ann = server.with_token(&made.secret);
    assert_eq!(ann.version().await.unwrap().owner, "ann");
    server.client.revoke_token(made.token.id).await.unwrap();
    assert_eq!(ann.version().await.unwrap_err().code(), Some(Code::Unauthorized));
    let known = server.client.tokens().await.unwrap().tokens;
    assert!(known.iter().any(|token| token.id == made.token.id && token.revoked_at.is_some()));
    assert!(!format!("{known:?}").contains(&made.secret));
    let again = server.client.revoke_token(uuid::Uuid::nil()).await.unwrap_err();
    assert_eq!(again.code(), Some(Code::NotFound));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_visit_keeps_the_token_as_a_cookie() {
    let server = TestServer::start().await;
    let path = format!("/?token={}&session=x", server.token);
    let host = server.address.to_string();
    let visit = |extra: &[(&'static str, &'static str)]| {
        let mut headers = vec![("Host", host.as_str())];
        headers.extend_from_slice(extra);
        request("GET", &path, &headers, "")
    };
    let answer = raw(server.address, &visit(&[])).await.unwrap();
    assert_eq!((answer.status, answer.header("location")), (303, Some("/?session=x")));
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains("Secure"), "{cookie}");
    let answer = raw(server.address, &visit(&[("X-Forwarded-Proto", "https")])).await.unwrap();
    assert!(answer.header("set-cookie").unwrap().contains("; Secure"));
    let pair = cookie.split(';').next().unwrap();
    let headers = [("Host", host.as_str()), ("Cookie", pair)];
    let answer = raw(server.address, &request("GET", "/api/version", &headers, "")).await.unwrap();
    assert_eq!(answer.status, 200);
    // A wrong token gives no cookie.
    let wrong = raw(server.address, &request("GET", "/?token=hf_wrong", &[], "")).await.unwrap();
    assert_eq!((wrong.status, wrong.header("set-cookie")), (303, None));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_pages_and_other_names_are_refused_also_for_websockets() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let host = server.address.to_string();
    let bearer = format!("Bearer {}", server.token);
    let desktop = format!("/api/sessions/{}/desktop", session.id);
    let ours = format!("http://{host}");
    for (host, origin, allowed) in [
        (host.as_str(), ours.as_str(), true),
        (host.as_str(), "https://evil.example", false),
        (host.as_str(), "null", false),
        (host.as_str(), "http://127.0.0.1:1", false),
        ("evil.example", "http://evil.example", false),
        ("localhost.evil.example", "", false),
    ] {
        for path in ["/api/version", desktop.as_str()] {
            let mut headers = vec![("Host", host), ("Authorization", bearer.as_str())];
            if !origin.is_empty() {
                headers.push(("Origin", origin));
            }
            if path != "/api/version" {
                headers.extend(UPGRADE);
            }
            let answer = raw(server.address, &request("GET", path, &headers, "")).await.unwrap();
            let refused = answer.status == 403;
            assert_eq!(refused, !allowed, "{host} {origin} {path}: {}", answer.status);
        }
    }
    let twice = [("Host", "127.0.0.1"), ("Host", "evil.example")];
    let answer = raw(server.address, &request("GET", "/livez", &twice, "")).await.unwrap();
    assert!([400, 403].contains(&answer.status), "{answer:?}");
    server.stop().await;
}
