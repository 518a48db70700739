//! One suite that every store passes: plain async functions over a fresh, empty store.
//!
//! Each case gets a [`Pair`]: two handles on one database, as two servers have them. The cases
//! panic with what was wrong.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a case says what is wrong")]

mod accounts;
mod changes;
mod creation;
mod leases;
mod reading;
pub mod sample;
mod signins;
mod timeline;

use std::{future::Future, pin::Pin, sync::Arc};

use crate::Store;

/// Two handles on one database.
#[derive(Clone)]
pub struct Pair {
    /// The handle that most cases use alone.
    pub first: Arc<dyn Store>,
    /// Opened a second time.
    pub second: Arc<dyn Store>,
}

type Case = fn(Pair) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)),
               |pair| Box::pin($module::$name(pair)))),*),*]
    };
}

/// Every case with its name.
pub const CASES: &[(&str, Case)] = cases! {
    creation::{
        what_was_created_is_read_back_whole,
        session_vm_and_tie_stand_or_fall_together,
        a_vm_from_a_pool_is_tied_once,
        a_repeated_request_is_answered_with_what_was_made,
        a_key_with_another_request_is_refused,
        a_key_belongs_to_its_owner,
        a_race_with_one_key_makes_one_session,
        a_failed_creation_leaves_its_key_free,
    }
    changes::{
        a_change_writes_both_records_and_counts_generations,
        a_stale_generation_changes_nothing,
        of_many_writers_one_wins,
        a_missing_record_is_not_found,
        transitions_outside_the_tables_are_refused,
        the_whole_table_of_sessions_is_enforced,
        a_change_never_writes_what_was_asked_for,
        opposite_orders_do_not_wait_for_each_other,
    }
    leases::{
        a_lease_never_gets_shorter,
        only_touches_write_leases,
        unknown_ids_are_passed_over,
        touches_from_two_servers_do_not_wait_for_each_other,
    }
    timeline::{
        numbers_rise_and_after_is_exclusive,
        a_reader_misses_nothing_while_writers_race,
        events_need_a_session,
        any_text_can_be_an_explanation,
    }
    reading::{
        an_unknown_id_is_none,
        lists_are_filtered_and_newest_first,
        live_vms_are_those_that_are_not_gone,
        ended_sessions_stay_until_they_are_purged,
        a_session_whose_vm_is_not_gone_is_never_purged,
        purging_takes_keys_and_numbers_are_not_given_again,
        a_good_store_checks_out,
    }
    signins::{
        a_sign_in_is_made_with_its_session,
        a_sign_in_is_written_under_its_generation,
        credentials_are_handed_over_once,
        credentials_that_nobody_fetches_are_destroyed,
        deliveries_are_due_until_they_are_done,
        share_links_work_until_revoked_or_expired,
        an_owner_has_one_key,
        a_session_gets_another_vm_and_keeps_its_checkpoint,
    }
    accounts::{
        an_owner_has_one_id,
        tokens_work_until_revoked_or_expired,
        a_token_is_stored_once,
        a_host_says_the_latest,
    }
};

/// Runs every case on a fresh store and panics with the names of those that failed.
pub async fn run(fresh: impl AsyncFn() -> Pair) {
    let mut failed = Vec::new();
    for (name, case) in CASES {
        let pair = fresh().await;
        // In a task of its own, so that one failure does not hide the next.
        if tokio::spawn(case(pair)).await.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "failed on this store: {failed:#?}");
}
