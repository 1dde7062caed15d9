//! What operators see besides the log: metrics and warnings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// How often what was measured is put into its buckets where nobody asks: at 10,000 calls a second, less than a MiB waits.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Upper ends of the buckets of call durations, in seconds: a signature in software takes tenths of a millisecond, a token far
/// away some ten milliseconds, a tenant's new keys seconds.
const DURATIONS: [f64; 14] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

/// Everything that is counted in this process, by the macros of the metrics crate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// From now on what is counted is kept. Once in a process, before anything is counted.
    ///
    /// # Errors
    /// It was done before.
    pub fn install() -> Result<Self, String> {
        let builder = PrometheusBuilder::new().set_buckets(&DURATIONS).map_err(|error| error.to_string())?;
        let handle = builder.install_recorder().map_err(|error| error.to_string())?;
        describe();
        Ok(Self(handle))
    }

    /// As Prometheus reads it (text format 0.0.4).
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps what is measured small until `shutdown`, also where nobody asks for it.
    pub async fn keep_up(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
            self.0.run_upkeep();
        }
    }
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("keyward_calls_total", "gRPC calls answered, by method and code");
    describe_histogram!("keyward_call_duration_seconds", "From the header of a gRPC call to the head of its answer");
    describe_gauge!("keyward_token_workers_ready", "Signing processes that are logged in");
    describe_counter!(
        "keyward_token_workers_replaced_total",
        "Worker processes that others took the place of, and how they ended"
    );
    describe_gauge!("keyward_token_queue_requests", "Signing calls that wait for a worker");
    describe_gauge!("keyward_token_queue_seconds", "What they take of the token's time, by estimate");
    describe_histogram!("keyward_token_queue_duration_seconds", "How long jobs waited for a worker");
    describe_histogram!("keyward_token_work_duration_seconds", "How long workers took for a job");
    describe_counter!("keyward_token_refused_total", "Signing calls refused because others wait, and why");
    describe_gauge!("keyward_connections", "Connections of a listener");
    describe_counter!("keyward_connections_refused_total", "Connections given up because all places were taken");
    describe_counter!(
        "keyward_unfinished_calls_refused_total",
        "Calls given up, or connections cut, because of calls that the client does not end"
    );
    describe_counter!("keyward_handshakes_refused_total", "TLS handshakes that made no connection, and why");
    describe_gauge!("keyward_file_usable", "0: the file was changed and cannot be used; what it said before stays");
    describe_gauge!("keyward_jwks_usable", "0: the URL gave no usable keys; those of before stay for a time");
    describe_gauge!("keyward_certificate_not_after_seconds", "When a server certificate expires, since 1970");
    describe_gauge!(
        "keyward_revocation_list_next_update_seconds",
        "When the first revocation list of clients is out of date, since 1970; from then on they are refused"
    );
    describe_gauge!("keyward_ready", "1: this part is well");
    describe_gauge!("keyward_token_state", "1: the token is in this state");
    describe_counter!("keyward_token_state_changes_total", "Changes of the token's state, by the state entered");
    describe_gauge!("keyward_tenants_quarantined", "Tenants whose records are not believed");
    describe_gauge!("keyward_keys_quarantined", "Current keys that sign no more, as a signature did not verify");
    describe_gauge!("keyward_reconcile_findings", "Differences between token and store at the start, by kind");
    describe_gauge!("keyward_audit_writable", "0: the log of calls cannot be written");
    describe_counter!("keyward_audit_events_lost_total", "Calls without a record, as the log could not be written");
    describe_counter!(
        "keyward_audit_refusals_not_recorded_total",
        "Refusals and failures that came too fast for a record each"
    );
    describe_counter!("keyward_audit_checkpoint_failures_total", "Checkpoints of a log that could not be made");
}

/// What is not as it should be and yet no reason to take the service out of use, by the configuration key that it is about.
/// Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<String, String>>>);

impl Warnings {
    /// Says what is wrong, in words for people who may not see paths and contents.
    pub fn set(&self, key: &str, problem: &str) {
        self.kept().insert(key.to_owned(), problem.to_owned());
    }

    /// Says that all is well again.
    pub fn clear(&self, key: &str) {
        self.kept().remove(key);
    }

    /// All that is wrong at this moment.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, String> {
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // A map is never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
