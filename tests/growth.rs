//! What may not grow with the number of tenants: work is counted, not timed.

mod common;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/seals.rs"]
mod seals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::{Clients, Installation, claims, short_policy};
use keyward::domain::rotation::{Claim, Outlook, outlook};
use keyward::domain::{
    Algorithm, Caller, Certificate, Generated, Keyring, Kid, ObjectId, Revision, RotationPolicy, Tenant, TenantId,
    Timestamp, TokenName, Trigger, after,
};
use keyward::keyring::snapshot::TenantView;
use keyward::keyring::{Clock, Keyrings, RotateKeys, Tokens};
use keyward::store::{
    Change, Changes, EventPage, EventRow, Loaded, Moment, Revisions, SqlStore, Store, StoreError, TenantRecord,
    TokenBinding, TokenRecord, sqlite,
};
use keyward::tlog::Tip;
use memory::MemoryToken;
use proptest::prelude::*;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, query};
use tempfile::TempDir;

const TENANTS: usize = 40;

/// A real store that counts what it is asked.
struct Counting {
    store: SqlStore,
    /// Tenants that were loaded, one by one.
    loads: Mutex<Vec<String>>,
    /// How often every row was read.
    readings: AtomicUsize,
}

impl Counting {
    /// What was read since this was asked last.
    fn read(&self) -> (Vec<String>, usize) {
        (std::mem::take(&mut self.loads.lock().expect("no panic")), self.readings.swap(0, Ordering::SeqCst))
    }
}

#[async_trait]
impl Store for Counting {
    async fn load(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError> {
        self.loads.lock().expect("no panic").push(tenant.to_string());
        self.store.load(tenant).await
    }

    async fn load_all(&self) -> Result<Loaded, StoreError> {
        self.readings.fetch_add(1, Ordering::SeqCst);
        self.store.load_all().await
    }

    async fn revisions(&self) -> Result<Revisions, StoreError> {
        self.readings.fetch_add(1, Ordering::SeqCst);
        self.store.revisions().await
    }

    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        self.store.changes(since).await
    }

    async fn commit(&self, change: &Change) -> Result<(), StoreError> {
        self.store.commit(change).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.store.probe().await
    }

    async fn binding(&self) -> Result<TokenBinding, StoreError> {
        self.store.binding().await
    }

    async fn tokens(&self) -> Result<BTreeMap<String, Result<TokenRecord, String>>, StoreError> {
        self.store.tokens().await
    }

    async fn events(&self, page: &EventPage) -> Result<Vec<EventRow>, StoreError> {
        self.store.events(page).await
    }

    async fn log_tip(&self) -> Result<Tip, StoreError> {
        self.store.log_tip().await
    }
}

/// Many tenants on a token in memory.
struct Stand {
    keyrings: Arc<Keyrings>,
    store: Arc<Counting>,
    path: PathBuf,
    _folder: TempDir,
}

impl Stand {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.sqlite");
        let binding = TokenBinding { serial: "memory".to_owned(), label: "memory".to_owned() };
        sqlite::create(&path, &binding, &seals::witness_of(&path)).await.expect("a store");
        let store = sqlite::open(&path, seals::guard(&path)).await.expect("a store");
        let store = Arc::new(Counting { store, loads: Mutex::default(), readings: AtomicUsize::new(0) });
        let tokens = Tokens::new(Arc::new(MemoryToken::default()) as _, []);
        let settings = memory::settings(Duration::from_secs(30), Duration::from_secs(30));
        let keyrings = Arc::new(Keyrings::new(tokens, Arc::clone(&store) as _, Clock::system(), settings));
        keyrings.refresh().await.expect("loaded");
        for number in 0..TENANTS {
            keyrings.create_tenant(memory::tenant(tenant(number)), &Caller::timer()).await.expect("created");
        }
        keyrings.refresh().await.expect("refreshed");
        store.read();
        Self { keyrings, store, path, _folder: folder }
    }

    fn views(&self) -> BTreeMap<String, Arc<TenantView>> {
        let snapshot = self.keyrings.snapshot();
        snapshot.all().map(|view| (view.record.tenant.id.to_string(), Arc::clone(view))).collect()
    }

    async fn rotate(&self, number: usize) {
        let trigger = Trigger { manual: true, force: true, ..Trigger::default() };
        let rotation = RotateKeys { tenant: tenant(number), algorithm: None, trigger };
        self.keyrings.rotate(rotation, &Caller::timer()).await.expect("rotated");
    }
}

