//! Certificates, client authorities and revocation lists change while the service is used.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Authority, Clients, Dial, Identity, Installation, Server, Validity, claims, http, short_policy};
use serde_json::Value;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

const URI: &str = "URI:spiffe://example.com/issuer";

/// A changed file is in use by then.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// An access that was withdrawn has ended by then: seen, the connection's age, and what a busy machine takes.
const WITHDRAWAL_WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// Clients that open a connection for each call, side by side.
const CLIENTS: usize = 4;

async fn until(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(POLL).await;
    }
    begun.elapsed()
}

/// The certificate that a handshake shows.
async fn served(dial: &Dial) -> Option<CertificateDer<'static>> {
    let stream = dial.handshake().await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?.first()?.clone().into_owned())
}

/// Opens a connection and signs once.
async fn sign(dial: &Dial, issuer: &str) -> bool {
    let Ok(channel) = dial.connect().await else { return false };
    Clients::over(channel).sign_jwt("acme", "", claims(issuer, 60)).await.is_ok()
}

fn put(installation: &Installation, identity: &Identity) {
    installation.put("grpc.pem", &identity.certificate);
    installation.put("grpc.key", &identity.key);
}

fn usable(server: &Server, key: &str) -> f64 {
    server.metric(&format!("keyward_file_usable{{key=\"{key}\"}}"))
}

