//! Prometheus metrics of this process.

use std::{sync::OnceLock, time::Duration};

use holdfast_core::{EndReason, SignInOutcome, provider::Provider};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Codes that streams are closed with; 1006 stands for a connection that broke.
const CLOSE_CODES: [u16; 8] = [1006, 1012, 4401, 4403, 4408, 4409, 4410, 4502];
/// Time between two times that samples are summed up.
const UPKEEP: Duration = Duration::from_secs(5);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs the recorder once per process; several servers in one process share it.
pub(crate) fn handle() -> &'static PrometheusHandle {
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics will be empty");
        }
        describe();
        handle
    })
}

/// Says what each metric is.
fn describe() {
    describe_gauge!("holdfast_sessions", "Sessions of this host that have not ended, by state.");
    describe_gauge!(
        "holdfast_leases",
        "Sessions in use, or on the way there, by lease: live (somebody is attached) or expired."
    );
    describe_gauge!("holdfast_open_streams", "Streams that are open now, by kind.");
    describe_gauge!("holdfast_pool_ready", "VMs that wait for a session.");
    describe_gauge!(
        "holdfast_quarantined_vms",
        "VMs on this machine that the store does not know and that are kept, after the last sweep."
    );
    describe_gauge!(
        "holdfast_adoption_seconds",
        "How long it took this server to take over the sessions in the store."
    );
    describe_histogram!("holdfast_http_seconds", "Time to an answer, by route and status.");
    describe_histogram!(
        "holdfast_session_ready_seconds",
        "Time from a request to a desktop that can be used."
    );
    describe_counter!("holdfast_sessions_created_total", "Sessions made.");
    describe_counter!("holdfast_sessions_ended_total", "Sessions ended, by reason.");
    describe_counter!("holdfast_heartbeats_total", "Heartbeats taken.");
    describe_counter!("holdfast_adopted_sessions_total", "Sessions taken over at a start.");
    describe_counter!("holdfast_reconcile_steps_total", "Steps planned, by step.");
    describe_counter!("holdfast_reconcile_errors_total", "Steps that could not be done.");
    describe_counter!("holdfast_start_failures_total", "Attempts at starting a VM that failed.");
    describe_counter!("holdfast_failed_probes_total", "Probes that found something wrong.");
    describe_counter!(
        "holdfast_repairs_total",
        "Repairs by rung of the ladder; given_up: every one was tried."
    );
    describe_counter!("holdfast_teardown_retries_total", "Attempts to remove a VM that failed.");
    describe_counter!("holdfast_orphans_removed_total", "VMs without an owner that were removed.");
    describe_counter!("holdfast_hibernations_total", "Sessions put away.");
    describe_counter!("holdfast_pool_claims_total", "Sessions that got a VM that waited.");
    describe_counter!("holdfast_warm_failures_total", "VMs that a warm image did not bring up.");
    describe_counter!("holdfast_sign_ins_total", "Sign-ins at their end, by provider and outcome.");
    describe_counter!(
        "holdfast_webhook_attempts_total",
        "Webhooks sent, by whether they were taken."
    );
    describe_counter!(
        "holdfast_stream_drops_total",
        "Streams that no viewer closed, by close code; 1006: the connection broke."
    );
}

/// Lets every series whose labels are known begin at zero, so that its first event is an increase.
pub(crate) fn count_from_zero(providers: &[Provider]) {
    for name in [
        "holdfast_sessions_created_total",
        "holdfast_heartbeats_total",
        "holdfast_adopted_sessions_total",
        "holdfast_reconcile_errors_total",
        "holdfast_start_failures_total",
        "holdfast_failed_probes_total",
        "holdfast_teardown_retries_total",
        "holdfast_orphans_removed_total",
        "holdfast_hibernations_total",
        "holdfast_pool_claims_total",
        "holdfast_warm_failures_total",
    ] {
        counter!(name).increment(0);
    }
    for reason in EndReason::ALL {
        counter!("holdfast_sessions_ended_total", "reason" => reason.as_str()).increment(0);
    }
    for rung in ["service", "resume", "restore", "boot", "given_up"] {
        counter!("holdfast_repairs_total", "rung" => rung).increment(0);
    }
    for code in CLOSE_CODES {
        counter!("holdfast_stream_drops_total", "code" => code.to_string()).increment(0);
    }
    for taken in [true, false] {
        counter!("holdfast_webhook_attempts_total", "taken" => taken.to_string()).increment(0);
    }
    for provider in providers.iter().filter(|provider| provider.tool.is_some()) {
        for outcome in SignInOutcome::ALL {
            counter!("holdfast_sign_ins_total", "provider" => provider.name.clone(), "outcome" => outcome.as_str()).increment(0);
        }
    }
    for kind in ["desktop", "terminal"] {
        gauge!("holdfast_open_streams", "kind" => kind).increment(0.0);
    }
    gauge!("holdfast_pool_ready").increment(0.0);
    gauge!("holdfast_quarantined_vms").increment(0.0);
}

/// Sums samples up. Without it each of them is kept until somebody reads the metrics, which nobody
/// may ever do.
pub(crate) async fn keep_short() {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handle().run_upkeep();
    }
}
