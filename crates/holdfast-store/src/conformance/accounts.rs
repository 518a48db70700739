//! Owners, tokens and hosts.

use std::net::Ipv4Addr;

use holdfast_core::{HostId, OwnerId};
use uuid::Uuid;

use super::{Pair, sample::at};
use crate::{HostRecord, NewToken, StoreError, TokenRecord};

pub(super) async fn an_owner_has_one_id(Pair { first, second }: Pair) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = if n % 2 == 0 { first.clone() } else { second.clone() };
        tasks.spawn(async move { store.ensure_owner("ada", at(0)).await.expect("made") });
    }
    let ids = tasks.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_ne!(first.ensure_owner("bob", at(0)).await.expect("made"), ids[0]);
    assert_eq!(second.owner_name(ids[0]).await.expect("read").as_deref(), Some("ada"));
    let unknown = OwnerId::from_uuid(Uuid::now_v7());
    assert_eq!(first.owner_name(unknown).await.expect("read"), None);
}

fn token(sha256: &str, seconds: i64) -> NewToken {
    NewToken {
        id: Uuid::now_v7(),
        owner: OwnerId::from_uuid(Uuid::now_v7()),
        name: "laptop".into(),
        sha256: sha256.into(),
        admin: seconds % 2 == 0,
        created_at: at(seconds),
        expires_at: None,
    }
}

pub(super) async fn tokens_work_until_revoked_or_expired(Pair { first, .. }: Pair) {
    let for_ever = first.create_token(token("aa", 0)).await.expect("stored");
    let mut limited = token("bb", 1);
    limited.expires_at = Some(at(10));
    let limited = first.create_token(limited).await.expect("stored");
    let find =
        async |sha256, seconds| first.token_by_hash(sha256, at(seconds)).await.expect("read");

    assert_eq!(find("aa", 5).await.as_ref(), Some(&for_ever));
    assert_eq!(find("bb", 9).await.as_ref(), Some(&limited));
    assert_eq!(find("bb", 10).await, None, "expired");
    assert_eq!(find("AA", 5).await, None);
    assert_eq!(find("", 5).await, None);

    assert!(first.revoke_token(for_ever.id, at(6)).await.expect("revoked"));
    assert!(first.revoke_token(for_ever.id, at(7)).await.expect("revoked"));
    assert!(!first.revoke_token(Uuid::now_v7(), at(7)).await.expect("none"));
    assert_eq!(find("aa", 5).await, None, "revoked");
    let revoked = TokenRecord { revoked_at: Some(at(6)), ..for_ever };
    assert_eq!(first.tokens().await.expect("read"), [limited, revoked]);
}

pub(super) async fn a_token_is_stored_once(Pair { first, .. }: Pair) {
    first.create_token(token("aa", 0)).await.expect("stored");
    let refused = first.create_token(token("aa", 1)).await;
    assert!(matches!(refused, Err(StoreError::Stale { what: "token" })), "{refused:?}");
}

pub(super) async fn a_host_says_the_latest(Pair { first, second }: Pair) {
    let mut host = HostRecord {
        id: HostId::from_uuid(Uuid::now_v7()),
        name: "one".into(),
        driver: "qemu".into(),
        driver_reason: "no usable KVM".into(),
        cpus: 2,
        memory_mib: 24_576,
        version: "0.1.0".into(),
        address: None,
        seen_at: at(0),
        draining_since: None,
    };
    first.upsert_host(host.clone()).await.expect("written");
    host.seen_at = at(10);
    host.address = Some(Ipv4Addr::LOCALHOST);
    host.driver = "firecracker".into();
    host.draining_since = Some(at(5));
    second.upsert_host(host.clone()).await.expect("written");
    assert_eq!(first.hosts().await.expect("read"), [host]);
}
