//! Sign-ins, sealed credentials, deliveries, share links, owners' keys, checkpoints.

use holdfast_core::{
    Checkpoint, Generation, HostId, SessionState, SignIn, SignInStep, SnapshotId, VmId, VmState,
    provider::Flow,
    signin::{SealedFile, SealedInfo, Webhook},
};
use uuid::Uuid;

use super::{
    Pair,
    sample::{self, at},
};
use crate::{Change, Delivery, Sealed, ShareLink, StoreError, Taken};

fn sign_in(session: holdfast_core::SessionId) -> SignIn {
    SignIn {
        session,
        provider: "codex".into(),
        flow: Flow::Loopback,
        run: 1,
        step: SignInStep::Tool,
        step_since: at(1),
        url: Some("https://auth.example/?state=ü".into()),
        user_code: Some("ABCD-1234".into()),
        wants_input: true,
        outcome: None,
        why: None,
        output: "line\nline".into(),
        recipients: vec!["age1x".into(), "age1y".into()],
        webhook: Some(Webhook { url: "https://hooks.example/".into(), secret: "s".repeat(16) }),
        expires_at: Some(at(900)),
        generation: Generation::FIRST,
    }
}

async fn create(store: &dyn crate::Store) -> (crate::Created, SignIn) {
    let mut new = sample::new_session(sample::owner());
    let sign_in = sign_in(new.session.id);
    new.sign_in = Some(sign_in.clone());
    (store.create_session(new).await.expect("created"), sign_in)
}

fn sealed(session: holdfast_core::SessionId) -> Sealed {
    let file = SealedFile { path: ".codex/auth.json".into(), size: 12, mode: 0o600 };
    let info =
        SealedInfo { files: vec![file], sealed_at: at(10), expires_at: at(100), fetched_at: None };
    Sealed { session, ciphertext: vec![0, 1, 2, 255], info }
}

pub(super) async fn a_sign_in_is_made_with_its_session(Pair { first, second }: Pair) {
    let (created, made) = create(first.as_ref()).await;
    let read = second.sign_in(created.session.id).await.expect("read");
    assert_eq!(read, Some(made.clone()));
    assert_eq!(second.open_sign_ins().await.expect("read"), [made]);
    let plain = sample::create(first.as_ref()).await;
    assert_eq!(first.sign_in(plain.session.id).await.expect("read"), None);
}

pub(super) async fn a_sign_in_is_written_under_its_generation(Pair { first, second }: Pair) {
    let (created, made) = create(first.as_ref()).await;
    let to = |step| SignIn { step, ..made.clone() };
    let change = |sign_in| Change { sign_in: Some(sign_in), ..Change::default() };
    let written = first.apply(change(to(SignInStep::Link))).await.expect("allowed");
    let written = written.sign_in.expect("written");
    assert_eq!(written.generation, Generation::FIRST.next());
    let stale = second.apply(change(to(SignInStep::Link))).await;
    assert!(matches!(stale, Err(StoreError::Stale { what: "sign-in" })), "{stale:?}");
    let skipped = SignIn { step: SignInStep::Machine, ..written.clone() };
    let refused = first.apply(change(skipped)).await;
    assert!(matches!(refused, Err(StoreError::Transition { .. })), "{refused:?}");
    let done = SignIn { step: SignInStep::Done, ..written };
    first.apply(change(done)).await.expect("allowed");
    assert!(first.open_sign_ins().await.expect("read").is_empty());
    assert!(second.sign_in(created.session.id).await.expect("read").expect("there").is_done());
}

pub(super) async fn credentials_are_handed_over_once(Pair { first, second }: Pair) {
    let (created, made) = create(first.as_ref()).await;
    let id = created.session.id;
    assert!(matches!(first.take_sealed(id, at(20)).await, Ok(Taken::Never)));
    let done = SignIn { step: SignInStep::Done, ..made };
    let change = Change { sign_in: Some(done), sealed: Some(sealed(id)), ..Change::default() };
    first.apply(change).await.expect("written");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6 {
        let store = if n % 2 == 0 { first.clone() } else { second.clone() };
        tasks.spawn(async move { store.take_sealed(id, at(20)).await.expect("answered") });
    }
    let taken = tasks.join_all().await;
    let got: Vec<_> = taken
        .iter()
        .filter_map(|taken| if let Taken::Now(sealed) = taken { Some(sealed) } else { None })
        .collect();
    assert_eq!(got.len(), 1, "{taken:?}");
    assert_eq!(got[0].ciphertext, [0, 1, 2, 255]);
    let info = first.sealed_info(id).await.expect("read").expect("there");
    assert_eq!(info.fetched_at, Some(at(20)));
}

pub(super) async fn credentials_that_nobody_fetches_are_destroyed(Pair { first, .. }: Pair) {
    let (created, _) = create(first.as_ref()).await;
    let id = created.session.id;
    first.apply(Change { sealed: Some(sealed(id)), ..Change::default() }).await.expect("written");
    assert!(matches!(first.take_sealed(id, at(100)).await, Ok(Taken::Before(_))), "expired");
    assert_eq!(first.destroy_expired_sealed(at(99)).await.expect("done"), 0);
    assert_eq!(first.destroy_expired_sealed(at(100)).await.expect("done"), 1);
    let taken = first.take_sealed(id, at(50)).await.expect("answered");
    assert!(matches!(taken, Taken::Before(info) if info.fetched_at.is_none()));
}