fn warnings(server: &Server) -> Value {
    let answer = http::get(&format!("{}/readyz", server.ops()));
    assert_eq!(answer.status, 200, "a file that cannot be used takes nobody out of service");
    answer.json::<Value>()["warnings"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_up_under_load_and_a_bad_one_is_not() {
    let authority = Authority::new();
    let (first, second) = (authority.issue("first"), authority.issue("second"));
    let client = authority.client("client", URI);
    let installation = Installation::prepare().with_grpc_tls(&first, Some(&authority));
    let server = installation.serve();
    let dial = Dial::tls(server.grpc(), &authority, Some(&client));
    let mut clients = Clients::over(dial.connect().await.expect("connected"));
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;

    let (stop, signed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (dial, issuer, stop, signed) = (dial.clone(), issuer.clone(), Arc::clone(&stop), Arc::clone(&signed));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert!(sign(&dial, &issuer).await, "a call failed");
                    signed.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |count: usize| {
        let wanted = signed.load(Ordering::Relaxed) + count;
        until("calls", WITHDRAWAL_WAIT_MAX, async || signed.load(Ordering::Relaxed) >= wanted).await;
    };

    more(20).await;
    let expected = CertificateDer::from_pem_file(&second.certificate).expect("a certificate");
    put(&installation, &second);
    let taken = until("the new certificate", CHANGE_WAIT_MAX, async || served(&dial).await.as_ref() == Some(&expected));
    let taken = taken.await;
    more(20).await;

    fs::write(installation.dir().join("grpc.pem"), "no certificate").expect("written");
    let key = "grpc.certificate_file";
    until("the metric", CHANGE_WAIT_MAX, async || usable(&server, key) == 0.0).await;
    assert_eq!(usable(&server, "grpc.key_file"), 1.0);
    assert!(warnings(&server)[key].as_str().is_some_and(|text| text.contains("the old one stays")));
    more(20).await;
    assert_eq!(served(&dial).await.as_ref(), Some(&expected), "the old one stays");

    put(&installation, &first);
    until("the metric", CHANGE_WAIT_MAX, async || usable(&server, key) == 1.0).await;
    assert_eq!(warnings(&server), serde_json::json!({}));
    assert!(server.metric("keyward_certificate_not_after_seconds{key=\"grpc.certificate_file\"}") > 1.7e9);

    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no call failed");
    }
    let calls = server.metric("keyward_calls_total{method=\"keyward.v1.SigningService/SignJwt\",code=\"OK\"}");
    assert!(calls >= 60.0, "{calls}");
    println!(
        "{} calls, each on a connection of its own; new certificate after {taken:?}",
        signed.load(Ordering::Relaxed)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_loses_access_and_another_authority_gains_it() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (kept, revoked) = (authority.client("kept", URI), authority.client("revoked", URI));
    let newcomer = other.client("newcomer", URI);
    let installation = Installation::prepare()
        .with_grpc_tls(&authority.issue("server"), Some(&authority))
        .with_grpc_revocation_list(&authority.revocation_list())
        .set("grpc.connection_age_max_secs", "1");
    let server = installation.serve();
    let dial = |client: &Identity| Dial::tls(server.grpc(), &authority, Some(client));
    let mut clients = Clients::over(dial(&kept).connect().await.expect("connected"));
    let mut withdrawn = Clients::over(dial(&revoked).connect().await.expect("connected"));
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;

    // A channel in use all the time: it goes on over many connections, and ends with the first new one.
    withdrawn.sign_jwt("acme", "", claims(&issuer, 60)).await.expect("signed");
    authority.revoke(&revoked);
    installation.put("list.crl", &authority.revocation_list());
    let ended = until("the end of access", WITHDRAWAL_WAIT_MAX, async || {
        clients.sign_jwt("acme", "", claims(&issuer, 60)).await.expect("who is not on the list signs on");
        withdrawn.sign_jwt("acme", "", claims(&issuer, 60)).await.is_err()
    })
    .await;
    assert!(!sign(&dial(&revoked), &issuer).await);
    assert!(sign(&dial(&kept), &issuer).await);
    assert!(server.metric("keyward_handshakes_refused_total{listener=\"grpc\",reason=\"revoked\"}") >= 1.0);
    println!("a revoked certificate in constant use lost access after {ended:?}");

    // The list first: alone it cannot be used, because it is none of the authority that is there.
    assert!(!sign(&dial(&newcomer), &issuer).await);
    installation.put("list.crl", &other.revocation_list());
    until("the metric", CHANGE_WAIT_MAX, async || usable(&server, "grpc.crl_file") == 0.0).await;
    assert!(sign(&dial(&kept), &issuer).await);
    installation.put("client-ca.pem", &other.certificate());
    until("the other authority", CHANGE_WAIT_MAX, async || sign(&dial(&newcomer), &issuer).await).await;
    assert!(!sign(&dial(&kept), &issuer).await, "its authority is not believed any more");
    assert_eq!(usable(&server, "grpc.crl_file"), 1.0);
}

/// The same list with another octet in its signature.
fn forged(list: &Path) -> String {
    let mut der = CertificateRevocationListDer::from_pem_file(list).expect("a list").to_vec();
    let last = der.last_mut().expect("it is not empty");
    *last ^= 1;
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", STANDARD.encode(der))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_and_must_not_be_used_does_not_take_the_place_of_what_can() {
    let authority = Authority::new();
    let (kept, revoked) = (authority.client("kept", URI), authority.client("revoked", URI));
    let before = authority.revocation_list();
    authority.revoke(&revoked);
    let list = authority.revocation_list();
    let (first, other) = (authority.issue("first"), authority.issue("other"));
    let installation = Installation::prepare().with_grpc_tls(&first, Some(&authority)).with_grpc_revocation_list(&list);
    let server = installation.serve();
    let dial = |client: &Identity| Dial::tls(server.grpc(), &authority, Some(client));
    let mut clients = Clients::over(dial(&kept).connect().await.expect("connected"));
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;
    let shown = CertificateDer::from_pem_file(&first.certificate).expect("a certificate");
    let file = |name: &str| installation.dir().join(name);
    let refused = async |what: &str, key: &str| {
        until(what, CHANGE_WAIT_MAX, async || usable(&server, key) == 0.0).await;
        assert!(warnings(&server)[key].as_str().is_some_and(|text| text.contains("the old one stays")), "{what}");
        assert!(sign(&dial(&kept), &issuer).await, "{what}: who may call is refused");
        assert!(!sign(&dial(&revoked), &issuer).await, "{what}: who was revoked is let in");
        assert_eq!(served(&dial(&kept)).await.as_ref(), Some(&shown), "{what}");
    };
    let well = async |what: &str, key: &str| {
        until(what, CHANGE_WAIT_MAX, async || usable(&server, key) == 1.0).await;
        assert_eq!(warnings(&server), serde_json::json!({}), "{what}");
    };

    let key = "grpc.crl_file";
    installation.put("list.crl", &before);
    refused("a list of before", key).await;
    installation.put("list.crl", &list);
    well("the list", key).await;
    let outdated = authority.outdated_revocation_list();
    installation.put("list.crl", &outdated);
    refused("a list that is out of date", key).await;
    fs::write(file("list.crl"), forged(&list)).expect("written");
    refused("a list with a wrong signature", key).await;
    // Nobody ever writes into it.
    fs::remove_file(file("list.crl")).expect("removed");
    assert!(Command::new("mkfifo").arg(file("list.crl")).status().expect("it starts").success());
    refused("a pipe", key).await;
    installation.put("list.crl", &list);
    well("the list again", key).await;

    let key = "grpc.certificate_file";
    for (what, bad) in [
        ("an expired certificate", authority.issue_valid("expired", Validity::Expired)),
        ("one that is not valid yet", authority.issue_valid("early", Validity::NotYet)),
        ("a client's", authority.client("client", URI)),
    ] {
        put(&installation, &bad);
        refused(what, key).await;
        put(&installation, &first);
        well("the certificate", key).await;
    }
    fs::set_permissions(file("grpc.key"), Permissions::from_mode(0o644)).expect("opened");
    refused("a key that is open to everybody", "grpc.key_file").await;
    fs::set_permissions(file("grpc.key"), Permissions::from_mode(0o600)).expect("closed");
    well("the key", "grpc.key_file").await;
    put(&installation, &other);
    let shown = CertificateDer::from_pem_file(&other.certificate).expect("a certificate");
    until("another", CHANGE_WAIT_MAX, async || served(&dial(&kept)).await.as_ref() == Some(&shown)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_revokes_a_client_does_not_wait_for_a_certificate() {
    let authority = Authority::new();
    let (kept, revoked) = (authority.client("kept", URI), authority.client("revoked", URI));
    let list = authority.revocation_list();
    let installation = Installation::prepare()
        .with_grpc_tls(&authority.issue("first"), Some(&authority))
        .with_grpc_revocation_list(&list);
    let server = installation.serve();
    let dial = |identity: &Identity| Dial::tls(server.grpc(), &authority, Some(identity));
    let mut clients = Clients::over(dial(&kept).connect().await.expect("connected"));
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;
    assert!(sign(&dial(&revoked), &issuer).await);

    fs::write(installation.dir().join("grpc.pem"), "garbage").expect("written");
    authority.revoke(&revoked);
    installation.put("list.crl", &authority.revocation_list());
    until("it is revoked", CHANGE_WAIT_MAX, async || !sign(&dial(&revoked), &issuer).await).await;
    assert!(sign(&dial(&kept), &issuer).await, "with the old certificate");
    assert!(warnings(&server)["grpc.certificate_file"].is_string());
    assert!(server.log().iter().any(|line| line.contains("read again") && line.contains("grpc.crl_file")));
}
