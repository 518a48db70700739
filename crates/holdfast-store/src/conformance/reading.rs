//! Reading, retention and health.

use holdfast_core::{SessionId, SessionState, VmId, VmState};
use uuid::Uuid;

use super::{
    Pair,
    sample::{self, at, event, key, new_session, owner},
};
use crate::{Change, SessionFilter};

pub(super) async fn an_unknown_id_is_none(Pair { first, .. }: Pair) {
    sample::create(&*first).await;
    let id = Uuid::now_v7();
    assert_eq!(first.session(SessionId::from_uuid(id)).await.expect("read"), None);
    assert_eq!(first.vm(VmId::from_uuid(id)).await.expect("read"), None);
}

pub(super) async fn lists_are_filtered_and_newest_first(Pair { first, .. }: Pair) {
    let (mine, other) = (owner(), owner());
    let mut ids = Vec::new();
    for seconds in 0..4 {
        let mut new = new_session(if seconds == 3 { other } else { mine });
        new.session.created_at = at(seconds);
        let made = first.create_session(new).await.expect("created").session;
        if seconds == 1 {
            sample::walk(&*first, made.clone(), &[SessionState::Starting]).await;
        }
        ids.push(made.id);
    }
    let list = async |filter| -> Vec<_> {
        let found = first.sessions(filter).await.expect("read");
        found.into_iter().map(|s| s.id).collect()
    };
    let all = SessionFilter::default();
    assert_eq!(list(all.clone()).await, [ids[3], ids[2], ids[1], ids[0]]);
    let of_mine = SessionFilter { owner: Some(mine), ..all.clone() };
    assert_eq!(list(of_mine.clone()).await, [ids[2], ids[1], ids[0]]);
    assert_eq!(list(SessionFilter { limit: Some(2), ..all.clone() }).await, [ids[3], ids[2]]);
    let states = vec![SessionState::Requested, SessionState::Ended];
    let filter = SessionFilter { states, limit: Some(10), ..of_mine };
    assert_eq!(list(filter).await, [ids[2], ids[0]]);
}

pub(super) async fn live_vms_are_those_that_are_not_gone(Pair { first, .. }: Pair) {
    let (a, b) = (sample::create(&*first).await, sample::create(&*first).await);
    let stopping = sample::walk_vm(&*first, a.vm, &[VmState::Stopping]).await;
    let live = |vms: Vec<holdfast_core::Vm>| -> Vec<_> { vms.into_iter().map(|v| v.id).collect() };
    let found = live(first.live_vms().await.expect("read"));
    assert_eq!(found, [stopping.id, b.vm.id], "a stopping VM still lives");
    sample::walk_vm(&*first, stopping, &[VmState::Gone]).await;
    assert_eq!(live(first.live_vms().await.expect("read")), [b.vm.id]);
}

pub(super) async fn ended_sessions_stay_until_they_are_purged(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await;
    let running = sample::create(&*first).await;
    let ended = sample::end(&*first, made.clone()).await;
    assert_eq!(first.purge_ended(at(100)).await.expect("purged"), 0, "the limit is exclusive");
    assert_eq!(first.session(ended.id).await.expect("read"), Some(ended.clone()));
    assert_eq!(first.purge_ended(at(101)).await.expect("purged"), 1);
    assert_eq!(first.session(ended.id).await.expect("read"), None);
    assert_eq!(first.vm(made.vm.id).await.expect("read"), None);
    assert_eq!(first.events(ended.id, 0, 10).await.expect("read"), []);
    let kept = first.session(running.session.id).await.expect("read");
    assert_eq!(kept, Some(running.session));
    assert_eq!(first.purge_ended(at(101)).await.expect("purged"), 0);
}

pub(super) async fn a_session_whose_vm_is_not_gone_is_never_purged(Pair { first, .. }: Pair) {
    let made = sample::create(&*first).await;
    let states = [SessionState::Ending, SessionState::Ended];
    let ended = sample::walk(&*first, made.session, &states).await;
    assert_eq!(first.purge_ended(at(1_000)).await.expect("purged"), 0);
    assert!(first.session(ended.id).await.expect("read").is_some());
    sample::walk_vm(&*first, made.vm, &[VmState::Stopping, VmState::Gone]).await;
    assert_eq!(first.purge_ended(at(1_000)).await.expect("purged"), 1);
}

pub(super) async fn purging_takes_keys_and_numbers_are_not_given_again(Pair { first, .. }: Pair) {
    let owner = owner();
    let mut new = new_session(owner);
    new.key = Some(key("k", "a"));
    let mut made = first.create_session(new).await.expect("created");
    // Its VM lets go of it before the end.
    made.vm.session = None;
    let change = Change { vm: Some(made.vm), ..Change::default() };
    made.vm = first.apply(change).await.expect("untied").vm.expect("written");
    let (id, vm) = (made.session.id, made.vm.id);
    sample::end(&*first, made).await;
    first.append_events(id, vec![event("last")]).await.expect("appended");
    let last = first.events(id, 0, 100).await.expect("read").pop().expect("there").seq;
    assert_eq!(first.purge_ended(at(1_000)).await.expect("purged"), 1);
    assert_eq!(first.vm(vm).await.expect("read"), None);

    let mut again = new_session(owner);
    again.key = Some(key("k", "b"));
    let again = first.create_session(again).await.expect("the key is free again");
    assert!(!again.replayed);
    let events = first.events(again.session.id, 0, 10).await.expect("read");
    assert!(events[0].seq > last, "a reader that saw {last} would miss {}", events[0].seq);
}

pub(super) async fn a_good_store_checks_out(Pair { first, second }: Pair) {
    for store in [&first, &second] {
        store.ping().await.expect("answers");
        let check = store.check().await;
        assert!(check.ok && check.code == "ok", "{check:?}");
    }
    assert!(matches!(first.kind(), "sqlite" | "postgres"));
}
