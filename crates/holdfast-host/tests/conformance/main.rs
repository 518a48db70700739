//! What every driver promises, tried with each. The guests of real drivers are a few dozen bytes, so the
//! whole suite takes seconds. Needs root, as running VMs does.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bed;
mod census;
mod crash;
mod escape;
mod inside;
mod jail;
mod orphans;
mod promises;
mod real;
mod vmm;

/// One test per promise and driver.
macro_rules! tried_with {
    ($driver:ident, $bed:ty, [$($module:ident::$name:ident),+ $(,)?]) => {
        mod $driver {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    use crate::bed::Bed as _;
                    let bed = <$bed>::new();
                    crate::$module::$name(&bed).await;
                    bed.leaves_nothing().await;
                }
            )+
        }
    };
}
/// What every driver promises, and more of one.
macro_rules! tried_as_driver {
    ($driver:ident, $bed:ty, [$($more:tt)*]) => {
        tried_with!(
            $driver,
            $bed,
            [
                promises::a_probe_gives_evidence,
                promises::a_vm_lives_and_ends,
                promises::every_call_may_be_repeated,
                promises::an_id_has_one_specification,
                promises::nothing_can_be_destroyed,
                promises::no_start_without_a_network,
                promises::another_driver_adopts,
                promises::three_clones_of_one_snapshot,
                promises::a_foreign_snapshot_is_refused,
                $($more)*
            ]
        );
    };
}

/// What every driver with a real VMM promises, and more of one.
macro_rules! tried_as_vmm {
    ($driver:ident, $bed:ty, [$($more:tt)*]) => {
        tried_as_driver!(
            $driver,
            $bed,
            [
                real::clones_go_on_where_the_snapshot_was,
                real::a_clone_can_be_snapshotted,
                real::a_snapshot_fits_what_is_said,
                real::a_damaged_snapshot_is_refused,
                real::an_unusable_image_is_refused,
                real::a_killed_vmm_is_seen_and_starts_again,
                real::a_stopped_vmm_is_not_dead,
                real::a_hung_vmm_is_said,
                real::a_guest_that_resets_ends_its_vmm,
                real::a_process_that_nobody_recorded_is_found,
                real::a_process_without_a_directory_is_found,
                real::a_missing_tap_is_said,
                real::a_full_disk_is_said,
                real::a_snapshot_that_has_no_room_leaves_nothing,
                real::a_state_that_the_vmm_refuses_is_said,
                real::a_console_is_cut_while_the_guest_writes,
                real::another_instance_is_left_alone,
                escape::a_vmm_has_no_privileges,
                escape::a_vmm_holds_nothing_of_the_host_s,
                escape::a_vmm_has_its_own_network_alone,
                escape::a_vmm_is_in_groups_of_its_own,
                escape::nothing_is_reached_from_inside,
                escape::no_more_threads_than_allowed,
                escape::no_more_memory_than_allowed,
                real::a_dial_into_a_silent_guest_has_a_deadline,
                orphans::whatever_is_left_is_found,
                orphans::what_cannot_be_read_goes_too,
                orphans::what_cannot_be_read_at_all_hides_no_other,
                orphans::what_nobody_can_come_back_to_goes,
                crash::a_killed_server_s_vm_is_taken_over,
                crash::what_a_killed_server_tried_is_ended,
                crash::a_trial_that_is_given_up_is_ended,
                $($more)*
            ]
        );
    };
}

tried_as_driver!(sim, crate::bed::SimBed, []);

tried_as_vmm!(
    qemu,
    crate::bed::QemuBed,
    [
        real::a_chatty_guest_does_not_fill_the_disk,
        real::snapshots_of_clones_share_what_they_have_in_common,
    ]
);

tried_as_vmm!(
    firecracker,
    crate::bed::FirecrackerBed,
    [
        jail::a_vmm_sees_its_jail_alone,
        jail::a_lost_socket_is_said,
        jail::a_link_in_a_jail_leads_nowhere,
        jail::an_interrupted_start_is_made_anew,
        jail::an_image_s_kernel_has_to_print,
        vmm::a_refusal_is_passed_on,
        vmm::no_room_in_the_jail_is_said,
        vmm::what_is_configured_is_what_runs,
        vmm::snapshots_are_whole_though_only_changes_are_written,
    ]
);
