//! Rows of VMs.

use holdfast_core::{Generation, SessionId, Vm, VmId, VmState};

use super::{Backend, Link, args, convert};
use crate::{Result, StoreError};

const INSERT: &str = "\
    INSERT INTO holdfast.vms
        (id, session_id, host_id, state, driver, image, address, incarnation, secret, created_at,
         state_since, generation)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT DO NOTHING";

const UPDATE: &str = "\
    UPDATE holdfast.vms
    SET session_id = $3, host_id = $4, state = $5, driver = $6, image = $7, address = $8,
        incarnation = $9, secret = $10, state_since = $11, generation = generation + 1
    WHERE id = $1 AND generation = $2";

pub(super) async fn get<B: Backend>(backend: &B, id: VmId) -> Result<Option<Vm>> {
    find(&mut backend.read().await?, id, "").await
}

pub(super) async fn live<B: Backend>(backend: &B) -> Result<Vec<Vm>> {
    let sql = "SELECT * FROM holdfast.vms WHERE state <> $1 ORDER BY id";
    let rows = backend.read().await?.fetch(sql, args![VmState::Gone.as_str()]).await?;
    rows.iter().map(convert::vm).collect()
}

/// A VM by id; `lock` is [`Backend::LOCK_ROWS`] when it is written next.
pub(super) async fn find<L: Link>(link: &mut L, id: VmId, lock: &str) -> Result<Option<Vm>> {
    let sql = format!("SELECT * FROM holdfast.vms WHERE id = $1{lock}");
    link.fetch_optional(&sql, args![id]).await?.as_ref().map(convert::vm).transpose()
}

/// Ties a VM to a session that is being made: a new row, or one that waits in a pool.
pub(super) async fn tie<B: Backend>(
    tx: &mut B::Link,
    mut vm: Vm,
    session: SessionId,
) -> Result<Vm> {
    vm.session = Some(session);
    match find(tx, vm.id, B::LOCK_ROWS).await? {
        Some(stored) if stored.session.is_some() => Err(StoreError::Stale { what: "vm" }),
        Some(stored) => write(tx, &stored, vm).await,
        None if vm.generation != Generation::FIRST => Err(not_found(vm.id)),
        None => {
            insert(tx, &vm).await?;
            Ok(vm)
        }
    }
}

/// Makes a row.
pub(super) async fn insert<L: Link>(tx: &mut L, vm: &Vm) -> Result<()> {
    let written = tx.execute(INSERT, insert_args(vm)).await?;
    if written == 1 { Ok(()) } else { Err(StoreError::Stale { what: "vm" }) }
}

/// Writes a VM that was read under a lock if it still has the generation that `vm` carries.
pub(super) async fn write<L: Link>(tx: &mut L, stored: &Vm, mut vm: Vm) -> Result<Vm> {
    if stored.generation != vm.generation {
        return Err(StoreError::Stale { what: "vm" });
    }
    if stored.state != vm.state && !stored.state.can_become(vm.state) {
        return Err(StoreError::Transition {
            what: "vm",
            from: stored.state.to_string(),
            to: vm.state.to_string(),
        });
    }
    let written = tx
        .execute(
            UPDATE,
            args![
                vm.id,
                vm.generation.0,
                vm.session,
                vm.host,
                vm.state.as_str(),
                vm.driver.as_str(),
                vm.image.as_str(),
                vm.address.map(|a| a.to_string()),
                vm.incarnation,
                vm.secret.as_deref(),
                vm.state_since,
            ],
        )
        .await?;
    if written != 1 {
        return Err(StoreError::Stale { what: "vm" });
    }
    vm.created_at = stored.created_at;
    vm.generation = vm.generation.next();
    Ok(vm)
}

pub(super) fn not_found(id: VmId) -> StoreError {
    StoreError::NotFound { what: "vm", id: id.to_string() }
}

fn insert_args(vm: &Vm) -> Vec<super::Value> {
    args![
        vm.id,
        vm.session,
        vm.host,
        vm.state.as_str(),
        vm.driver.as_str(),
        vm.image.as_str(),
        vm.address.map(|a| a.to_string()),
        vm.incarnation,
        vm.secret.as_deref(),
        vm.created_at,
        vm.state_since,
        vm.generation.0,
    ]
}
