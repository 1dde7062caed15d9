//! One tenant asks for far more than the token signs, for as long as a test goes on: the others are served, refusals say when to
//! come again, memory stays bounded and health answers.
//!
//! Nothing is timed: each wait has a limit that only a server exceeds which is brought down. `make bench` has the figures.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::http::get;
use common::{Clients, Installation, Server, claims, short_policy};
use keyward::grpc::proto::batch_sign_input::Input as BatchInput;
use keyward::grpc::proto::sign_request::Input;
use keyward::grpc::proto::{BatchSignInput, BatchSignRequest, SignRequest};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const FLOOD: &str = "flood";
const POLITE: &str = "polite";
/// More than this wait for the token at no time.
const DEPTH_MAX: usize = 32;
/// Calls that the flood has under way, and on how many connections.
const FLIGHTS: usize = 200;
const CONNECTIONS: usize = 4;
/// Calls of the polite tenant with each algorithm, one after another.
const CALLS: usize = 20;
/// More than one call can be made to wait, on two busy cores too.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// What calls that are refused may make the server hold: their buffers, and what the allocator keeps of them.
const MEMORY_GROWTH_KIB_MAX: u64 = 96 << 10;

/// Calls of one tenant, each made anew as soon as it is answered.
struct Flood {
    ending: Arc<AtomicBool>,
    signed: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    flights: JoinSet<()>,
}

impl Flood {
    /// Begins, and waits until calls are refused.
    async fn begin(server: &Server) -> Self {
        let mut flood =
            Self { ending: Arc::default(), signed: Arc::default(), refused: Arc::default(), flights: JoinSet::new() };
        for _ in 0..CONNECTIONS {
            let clients = Clients::connect(server).await;
            (0..FLIGHTS / CONNECTIONS).for_each(|_| flood.fly(clients.clone()));
        }
        let refused = async {
            while flood.refused.load(Ordering::Relaxed) < FLIGHTS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, refused).await.expect("a flood is refused");
        flood
    }

    fn fly(&mut self, mut clients: Clients) {
        let ending = Arc::clone(&self.ending);
        let (signed, refused) = (Arc::clone(&self.signed), Arc::clone(&self.refused));
        self.flights.spawn(async move {
            while !ending.load(Ordering::Relaxed) {
                match clients.signing.sign(request(FLOOD, "RS256")).await {
                    Ok(_) => signed.fetch_add(1, Ordering::Relaxed),
                    Err(status) => {
                        assert_refused(&status);
                        refused.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
    }

    /// Ends, and fails if a call was answered in any other way than with a signature or a proper refusal.
    async fn end(mut self) -> (usize, usize) {
        self.ending.store(true, Ordering::Relaxed);
        while let Some(flight) = self.flights.join_next().await {
            flight.expect("it was signed, or refused as it should be");
        }
        (self.signed.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

fn request(tenant: &str, algorithm: &str) -> SignRequest {
    let input = Some(Input::Message(b"message".to_vec()));
    SignRequest { tenant: tenant.into(), algorithm: algorithm.into(), input, ..SignRequest::default() }
}

/// RESOURCE_EXHAUSTED, with a time to come again that is neither now nor never.
fn assert_refused(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.get_details_error_info().expect("ErrorInfo").reason, "TOKEN_QUEUE_FULL", "{status:?}");
    let delay = status.get_details_retry_info().and_then(|retry| retry.retry_delay).expect("RetryInfo");
    assert!(!delay.is_zero() && delay < WAIT_MAX, "{delay:?}");
}

/// While the flood goes on, each of these calls has to be answered, and with a signature.
async fn signs(clients: &mut Clients, issuer: &str) {
    for algorithm in ["RS256", "ES256"] {
        for call in 0..CALLS {
            let signed = tokio::time::timeout(WAIT_MAX, clients.sign_jwt(POLITE, algorithm, claims(issuer, 600))).await;
            signed.expect("answered").unwrap_or_else(|status| panic!("{algorithm}, call {call}: {status:?}"));
        }
    }
    let inputs = vec![BatchSignInput { input: Some(BatchInput::Message(b"message".to_vec())) }; 256];
    let (tenant, algorithm) = (POLITE.into(), "RS256".into());
    let batch = BatchSignRequest { tenant, algorithm, inputs, ..BatchSignRequest::default() };
    let signed = tokio::time::timeout(WAIT_MAX, clients.signing.batch_sign(batch)).await.expect("answered");
    assert_eq!(signed.expect("signed").into_inner().signatures.len(), 256);
}

async fn who_is_polite_is_served_during_a_flood(isolation: &str) {
    let installation = Installation::bare()
        .set("token.isolation", &format!("{isolation:?}"))
        .set("token.queue_depth_max", &DEPTH_MAX.to_string())
        // A batch of 256 RSA signatures has to be made beside the flood, on two busy cores.
        .set("signing.wait_max_ms", "60000")
        .set("token.call_timeout_ms", "60000")
        .init();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant(FLOOD, &["RS256"], short_policy()).await;
    let issuer = clients.create_tenant(POLITE, &["RS256", "ES256"], short_policy()).await.issuer;
    signs(&mut clients, &issuer).await;
    let memory = server.memory_peak_kib();

    let flood = Flood::begin(&server).await;
    signs(&mut clients, &issuer).await;
    // The service's own signatures have their turns: a new tenant's records are sealed.
    clients.create_tenant("newcomer", &["ES256"], short_policy()).await;
    assert_eq!(get(&format!("{}/healthz", server.ops())).status, 200);
    assert_eq!(get(&server.jwks_uri(POLITE)).status, 200);
    let waiting = server.metric(r#"keyward_token_queue_requests{token="home"}"#);
    let (signed, refused) = flood.end().await;

    eprintln!(
        "{isolation}: the flood had {signed} signatures and {refused} refusals; {waiting} were waiting at the end"
    );
    assert!(signed > 0, "who floods has what the others leave");
    // The service's own beside the tenants', and what workers give back.
    assert!(waiting <= (2 * DEPTH_MAX) as f64, "{waiting} waiting");
    let growth = server.memory_peak_kib() - memory;
    assert!(growth < MEMORY_GROWTH_KIB_MAX, "{growth} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_polite_is_served_during_a_flood_on_threads() {
    who_is_polite_is_served_during_a_flood("thread").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_polite_is_served_during_a_flood_on_processes() {
    who_is_polite_is_served_during_a_flood("process").await;
}
