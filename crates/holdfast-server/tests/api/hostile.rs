//! Input that nobody means well with: the server answers with a problem, or closes, and goes on.

use std::fmt::Write as _;

use holdfast_api::Code;

use crate::{
    http::{raw, request},
    server::TestServer,
};

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_answered_with_problems() {
    let server = TestServer::start().await;
    let bearer = format!("Bearer {}", server.token);
    let json = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let long_path = format!("/api/sessions/{}", "a".repeat(20_000));
    let table: Vec<(&str, &str, &str, Code)> = vec![
        ("GET", "/api/nothing", "", Code::NotFound),
        ("GET", "/api", "", Code::NotFound),
        ("GET", "/nothing", "", Code::NotFound),
        ("GET", "/../../etc/passwd", "", Code::NotFound),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", "", Code::NotFound),
        ("GET", "/assets/..%2f..%2fCargo.toml", "", Code::NotFound),
        ("GET", "/%00", "", Code::NotFound),
        ("PUT", "/", "", Code::MethodNotAllowed),
        ("PATCH", "/api/sessions", "", Code::MethodNotAllowed),
        ("BREW", "/api/sessions", "", Code::MethodNotAllowed),
        ("GET", "/api/login", "", Code::MethodNotAllowed),
        ("GET", "/api/sessions/x", "", Code::NotFound),
        ("GET", "/api/sessions/%ff%fe", "", Code::NotFound),
        ("GET", "/api/sessions/%00", "", Code::NotFound),
        ("GET", "/api/sessions/00000000-0000-0000-0000-00000000000G", "", Code::NotFound),
        ("GET", "/api/sessions/01936F2E-7C1A-7E65-A3F0-2D8A9F3B1C44", "", Code::NotFound),
        ("GET", long_path.as_str(), "", Code::NotFound),
        ("DELETE", "/api/tokens/x", "", Code::NotFound),
        ("GET", "/api/sessions?state=nonsense", "", Code::Invalid),
        ("GET", "/api/sessions?nonsense=1", "", Code::BadRequest),
        ("POST", "/api/sessions", "{", Code::BadRequest),
        ("POST", "/api/sessions", "\u{0}", Code::BadRequest),
        ("POST", "/api/sessions", deep.as_str(), Code::Invalid),
        ("POST", "/api/sessions", "{\"memoryMib\":1e999}", Code::BadRequest),
        ("POST", "/api/sessions", "{\"name\":\"\\ud800\"}", Code::BadRequest),
        ("POST", "/api/sessions", "{\"memoryMib\":18446744073709551616}", Code::Invalid),
        ("POST", "/api/sessions", "{\"memoryMib\":-1}", Code::Invalid),
        ("POST", "/api/sessions", "{\"vcpus\":256}", Code::Invalid),
        ("POST", "/api/sessions", "{\"nonsense\":1}", Code::Invalid),
        ("POST", "/api/sessions", "{\"name\":\"a\",\"name\":\"b\"}", Code::Invalid),
        ("POST", "/api/sessions", "[]", Code::Invalid),
        ("POST", "/api/sessions", "null", Code::Invalid),
        ("POST", "/api/login", "{}", Code::Invalid),
        ("POST", "/api/login", "{\"token\":\"\\u0000\"}", Code::Unauthorized),
        ("POST", "/api/tokens", "{\"owner\":\"\"}", Code::Invalid),
        ("POST", "/api/tokens", "{\"owner\":\"a\",\"expiresInDays\":4000000000}", Code::Invalid),
    ];
    for (method, path, body, code) in table {
        let answer = raw(server.address, &request(method, path, &json, body)).await;
        let answer =
            answer.unwrap_or_else(|| panic!("no answer to {method} {path:.80} {body:.80}"));
        assert_eq!(answer.code(), code, "{method} {path:.80} {body:.80}");
    }
    assert!(server.client.sessions(None).await.unwrap().sessions.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_types_are_limited() {
    let server = TestServer::start().await;
    let bearer = format!("Bearer {}", server.token);
    let typed =
        |kind: &'static str| [("Authorization", bearer.clone()), ("Content-Type", kind.into())];
    let send = async |headers: [(&str, String); 2], body: &str| {
        let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        raw(server.address, &request("POST", "/api/sessions", &headers, body)).await.unwrap().code()
    };
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(70_000));
    assert_eq!(send(typed("application/json"), &large).await, Code::TooLarge);
    assert_eq!(send(typed("text/plain"), "{}").await, Code::UnsupportedMediaType);
    assert_eq!(send(typed("application/jsonx"), "{}").await, Code::UnsupportedMediaType);
    assert_eq!(send(typed(""), "{}").await, Code::UnsupportedMediaType);
    // A form of another page could send this without asking first.
    let form = typed("application/x-www-form-urlencoded");
    assert_eq!(send(form, "{}").await, Code::UnsupportedMediaType);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_close_one_connection_and_nothing_else() {
    let server = TestServer::start().await;
    let flood = {
        let mut text = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n".to_owned();
        for n in 0..5_000 {
            write!(text, "X-{n}: y\r\n").unwrap();
        }
        text + "\r\n"
    };
    let long =
        format!("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let post = "POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("many headers", flood.into_bytes()),
        ("a long header", long.into_bytes()),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\n{{}}").into_bytes()),
        ("a huge length", format!("{post}Content-Length: 99999999999999999999\r\n\r\n{{}}").into_bytes()),
        ("two lengths", format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}").into_bytes()),
        ("length and chunks", format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").into_bytes()),
        ("a NUL in the head", b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\0b\r\n\r\n".to_vec()),
        ("an odd version", b"GET /livez HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n".to_vec()),
        ("no host", b"GET /livez HTTP/1.1\r\n\r\n".to_vec()),
        ("bytes in the token", b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n".to_vec()),
        ("bytes in the host", b"GET /api/version HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n".to_vec()),
        ("bytes in the cookie", b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: holdfast_=\xff\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in table {
        if let Some(answer) = raw(server.address, &bytes).await {
            assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
        }
        assert_eq!(server.get("/livez").await.status, 200, "after {what}");
    }
    server.stop().await;
}
