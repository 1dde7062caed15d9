//! What the keyrings make of a token that is not well: its states, and keys whose signatures do not verify (docs/rotation.md, R8, R11).
//!
//! The keyrings, the store and its seals are real; the token is one in memory, so that each fault comes when the test says.

#[path = "common/memory.rs"]
mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::domain::{Algorithm, Caller, ObjectId, SigningKey, TenantId, TokenName, Trigger};
use keyward::keyring::{
    Choice, Clock, Error, Health, Input, Keyrings, ListKeys, ListedState, Part, RotateKeys, ServiceKey, TokenState,
    Tokens, new_object, tend,
};
use keyward::store::{Guard, TokenBinding, sqlite};
use keyward::token::{KeySpec, Token as _};
use memory::{MemoryToken, Mood};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// For what must come.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// For what must not come: several canaries fit in, where there are any.
const QUIET: Duration = Duration::from_millis(1200);
/// What is refused without the token is refused in this time, on two busy cores too.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Keyrings on a token that a test makes unwell, with the tenants `acme` and `other`.
struct Stand {
    token: Arc<MemoryToken>,
    keyrings: Arc<Keyrings>,
    service_key: ObjectId,
    health: watch::Receiver<Health>,
    _running: DropGuard,
    _folder: TempDir,
}

impl Stand {
    /// With both tenants, and canary, health and timer running.
    async fn new() -> Self {
        let stand = Self::without_tenants().await;
        for id in ["acme", "other"] {
            stand.create(id).await.expect("created");
        }
        stand
    }

    async fn without_tenants() -> Self {
        let token = Arc::new(MemoryToken::default());
        let tokens = Tokens::new(Arc::clone(&token) as _, []);
        let object = new_object();
        let spec = KeySpec { algorithm: Algorithm::ES256, rsa_bits: 0 };
        let public = token.generate(object, spec).await.expect("the service key").public.expect("its public half");
        let service_key =
            Arc::new(ServiceKey::new(Arc::clone(tokens.home()) as _, object, public).expect("a P-256 key"));
        let folder = tempfile::tempdir().expect("a folder");
        let (path, witness) = (folder.path().join("store.sqlite"), folder.path().join("witness"));
        let binding = TokenBinding { serial: "memory".to_owned(), label: "memory".to_owned() };
        sqlite::create(&path, &binding, &witness).await.expect("a store");
        let guard = Guard { seals: Arc::clone(&service_key) as _, witness };
        let store = sqlite::open(&path, guard).await.expect("a store");
        let settings = memory::settings(Duration::from_secs(1), WAIT_MAX);
        let keyrings = Arc::new(Keyrings::new(tokens, Arc::new(store), Clock::system(), settings));
        keyrings.refresh().await.expect("loaded");
        let (stop, (tell, health)) = (CancellationToken::new(), watch::channel(Health::unknown()));
        let (this, ending) = (Arc::clone(&keyrings), stop.clone());
        tokio::spawn(async move { this.tokens().home().attend(service_key.canary(), ending).await });
        let (this, ending) = (Arc::clone(&keyrings), stop.clone());
        tokio::spawn(async move { this.watch_health(tell, ending).await });
        tokio::spawn(tend(Arc::clone(&keyrings), stop.clone()));
        let mut stand =
            Self { token, keyrings, service_key: object, health, _running: stop.drop_guard(), _folder: folder };
        stand.health_tells(Health::is_ready).await;
        stand
    }

    async fn create(&self, id: &str) -> Result<(), Error> {
        self.keyrings.create_tenant(memory::tenant(tenant(id)), &Caller::timer()).await.map(drop)
    }

    /// Waits until health is as it should be.
    async fn health_tells(&mut self, expected: impl Fn(&Health) -> bool) {
        let told = tokio::time::timeout(WAIT_MAX, self.health.wait_for(expected)).await.is_ok();
        assert!(told, "health tells {:?}", self.health.borrow());
    }

    async fn token_becomes(&mut self, state: TokenState) {
        self.health_tells(|health| {
            health.tokens[&TokenName::default()].as_ref().is_some_and(|token| token.state == state)
        })
        .await;
    }

    /// Signs for a tenant; the kid that signed.
    async fn sign(&self, id: &str) -> Result<String, Error> {
        let choice = Choice { tenant: tenant(id), algorithm: None, kid: None };
        let message = vec![("message".to_owned(), Input::Message(b"message".to_vec()))];
        Ok(self.keyrings.sign(&choice, message, Instant::now() + WAIT_MAX).await?.kid.to_string())
    }

    async fn rotate(&self, id: &str) -> Result<(), Error> {
        let trigger = Trigger { manual: true, force: true, revoke_replaced: true, ..Trigger::default() };
        let request = RotateKeys { tenant: tenant(id), algorithm: None, trigger };
        self.keyrings.rotate(request, &Caller::timer()).await.map(drop)
    }

