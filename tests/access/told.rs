use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyward::grpc::proto::{ListTenantsRequest, SignJwtRequest};
use tonic::Code;

use crate::stand::{Stand, records};

/// How long the noise may take to be too much, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Calls that are denied while others make noise.
const DENIED: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_nothing_cannot_hide_who_is_denied() {
    let stand = Stand::open(true).await;
    let issuer = stand.clients_of("issuer", "URI:spiffe://example.com/issuer").await;
    let loud = Arc::new(AtomicBool::new(true));
    let mut noise = Vec::new();
    for _ in 0..4 {
        let (mut clients, loud) = (stand.clients(None).await, Arc::clone(&loud));
        noise.push(tokio::spawn(async move {
            while loud.load(Ordering::Relaxed) {
                let _ = clients.tenants.list_tenants(ListTenantsRequest::default()).await;
            }
        }));
    }
    let deadline = Instant::now() + WAIT_MAX;
    while stand.server.metric("keyward_audit_refusals_not_recorded_total") == 0.0 {
        assert!(Instant::now() < deadline, "all of the noise is recorded");
        tokio::time::sleep(POLL).await;
    }
    for _ in 0..DENIED {
        let sign = SignJwtRequest { tenant: "b2b".into(), claims_json: b"{}".to_vec(), ..SignJwtRequest::default() };
        let status = issuer.clone().signing.sign_jwt(sign).await.expect_err("it is for acme alone");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    loud.store(false, Ordering::Relaxed);
    for task in noise {
        task.await.expect("it ends");
    }
    let told = || records(&stand.installation).iter().filter(|record| record["result"] == "PERMISSION_DENIED").count();
    while told() < DENIED {
        assert!(Instant::now() < deadline, "of {DENIED} calls that were denied {} are recorded", told());
        tokio::time::sleep(POLL).await;
    }
}
