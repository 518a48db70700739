//! The end of a sign-in is announced: signed, repeated until it is taken, under one id.

use age::x25519::Identity;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use holdfast_agent_api::tool::Outcome;
use holdfast_api::{Code, CreateSession, Webhook};
use holdfast_server::Replaced;
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use uuid::Uuid;

use crate::{
    server::DEADLINE,
    signin::{Bench, until_step},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A request as the receiver got it.
struct Got {
    head: String,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim()).unwrap_or_default()
    }

    fn is_signed(&self) -> bool {
        let key = BASE64.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        let (id, time) = (self.header("webhook-id"), self.header("webhook-timestamp"));
        mac.update(format!("{id}.{time}.{}", self.body).as_bytes());
        let expected = BASE64.encode(mac.finalize().into_bytes());
        self.header("webhook-signature") == format!("v1,{expected}")
    }
}

/// Takes one request and answers it with this status.
async fn receive(listener: &TcpListener, status: u16) -> Got {
    let receiving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).await.unwrap();
            bytes.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let got = Got { head: head.to_owned(), body: body.to_owned() };
                let length: usize = got.header("content-length").parse().unwrap();
                if body.len() >= length {
                    let answer = format!(
                        "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return got;
                }
            }
            assert!(count > 0, "the request ended early: {text}");
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.expect("a delivery")
}

fn request(url: String, secret: &str) -> CreateSession {
    CreateSession {
        provider: Some("codex".to_owned()),
        recipient: Some(Identity::generate().to_public().to_string()),
        webhook: Some(Webhook { url, secret: secret.to_owned() }),
        ..CreateSession::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_delivery_is_repeated_with_the_same_id() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let admit = |config: &mut holdfast_server::Config| {
        config.webhooks.allowed_hosts = vec!["127.0.0.1".to_owned()];
    };
    let bench = Bench::start_with(admit, Replaced::default()).await;
    let client = &bench.server.client;
    let key = Uuid::new_v4().to_string();
    let session = client.create_session(&request(url, SECRET), &key).await.unwrap();
    bench.tool(client, session.id, 1).await.end(Outcome::Succeeded);
    until_step(client, session.id, "it is done", |s| s.step == "done").await;

    let first = receive(&listener, 503).await;
    let second = receive(&listener, 204).await;
    assert!(first.head.starts_with("POST /hook "), "{}", first.head);
    assert!(first.is_signed() && second.is_signed());
    assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
    assert_eq!(first.body, second.body);
    let body: serde_json::Value = serde_json::from_str(&first.body).unwrap();
    assert_eq!(body["type"], "sign_in.done");
    assert_eq!(body["outcome"], "succeeded");
    assert_eq!(body["sessionId"], session.id.to_string());
    assert_eq!(body["id"], first.header("webhook-id"));
    // The secret is never shown again, and not announced.
    assert!(!first.body.contains(SECRET) && !first.head.contains(SECRET));
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_into_the_servers_own_network_is_refused() {
    let bench = Bench::start().await;
    let client = &bench.server.client;
    for (url, secret, field) in [
        ("http://127.0.0.1:1/", SECRET, "webhook.url"),
        ("http://169.254.169.254/latest", SECRET, "webhook.url"),
        ("file:///etc/passwd", SECRET, "webhook.url"),
        ("https://hooks.example.org/", "short", "webhook.secret"),
    ] {
        let key = Uuid::new_v4().to_string();
        let error = client.create_session(&request(url.to_owned(), secret), &key).await;
        let holdfast_api::client::ClientError::Refused(problem) = error.unwrap_err() else {
            panic!("{url} was not refused")
        };
        assert_eq!((problem.code, problem.field.as_deref()), (Code::Invalid, Some(field)), "{url}");
    }
    bench.server.stop().await;
}
