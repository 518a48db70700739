//! Events: numbered, in order, none missed.

use holdfast_core::{Actor, EventBody, SessionId, VmId};
use uuid::Uuid;

use super::{
    Pair,
    sample::{self, at, event},
};
use crate::StoreError;

pub(super) async fn numbers_rise_and_after_is_exclusive(Pair { first, .. }: Pair) {
    let (a, b) = (sample::create(&*first).await, sample::create(&*first).await);
    let whole = EventBody {
        vm: Some(VmId::from_uuid(Uuid::now_v7())),
        at: at(3),
        kind: "vm.state".into(),
        from: Some("planned".into()),
        to: Some("preparing".into()),
        why: "work begins".into(),
        by: Actor::Reconciler,
    };
    let batch = vec![whole.clone(), event("b"), event("c")];
    first.append_events(a.session.id, batch).await.expect("appended");
    first.append_events(b.session.id, vec![event("other")]).await.expect("appended");
    let events = first.events(a.session.id, 0, 100).await.expect("read");
    let kinds: Vec<_> = events.iter().map(|e| e.body.kind.as_str()).collect();
    assert_eq!(kinds, ["session.created", "vm.state", "b", "c"]);
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert!(events.iter().all(|e| e.session == a.session.id));
    assert_eq!(events[1].body, whole);
    let rest = first.events(a.session.id, events[1].seq, 100).await.expect("read");
    assert_eq!(rest, events[2..]);
    let page = first.events(a.session.id, events[0].seq, 2).await.expect("read");
    assert_eq!(page, events[1..3]);
    let other = first.events(b.session.id, 0, 100).await.expect("read");
    assert!(other[1].seq > events[3].seq, "numbers rise through the whole store");
}

/// A reader that goes on from the last number it saw gets every event, while writers of two servers
/// append to the same session.
pub(super) async fn a_reader_misses_nothing_while_writers_race(Pair { first, second }: Pair) {
    const WRITERS: usize = 6;
    const EACH: usize = 15;
    let id = sample::create(&*first).await.session.id;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = if writer % 2 == 0 { first.clone() } else { second.clone() };
        writers.spawn(async move {
            for n in 0..EACH {
                let batch = vec![event(&format!("{writer}.{n}")), event("second")];
                store.append_events(id, batch).await.expect("appended");
            }
        });
    }
    let reader = tokio::spawn(async move {
        let (mut seen, mut after) = (0, 0);
        let expected = 1 + WRITERS * EACH * 2;
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
        while seen < expected && tokio::time::Instant::now() < deadline {
            for event in second.events(id, after, 1_000).await.expect("read") {
                assert!(event.seq > after);
                after = event.seq;
                seen += 1;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(seen, expected, "a reader that follows numbers missed events");
    });
    writers.join_all().await;
    reader.await.expect("the reader saw everything");
}

pub(super) async fn events_need_a_session(Pair { first, .. }: Pair) {
    let unknown = SessionId::from_uuid(Uuid::now_v7());
    let refused = first.append_events(unknown, vec![event("x")]).await;
    assert!(matches!(refused, Err(StoreError::NotFound { what: "session", .. })), "{refused:?}");
    assert_eq!(first.events(unknown, 0, 10).await.expect("read"), []);
}

pub(super) async fn any_text_can_be_an_explanation(Pair { first, .. }: Pair) {
    let id = sample::create(&*first).await.session.id;
    let mut odd = event("odd");
    odd.why = "'; DROP TABLE sessions; -- $1 holdfast.\u{1b}[31m\0 🙂\n".into();
    first.append_events(id, vec![odd.clone()]).await.expect("appended");
    let events = first.events(id, 0, 10).await.expect("read");
    // Not every database can hold a zero character; all replace it alike.
    assert_eq!(events[1].body.why, odd.why.replace('\0', "\u{fffd}"));
}
