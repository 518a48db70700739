//! Every route of the OpenAPI document with values that nobody means well with: it answers soon, with a
//! problem where it refuses, and never as if the server were at fault.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use uuid::Uuid;

use crate::{
    http::{Answer, UPGRADE, raw, request},
    server::{DEADLINE, TestServer},
};

/// What stands where a number or an id is expected; in a URL as it is.
const WORDS: [&str; 14] = [
    "%00",
    "%ff%fe",
    "%c0%af",
    "..%2f..%2fetc%2fpasswd",
    "-1",
    "99999999999999999999999999",
    "1e999",
    "NaN",
    "0x10",
    "%27%3b%20DROP%20TABLE%20sessions%3b--",
    "%7b%7d",
    "%f0%9f%92%a9",
    "%0d%0aX-Injected:%20yes",
    "00000000-0000-0000-0000-00000000000G",
];

/// One operation of the document.
struct Route {
    method: String,
    path: String,
    queries: Vec<String>,
    headers: Vec<String>,
    /// Names of the fields of its body, where it takes one.
    fields: Option<Vec<String>>,
}

fn routes() -> Vec<Route> {
    let document: Value = serde_json::from_str(&holdfast_server::openapi::json()).unwrap();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let named = |place: &str| {
                let all = operation["parameters"].as_array().into_iter().flatten();
                let placed = all.filter(|parameter| parameter["in"] == place);
                placed.map(|p| p["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(named("path").len(), path.matches('{').count(), "{method} {path}");
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let fields = schema.as_str().map(|reference| {
                let schema =
                    &document["components"]["schemas"][reference.rsplit('/').next().unwrap()];
                schema["properties"].as_object().unwrap().keys().cloned().collect()
            });
            routes.push(Route {
                method: method.to_uppercase(),
                path: path.clone(),
                queries: named("query"),
                headers: named("header"),
                fields,
            });
        }
    }
    assert!(routes.len() > 30, "{} routes", routes.len());
    routes
}

/// Values of every wrong kind for one field.
fn values() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        Value::Null,
        json!(-1),
        json!(u64::MAX),
        json!(1e308),
        json!(true),
        json!("\u{0}"),
        json!("\u{202e}\u{feff}"),
        json!("a".repeat(60_000)),
        json!([]),
        json!({"": {}}),
        json!(["\u{0}"]),
        deep,
    ]
}

struct Attack {
    server: TestServer,
    bearer: String,
    tried: usize,
}

