//! R10: a rotation that revokes the replaced key is acknowledged only when no request can sign with that key any more.
//!
//! The keyrings and the store are real; the token is one in memory that holds signatures back until the test lets them go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use keyward::domain::{
    Algorithm, Ed25519, KeyState, ObjectId, Octets, Protection, PublicKey, RotationPolicy, TenantId, Trigger,
};
use keyward::keyring::{Choice, Clock, Input, Keyrings, ListedState, RotateKeys, Settings, TenantSpec};
use keyward::store::{SqliteStore, TokenBinding};
use keyward::token::{Found, KeyRef, KeySpec, SignInput, Token, TokenError, TokenIdentity, TokenKey};
use tokio::sync::Notify;

/// For what must come.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// For what must not come: without the fence it comes within a millisecond or two.
const QUIET: Duration = Duration::from_millis(200);

/// Ed25519 keys in memory.
#[derive(Default)]
struct HoldingToken {
    pairs: Mutex<HashMap<ObjectId, Ed25519KeyPair>>,
    hold: AtomicBool,
    held: AtomicUsize,
    let_go: Notify,
    /// Told of each generation.
    generated: Notify,
}

fn shown(pair: &Ed25519KeyPair) -> TokenKey {
    let x = Octets(pair.public_key().as_ref().to_vec());
    let text = || "memory".to_owned();
    TokenKey {
        public: Some(PublicKey::Ed25519 { crv: Ed25519::Ed25519, x }),
        protection: Protection {
            token_label: text(),
            token_serial: text(),
            token_manufacturer: text(),
            token_model: text(),
            sensitive: true,
            always_sensitive: true,
            extractable: false,
            never_extractable: true,
            local: true,
        },
    }
}

#[async_trait]
impl Token for HoldingToken {
    async fn generate(&self, object: ObjectId, _: KeySpec) -> Result<TokenKey, TokenError> {
        let pair = Ed25519KeyPair::generate().expect("random octets");
        let key = shown(&pair);
        self.pairs.lock().expect("no panic").insert(object, pair);
        self.generated.notify_one();
        Ok(key)
    }

    async fn find(&self, object: ObjectId, _: Algorithm) -> Result<Found, TokenError> {
        let pairs = self.pairs.lock().expect("no panic");
        Ok(pairs.get(&object).map_or(Found::Absent, |pair| Found::Key(shown(pair))))
    }

    async fn sign(&self, key: &Arc<KeyRef>, inputs: Vec<SignInput>, _: Instant) -> Result<Vec<Vec<u8>>, TokenError> {
        if self.hold.load(Ordering::SeqCst) {
            self.held.fetch_add(1, Ordering::SeqCst);
            self.let_go.notified().await;
        }
        let pairs = self.pairs.lock().expect("no panic");
        let pair = pairs.get(&key.object).ok_or_else(|| TokenError::Unavailable("no such key".to_owned()))?;
        let sign = |input| match input {
            SignInput::Message(message) | SignInput::Digest(message) => pair.sign(&message).as_ref().to_vec(),
        };
        Ok(inputs.into_iter().map(sign).collect())
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        self.pairs.lock().expect("no panic").remove(&object);
        Ok(())
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        Err(TokenError::Unavailable("this token is not probed".to_owned()))
    }
}

async fn keyrings(token: &Arc<HoldingToken>, folder: &std::path::Path, sign_wait_max: Duration) -> Arc<Keyrings> {
    let binding = TokenBinding { serial: "memory".to_owned(), label: "memory".to_owned() };
    let store = SqliteStore::create(&folder.join("store.sqlite"), &binding).await.expect("a store");
    let settings = Settings {
        base_url: "https://keys.example".to_owned(),
        rsa_bits: 2048,
        verify_share: 1.0,
        sign_wait_max,
        snapshot_max_age: WAIT_MAX,
        manual_rotations_per_day: 100,
        sole: true,
    };
    let keyrings = Arc::new(Keyrings::new(token.clone(), Arc::new(store), Clock::system(), settings));
    keyrings.refresh().await.expect("loaded");
    let spec = TenantSpec {
        id: tenant(),
        issuer: None,
        custom_domain: None,
        saml_sso_url: None,
        algorithms: vec![Algorithm::EdDSA],
        default_algorithm: None,
        policy: RotationPolicy::default(),
    };
    keyrings.create_tenant(spec).await.expect("created");
    keyrings
}

