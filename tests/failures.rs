//! What goes on when the token or the store does not, and how the ops listener tells of it (docs/rotation.md, R1, R8, R9, R10).

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::http::get;
use common::{Clients, Installation, Server, claims, short_policy, tools};
use keyward::grpc::proto::{
    GetCurrentKeyRequest, GetSigningKeyRequest, ListSigningKeysRequest, RotateSigningKeyRequest,
};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, query};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How long a failure or a recovery may take until readyz tells it, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// A call that needs a token that is away is answered in this time, on two busy cores too.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// And one that is known to be down in this.
const REFUSAL_AT_ONCE_MAX: Duration = Duration::from_millis(250);
/// A token that is back signs in this time.
const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// Shorter than the failures of these tests last: signing must not live off a snapshot's youth.
const SNAPSHOT_MAX_AGE: Duration = Duration::from_secs(3);

const TENANT: &str = "acme";
const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];

/// A tenant with a key of each family, on an installation that the test breaks.
struct Stand {
    server: Server,
    clients: Clients,
    issuer: String,
    installation: Installation,
}

impl Stand {
    async fn new() -> Self {
        let age = SNAPSHOT_MAX_AGE.as_millis().to_string();
        let installation = Installation::prepare().set("signing.snapshot_max_age_ms", &age);
        let server = installation.serve();
        let mut clients = Clients::connect(&server).await;
        let issuer = clients.create_tenant(TENANT, &ALGORITHMS, short_policy()).await.issuer;
        let stand = Self { server, clients, issuer, installation };
        stand.readyz_tells(None);
        stand
    }

    /// Waits until readyz names this part, and it alone, or none.
    fn readyz_tells(&self, failing: Option<&str>) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let answer = get(&format!("{}/readyz", self.server.ops()));
            let body: Value = answer.json();
            let well = |part: &str| body["checks"][part] == "ok";
            let as_expected = ["token", "store", "snapshot"].iter().all(|part| well(part) != (failing == Some(*part)));
            if as_expected {
                let (status, word) = if failing.is_some() { (503, "unready") } else { (200, "ready") };
                assert_eq!((answer.status.as_u16(), &body["status"]), (status, &Value::from(word)), "{body}");
                return;
            }
            assert!(Instant::now() < deadline, "readyz does not tell {failing:?} but {body}");
            thread::sleep(POLL);
        }
    }

    /// Waits until metrics tell that the token entered this state so often.
    fn token_goes_through(&self, state: &str, times: u32) {
        let line = format!("keyward_token_state_changes_total{{state=\"{state}\",token=\"home\"}} {times}");
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let answer = get(&format!("{}/metrics", self.server.ops()));
            let text = String::from_utf8(answer.body).expect("text");
            if text.lines().any(|told| told == line) {
                return;
            }
            assert!(Instant::now() < deadline, "metrics do not tell {line}: {text}");
            thread::sleep(POLL);
        }
    }

    /// A JWT of each family; the kids that signed.
    async fn sign(&mut self) -> Result<Vec<String>, Status> {
        let mut kids = Vec::new();
        for algorithm in ALGORITHMS {
            kids.push(self.clients.sign_jwt(TENANT, algorithm, claims(&self.issuer, 600)).await?.kid);
        }
        Ok(kids)
    }

    /// The kids that sign when the token is back. Until then it is UNAVAILABLE and nothing else.
    async fn signs_again(&mut self) -> Vec<String> {
        let deadline = Instant::now() + RECOVERY_MAX;
        loop {
            match self.sign().await {
                Ok(kids) => return kids,
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            }
            assert!(Instant::now() < deadline, "the token is back for {RECOVERY_MAX:?} and nothing is signed");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn rotate(&mut self) -> Result<(), Status> {
        let request = RotateSigningKeyRequest {
            tenant: TENANT.into(),
            algorithm: "EdDSA".into(),
            force: true,
            ..RotateSigningKeyRequest::default()
        };
        self.clients.keys.rotate_signing_key(request).await.map(drop)
    }

    /// UNAVAILABLE with this reason and a pause, and nothing internal (R12).
    fn unavailable(&self, reason: &str, status: &Status) {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_details_error_info().expect("ErrorInfo").reason, reason, "{status:?}");
        assert!(status.get_details_retry_info().is_some(), "{status:?}");
        let whole = format!("{} {}", status.message(), String::from_utf8_lossy(status.details()));
        let directory = self.installation.dir().to_str().expect("a path in UTF-8");
        for internal in [directory, "CKR_", "sqlite", "object"] {
            assert!(!whole.contains(internal), "{internal} is told in {whole:?}");
        }
    }

    fn store_path(&self) -> PathBuf {
        self.installation.dir().join("store.sqlite")
    }

    fn jwks(&self) -> Vec<u8> {
        let answer = get(&self.server.jwks_uri(TENANT));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }
}

