//! Server-Sent Events: nothing is missed and nothing comes twice.

use holdfast_api::{
    Event,
    client::{EventStream, Update},
};
use uuid::Uuid;

use crate::server::{DEADLINE, TestServer};

async fn read(stream: &mut EventStream, until: impl Fn(&Event) -> bool) -> Vec<Event> {
    let reading = async {
        let mut events = Vec::new();
        loop {
            if let Update::Event(event) = stream.next().await.unwrap().expect("it goes on") {
                let last = until(&event);
                events.push(event);
                if last {
                    return events;
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("the event comes")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_broke() {
    let server = TestServer::start().await;
    let session = server.create().await;
    let mut stream = server.client.follow(session.id, 0).await.unwrap();
    let first = read(&mut stream, |event| event.kind == "step.disk").await;
    let last = stream.last();
    assert_eq!(last, first.last().unwrap().seq);
    drop(stream);
    let mut stream = server.client.follow(session.id, last).await.unwrap();
    let is_ready = |event: &Event| event.to.as_deref() == Some("ready");
    let second = read(&mut stream, is_ready).await;
    let seen: Vec<i64> = first.iter().chain(&second).map(|event| event.seq).collect();
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    let listed = server.client.events(session.id, 0).await.unwrap();
    let until_ready: Vec<i64> = listed
        .iter()
        .map(|event| event.seq)
        .take_while(|seq| *seq <= *seen.last().unwrap())
        .collect();
    assert_eq!(seen, until_ready);
    // What is before the end can be asked for again.
    let tail = server.client.events(session.id, seen[1]).await.unwrap();
    assert_eq!(tail[0].seq, seen[2]);
    server.client.end_session(session.id).await.unwrap();
    read(&mut stream, |event| event.to.as_deref() == Some("ended")).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_ends_its_streams() {
    let server = TestServer::start().await;
    let session = server.create().await;
    let mut stream = server.client.follow(session.id, 0).await.unwrap();
    server.stop.cancel();
    let ended = async { while let Ok(Some(_)) = stream.next().await {} };
    tokio::time::timeout(DEADLINE, ended).await.expect("it ends");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_positions_are_no_disaster() {
    let server = TestServer::start().await;
    let session = server.create().await;
    for (after, status) in
        [("-1", 200), ("9223372036854775807", 200), ("9223372036854775808", 400), ("x", 400)]
    {
        let answer =
            server.get(&format!("/api/sessions/{}/events?after={after}", session.id)).await;
        assert_eq!(answer.status, status, "{after}");
    }
    let nobody = server.client.follow(Uuid::nil(), 0).await;
    assert!(nobody.is_err());
    server.stop().await;
}