fn tenant(number: usize) -> TenantId {
    format!("tenant-{number:02}").parse().expect("a name")
}

async fn shell(path: &Path) -> sqlx::SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.expect("a second connection")
}

#[tokio::test]
async fn a_change_in_one_tenant_makes_no_other_ones_documents_again() {
    let stand = Stand::new().await;
    let before = stand.views();
    stand.rotate(7).await;
    stand.keyrings.refresh().await.expect("refreshed");
    let after = stand.views();
    assert_eq!(before.len(), TENANTS);
    for (id, view) in &after {
        let same = Arc::ptr_eq(view, &before[id]);
        assert_eq!(same, *id != tenant(7).to_string(), "{id}");
    }
}

#[tokio::test]
async fn a_second_in_which_nothing_happens_reads_no_tenants_rows() {
    let stand = Stand::new().await;
    for _ in 0..5 {
        // The store is written to all the time, to show that it can be.
        stand.store.probe().await.expect("well");
        stand.keyrings.refresh().await.expect("refreshed");
    }
    assert_eq!(stand.store.read(), (Vec::new(), 0));
}

#[tokio::test]
async fn a_change_made_here_has_its_tenant_alone_read_again() {
    let stand = Stand::new().await;
    stand.rotate(7).await;
    stand.rotate(9).await;
    stand.store.read();
    stand.keyrings.refresh().await.expect("refreshed");
    assert_eq!(stand.store.read(), (vec!["tenant-07".to_owned(), "tenant-09".to_owned()], 0));
    stand.keyrings.refresh().await.expect("refreshed");
    assert_eq!(stand.store.read(), (Vec::new(), 0));
}