/// Asks healthz all the time.
struct Watch {
    ending: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    asking: JoinHandle<()>,
}

impl Watch {
    fn begin(server: &Server) -> Self {
        let (ending, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let url = format!("{}/healthz", server.ops());
        let (stop, count) = (Arc::clone(&ending), Arc::clone(&asked));
        let asking = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(get(&url).status, 200);
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(POLL);
            }
        });
        Self { ending, asked, asking }
    }

    fn end(self) {
        self.ending.store(true, Ordering::Relaxed);
        self.asking.join().expect("healthz was 200 all along");
        assert!(self.asked.load(Ordering::Relaxed) > 10);
    }
}

fn moved(path: &Path) -> PathBuf {
    path.with_extension("away")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_shows_the_protection_that_the_token_tells() {
    let mut stand = Stand::new().await;
    let mut slots = tools::softhsm2_util();
    let slots = slots.arg("--show-slots").env("SOFTHSM2_CONF", stand.installation.softhsm_conf()).output();
    let slots = String::from_utf8(slots.expect("softhsm2-util runs").stdout).expect("text");
    let request = ListSigningKeysRequest { tenant: TENANT.into(), ..ListSigningKeysRequest::default() };
    let keys = stand.clients.keys.list_signing_keys(request).await.expect("a list").into_inner().keys;
    assert_eq!(keys.len(), 2 * ALGORITHMS.len());
    let mut ids = Vec::new();
    for key in keys {
        let request = GetSigningKeyRequest { tenant: TENANT.into(), kid: key.kid.clone() };
        let key = stand.clients.keys.get_signing_key(request).await.expect("the key").into_inner();
        let shown = key.protection.expect("the token was asked");
        assert!(shown.sensitive && shown.always_sensitive && shown.never_extractable && shown.local, "{shown:?}");
        assert!(!shown.extractable, "{shown:?}");
        assert_eq!(shown.token_label, "keyward");
        assert!(!shown.token_serial.is_empty() && slots.contains(&shown.token_serial), "{shown:?} against {slots}");
        assert!(shown.token_manufacturer.contains("SoftHSM") && shown.token_model.contains("SoftHSM"), "{shown:?}");
        assert!(shown.cka_id.len() == 32 && shown.cka_id.bytes().all(|letter| letter.is_ascii_hexdigit()));
        ids.push(shown.cka_id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2 * ALGORITHMS.len(), "each key has an id of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_goes_on_with_the_stores_file_gone() {
    let mut stand = Stand::new().await;
    let watch = Watch::begin(&stand.server);
    let (kids, jwks) = (stand.sign().await.expect("signed"), stand.jwks());
    let path = stand.store_path();
    fs::rename(&path, moved(&path)).expect("the store is moved away");
    let gone = Instant::now();

    stand.readyz_tells(Some("store"));
    let status = stand.rotate().await.expect_err("a rotation without a store");
    stand.unavailable("STORE_UNAVAILABLE", &status);
    while gone.elapsed() < 2 * SNAPSHOT_MAX_AGE {
        assert_eq!(stand.sign().await.expect("signing needs no store"), kids);
    }
    assert_eq!(stand.jwks(), jwks, "the refused rotation is nowhere to be seen");
    stand.readyz_tells(Some("store"));

    fs::rename(moved(&path), &path).expect("the store is put back");
    stand.readyz_tells(None);
    stand.rotate().await.expect("the store is back");
    assert_ne!(stand.jwks(), jwks);
    watch.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_goes_on_with_a_store_that_cannot_be_written() {
    let mut stand = Stand::new().await;
    let watch = Watch::begin(&stand.server);
    let kids = stand.sign().await.expect("signed");
    // Another process that writes: until it ends, the store can be read alone.
    let mut shell = SqliteConnectOptions::new().filename(stand.store_path()).connect().await.expect("the store");
    let writing = shell.begin_with("BEGIN IMMEDIATE").await.expect("the lock");
    let locked = Instant::now();
    stand.readyz_tells(Some("store"));
    let status = stand.rotate().await.expect_err("a rotation without a writable store");
    stand.unavailable("STORE_UNAVAILABLE", &status);
    while locked.elapsed() < 2 * SNAPSHOT_MAX_AGE {
        assert_eq!(stand.sign().await.expect("signing needs no store"), kids);
    }
    writing.rollback().await.expect("the lock is let go");
    stand.readyz_tells(None);
    stand.rotate().await.expect("the store is back");
    watch.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jwks_is_served_with_the_token_gone_and_signing_comes_back_with_it() {
    let mut stand = Stand::new().await;
    let watch = Watch::begin(&stand.server);
    let (kids, jwks) = (stand.sign().await.expect("signed"), stand.jwks());
    let path = stand.installation.token_dir();
    fs::rename(&path, moved(&path)).expect("the token is moved away");

    for algorithm in ALGORITHMS {
        let asked = Instant::now();
        let signing = stand.clients.sign_jwt(TENANT, algorithm, claims(&stand.issuer, 600)).await;
        let status = signing.expect_err("signing without a token");
        assert!(asked.elapsed() < REFUSAL_MAX, "answered after {:?}", asked.elapsed());
        stand.unavailable("TOKEN_UNAVAILABLE", &status);
        assert_eq!(stand.jwks(), jwks);
    }
    stand.readyz_tells(Some("token"));
    assert_eq!(stand.jwks(), jwks);
    let shown: Value = get(&format!("{}/readyz", stand.server.ops())).json();
    assert_eq!(shown["tokens"]["home"]["state"], "down", "{shown}");
    let asked = Instant::now();
    let status = stand.sign().await.expect_err("signing with a token that is down");
    assert!(asked.elapsed() < REFUSAL_AT_ONCE_MAX, "answered after {:?}", asked.elapsed());
    stand.unavailable("TOKEN_UNAVAILABLE", &status);
    let asked = Instant::now();
    let status = stand.rotate().await.expect_err("nothing can be sealed");
    assert!(asked.elapsed() < REFUSAL_MAX, "answered after {:?}", asked.elapsed());
    stand.unavailable("TOKEN_UNAVAILABLE", &status);
    // R8: nothing is concluded from a token that shows nothing.
    let request = GetCurrentKeyRequest { tenant: TENANT.into(), algorithm: String::new() };
    stand.clients.signing.get_current_key(request).await.expect("the current key is known without the token");

    fs::rename(moved(&path), &path).expect("the token is put back");
    assert_eq!(stand.signs_again().await, kids, "other keys than before");
    stand.readyz_tells(None);
    stand.token_goes_through("recovering", 1);
    stand.token_goes_through("down", 1);
    assert_eq!(stand.jwks(), jwks);
    stand.rotate().await.expect("keys are generated again");
    watch.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_while_its_token_is_away_and_signs_when_it_comes() {
    for isolation in ["thread", "process"] {
        let mut stand = Stand::new().await;
        let (kids, jwks) = (stand.sign().await.expect("signed"), stand.jwks());
        let Stand { server, installation, issuer, .. } = stand;
        assert!(server.terminate().success());
        let installation = installation.set("token.isolation", &format!("{isolation:?}"));
        let path = installation.token_dir();
        fs::rename(&path, moved(&path)).expect("the token is moved away");

        let server = installation.serve();
        let clients = Clients::connect(&server).await;
        stand = Stand { server, clients, issuer, installation };
        stand.readyz_tells(Some("token"));
        assert_eq!(stand.jwks(), jwks, "what is published needs no token");
        let status = stand.sign().await.expect_err("signing without a token");
        stand.unavailable("TOKEN_UNAVAILABLE", &status);

        fs::rename(moved(&path), &path).expect("the token is put back");
        assert_eq!(stand.signs_again().await, kids, "{isolation}: other keys than before");
        stand.rotate().await.expect("keys are generated");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_the_store_does_not_confirm_is_served_and_not_signed_from() {
    let mut stand = Stand::new().await;
    let watch = Watch::begin(&stand.server);
    let (kids, jwks) = (stand.sign().await.expect("signed"), stand.jwks());
    let mut shell = SqliteConnectOptions::new().filename(stand.store_path()).connect().await.expect("the store");
    query("alter table tenant rename to mislaid").execute(&mut shell).await.expect("no record can be read");

    stand.readyz_tells(Some("snapshot"));
    let status = stand.sign().await.expect_err("signing from an old snapshot");
    stand.unavailable("SNAPSHOT_TOO_OLD", &status);
    assert_eq!(stand.jwks(), jwks, "verifiers are served what was true last");

    query("alter table mislaid rename to tenant").execute(&mut shell).await.expect("they can be read again");
    stand.readyz_tells(None);
    assert_eq!(stand.sign().await.expect("the snapshot is young again"), kids);
    watch.end();
}