impl Attack {
    /// Sends it, and sees that the server answers as it should.
    async fn send(
        &mut self,
        route: &Route,
        path: &str,
        extra: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut headers = vec![("Authorization", self.bearer.as_str())];
        if route.path.ends_with("/desktop") || route.path.ends_with("/terminal") {
            headers.extend(UPGRADE);
        }
        if !body.is_empty() {
            headers.push(("Content-Type", "application/json"));
        }
        headers.extend(extra);
        let bytes = request(&route.method, path, &headers, body);
        let what = || format!("{} {path:.200} {extra:.200?} {body:.200}", route.method);
        let answer = raw(self.server.address, &bytes).await;
        let answer = answer.unwrap_or_else(|| panic!("no answer to {}", what()));
        assert!(answer.status < 500, "{}: {answer:?}", what());
        assert!(answer.header("x-injected").is_none(), "{}: {answer:?}", what());
        if answer.status >= 400 {
            answer.problem();
        }
        self.tried += 1;
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_with_hostile_values() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let bearer = format!("Bearer {}", server.token);
    let mut attack = Attack { server, bearer, tried: 0 };
    let long = "9".repeat(5_000);
    for route in routes() {
        // Ids that are none: whatever else is sent, there is no such thing.
        for word in WORDS.iter().copied().chain([long.as_str()]) {
            let Some((before, after)) = route.path.split_once('{') else { break };
            let after = after.split_once('}').map_or("", |(_, after)| after);
            let path = format!("{before}{word}{after}").replace("{share}", word);
            let body = if route.fields.is_some() { "{}" } else { "" };
            let answer = attack.send(&route, &path, &[], body).await;
            assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        }
        // A session that is there, where that is no end of it.
        let ends = ["DELETE", "/drain", "/hibernate", "/fork", "/resume"];
        let ends = ends.iter().any(|end| route.method == *end || route.path.ends_with(end));
        let id = if ends { Uuid::nil() } else { session.id };
        let path = route.path.replace("{id}", &id.to_string());
        let path = path.replace("{share}", &Uuid::nil().to_string());
        for query in route.queries.iter().map(String::as_str).chain(["%ff", "%00", "x"]) {
            for word in WORDS.iter().copied().chain([long.as_str(), ""]) {
                attack.send(&route, &format!("{path}?{query}={word}"), &[], "").await;
            }
        }
        let names = ["Last-Event-ID", "Cookie", "Origin", "Accept", "Content-Type", "Range"];
        for name in route.headers.iter().map(String::as_str).chain(names) {
            for value in
                ["-1", "99999999999999999999999", "\u{fffd}\u{fffd}", "a=b; c=\"", long.as_str()]
            {
                attack.send(&route, &path, &[(name, value)], "").await;
            }
        }
        for field in route.fields.iter().flatten() {
            for value in values() {
                attack.send(&route, &path, &[], &json!({ field: value }).to_string()).await;
            }
        }
        if route.path == "/api/drain" {
            attack.server.client.undrain().await.unwrap();
        }
    }
    let Attack { server, tried, .. } = attack;
    println!("{tried} requests");
    let now = server.client.session(session.id).await.unwrap();
    assert_eq!((now.state.as_str(), now.vm_id), ("ready", session.vm_id));
    server.stop().await;
}

/// Frames that are none, after a proper handshake: the stream ends and the server goes on.
#[tokio::test(flavor = "multi_thread")]
async fn streams_with_hostile_frames() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let bearer = format!("Bearer {}", server.token);
    let mut headers = vec![("Authorization", bearer.as_str())];
    headers.extend(UPGRADE);
    let frames: [(&str, &[u8]); 7] = [
        ("no mask", b"\x82\x05hello"),
        ("a reserved kind", b"\x83\x80\0\0\0\0"),
        ("reserved bits", b"\xf2\x80\0\0\0\0"),
        ("a frame of 8 EiB", b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0"),
        ("a long ping", b"\x89\xfe\x04\x00\0\0\0\0"),
        ("a continuation of nothing", b"\x80\x80\0\0\0\0"),
        ("text that is none", b"\x81\x82\0\0\0\0\xff\xfe"),
    ];
    for kind in ["desktop", "terminal"] {
        let path = format!("/api/sessions/{}/{kind}", session.id);
        let opening = request("GET", &path, &headers, "");
        let mut streams = JoinSet::new();
        for (what, frame) in frames {
            let (address, opening) = (server.address, opening.clone());
            streams.spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(&opening).await.unwrap();
                stream.write_all(frame).await.unwrap();
                let mut all = Vec::new();
                let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut all)).await;
                assert!(ended.is_ok(), "{kind}: {what}: the stream goes on");
                assert!(all.starts_with(b"HTTP/1.1 101 "), "{kind}: {what}");
            });
        }
        streams.join_all().await;
        // Handshakes that are none.
        for broken in [
            ("Sec-WebSocket-Key", "x"),
            ("Sec-WebSocket-Version", "99"),
            ("Upgrade", "nonsense"),
            ("Connection", "close"),
        ] {
            let mut headers = headers.clone();
            headers.retain(|(name, _)| *name != broken.0);
            headers.push(broken);
            let answer = raw(server.address, &request("GET", &path, &headers, "")).await;
            if let Some(answer) = answer.filter(|answer| answer.status != 101) {
                assert!((400..500).contains(&answer.status), "{broken:?}: {answer:?}");
                answer.problem();
            }
        }
        assert_eq!(server.get("/livez").await.status, 200);
    }
    assert_eq!(server.client.session(session.id).await.unwrap().state, "ready");
    server.stop().await;
}

/// Whoever sends slower than anybody who means well is not waited for, and keeps nobody waiting.
#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_that_do_not_come() {
    let server = TestServer::start().await;
    let head = "POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let body = format!("{head}Content-Length: 100\r\n\r\n{{");
    let mut slow = JoinSet::new();
    for (bytes, answered) in [(head, false), (body.as_str(), true)].repeat(20) {
        let bytes = bytes.to_owned();
        let address = server.address;
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let read = tokio::time::timeout(3 * DEADLINE, stream.read_to_end(&mut all)).await;
            read.expect("the connection ends").unwrap();
            let text = String::from_utf8_lossy(&all);
            let told = text.starts_with("HTTP/1.1 400 ") && text.contains("did not arrive");
            assert_eq!(told, answered, "{text}");
        });
    }
    while !slow.is_empty() {
        let asked = std::time::Instant::now();
        assert_eq!(server.get("/api/version").await.status, 200);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        let next = tokio::time::timeout(Duration::from_secs(1), slow.join_next()).await;
        if let Ok(Some(ended)) = next {
            ended.unwrap();
        }
    }
    server.stop().await;
}
