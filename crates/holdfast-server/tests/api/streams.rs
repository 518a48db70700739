//! WebSockets into a machine, and the codes they close with.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use holdfast_api::Problem;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};
use uuid::Uuid;

use crate::server::{DEADLINE, TestServer, until};

#[derive(Debug)]
pub struct Viewer {
    socket: WebSocketStream<TcpStream>,
}

impl Viewer {
    /// Opens a path; as a browser when an origin is sent. The status and problem where refused.
    pub async fn open(
        server: &TestServer,
        path: &str,
        token: &str,
        browser: bool,
    ) -> Result<Self, (u16, Option<Problem>)> {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
        let headers = request.headers_mut();
        if !token.is_empty() {
            headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        if browser {
            headers.insert("origin", format!("http://{}", server.address).parse().unwrap());
        }
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(Error::Http(answer)) => {
                let problem = serde_json::from_slice(answer.body().as_deref().unwrap_or_default());
                Err((answer.status().as_u16(), problem.ok()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn desktop(server: &TestServer, id: Uuid) -> Result<Self, (u16, Option<Problem>)> {
        let path = format!("/api/sessions/{id}/desktop");
        Self::open(server, &path, &server.token, false).await
    }

    /// Leaves with the goodbye of a browser.
    pub async fn close(mut self) {
        self.socket.close(None).await.unwrap();
    }

    /// Reads the greeting of a VNC server.
    pub async fn greeting(&mut self) {
        let bytes = self.binary().await;
        assert!(bytes.starts_with(b"RFB "), "{bytes:?}");
    }

    async fn binary(&mut self) -> Vec<u8> {
        let reading = async {
            loop {
                match self.socket.next().await.expect("it goes on").unwrap() {
                    Message::Binary(bytes) => return bytes.to_vec(),
                    Message::Close(frame) => panic!("closed: {frame:?}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("bytes come")
    }

    /// The code that the server closes with; `None` when it closes without one.
    pub async fn close_code(&mut self) -> Option<u16> {
        let reading = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => return frame.map(|f| f.code.into()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("it closes")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_statuses_for_programs_and_close_codes_for_browsers() {
    let server = TestServer::start().await;
    let ended = server.create_ready().await;
    server.client.end_session(ended.id).await.unwrap();
    until("it ended", async || server.client.session(ended.id).await.is_err()).await;
    let bob = {
        let body = holdfast_api::CreateToken { owner: "bob".into(), ..Default::default() };
        server.client.create_token(&body).await.unwrap().secret
    };
    let live = server.create_ready().await;
    let admin = server.token.clone();
    for (what, id, token, status, code) in [
        ("never existed", Uuid::nil(), &admin, 404, 4404),
        ("ended", ended.id, &admin, 410, 4410),
        ("somebody else's", live.id, &bob, 404, 4404),
        ("no token", live.id, &String::new(), 401, 4401),
    ] {
        for stream in ["desktop", "terminal"] {
            let path = format!("/api/sessions/{id}/{stream}");
            let (got, problem) = Viewer::open(&server, &path, token, false).await.expect_err(what);
            assert_eq!((got, problem.unwrap().status), (status, status), "{what} {stream}");
            let mut viewer = Viewer::open(&server, &path, token, true).await.expect(what);
            assert_eq!(viewer.close_code().await, Some(code), "{what} {stream}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_is_carried_and_ends_with_its_session() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let mut viewer = Viewer::desktop(&server, session.id).await.unwrap();
    viewer.greeting().await;
    let explained = server.client.explain(session.id).await.unwrap();
    assert_eq!(explained.lease.streams, 1);
    server.client.end_session(session.id).await.unwrap();
    assert_eq!(viewer.close_code().await, Some(4410));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_leaves_is_noticed() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let mut viewer = Viewer::desktop(&server, session.id).await.unwrap();
    viewer.greeting().await;
    viewer.socket.close(None).await.unwrap();
    drop(viewer);
    until("no stream is open", async || {
        server.client.explain(session.id).await.unwrap().lease.streams == 0
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_carried() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    let path = format!("/api/sessions/{}/terminal?cols=100&rows=30", session.id);
    let mut viewer = Viewer::open(&server, &path, &server.token, false).await.unwrap();
    viewer.socket.send(Message::binary(b"echo marker-42\r".to_vec())).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("marker-42") {
        seen.extend(viewer.binary().await);
    }
    for bad in ["cols=0", "rows=1001", "cols=x", "cols=99999999999"] {
        let path = format!("/api/sessions/{}/terminal?{bad}", session.id);
        let refused = Viewer::open(&server, &path, &server.token, false).await.err().unwrap();
        assert_eq!(refused.0, 422, "{bad}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_viewer_is_let_go() {
    let server = TestServer::start().await;
    let session = server.create_ready().await;
    // Reads nothing and so answers no ping, but keeps its connection.
    let viewer = Viewer::desktop(&server, session.id).await.unwrap();
    let began = tokio::time::Instant::now();
    until("no stream is open", async || {
        server.client.explain(session.id).await.unwrap().lease.streams == 0
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    drop(viewer);
    server.stop().await;
}

impl Viewer {
    /// Opens the desktop with a share link's secret alone.
    pub async fn shown(
        server: &TestServer,
        id: Uuid,
        secret: &str,
    ) -> Result<Self, (u16, Option<Problem>)> {
        Self::open(server, &format!("/api/sessions/{id}/desktop?share={secret}"), "", false).await
    }

    /// Says something to the VNC server.
    pub async fn say(&mut self, bytes: &[u8]) {
        self.socket.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    /// Goes through the handshake and sees that pictures come.
    pub async fn picture(&mut self) {
        self.say(b"RFB 003.008\n\x01\x00").await;
        // Version, security types, result, and the size of the screen.
        let mut seen = 0;
        while seen < 12 + 2 + 4 + 24 {
            seen += self.binary().await.len();
        }
        self.say(&[3, 0, 0, 0, 0, 0, 5, 0, 3, 32]).await;
        while seen < 1280 * 800 * 4 {
            seen += self.binary().await.len();
        }
    }

    /// Proves that the stream is still carried: the server answers a ping.
    pub async fn ping_and_pong(&mut self) {
        self.socket.send(Message::Ping(b"still there"[..].into())).await.unwrap();
        let reading = async {
            while let Some(message) = self.socket.next().await {
                match message.unwrap() {
                    Message::Pong(data) if data == b"still there"[..] => return,
                    Message::Close(frame) => panic!("closed: {frame:?}"),
                    _ => {}
                }
            }
            panic!("closed");
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("an answer");
    }
}
