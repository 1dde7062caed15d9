//! One token fails, and the others' tenants notice nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::stand::{ACME, GLOBEX, Stand, WEST, beside, down, is_away, issuer, two_tokens, up};
use crate::common::{Clients, Dial, Installation, Server, claims, short_policy};

/// An answer without the token is one at once.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long a start may take that a token holds up which hangs: five seconds, and what a start takes.
const START_MAX: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_fails_in_processes_takes_nothing_from_the_other() {
    for fault in ["C_Sign hang", "C_Sign crash", "* answer CKR_DEVICE_REMOVED"] {
        fails("process", fault).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_fails_on_threads_takes_nothing_from_the_other() {
    for fault in ["C_Sign hang", "* answer CKR_DEVICE_REMOVED"] {
        fails("thread", fault).await;
    }
}

async fn fails(isolation: &str, fault: &str) {
    let installation = two_tokens();
    let (installation, faults) = installation.with_faults_on(WEST);
    let isolation = format!("{isolation:?}");
    let installation = installation
        .set(&format!("tokens.{WEST}.isolation"), &isolation)
        .set("signing.wait_max_ms", "1000")
        .set("limits.manual_rotations_per_day", "10000")
        .init();
    let mut stand = Stand::new(&installation).await;
    let load = Load::start(&stand.server, ACME).await;
    let before = stand.jwks(GLOBEX);

    faults.set(fault);
    stand.until("the other token is down", |readyz| down(readyz, WEST)).await;
    // The first one's tenants sign, rotate and are published; the other's are published.
    stand.rotate(ACME).await.unwrap_or_else(|status| panic!("{fault}: {status:?}"));
    let asked = Instant::now();
    is_away(stand.sign(GLOBEX).await);
    is_away(stand.rotate(GLOBEX).await);
    assert!(asked.elapsed() < AT_ONCE, "{fault}: refused after {:?}", asked.elapsed());
    assert_eq!(stand.jwks(GLOBEX), before, "{fault}");
    let (status, readyz) = stand.readyz();
    assert_eq!(status, 200, "a replica that signs is kept in service: {readyz}");
    assert!(up(&readyz, "home") && readyz["checks"]["token"] == "ok", "{readyz}");
    assert!(!readyz["tokens"][WEST]["problem"].as_str().expect("words").is_empty(), "{readyz}");
    for (series, value) in [
        (r#"keyward_ready{part="token",token="home"}"#, 1.0),
        (r#"keyward_ready{part="token",token="west"}"#, 0.0),
        (r#"keyward_token_state{state="up",token="home"}"#, 1.0),
        (r#"keyward_token_state{state="down",token="west"}"#, 1.0),
    ] {
        assert!((stand.server.metric(series) - value).abs() < f64::EPSILON, "{series}");
    }
    for (service, serving) in [
        ("", true),
        ("keyward.v1.SigningService", true),
        ("keyward.v1.TenantService", true),
        ("token/home", true),
        ("token/west", false),
    ] {
        assert_eq!(is_serving(&stand.server, service).await, serving, "{service}");
    }

    faults.clear();
    stand.until_signed(GLOBEX).await;
    stand.until("it is up again", |readyz| up(readyz, WEST)).await;
    stand.rotate(GLOBEX).await.unwrap_or_else(|status| panic!("{fault}: {status:?}"));
    let (signed, refused) = load.end().await;
    assert!(signed > 20 && refused.is_empty(), "{fault}: {signed} signed, refused: {refused:?}");
    assert!(stand.server.terminate().success());
}

/// The home token seals: without it nothing is changed, and the others' tenants sign and are published.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_home_token_the_others_tenants_sign() {
    let (installation, faults) = Installation::bare().with_faults();
    let installation = beside(installation).init();
    let mut stand = Stand::new(&installation).await;
    let load = Load::start(&stand.server, GLOBEX).await;
    faults.set("* answer CKR_DEVICE_REMOVED");
    stand.until("the home token is down", |readyz| down(readyz, "home")).await;
    is_away(stand.sign(ACME).await);
    is_away(stand.rotate(GLOBEX).await);
    assert_eq!(stand.readyz().0, 200, "it signs for some");
    for (service, serving) in [("keyward.v1.SigningService", true), ("keyward.v1.KeyService", false)] {
        assert_eq!(is_serving(&stand.server, service).await, serving, "{service}");
    }
    faults.clear();
    stand.until_signed(ACME).await;
    stand.until("it is up again", |readyz| up(readyz, "home")).await;
    stand.rotate(GLOBEX).await.expect("rotated");
    let (signed, refused) = load.end().await;
    assert!(signed > 20 && refused.is_empty(), "{signed} signed, refused: {refused:?}");
}

/// The token is renamed away before a start, and put back while the service runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_one_token_serves_the_others_tenants() {
    for isolation in [r#""process""#, r#""thread""#] {
        let home_alone = Installation::bare();
        let of_home = tokens_of(&home_alone);
        let installation = beside(home_alone);
        let installation = installation.set(&format!("tokens.{WEST}.isolation"), isolation).init();
        let mut stand = Stand::new(&installation).await;
        let kid = stand.sign(GLOBEX).await.expect("signed");
        assert!(stand.server.terminate().success());

        let west = tokens_of(&installation).into_iter().find(|token| !of_home.contains(token)).expect("its directory");
        let elsewhere = installation.dir().join("elsewhere");
        fs::rename(&west, &elsewhere).expect("renamed away");
        let mut stand = Stand::again(&installation).await;
        stand.sign(ACME).await.expect("signed");
        is_away(stand.sign(GLOBEX).await);
        assert_eq!(stand.jwks(GLOBEX)["keys"].as_array().map(Vec::len), Some(2));
        let created = stand.clients.place_tenant("new", WEST, &["ES256"], short_policy()).await;
        is_away(created);
        stand.until("it is told", |readyz| down(readyz, WEST) && up(readyz, "home")).await;

        fs::rename(&elsewhere, &west).expect("put back");
        assert_eq!(stand.until_signed(GLOBEX).await, kid, "{isolation}: the key is the same");
        assert!(stand.server.terminate().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_wait_for_a_token_that_hangs() {
    for isolation in [r#""process""#, r#""thread""#] {
        let (installation, faults) = two_tokens().with_faults_on(WEST);
        let installation = installation.set(&format!("tokens.{WEST}.isolation"), isolation).init();
        faults.set("C_Login hang");
        let begun = Instant::now();
        let mut stand = Stand::again(&installation).await;
        assert!(begun.elapsed() < START_MAX, "{isolation}: {:?}", begun.elapsed());
        stand.clients.create_tenant(ACME, &["ES256"], short_policy()).await;
        stand.sign(ACME).await.expect("signed");
        is_away(stand.clients.place_tenant(GLOBEX, WEST, &["ES256"], short_policy()).await);
        faults.clear();
        stand.until("it has come", |readyz| up(readyz, WEST)).await;
        stand.clients.place_tenant(GLOBEX, WEST, &["ES256"], short_policy()).await.expect("it is there");
        assert!(stand.server.terminate().success());
    }
}

/// The directory of each SoftHSM token.
fn tokens_of(installation: &Installation) -> Vec<PathBuf> {
    let entries = fs::read_dir(installation.token_dir()).expect("a directory");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

async fn is_serving(server: &Server, service: &str) -> bool {
    let channel = Dial::tcp(server.grpc()).connect().await.expect("it is there");
    let request = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(channel).check(request).await.expect("it is known").into_inner();
    answer.status() == ServingStatus::Serving
}

/// A caller that signs for a tenant without end.
struct Load {
    stop: Arc<AtomicBool>,
    caller: JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    async fn start(server: &Server, tenant: &str) -> Self {
        let mut clients = Clients::connect(server).await;
        let (tenant, issuer) = (tenant.to_owned(), issuer(tenant));
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let caller = tokio::spawn(async move {
            let (mut signed, mut refused) = (0, Vec::new());
            while !stopping.load(Ordering::Relaxed) {
                match clients.sign_jwt(&tenant, "", claims(&issuer, 600)).await {
                    Ok(_) => signed += 1,
                    Err(status) => refused.push(format!("{status:?}")),
                }
            }
            (signed, refused)
        });
        Self { stop, caller }
    }

    /// How many were signed, and what the others were told.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.caller.await.expect("it did not panic")
    }
}