fn tenant() -> TenantId {
    "acme".parse().expect("a name")
}

fn choice() -> Choice {
    Choice { tenant: tenant(), algorithm: None, kid: None }
}

fn message() -> Vec<(String, Input)> {
    vec![("message".to_owned(), Input::Message(b"message".to_vec()))]
}

fn rotation() -> RotateKeys {
    let trigger = Trigger { manual: true, force: true, revoke_replaced: true, ..Trigger::default() };
    RotateKeys { tenant: tenant(), algorithm: None, trigger }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoking_rotation_is_acknowledged_after_the_last_request_with_the_old_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = Arc::new(HoldingToken::default());
    let keyrings = keyrings(&token, folder.path(), WAIT_MAX).await;
    let old = keyrings.current_key(&choice()).expect("a current key").key.expect("its facts").kid;

    // 1. A request has chosen the old key and waits for the token.
    token.hold.store(true, Ordering::SeqCst);
    let signing = tokio::spawn({
        let keyrings = Arc::clone(&keyrings);
        async move { keyrings.sign(&choice(), message(), Instant::now() + WAIT_MAX).await }
    });
    until("the request at the token", || token.held.load(Ordering::SeqCst) == 1).await;
    token.hold.store(false, Ordering::SeqCst);

    // 2. The rotation is made, and not acknowledged: nothing that comes after the fence is begun.
    let rotating = tokio::spawn({
        let keyrings = Arc::clone(&keyrings);
        async move { keyrings.rotate(rotation()).await }
    });
    let is_new = || keyrings.current_key(&choice()).is_ok_and(|listed| listed.key.is_some_and(|key| key.kid != old));
    until("the new current key", is_new).await;
    let _ = tokio::time::timeout(Duration::ZERO, token.generated.notified()).await;
    let passed = tokio::time::timeout(QUIET, token.generated.notified()).await;
    assert!(passed.is_err() && !rotating.is_finished(), "the rotation went on while a request held the revoked key");

    // 3. Whoever asks now signs with the new key.
    let signed = keyrings.sign(&choice(), message(), Instant::now() + WAIT_MAX).await.expect("signed");
    assert_ne!(signed.kid, old);

    // 4. The request ends, and the acknowledgement comes.
    token.let_go.notify_waiters();
    assert_eq!(signing.await.expect("no panic").expect("signed").kid, old);
    let rotated = rotating.await.expect("no panic").expect("rotated");
    let previous = rotated.previous.expect("the replaced key");
    assert_eq!((previous.state, previous.key.expect("its facts").kid), (ListedState::Key(KeyState::Revoked), old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_hangs_at_the_token_holds_the_fence_no_longer_than_it_may_wait() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = Arc::new(HoldingToken::default());
    let keyrings = keyrings(&token, folder.path(), Duration::from_millis(300)).await;
    token.hold.store(true, Ordering::SeqCst);
    let signing = tokio::spawn({
        let keyrings = Arc::clone(&keyrings);
        async move { keyrings.sign(&choice(), message(), Instant::now() + WAIT_MAX).await }
    });
    until("the request at the token", || token.held.load(Ordering::SeqCst) == 1).await;
    token.hold.store(false, Ordering::SeqCst);
    keyrings.rotate(rotation()).await.expect("rotated although the token never answers");
    assert!(signing.is_finished() && signing.await.expect("no panic").is_err(), "the request was given up first");
}