    fn current(&self, id: &str) -> SigningKey {
        let choice = Choice { tenant: tenant(id), algorithm: None, kid: None };
        self.keyrings.current_key(&choice).expect("a current key").key.expect("its facts")
    }

    fn states(&self, id: &str) -> Vec<(ListedState, ObjectId)> {
        let list = ListKeys { tenant: tenant(id), algorithm: None, states: Vec::new(), page_size: 100, after: None };
        let page = self.keyrings.list_keys(&list).expect("listed");
        page.keys.iter().map(|listed| (listed.state, listed.object)).collect()
    }
}

fn tenant(id: &str) -> TenantId {
    id.parse().expect("a name")
}

/// The token is away; the pause that the caller is asked for, if one is known.
fn away<T: std::fmt::Debug>(answer: Result<T, Error>) -> Option<Duration> {
    match answer {
        Err(Error::Unavailable { part: Part::Token, retry_after, .. }) => retry_after,
        other => panic!("not refused for want of the token: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_down_is_asked_by_the_canary_alone_and_comes_back() {
    let mut stand = Stand::new().await;
    let (key, states) = (stand.current("acme"), stand.states("acme"));
    assert_eq!(stand.sign("acme").await.expect("signed"), key.kid.to_string());
    stand.token.becomes(Mood::Away);
    away(stand.sign("acme").await);
    stand.token_becomes(TokenState::Down).await;
    assert!(!stand.health.borrow().can_sign());

    let asked = stand.token.asked(key.object);
    for _ in 0..100 {
        let before = Instant::now();
        let pause = away(stand.sign("acme").await).expect("the pause is known");
        assert!(before.elapsed() < AT_ONCE && (Duration::from_millis(250)..=Duration::from_secs(2)).contains(&pause));
    }
    // A change wants a seal.
    let before = Instant::now();
    away(stand.rotate("acme").await);
    away(stand.create("third").await);
    assert!(before.elapsed() < AT_ONCE, "answered after {:?}", before.elapsed());
    assert_eq!(stand.token.asked(key.object), asked, "a token that is down was asked");
    assert_eq!(stand.states("acme"), states, "R8");

    let back = Instant::now();
    stand.token.becomes(Mood::Well);
    stand.token_becomes(TokenState::Up).await;
    assert!(back.elapsed() < Duration::from_secs(5), "up after {:?}", back.elapsed());
    assert_eq!(stand.sign("acme").await.expect("signed"), key.kid.to_string());
    stand.rotate("acme").await.expect("rotated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_missing_takes_no_other_key_away() {
    let stand = Stand::new().await;
    stand.token.becomes_with(stand.current("acme").object, Mood::Away);
    let canaries = stand.token.asked(stand.service_key);
    let until = Instant::now() + WAIT_MAX;
    // The canary is asked again and again because of this key, and signs.
    while stand.token.asked(stand.service_key) < canaries + 4 {
        away(stand.sign("acme").await);
        stand.sign("other").await.expect("the token signs with other keys");
        assert!(!stand.keyrings.tokens().home().is_down());
        assert!(Instant::now() < until, "no canary comes");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_hangs_holds_nobody_beyond_the_deadline_and_goes_down() {
    let mut stand = Stand::new().await;
    stand.token.becomes(Mood::Hanging);
    let before = Instant::now();
    let answer = stand.sign("acme").await;
    assert!(matches!(answer, Err(Error::DeadlineExceeded)), "{answer:?}");
    assert!(before.elapsed() < Duration::from_secs(2), "sign_wait_max is 1 s: {:?}", before.elapsed());
    stand.token_becomes(TokenState::Down).await;
    let before = Instant::now();
    assert!(away(stand.sign("acme").await).is_some());
    assert!(before.elapsed() < AT_ONCE);
    stand.token.becomes(Mood::Well);
    stand.token_becomes(TokenState::Up).await;
    stand.sign("acme").await.expect("signed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_pin_takes_the_token_down_and_no_canary_is_sent() {
    let mut stand = Stand::new().await;
    stand.token.becomes(Mood::PinRefused);
    away(stand.sign("acme").await);
    stand.token_becomes(TokenState::Down).await;
    let problem = stand.health.borrow().home().expect_err("it is down").to_owned();
    assert!(problem.contains("PIN") && problem.contains("restart"), "{problem}");
    stand.token.becomes(Mood::Well);
    let canaries = stand.token.asked(stand.service_key);
    tokio::time::sleep(QUIET).await;
    // One may have been under way.
    assert!(stand.token.asked(stand.service_key) <= canaries + 1, "the canary is sent to a token that refused the PIN");
    assert_eq!(away(stand.sign("acme").await), Some(Duration::from_secs(60)));
}

/// Sessions that are logged in stay so: administration's new session was refused the PIN, which was changed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_is_refused_to_one_session_takes_no_signature_away() {
    let mut stand = Stand::new().await;
    let key = stand.current("acme").object;
    stand.token.becomes_with(key, Mood::PinRefused);
    away(stand.sign("acme").await);
    stand.token_becomes(TokenState::Up).await;
    stand.sign("other").await.expect("the token signs with other keys");
    stand.token.becomes(Mood::Well);
    stand.sign("acme").await.expect("signed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_hangs_goes_down_although_no_canary_finds_a_place_to_wait() {
    let mut stand = Stand::new().await;
    stand.token.becomes(Mood::Full);
    stand.token_becomes(TokenState::Down).await;
    stand.token.becomes(Mood::Well);
    stand.token_becomes(TokenState::Up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_finds_no_place_to_wait_says_nothing_of_a_token_that_signs() {
    let stand = Stand::new().await;
    stand.token.becomes_with(stand.service_key, Mood::Full);
    let canaries = stand.token.asked(stand.service_key);
    let until = Instant::now() + WAIT_MAX;
    while stand.token.asked(stand.service_key) < canaries + 3 {
        stand.sign("acme").await.expect("signed");
        assert!(Instant::now() < until, "no canary comes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let health = stand.health.borrow().tokens[&TokenName::default()].clone().expect("it was asked");
    assert_eq!(health.state, TokenState::Up, "{}", health.problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_canary_does_not_verify_is_down() {
    let mut stand = Stand::new().await;
    stand.token.becomes_with(stand.service_key, Mood::Wrong);
    stand.token_becomes(TokenState::Down).await;
    assert!(away(stand.sign("acme").await).is_some());
    stand.token.becomes(Mood::Well);
    stand.token_becomes(TokenState::Up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_signature_does_not_verify_signs_no_more() {
    let mut stand = Stand::new().await;
    let key = stand.current("acme");
    stand.token.becomes_with(key.object, Mood::Wrong);
    let wrong = stand.sign("acme").await;
    assert!(matches!(wrong, Err(Error::Internal(_))), "{wrong:?}");
    stand.token.becomes(Mood::Well);

    // The token would sign rightly now, and is not asked.
    let asked = stand.token.asked(key.object);
    let kept = |answer: Result<(), Error>| match answer {
        Err(Error::Precondition { reason: "KEY_QUARANTINED", message, .. }) => {
            assert!(message.contains(key.kid.as_str()) && message.contains("force"), "{message}");
        }
        other => panic!("{other:?}"),
    };
    kept(stand.sign("acme").await.map(drop));
    kept(stand.keyrings.saml_metadata(&tenant("acme"), false).await.map(drop));
    assert_eq!(stand.token.asked(key.object), asked);
    stand.sign("other").await.expect("other keys sign");

    // The operator is told, the service stays ready, and the administration log has it.
    let of_key = |health: &Health| health.quarantined_keys.iter().any(|told| told.kid == key.kid);
    stand.health_tells(of_key).await;
    assert!(stand.health.borrow().is_ready());
    let until = Instant::now() + WAIT_MAX;
    loop {
        let events = stand.keyrings.events(Some(tenant("acme")), None, 100).await.expect("events");
        let records = events.iter().filter_map(|entry| entry.record.as_ref());
        let told: Vec<_> = records.filter(|record| record.event.action == "quarantine_key").collect();
        if let [record] = told[..] {
            assert_eq!(record.event.kid.as_ref(), Some(&key.kid));
            break;
        }
        assert!(told.is_empty() && Instant::now() < until, "{told:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // The way out.
    stand.rotate("acme").await.expect("rotated");
    assert_ne!(stand.sign("acme").await.expect("signed"), key.kid.to_string());
    stand.health_tells(|health| health.quarantined_keys.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_whose_test_signature_does_not_verify_is_given_up_unpublished() {
    let stand = Stand::without_tenants().await;
    let service_key = stand.service_key;
    stand.token.becomes(Mood::Wrong);
    stand.token.becomes_with(service_key, Mood::Well);
    let created = stand.create("acme").await;
    assert!(matches!(created, Err(Error::Internal(_))), "{created:?}");
    let (_, failed) = stand.states("acme")[0];
    assert!(stand.token.objects().contains(&failed), "it was generated");
    let jwks = || {
        let snapshot = stand.keyrings.snapshot();
        let view = snapshot.tenant(&tenant("acme")).expect("the tenant");
        String::from_utf8(view.canonical.jwks.body.to_vec()).expect("text")
    };
    assert_eq!(jwks(), r#"{"keys":[]}"#);

    // A key that failed its test is not believed later on, either: it is given up, and its objects go.
    stand.token.becomes(Mood::Wrong);
    stand.token.becomes_with(service_key, Mood::Well);
    let until = Instant::now() + WAIT_MAX;
    while stand.token.objects().contains(&failed) {
        assert!(Instant::now() < until, "{:?}", stand.states("acme"));
        assert_eq!(jwks(), r#"{"keys":[]}"#);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stand.token.becomes(Mood::Well);
    while stand.sign("acme").await.is_err() {
        assert!(Instant::now() < until, "{:?}", stand.states("acme"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(stand.current("acme").object, failed);
}
