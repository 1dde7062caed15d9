//! R10: a rotation that revokes the replaced key is acknowledged only when no request can sign with that key any more.
//!
//! The keyrings and the store are real; the token is one in memory that holds signatures back until the test lets them go.

#[path = "common/memory.rs"]
mod memory;
#[path = "common/seals.rs"]
mod seals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyward::domain::{Algorithm, Caller, KeyState, ObjectId, TenantId, Trigger};
use keyward::keyring::{Choice, Clock, Error, Input, Keyrings, ListedState, RotateKeys, Tokens};
use keyward::store::{TokenBinding, sqlite};
use keyward::token::{
    Found, KeyRef, KeySpec, SignInput, Support, Token, TokenError, TokenIdentity, TokenKey, TokenObject,
};
use keyward::x509;
use memory::MemoryToken;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// For what must come.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// For what must not come: without the fence it comes within a millisecond or two.
const QUIET: Duration = Duration::from_millis(200);

/// A token in memory that holds signatures back.
#[derive(Default)]
struct HoldingToken {
    token: MemoryToken,
    hold: AtomicBool,
    held: AtomicUsize,
    let_go: Notify,
    /// Told of each generation.
    generated: Notify,
}

#[async_trait]
impl Token for HoldingToken {
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
        let key = self.token.generate(object, spec).await;
        self.generated.notify_one();
        key
    }

    async fn find(&self, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError> {
        self.token.find(object, algorithm).await
    }

    async fn sign(&self, key: &Arc<KeyRef>, inputs: Vec<SignInput>, by: Instant) -> Result<Vec<Vec<u8>>, TokenError> {
        if self.hold.load(Ordering::SeqCst) {
            self.held.fetch_add(1, Ordering::SeqCst);
            self.let_go.notified().await;
        }
        self.token.sign(key, inputs, by).await
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        self.token.destroy(object).await
    }

    async fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        self.token.list().await
    }

    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        self.token.mechanisms().await
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        self.token.probe().await
    }
}

async fn keyrings(token: &Arc<HoldingToken>, folder: &std::path::Path, sign_wait_max: Duration) -> Arc<Keyrings> {
    let binding = TokenBinding { serial: "memory".to_owned(), label: "memory".to_owned() };
    let path = folder.join("store.sqlite");
    sqlite::create(&path, &binding, &seals::witness_of(&path)).await.expect("a store");
    let store = sqlite::open(&path, seals::guard(&path)).await.expect("a store");
    let settings = memory::settings(sign_wait_max, WAIT_MAX);
    let keyrings = Arc::new(Keyrings::new(Tokens::new(token.clone(), []), Arc::new(store), Clock::system(), settings));
    keyrings.refresh().await.expect("loaded");
    keyrings.create_tenant(memory::tenant(tenant()), &Caller::timer()).await.expect("created");
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

/// A request whose signature the token holds back; those that come after it are let through.
async fn held<T: Send + 'static>(
    token: &HoldingToken,
    request: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    token.hold.store(true, Ordering::SeqCst);
    let request = tokio::spawn(request);
    until("the request at the token", || token.held.load(Ordering::SeqCst) == 1).await;
    token.hold.store(false, Ordering::SeqCst);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoking_rotation_is_acknowledged_after_the_last_request_with_the_old_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = Arc::new(HoldingToken::default());
    let keyrings = keyrings(&token, folder.path(), WAIT_MAX).await;
    let old = keyrings.current_key(&choice()).expect("a current key").key.expect("its facts").kid;

    // 1. A request has chosen the old key and waits for the token.
    let to_sign = Arc::clone(&keyrings);
    let signing =
        held(&token, async move { to_sign.sign(&choice(), message(), Instant::now() + WAIT_MAX).await }).await;

    // 2. The rotation is made, and not acknowledged: nothing that comes after the fence is begun.
    let rotating = tokio::spawn({
        let keyrings = Arc::clone(&keyrings);
        async move { keyrings.rotate(rotation(), &Caller::timer()).await }
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
    let to_sign = Arc::clone(&keyrings);
    let signing =
        held(&token, async move { to_sign.sign(&choice(), message(), Instant::now() + WAIT_MAX).await }).await;
    keyrings.rotate(rotation(), &Caller::timer()).await.expect("rotated although the token never answers");
    assert!(signing.is_finished() && signing.await.expect("no panic").is_err(), "the request was given up first");
}

/// The certificate in the signature of the tenant's SAML metadata, as it is asked for.
async fn metadata_signer(keyrings: Arc<Keyrings>) -> Result<String, Error> {
    let (_, document) = keyrings.saml_metadata(&tenant(), false).await?;
    let text = String::from_utf8(document.body.to_vec()).expect("UTF-8");
    let signature = text.split("</ds:Signature>").next().expect("split gives at least one part");
    let certificate = signature.split("<ds:X509Certificate>").nth(1).expect("KeyInfo");
    Ok(certificate.split('<').next().expect("split gives at least one part").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_asks_for_metadata_gets_none_that_a_revoked_key_signed() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = Arc::new(HoldingToken::default());
    let keyrings = keyrings(&token, folder.path(), WAIT_MAX).await;
    let old = keyrings.current_key(&choice()).expect("a current key").key.expect("its facts");
    let old_certificate = x509::base64(&old.certificate.expect("a certificate"));

    // 1. One request has its signature held back by the token; the others wait for their turn.
    let first = held(&token, metadata_signer(Arc::clone(&keyrings))).await;
    let crowd: Vec<_> = (0..40).map(|_| tokio::spawn(metadata_signer(Arc::clone(&keyrings)))).collect();
    tokio::task::yield_now().await;

    // 2. The key is replaced and revoked meanwhile; the fence waits for the one that holds it.
    let rotating = tokio::spawn({
        let keyrings = Arc::clone(&keyrings);
        async move { keyrings.rotate(rotation(), &Caller::timer()).await }
    });
    let kid = old.kid.clone();
    let is_new = || keyrings.current_key(&choice()).is_ok_and(|listed| listed.key.is_some_and(|key| key.kid != kid));
    until("the new current key", is_new).await;
    assert!(!rotating.is_finished(), "a request holds the revoked key");
    token.let_go.notify_waiters();
    rotating.await.expect("no panic").expect("rotated");
    assert_eq!(first.await.expect("no panic").expect("made"), old_certificate, "begun before the rotation");
    for request in crowd {
        assert_ne!(request.await.expect("no panic").expect("made"), old_certificate);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_at_a_token_that_hangs_is_bounded_and_holds_no_rotation_up() {
    const SIGN_WAIT_MAX: Duration = Duration::from_millis(300);
    let folder = tempfile::tempdir().expect("a folder");
    let token = Arc::new(HoldingToken::default());
    let keyrings = keyrings(&token, folder.path(), SIGN_WAIT_MAX).await;
    token.hold.store(true, Ordering::SeqCst);
    let crowd: Vec<_> = (0..600).map(|_| tokio::spawn(metadata_signer(Arc::clone(&keyrings)))).collect();
    until("the request at the token", || token.held.load(Ordering::SeqCst) == 1).await;
    token.hold.store(false, Ordering::SeqCst);
    keyrings.rotate(rotation(), &Caller::timer()).await.expect("rotated although the token never answers");
    let mut turned_away = 0;
    for request in crowd {
        match request.await.expect("no panic") {
            Err(Error::Limit { .. }) => turned_away += 1,
            Ok(_) | Err(Error::DeadlineExceeded) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(turned_away >= 300, "at most 256 wait: {turned_away} of 600 were turned away");
}