#[tokio::test]
async fn what_another_connection_commits_is_seen_at_once_and_until_it_is_mended() {
    let stand = Stand::new().await;
    let mut shell = shell(&stand.path).await;
    let text = "update keyring set revision = revision + 1 where tenant = 'tenant-07'";
    query(text).execute(&mut shell).await.expect("edited");
    stand.keyrings.refresh().await.expect("refreshed");
    assert!(stand.keyrings.snapshot().is_quarantined(&tenant(7)));
    assert_eq!(stand.views().len(), TENANTS - 1);
    // While somebody is in quarantine all are compared each time: nobody need guess when the record is good again.
    stand.store.read();
    stand.keyrings.refresh().await.expect("refreshed");
    assert_eq!(stand.store.read().1, 1);
    let text = "update keyring set revision = revision - 1 where tenant = 'tenant-07'";
    query(text).execute(&mut shell).await.expect("mended");
    shell.close().await.expect("closed");
    let mended = async {
        while stand.keyrings.snapshot().is_quarantined(&tenant(7)) {
            stand.keyrings.refresh().await.expect("refreshed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), mended).await.expect("out of quarantine");
    stand.store.read();
    stand.keyrings.refresh().await.expect("refreshed");
    assert_eq!(stand.store.read(), (Vec::new(), 0), "all is quiet again");
}

/// Each search takes as long as SoftHSM takes for one among twenty thousand objects.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_use_of_a_key_searches_for_nothing_where_searches_are_slow() {
    const SEARCHES: &str = "C_FindObjectsInit";
    let installation = Installation::bare().set("token.workers", "1").set("token.reconcile_at_start", "false");
    let (installation, faults) = installation.with_faults();
    let installation = installation.init();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let mut issuers = Vec::new();
    for number in 0..6 {
        issuers.push(clients.create_tenant(&tenant(number).to_string(), &["ES256"], short_policy()).await.issuer);
    }
    drop(clients);
    assert!(server.terminate().success());

    faults.set(&format!("{SEARCHES} delay 250ms"));
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let signed = async |clients: &mut Clients, number: usize| {
        let signed = clients.sign_jwt(&tenant(number).to_string(), "ES256", claims(&issuers[number], 600)).await;
        signed.expect("signed").kid
    };
    let first = signed(&mut clients, 0).await;
    let searches = faults.calls(SEARCHES);
    for number in 1..6 {
        signed(&mut clients, number).await;
    }
    assert_eq!(faults.calls(SEARCHES), searches, "each of these keys signed for the first time");

    // A key that was made since: it was looked for when it had to pass its test (R11).
    for _ in 0..2 {
        clients.force_rotation(&tenant(0).to_string(), "ES256").await;
    }
    let searches = faults.calls(SEARCHES);
    assert_ne!(signed(&mut clients, 0).await, first);
    assert_eq!(faults.calls(SEARCHES), searches);
}

#[tokio::test]
async fn tenants_are_listed_a_page_at_a_time_in_order() {
    let stand = Stand::new().await;
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = stand.keyrings.list_tenants(7, after.as_ref());
        assert!(page.tenants.len() <= 7);
        all.extend(page.tenants.into_iter().map(|tenant| tenant.id.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(all, stand.views().into_keys().collect::<Vec<_>>());
}

fn at(secs: u64) -> Timestamp {
    let start: Timestamp = "2026-11-21T00:00:00Z".parse().expect("a time");
    after(start, Duration::from_secs(secs))
}

fn generated(number: u8) -> Generated {
    let kid = Kid::try_from(format!("kid-{number}")).expect("a kid");
    Generated { kid, public: None, certificate: None::<Certificate>, protection: memory::protection() }
}

prop_compose! {
    fn policies()(lead in 1..500u64, period in prop_oneof![Just(0u64), 500..2000u64], ttl in 1..500u64,
        delay in 0..500u64, auto_revoke in any::<bool>()) -> RotationPolicy {
        let secs = Duration::from_secs;
        RotationPolicy {
            max_token_ttl: secs(ttl), jwks_max_age: secs(1), clock_skew: secs(1), publish_lead: secs(lead),
            rotation_period: secs(period), destroy_delay: secs(delay), auto_revoke,
        }
    }
}

proptest! {
    /// Whoever looks only when he was told to misses nothing: between the look and the time that it names nothing becomes due.
    #[test]
    fn nothing_becomes_due_before_its_time(
        old in policies(), new in policies(), changed in 0..1000u64, rotated in 0..1000u64, looked in 0..3000u64,
        joins in any::<bool>(), replaced in any::<bool>(), steps in prop::collection::vec(0..4000u64, 20),
    ) {
        let id: TenantId = "acme".parse().expect("a name");
        let tenant = Tenant {
            id: id.clone(), issuer: "https://acme.example".parse().expect("an issuer"), custom_domain: None,
            saml_sso_url: None, algorithms: vec![Algorithm::HS256], default_algorithm: Algorithm::HS256, policy: old,
            token: TokenName::default(), custom_keys: Vec::new(), policy_floor: None, create_time: at(0), delete_time: None,
            revision: Revision::FIRST,
        };
        let object = |number| ObjectId::new([number; 16]);
        let policy = tenant.policy.clone();
        let tenant = if replaced { tenant.with_policy(new, at(changed)) } else { tenant };
        let keyring = if joins {
            Keyring::join(id, Algorithm::HS256, object(1), at(0)).publish(generated(1), at(1))
        } else {
            let keyring = Keyring::new(id, Algorithm::HS256, object(1), at(0)).publish(generated(1), at(1));
            let keyring = keyring.activate_first(object(2), at(2)).publish(generated(2), at(3));
            let force = Trigger { force: true, ..Trigger::default() };
            let keyring = keyring.rotate(&force, &policy, object(3), at(rotated), at(rotated)).expect("rotated");
            keyring.publish(generated(3), at(rotated + 1))
        };
        let look = |now| outlook(&tenant, std::slice::from_ref(&keyring), now, |_| Claim::Theirs);
        let until = match look(at(looked)) {
            Outlook::Due => return Ok(()),
            Outlook::At(time) => Some(time),
            Outlook::Nothing => None,
        };
        for step in steps {
            let now = at(looked + step);
            if until.is_none_or(|until| now < until) {
                prop_assert_ne!(look(now), Outlook::Due, "at {}, and the look had said {:?}", now, until);
            }
        }
    }
}