pub(super) async fn deliveries_are_due_until_they_are_done(Pair { first, second }: Pair) {
    let (created, _) = create(first.as_ref()).await;
    let delivery = Delivery {
        id: Uuid::now_v7(),
        session: created.session.id,
        url: "https://hooks.example/".into(),
        secret: "s".repeat(16),
        body: "{}".into(),
        attempts: 0,
        next_at: Some(at(10)),
        delivered_at: None,
        last_error: None,
    };
    let change = Change { delivery: Some(delivery.clone()), ..Change::default() };
    first.apply(change).await.expect("written");
    assert!(second.due_deliveries(at(9), 10).await.expect("read").is_empty());
    assert!(second.due_deliveries(at(10), 10).await.expect("read") == [delivery.clone()]);
    let failed = Delivery {
        attempts: 1,
        next_at: Some(at(20)),
        last_error: Some("502".into()),
        ..delivery.clone()
    };
    first.update_delivery(failed.clone()).await.expect("written");
    assert!(second.due_deliveries(at(20), 10).await.expect("read") == [failed]);
    let done = Delivery { next_at: None, delivered_at: Some(at(21)), ..delivery };
    first.update_delivery(done).await.expect("written");
    assert!(second.due_deliveries(at(999), 10).await.expect("read").is_empty());
}

pub(super) async fn share_links_work_until_revoked_or_expired(Pair { first, second }: Pair) {
    let created = sample::create(first.as_ref()).await;
    let id = created.session.id;
    let link = ShareLink {
        id: Uuid::now_v7(),
        session: id,
        sha256: "ab".into(),
        view_only: true,
        created_at: at(0),
        expires_at: at(60),
        revoked_at: None,
    };
    first.create_share(link.clone()).await.expect("stored");
    let find =
        async |sha256, seconds| second.share_by_hash(sha256, at(seconds)).await.expect("read");
    assert_eq!(find("ab", 59).await.as_ref(), Some(&link));
    assert_eq!(find("ab", 60).await, None);
    assert_eq!(find("cd", 1).await, None);
    assert_eq!(second.shares(id, at(1)).await.expect("read"), std::slice::from_ref(&link));
    let other = sample::create(first.as_ref()).await.session.id;
    assert!(!first.revoke_share(other, link.id, at(2)).await.expect("answered"));
    assert!(first.revoke_share(id, link.id, at(2)).await.expect("answered"));
    assert_eq!(find("ab", 3).await, None);
    assert!(second.shares(id, at(3)).await.expect("read").is_empty());
}

pub(super) async fn an_owner_has_one_key(Pair { first, second }: Pair) {
    let owner = first.ensure_owner("ada", at(0)).await.expect("made");
    assert_eq!(first.owner_key(owner).await.expect("read"), None);
    first.set_owner_key(owner, Some("age1x".into())).await.expect("written");
    assert_eq!(second.owner_key(owner).await.expect("read").as_deref(), Some("age1x"));
    first.set_owner_key(owner, None).await.expect("written");
    assert_eq!(second.owner_key(owner).await.expect("read"), None);
    let unknown = first.set_owner_key(sample::owner(), None).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { what: "owner", .. })), "{unknown:?}");
}

pub(super) async fn a_session_gets_another_vm_and_keeps_its_checkpoint(
    Pair { first, second }: Pair,
) {
    let created = sample::create(first.as_ref()).await;
    let walk = [SessionState::Starting, SessionState::Ready, SessionState::Hibernating];
    let mut session = sample::walk(first.as_ref(), created.session, &walk).await;
    let checkpoint = Checkpoint {
        snapshot: SnapshotId::from_uuid(Uuid::now_v7()),
        host: HostId::from_uuid(Uuid::now_v7()),
        session: session.id,
        vm: created.vm.id,
        secret: "00ff".into(),
        image: "sha256:0".into(),
        taken_at: at(50),
        bytes: 1 << 33,
    };
    session.checkpoint = Some(checkpoint.clone());
    session = sample::walk(first.as_ref(), session, &[SessionState::Hibernated]).await;
    let old =
        sample::walk_vm(first.as_ref(), created.vm, &[VmState::Stopping, VmState::Gone]).await;
    let next = holdfast_core::Vm {
        id: VmId::from_uuid(Uuid::now_v7()),
        state: VmState::Planned,
        generation: Generation::FIRST,
        ..old
    };
    session.vm = Some(next.id);
    session.state = SessionState::Resuming;
    let change = Change { session: Some(session), new_vm: Some(next.clone()), ..Change::default() };
    let written = first.apply(change).await.expect("written");
    assert_eq!(written.new_vm.as_ref(), Some(&next));
    let read = second.session(created_id(&written)).await.expect("read").expect("there");
    assert_eq!((read.vm, read.checkpoint), (Some(next.id), Some(checkpoint)));
    assert_eq!(second.vm(next.id).await.expect("read"), Some(next));
}

fn created_id(change: &Change) -> holdfast_core::SessionId {
    change.session.as_ref().expect("written").id
}
